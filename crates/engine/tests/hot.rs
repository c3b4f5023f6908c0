//! Hot files run: logits are those of llama.cpp's own loader in its fast layout on the original
//! model, bit for bit, at every budget.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{alone, assert_same, demo, expected, load_share, logits, options, stats};
use hypura_engine::gguf::Model;
use hypura_engine::gguf::hot::{HotError, HotLayout, HotModel, HotWriter};
use hypura_engine::io::{
    Completion, PoolConfig, PreadPool, QueueFull, ReadEngine, ReadRequest, ReadStats, Wait,
};
use hypura_engine::llama::{FlashAttention, Layout, plain};
use hypura_engine::plan::Mode;
use hypura_engine::{
    EstimateOptions, LoadError, LoadOptions, Loaded, OptimizeOptions, ReaderFactory, estimate,
    load, load_baseline, optimize, plan_only,
};
use hypura_testkit::tiny::{Mix, RECIPES, find};

/// Shares of the weights' bytes; 0 is the smallest that works.
const SHARES: [f64; 3] = [1.0, 0.6, 0.0];
/// Longer than two micro-batches.
const PROMPT: usize = 70;

fn fast() -> LoadOptions {
    LoadOptions { layout: Layout::Fast, ..options(FlashAttention::Auto) }
}

fn tiny(folder: &Path, recipe: &str, mix: Mix) -> PathBuf {
    let path = folder.join("model.gguf");
    find(recipe).unwrap().model(mix, 3).unwrap().write(&path).unwrap();
    path
}

/// The hot file of a model.
fn hot_of(folder: &Path, source: &Path) -> PathBuf {
    let out = folder.join("hot.gguf");
    let how = OptimizeOptions { threads: Some(2), replace: true };
    optimize(source, &out, &how, &mut |_, _, _| true).unwrap();
    out
}

/// Compares a model's hot file with the model; the modes in which it ran.
fn check(name: &str, source: &Path) -> Vec<Mode> {
    let folder = tempfile::tempdir().unwrap();
    let hot = hot_of(folder.path(), source);
    let options = fast();
    let expected = expected(source, &options, PROMPT);
    let mut modes = Vec::new();
    for share in SHARES {
        let mut loaded = load_share(&hot, &options, share);
        let mode = loaded.plan.mode;
        let what = format!("{name}, {share} of the weights, {mode:?}");
        assert_same(&logits(&mut loaded, PROMPT), &expected, &what);
        assert_eq!(loaded.load_stats.streamed_bytes_read, 0, "{what}");
        let stats = stats(&loaded);
        assert_eq!(stats.read_bytes > 0, mode != Mode::FullResident, "{what}");
        if mode == Mode::ExpertStreaming {
            assert!(stats.evictions > 0, "{what}: {stats:?}");
            assert!(share > 0.0 || stats.passes > 0, "{what}: {stats:?}");
        }
        modes.push(mode);
    }
    modes
}

const MOE: [Mode; 3] = [Mode::FullResident, Mode::ExpertStreaming, Mode::ExpertStreaming];
const DENSE: [Mode; 3] = [Mode::FullResident, Mode::DenseStreaming, Mode::DenseStreaming];

#[test]
fn every_architecture() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for recipe in RECIPES {
        let source = tiny(folder.path(), recipe.name, Mix::Q4_0);
        let is_moe = Model::open(&source).unwrap().hparams().n_expert > 0;
        assert_eq!(
            check(recipe.name, &source),
            if is_moe { MOE } else { DENSE },
            "{}",
            recipe.name
        );
    }
}

/// Of `Q4_K_M` some tensors are rearranged on most CPUs, and others are not.
#[test]
fn mixed_types() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (recipe, modes) in [("qwen3moe", MOE), ("llama", DENSE)] {
        let source = tiny(folder.path(), recipe, Mix::Q4_K_M);
        assert_eq!(check(recipe, &source), modes);
    }
}

#[test]
fn the_demo_model() {
    let _alone = alone();
    assert_eq!(check("demo", &demo("demo-moe-54m-q4_k_m.gguf")), MOE);
}

/// What the tests above compare is not the plain layout: that rounds otherwise.
#[test]
fn the_fast_layout_is_another_one() {
    if !cfg!(target_arch = "x86_64") {
        return; // which CPUs rearrange Q4_0 is ggml's business
    }
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path(), "qwen3moe", Mix::Q4_0);
    let fast = expected(&source, &fast(), PROMPT);
    let plain = expected(&source, &options(FlashAttention::Auto), PROMPT);
    assert!(fast.iter().zip(&plain).any(|(a, b)| a.to_bits() != b.to_bits()));
}

/// Counts the reads of streamed slices, and those of them that need no copy.
struct Watch {
    inner: PreadPool,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    slices: AtomicUsize,
    in_place: AtomicUsize,
    with_padding: AtomicUsize,
}

impl ReadEngine for Watch {
    fn submit(&mut self, request: ReadRequest) -> Result<(), QueueFull> {
        /// Single rows of the input embedding are shorter, and what stays in memory is read into
        /// longer buffers.
        const SLICE: std::ops::Range<usize> = 2048..4 << 20;
        if request.len >= SLICE.start && request.buffer.len() < SLICE.end {
            // 1 where the file system refuses direct reads.
            let block = request.file.alignment().offset as u64;
            let to = request.buffer.as_slice().as_ptr() as u64 + request.buffer_offset as u64;
            let end = request.offset + (request.len + request.slack.tail) as u64;
            let is_in_place = [request.offset, to, end].iter().all(|at| at.is_multiple_of(block));
            let is_padded = !(request.len as u64).is_multiple_of(4096);
            for (count, is_so) in [
                (&self.counts.slices, true),
                (&self.counts.in_place, is_in_place),
                (&self.counts.with_padding, is_padded),
            ] {
                count.fetch_add(usize::from(is_so), Ordering::Relaxed);
            }
        }
        self.inner.submit(request)
    }

    fn promote(&mut self, tag: u64) {
        self.inner.promote(tag);
    }

    fn cancel(&mut self, tag: u64) {
        self.inner.cancel(tag);
    }

    fn complete(&mut self, out: &mut Vec<Completion>, wait: Wait) {
        self.inner.complete(out, wait);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn stats(&self) -> ReadStats {
        self.inner.stats()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}

#[test]
fn streamed_slices_land_in_whole_blocks() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (recipe, mix) in [("gpt-oss", Mix::MXFP4), ("llama", Mix::Q4_K_M)] {
        let hot = hot_of(folder.path(), &tiny(folder.path(), recipe, mix));
        let counts: Arc<Counts> = Arc::default();
        let seen = Arc::clone(&counts);
        let reader: ReaderFactory = Arc::new(move || {
            let inner = PreadPool::new(PoolConfig::default()).map_err(|e| e.to_string())?;
            Ok(Box::new(Watch { inner, counts: Arc::clone(&counts) }) as _)
        });
        let mut loaded = load_share(&hot, &LoadOptions { reader, ..fast() }, 0.6);
        logits(&mut loaded, PROMPT);
        let get = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (slices, in_place) = (get(&seen.slices), get(&seen.in_place));
        assert!(slices > 0 && in_place == slices, "{recipe}: {in_place} of {slices}");
        assert!(get(&seen.with_padding) > 0, "{recipe}: all are whole blocks anyhow");
    }
}

fn refused(path: &Path, options: &LoadOptions) -> LoadError {
    load(path, options, &mut |_| true).map(|_: Loaded| ()).expect_err("it can't be run")
}

#[test]
fn a_file_of_another_cpu_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(&tiny(folder.path(), "qwen3moe", Mix::Q4_0)).unwrap();
    let out = folder.path().join("hot.gguf");
    let foreign = HotLayout::Repacked { fingerprint: [7; 32] };
    let writer = HotWriter::new(&model, |_, _| foreign).unwrap();
    let sizes: Vec<u64> = writer.pieces().iter().map(|piece| piece.source.len).collect();
    let written = writer.write(&out, &model, false, |piece, sink| {
        sink.write_all(&vec![0; usize::try_from(sizes[piece]).unwrap()])
    });
    written.unwrap().publish().unwrap();
    let error = refused(&out, &fast());
    assert!(matches!(error, LoadError::OtherCpu(_)), "{error}");
    // What it is made of can be seen anywhere.
    plan_only(&out, &fast()).unwrap();
}

#[test]
fn a_damaged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hot = hot_of(folder.path(), &tiny(folder.path(), "llama", Mix::Q4_0));
    let bytes = std::fs::read(&hot).unwrap();
    std::fs::write(&hot, &bytes[..bytes.len() - 4096]).unwrap();
    let error = refused(&hot, &fast());
    assert!(matches!(error, LoadError::Open(_)), "{error}");

    // A name of the table of tensors, which no other check looks at.
    let mut bytes = bytes;
    let name = b"blk.0.ffn_up.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + 4] = b'1' + 7;
    std::fs::write(&hot, bytes).unwrap();
    let error = refused(&hot, &fast());
    assert!(matches!(error, LoadError::Hot(HotError::Checksum)), "{error}");
}

#[test]
fn what_a_hot_file_does_not_have_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let source = tiny(folder.path(), "qwen3moe", Mix::Q4_0);
    let hot = hot_of(folder.path(), &source);
    let is_repacked = {
        let hot = HotModel::of(&Model::open(&hot).unwrap()).unwrap();
        let mut places = (0..hot.view.tensors.len()).filter_map(|i| hot.place(i));
        places.any(|place| place.layout.is_repacked())
    };
    if is_repacked {
        let error = refused(&hot, &options(FlashAttention::Auto));
        assert!(matches!(error, LoadError::HotLayout), "{error}");
    }
    let baseline = load_baseline(&hot, plain::Source::Mmap, &fast(), &mut |_| true).map(|_| ());
    assert!(matches!(baseline, Err(LoadError::HotBaseline)), "{baseline:?}");

    // It is planned as the original is.
    let ((seen, plan), (model, expected)) =
        (plan_only(&hot, &fast()).unwrap(), plan_only(&source, &fast()).unwrap());
    assert_eq!(seen.weight_bytes(), model.weight_bytes());
    assert_eq!(plan.placements, expected.placements);
    estimate(&hot, &fast(), &EstimateOptions::default()).unwrap();
}
