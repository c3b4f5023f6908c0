//! Models that the engine runs.

use std::sync::Arc;
use std::time::Duration;

use hypura_chat::ChatTemplate;
use hypura_engine::llama::Token;
use hypura_engine::{
    EmbedReply, Engine, EngineStatus, GenerateRequest, LoadOptions, LoadSummary, Refused, Sink,
    Ticket, mode_name,
};
use hypura_hub::Entry;

use super::ModelError;
use super::runner::{Facts, Loader, Needs, Runner, Tiers, Want};

/// Loads models with the engine.
pub struct EngineLoader {
    options: LoadOptions,
    /// Bytes of the process without any model.
    bare_bytes: u64,
}

impl EngineLoader {
    /// Loads with these options; memory and context are those of each load. To be made before any
    /// model is loaded.
    pub fn new(options: LoadOptions) -> EngineLoader {
        EngineLoader { options, bare_bytes: hypura_engine::llama::process::rss_bytes() }
    }

    fn options(&self, want: &Want, memory_bytes: Option<u64>) -> LoadOptions {
        let rss = hypura_engine::llama::process::rss_bytes();
        LoadOptions {
            memory_bytes,
            ctx_tokens: want.num_ctx.unwrap_or(self.options.ctx_tokens),
            occupied_bytes: rss.saturating_sub(self.bare_bytes),
            ..self.options.clone()
        }
    }
}

impl Loader for EngineLoader {
    fn needs(&self, entry: &Entry, want: &Want) -> Result<Needs, ModelError> {
        // With all the memory there could be, the plan is to keep all of it there.
        let boundless = self.options(want, Some(1 << 60));
        let (_, plan) = hypura_engine::plan_only(entry.path(), &boundless)?;
        let free_bytes = hypura_engine::free_bytes(entry.path(), &boundless);
        Ok(Needs { resident_bytes: plan.bytes.total(), free_bytes })
    }

    fn load(
        &self,
        entry: &Entry,
        want: &Want,
        memory_bytes: Option<u64>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Arc<dyn Runner>, ModelError> {
        let options = self.options(want, memory_bytes);
        let loaded = hypura_engine::load(entry.path(), &options, progress)?;
        let (summary, load_time) = (loaded.summary(), loaded.load_time);
        let architecture = loaded.gguf.metadata.str("general.architecture").unwrap_or_default();
        let architecture = architecture.to_owned();
        let has_memory = loaded.context.has_memory();
        let engine = Engine::start(loaded)
            .map_err(|error| ModelError::Other(format!("no thread can be started: {error}")))?;
        let source = entry.manifest.as_ref().and_then(|manifest| manifest.template.as_deref());
        let template = template(&engine, source, entry)?;
        let cold = options.kv.as_ref().filter(|kv| kv.cold_dir.is_some());
        let kv_cold_bytes_max = cold.map_or(0, |kv| kv.cold_bytes_max);
        let facts = Facts {
            architecture,
            ..facts(&engine, &summary, template, has_memory, load_time, kv_cold_bytes_max)
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

fn facts(
    engine: &Engine,
    summary: &LoadSummary,
    template: ChatTemplate,
    has_memory: bool,
    load_time: Duration,
    kv_cold_bytes_max: u64,
) -> Facts {
    let plan = summary.plan();
    let bytes = &plan.bytes;
    let weight_bytes = summary.model_bytes();
    Facts {
        template,
        n_ctx: plan.n_ctx as usize,
        parallel: engine.parallel(),
        generates: has_memory,
        embedding_length: engine.info().n_embd as usize,
        // Pools are fitted to what is really left; the rest are estimates.
        memory_bytes: bytes.total().min(plan.budget_bytes),
        weight_bytes,
        architecture: String::new(),
        mode: mode_name(plan.mode).to_owned(),
        load_time,
        tiers: Tiers {
            ram_weights_bytes: bytes.resident_weights,
            ram_slots_bytes: bytes.expert_slots + bytes.ring,
            ram_kv_bytes: bytes.kv + bytes.kv_tiers,
            ram_buffers_bytes: bytes.compute + bytes.work + bytes.io_buffers + bytes.base,
            drive_weights_bytes: weight_bytes.saturating_sub(bytes.resident_weights),
            kv_cold_bytes_max,
        },
    }
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
