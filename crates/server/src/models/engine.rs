//! Models that the engine runs.

use std::sync::Arc;
use std::time::Duration;

use hypura_chat::ChatTemplate;
use hypura_engine::gguf::Model;
use hypura_engine::llama::Token;
use hypura_engine::plan::{Placement, Plan, PlanError};
use hypura_engine::{
    EmbedReply, Engine, EngineStatus, GenerateRequest, LoadError, LoadOptions, Refused, Sink,
    Ticket, mode_name,
};
use hypura_hub::Entry;

use super::ModelError;
use super::runner::{Budget, Facts, Loader, Needs, Runner, Tiers, Want};

/// Loads models with the engine.
pub struct EngineLoader {
    options: LoadOptions,
    /// Bytes of the process without any model.
    bare_bytes: u64,
}

impl EngineLoader {
    /// Loads with these options; budgets and context are those of each load. To be made before any
    /// model is loaded.
    pub fn new(options: LoadOptions) -> EngineLoader {
        EngineLoader { options, bare_bytes: hypura_engine::llama::process::rss_bytes() }
    }

    fn options(&self, want: &Want, budget: Budget) -> LoadOptions {
        let rss = hypura_engine::llama::process::rss_bytes();
        LoadOptions {
            memory_bytes: budget.memory_bytes,
            gpu_memory_bytes: budget.gpu_memory_bytes,
            ctx_tokens: want.num_ctx.unwrap_or(self.options.ctx_tokens),
            occupied_bytes: rss.saturating_sub(self.bare_bytes),
            ..self.options.clone()
        }
    }
}

impl Loader for EngineLoader {
    fn needs(&self, entry: &Entry, want: &Want) -> Result<Needs, ModelError> {
        // With all the memory there could be, the plan is to keep all of it there.
        let most = Budget { memory_bytes: Some(1 << 60), gpu_memory_bytes: Some(1 << 60) };
        let boundless = self.options(want, most);
        let (_, plan) = hypura_engine::plan_only(entry.path(), &boundless)?;
        let free_bytes = hypura_engine::free_bytes(entry.path(), &boundless);
        let needs = Needs { resident_bytes: plan.bytes.total(), free_bytes, ..Needs::default() };
        let Some(gpu) = &plan.gpu else { return Ok(needs) };
        let vram_resident_bytes = gpu.bytes.total();
        let free = self.options(want, Budget { gpu_memory_bytes: None, ..most });
        let vram_free_bytes = vram_free_bytes(entry, &free)?;
        Ok(Needs { vram_resident_bytes, vram_free_bytes, gpus: gpu.devices, ..needs })
    }

    fn load(
        &self,
        entry: &Entry,
        want: &Want,
        budget: Budget,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Arc<dyn Runner>, ModelError> {
        let options = self.options(want, budget);
        let loaded = hypura_engine::load(entry.path(), &options, progress)?;
        let (summary, load_time) = (loaded.summary(), loaded.load_time);
        let architecture = loaded.gguf.metadata.str("general.architecture").unwrap_or_default();
        let architecture = architecture.to_owned();
        let tiers = tiers(&loaded.gguf, summary.plan());
        let has_memory = loaded.context.has_memory();
        let engine = Engine::start(loaded)
            .map_err(|error| ModelError::Other(format!("no thread can be started: {error}")))?;
        let source = entry.manifest.as_ref().and_then(|manifest| manifest.template.as_deref());
        let template = template(&engine, source, entry)?;
        let cold = options.kv.as_ref().filter(|kv| kv.cold_dir.is_some());
        let kv_cold_bytes_max = cold.map_or(0, |kv| kv.cold_bytes_max);
        let plan = summary.plan();
        let facts = Facts {
            template,
            n_ctx: plan.n_ctx as usize,
            parallel: engine.parallel(),
            generates: has_memory,
            embedding_length: engine.info().n_embd as usize,
            // Pools are fitted to what is really left; the rest are estimates.
            memory_bytes: plan.bytes.total().min(plan.budget_bytes),
            weight_bytes: summary.model_bytes(),
            architecture,
            mode: mode_name(plan.mode).to_owned(),
            load_time,
            tiers: Tiers { kv_cold_bytes_max, ..tiers },
        };
        Ok(Arc::new(EngineRunner { engine, facts }))
    }
}

/// The template of the model's manifest, else its own, else ChatML.
fn template(
    engine: &Engine,
    source: Option<&str>,
    entry: &Entry,
) -> Result<ChatTemplate, ModelError> {
    let other = |error: hypura_chat::ChatError| ModelError::Other(error.to_string());
    if let Some(source) = source {
        let vocab = engine.model().vocab();
        let text = |text: Option<String>| text.unwrap_or_default();
        return ChatTemplate::new(source, &text(vocab.bos_text()), &text(vocab.eos_text()))
            .map_err(other);
    }
    match engine.chat_template() {
        Ok(Some(template)) => Ok(template),
        Ok(None) => ChatTemplate::chatml().map_err(other),
        Err(error) => {
            tracing::warn!(model = %entry.name, "{error}; ChatML is used in its place");
            ChatTemplate::chatml().map_err(other)
        }
    }
}

/// What of GPU memory a model that is loaded now could have.
fn vram_free_bytes(entry: &Entry, options: &LoadOptions) -> Result<u64, ModelError> {
    match hypura_engine::plan_only(entry.path(), options) {
        Ok((_, plan)) => Ok(plan.gpu.map_or(0, |gpu| gpu.budget_bytes)),
        Err(LoadError::Plan(PlanError::GpuBudgetTooSmall { budget_bytes, .. })) => Ok(budget_bytes),
        Err(error) => Err(error.into()),
    }
}

/// Where a model's bytes are, but for what is kept of its attention state.
fn tiers(model: &Model, plan: &Plan) -> Tiers {
    let bytes = &plan.bytes;
    let ram = Tiers {
        ram_weights_bytes: bytes.resident_weights,
        ram_slots_bytes: bytes.expert_slots + bytes.ring,
        ram_kv_bytes: bytes.kv + bytes.kv_tiers,
        ram_buffers_bytes: bytes.compute + bytes.work + bytes.io_buffers + bytes.base,
        drive_weights_bytes: model.weight_bytes().saturating_sub(bytes.resident_weights),
        ..Tiers::default()
    };
    let Some(gpu) = &plan.gpu else { return ram };
    let bytes = &gpu.bytes;
    // Slots were fitted to what is really left; buffers are estimates.
    let others = bytes.weights() + bytes.transit + bytes.kv;
    let buffers_most = gpu.budget_bytes.saturating_sub(others);
    Tiers {
        vram_weights_bytes: bytes.resident_weights,
        vram_slots_bytes: bytes.expert_slots + bytes.ring + bytes.transit,
        vram_kv_bytes: bytes.kv,
        vram_buffers_bytes: (bytes.compute + bytes.work + bytes.base).min(buffers_most),
        gpus: gpu.devices,
        drive_weights_bytes: drive_weights_bytes(model, plan),
        ..ram
    }
}

/// With a GPU: weights that stay neither in its memory nor in ours, by what is planned for each
/// tensor, as some are in both. An expert that both could have is held by one of them, unless ours
/// has room for all.
fn drive_weights_bytes(model: &Model, plan: &Plan) -> u64 {
    let on_gpu = plan.gpu.as_ref().map_or(&[][..], |gpu| &gpu.slots);
    let has_all = |index: usize| {
        plan.pools.get(index).is_some_and(|pool| {
            let there = on_gpu.get(index).copied().unwrap_or(0);
            let all = pool.layers.len() as u64 * u64::from(pool.n_experts);
            u64::from(pool.slots) + u64::from(there) >= all
        })
    };
    let stays = |index: usize, placement: &Placement| match placement {
        Placement::Resident => true,
        Placement::ExpertPool { pool } => has_all(*pool as usize),
        Placement::Ring => plan.host_matrices.binary_search(&index).is_ok(),
        Placement::Rows | Placement::Unused => false,
    };
    let placed = model.tensors.iter().zip(&plan.placements).enumerate();
    placed.filter(|&(i, (_, placement))| !stays(i, placement)).map(|(_, (t, _))| t.bytes).sum()
}

/// A model that the engine runs.
struct EngineRunner {
    engine: Engine,
    facts: Facts,
}

impl Runner for EngineRunner {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tokenize(&self, text: &str, add_special: bool) -> Vec<Token> {
        self.engine.tokenize(text, add_special)
    }

    fn spells(&self, tokens: &[Token], text: &str) -> bool {
        self.engine.model().vocab().spells(tokens, text.as_bytes())
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        self.engine.model().vocab().checked_piece(token).unwrap_or_default()
    }

    fn is_boundary(&self, token: Token) -> bool {
        self.engine.model().vocab().is_boundary(token)
    }

    fn generate(&self, request: GenerateRequest, sink: Sink) -> Result<Ticket, Refused> {
        self.engine.submit(request, sink)
    }

    fn embed(&self, inputs: Vec<Vec<Token>>, reply: EmbedReply) -> Result<Ticket, Refused> {
        self.engine.embed(inputs, reply)
    }

    fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    fn settle(&self, at_most: Duration) {
        match self.engine.settle(at_most) {
            Ok(Some(settled)) if !settled.is_complete => {
                tracing::warn!("some attention state was not written in time");
            }
            Ok(_) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hypura_engine::plan::{GpuRequest, Machine, Request, plan};

    use super::*;

    const PLENTY: u64 = 1 << 40;

    /// The demo model of the repository.
    fn model() -> Model {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        Model::open(&models.join("demo-moe-54m-q4_k_m.gguf")).unwrap()
    }

    fn planned(model: &Model, memory_bytes: u64, gpu_bytes: Option<u64>) -> Plan {
        let gpu = gpu_bytes.map(|memory_bytes| GpuRequest { memory_bytes, devices: 1 });
        let request = Request { memory_bytes, gpu, ..Request::default() };
        plan(model, &Machine::default(), &request).unwrap()
    }

    #[test]
    fn the_drive_has_what_is_in_neither_memory() {
        let model = model();
        let experts: u64 = {
            let all = model.tensors.iter().filter(|t| t.name.contains("_exps"));
            all.map(|tensor| tensor.bytes).sum()
        };
        let without = tiers(&model, &planned(&model, PLENTY, None));
        assert_eq!((without.vram_bytes(), without.drive_weights_bytes), (0, 0));

        let whole = planned(&model, PLENTY, Some(PLENTY));
        let on_gpu = tiers(&model, &whole);
        assert_eq!(on_gpu.vram_bytes(), whole.gpu.as_ref().unwrap().bytes.total());
        assert!(on_gpu.vram_weights_bytes > 0 && on_gpu.ram_kv_bytes == 0, "{on_gpu:?}");
        assert_eq!(on_gpu.drive_weights_bytes, 0);

        // Part of the experts has slots on the GPU, and memory has all of them, or not.
        let less = whole.gpu.as_ref().unwrap().smallest_bytes + (4 << 20);
        let mut streamed = planned(&model, PLENTY, Some(less));
        let all = tiers(&model, &streamed);
        assert!(all.vram_slots_bytes > 0 && all.vram_bytes() <= less, "{all:?}");
        assert_eq!((all.ram_slots_bytes, all.drive_weights_bytes), (experts, 0), "{all:?}");
        let there = streamed.gpu.as_ref().unwrap().slots.clone();
        for (pool, there) in streamed.pools.iter_mut().zip(there) {
            pool.slots -= there;
        }
        assert_eq!(tiers(&model, &streamed).drive_weights_bytes, 0, "each is in one of them");
        for pool in &mut streamed.pools {
            pool.slots -= 1;
        }
        assert_eq!(tiers(&model, &streamed).drive_weights_bytes, experts);

        // Slots that turned out more than planned take the room of buffers that are less.
        let gpu = streamed.gpu.as_mut().unwrap();
        gpu.bytes.expert_slots += 1 << 20;
        gpu.budget_bytes = gpu.bytes.total() - 4096;
        let budget_bytes = gpu.budget_bytes;
        assert_eq!(tiers(&model, &streamed).vram_bytes(), budget_bytes);
    }
}
