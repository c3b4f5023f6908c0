//! The tiered backend with the simplest residency that can work: it reads what is asked, at once,
//! into the slot that was filled longest ago. Logits must be llama.cpp's own, bit for bit.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypura_gguf as gguf;
use hypura_io as io;
use hypura_llama::tiered::{
    self, PoolSpec, Residency, ResidencyError, Routing, StreamKind, StreamMemory, StreamedTensor,
};
use hypura_llama::{BatchToken, Context, ContextParams, FlashAttention, Layout, Threadpool, plain};

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo-moe-54m-q4_k_m.gguf")
}

/// What a run of the naive residency did.
#[derive(Default)]
struct Counts {
    evictions: usize,
    passes: usize,
}

struct Naive {
    memory: Arc<StreamMemory>,
    file: io::File,
    /// By layer and part: where the slices begin, and their bytes.
    parts: HashMap<(u32, u8), (u64, usize)>,
    pool_of_layer: Vec<u32>,
    n_slots: usize,
    /// By pool: what each slot holds (layer, expert, parts), oldest first.
    held: Vec<Vec<(u32, u32, u32, u8)>>,
    counts: Arc<std::sync::Mutex<Counts>>,
    corrupt: bool,
}

impl Residency for Naive {
    fn begin(&mut self, matrices: &[u32]) -> Result<(), ResidencyError> {
        assert!(matrices.is_empty());
        Ok(())
    }

    fn routed(&mut self, _: u32, _: Routing<'_>) {}
    fn note_routing(&mut self, _: u32, _: Routing<'_>) {}

    fn capacity(&self, _: u32) -> usize {
        self.n_slots
    }

    fn is_resident(&self, layer: u32, expert: u32, parts: u8) -> bool {
        let pool = self.pool_of_layer[layer as usize] as usize;
        self.held[pool].iter().any(|h| (h.0, h.1) == (layer, expert) && h.3 & parts == parts)
    }

    fn experts(
        &mut self,
        layer: u32,
        experts: &[u32],
        parts: u8,
        slots: &mut Vec<u32>,
    ) -> Result<(), ResidencyError> {
        let pool = self.pool_of_layer[layer as usize];
        let all = (0..8).filter(|p| self.parts.contains_key(&(layer, *p))).count();
        if parts.count_ones() < u32::try_from(all).unwrap() {
            self.counts.lock().unwrap().passes += 1;
        }
        let held = &mut self.held[pool as usize];
        // Needed ones to the end, so that they are not evicted for each other.
        let (keep, mut order): (Vec<_>, Vec<_>) =
            held.iter().partition(|h| h.0 == layer && experts.contains(&h.1));
        order.extend(keep);
        *held = order;
        for &expert in experts {
            let at = held.iter().position(|h| (h.0, h.1) == (layer, expert));
            let (slot, have) = if let Some(at) = at {
                let (_, _, slot, have) = held.remove(at);
                (slot, have)
            } else if held.len() < self.n_slots {
                (u32::try_from(held.len()).unwrap(), 0)
            } else {
                self.counts.lock().unwrap().evictions += 1;
                (held.remove(0).2, 0)
            };
            for part in (0..8u8).filter(|p| parts & !have & (1 << p) != 0) {
                let (offset, bytes) = self.parts[&(layer, part)];
                let mut lent = self.memory.lend_slot(pool, part, slot).unwrap();
                assert_eq!((lent.head, lent.tail), (32, 32));
                let slice = &mut lent.buffer.as_mut_slice()[lent.head..][..bytes];
                let from = offset + u64::from(expert) * bytes as u64;
                io::read_exact_at(&self.file, from, slice).unwrap();
                if self.corrupt {
                    slice[bytes / 2] ^= 0x55;
                }
            }
            held.push((layer, expert, slot, have | parts));
            slots.push(slot);
        }
        Ok(())
    }

    fn is_pending(&mut self, _: u32, _: u8) -> bool {
        false
    }

    fn wait(&mut self, _: u32, _: u8) -> Result<(), ResidencyError> {
        Ok(())
    }

    fn wait_for_one(&mut self, _: u32, _: u8) -> Result<(), ResidencyError> {
        Ok(())
    }

    fn matrix(&mut self, _: u32) -> Result<usize, ResidencyError> {
        unreachable!("no matrix is streamed here")
    }

    fn rows(&mut self, _: &[i32]) -> Result<(), ResidencyError> {
        unreachable!("no rows are streamed here")
    }

    fn computed(&mut self) {}

    fn end(&mut self) -> Result<(), ResidencyError> {
        Ok(())
    }

    fn compute_time(&mut self, _: Duration) {}
}

fn int(i: usize) -> i32 {
    i32::try_from(i).unwrap()
}

/// Logits of a prompt and of some forced tokens.
fn logits(model: &hypura_llama::Model, flash: FlashAttention, n_prompt: usize) -> Vec<f32> {
    let threads = Arc::new(Threadpool::new(2, 0).unwrap());
    let params = ContextParams {
        n_ctx: 512,
        n_batch: 256,
        n_ubatch: 32,
        flash_attention: flash,
        ..ContextParams::default()
    };
    let mut context = Context::new(model, &params, &threads).unwrap();
    let token = |i: usize| i32::try_from((i * 7919 + 13) % 8000).unwrap();
    let prompt: Vec<_> = (0..n_prompt)
        .map(|i| BatchToken { token: token(i), pos: int(i), seq: 0, output: true })
        .collect();
    context.decode(&prompt).unwrap();
    let mut all = Vec::new();
    for i in 0..n_prompt {
        all.extend_from_slice(context.logits(int(i)).unwrap());
    }
    for i in n_prompt..n_prompt + 24 {
        let next = BatchToken { token: token(i), pos: int(i), seq: 0, output: true };
        context.decode(&[next]).unwrap();
        all.extend_from_slice(context.logits(-1).unwrap());
    }
    all
}

fn streamed(n_slots: usize, corrupt: bool) -> (hypura_llama::Model, Arc<std::sync::Mutex<Counts>>) {
    let model = gguf::Model::open(&demo()).unwrap();
    let mut names = Vec::new();
    let mut parts = HashMap::new();
    let mut pool_of_layer = Vec::new();
    let mut classes: Vec<Vec<u64>> = Vec::new();
    for layer in 0..8u32 {
        let mut class = Vec::new();
        for (part, stem) in ["gate", "up", "down"].iter().enumerate() {
            let part = u8::try_from(part).unwrap();
            let name = format!("blk.{layer}.ffn_{stem}_exps.weight");
            let tensor = model.tensor(&name).unwrap();
            let slice = tensor.expert_range(0).unwrap();
            class.push(slice.len);
            parts.insert((layer, part), (slice.offset, usize::try_from(slice.len).unwrap()));
            let kind = StreamKind::Experts { layer, part };
            names.push(StreamedTensor { name, kind, is_repacked: false });
        }
        let pool = classes.iter().position(|c| *c == class).unwrap_or_else(|| {
            classes.push(class);
            classes.len() - 1
        });
        pool_of_layer.push(u32::try_from(pool).unwrap());
    }
    assert!(classes.len() > 1, "the demo model mixes types, so it has several size classes");
    let open = || Arc::new(io::File::open(demo()).unwrap());
    let reader = Box::new(io::PreadPool::new(io::PoolConfig::default()).unwrap());
    let params = tiered::TieredParams {
        model: &model,
        hot: None,
        files: vec![open()],
        reader,
        streamed: &names,
        layout: Layout::Plain,
        gpus: &[],
        split: &hypura_llama::Split::default(),
        cpu_assists: false,
        progress: &mut |_| true,
    };
    let (loaded, stats) = tiered::load(params).unwrap();
    assert_eq!((stats.streamed_tensors, stats.streamed_bytes_read), (24, 0));
    let resident: u64 = model.tensors.iter().map(|t| t.bytes).sum::<u64>()
        - names.iter().map(|n| model.tensor(&n.name).unwrap().bytes).sum::<u64>();
    assert_eq!(stats.resident_bytes_read, resident);
    let device = Arc::clone(loaded.tiered().unwrap());
    let spec = PoolSpec {
        slots: vec![u32::try_from(n_slots).unwrap(); classes.len()],
        pool_of_layer: pool_of_layer.clone(),
        ring_bytes: 0,
        n_ubatch: 32,
        n_used_max: 4,
        // Slots that do not follow each other closely.
        block: 64,
        phases: (0..u32::try_from(classes.len()).unwrap())
            .flat_map(|pool| (0..8).map(move |part| ((pool, part), 32)))
            .collect(),
        device_slots: Vec::new(),
        device_transit_slots: 0,
        device_ring_bytes: 0,
        store_bytes: 0,
    };
    let memory = StreamMemory::new(&loaded, &spec).unwrap();
    let counts = Arc::new(std::sync::Mutex::new(Counts::default()));
    let naive = Naive {
        memory: Arc::clone(&memory),
        file: io::File::open(demo()).unwrap(),
        parts,
        pool_of_layer,
        n_slots,
        held: vec![Vec::new(); classes.len()],
        counts: Arc::clone(&counts),
        corrupt,
    };
    device.attach(memory, Box::new(naive));
    (loaded, counts)
}

fn plain_model() -> hypura_llama::Model {
    plain::load(&demo(), plain::Source::Read, Layout::Plain, plain::On::Cpu, &mut |_| true).unwrap()
}

#[test]
fn streamed_logits_are_the_plain_loaders() {
    for flash in [FlashAttention::On, FlashAttention::Off] {
        let expected = logits(&plain_model(), flash, 70);
        for (n_slots, evicts, passes) in [(256, false, false), (40, true, false), (5, true, true)] {
            let (model, counts) = streamed(n_slots, false);
            let got = logits(&model, flash, 70);
            assert!(model.tiered().unwrap().misused().is_empty());
            let same = got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && got.len() == expected.len(), "{n_slots} slots, {flash:?}");
            let counts = counts.lock().unwrap();
            assert_eq!(counts.evictions > 0, evicts, "{n_slots} slots");
            assert_eq!(counts.passes > 0, passes, "{n_slots} slots");
        }
    }
}

#[test]
fn a_corrupted_slot_is_noticed() {
    let expected = logits(&plain_model(), FlashAttention::On, 40);
    let (model, _) = streamed(40, true);
    let got = logits(&model, FlashAttention::On, 40);
    assert!(got.iter().zip(&expected).any(|(a, b)| a.to_bits() != b.to_bits()));
}
