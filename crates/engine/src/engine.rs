//! The thread that owns a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypura_kv::{Health, ScopeFields, StoreStats};
use hypura_llama::{ModelInfo, Token};

use crate::chat::{ChatError, ChatTemplate};
use crate::generate::{GenerateError, GenerateRequest, Generated, Sequence, Update};
use crate::load::Loaded;

/// Events that wait at most; who sends more waits.
const QUEUE_EVENTS_MAX: usize = 64;

/// What the engine's thread is asked to do.
#[non_exhaustive]
pub enum EngineEvent {
    /// Generate an answer.
    Generate {
        /// What.
        request: Box<GenerateRequest>,
        /// Told on the way; when nobody listens any more, the answer ends.
        updates: Sender<Update>,
        /// Told the end.
        reply: Sender<Result<Generated, GenerateError>>,
    },
    /// Turn text into tokens.
    Tokenize {
        /// The text.
        text: String,
        /// Whether to add what the model wants around a text.
        add_special: bool,
        /// Told the tokens, and whether they spell exactly this text.
        reply: Sender<(Vec<Token>, bool)>,
    },
    /// Say whether tokens can be what a text was turned into.
    CouldBe {
        /// The tokens.
        tokens: Vec<Token>,
        /// The text.
        text: String,
        /// Told.
        reply: Sender<bool>,
    },
    /// Go on with somebody else's attention state.
    Tenant {
        /// Whose.
        tenant: String,
    },
    /// Wait until attention state is written, and say what the tiers did.
    Settle {
        /// At most so long.
        at_most: Duration,
        /// Told the numbers; `None` if there are no tiers.
        reply: Sender<Option<Settled>>,
    },
}

/// The tiers of attention state, when nothing waits to be written any more.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Whether all of the state is written, or as much of it as the tiers take.
    pub is_complete: bool,
    /// Whether the memory of the context was given back.
    pub is_released: bool,
    /// The numbers since the model was loaded.
    pub stats: StoreStats,
    /// Whether the cold tier works.
    pub health: Health,
}

/// The engine's thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("internal error: the engine has stopped")]
pub struct EngineGone;

/// A handle to the thread that owns a model. Dropping it ends the thread.
pub struct Engine {
    events: Option<SyncSender<EngineEvent>>,
    thread: Option<JoinHandle<()>>,
    abort: Arc<AtomicBool>,
    info: ModelInfo,
    kv_fields: Option<ScopeFields>,
    template: Option<String>,
    bos: String,
    eos: String,
}

impl Engine {
    /// Starts a thread that owns `loaded`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(loaded: Loaded) -> std::io::Result<Engine> {
        let Loaded { context, stream, attention, .. } = loaded;
        let model = context.model().clone();
        let kv_fields = attention.as_ref().map(|attention| attention.fields().clone());
        let sequence = Sequence::new(context, stream, attention);
        let abort = sequence.abort_flag();
        let (sender, receiver) = sync_channel(QUEUE_EVENTS_MAX);
        let thread = std::thread::Builder::new()
            .name("hypura-engine".into())
            .spawn(move || run(sequence, &receiver))?;
        let vocab = model.vocab();
        Ok(Engine {
            events: Some(sender),
            thread: Some(thread),
            abort,
            info: model.info(),
            kv_fields,
            template: model.chat_template(),
            bos: vocab.bos_text().unwrap_or_default(),
            eos: vocab.eos_text().unwrap_or_default(),
        })
    }

    /// What llama.cpp says of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// While this flag is set, answers end with [`crate::Finish::Interrupted`].
    pub fn abort_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.abort)
    }

    /// The model's chat template; `None` when it brings none.
    ///
    /// # Errors
    /// When it brings one that is not valid.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ChatError> {
        let source = self.template.as_deref();
        source.map(|source| ChatTemplate::new(source, &self.bos, &self.eos)).transpose()
    }

    /// What the names of this model's attention state are made of; `None` if it is not kept.
    pub fn kv_fields(&self) -> Option<&ScopeFields> {
        self.kv_fields.as_ref()
    }

    /// Whether tokens from elsewhere can be what `text` was turned into.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn could_be(&self, tokens: Vec<Token>, text: String) -> Result<bool, EngineGone> {
        let (reply, answer) = channel();
        self.send(EngineEvent::CouldBe { tokens, text, reply })?;
        answer.recv().map_err(|_| EngineGone)
    }

    /// Keeps attention state apart from what was kept before: nothing is shared with other tenants.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn set_tenant(&self, tenant: &str) -> Result<(), EngineGone> {
        self.send(EngineEvent::Tenant { tenant: tenant.to_owned() })
    }

    /// Waits until attention state is written, at most so long. `None` if there are no tiers.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn settle(&self, at_most: Duration) -> Result<Option<Settled>, EngineGone> {
        let (reply, answer) = channel();
        self.send(EngineEvent::Settle { at_most, reply })?;
        answer.recv().map_err(|_| EngineGone)
    }

    /// Turns text into tokens. `add_special` adds what the model wants around a text (a rendered
    /// chat template has it already).
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn tokenize(&self, text: &str, add_special: bool) -> Result<Vec<Token>, EngineGone> {
        // A template that writes the beginning-of-text token itself must not get a second one.
        let add_special = add_special && (self.bos.is_empty() || !text.starts_with(&self.bos));
        let (reply, answer) = channel();
        self.send(EngineEvent::Tokenize { text: text.to_owned(), add_special, reply })?;
        Ok(answer.recv().map_err(|_| EngineGone)?.0)
    }

    /// Turns text that goes on from other text into tokens; `None` if they would not spell just
    /// this text (some tokenizers put a space in front).
    ///
    /// # Errors
    /// When the engine has stopped.
    pub fn tokenize_exactly(&self, text: &str) -> Result<Option<Vec<Token>>, EngineGone> {
        let (reply, answer) = channel();
        self.send(EngineEvent::Tokenize { text: text.to_owned(), add_special: false, reply })?;
        let (tokens, is_exact) = answer.recv().map_err(|_| EngineGone)?;
        Ok(is_exact.then_some(tokens))
    }

    /// Generates an answer; tells `sink` on the way, on the calling thread.
    ///
    /// # Errors
    /// When the prompt does not fit, or the computation fails; the outer error when the engine has
    /// stopped.
    pub fn generate(
        &self,
        request: GenerateRequest,
        mut sink: impl FnMut(Update),
    ) -> Result<Result<Generated, GenerateError>, EngineGone> {
        let (updates, incoming) = channel();
        let (reply, answer) = channel();
        self.send(EngineEvent::Generate { request: Box::new(request), updates, reply })?;
        for update in incoming {
            sink(update);
        }
        answer.recv().map_err(|_| EngineGone)
    }

    fn send(&self, event: EngineEvent) -> Result<(), EngineGone> {
        let events = self.events.as_ref().ok_or(EngineGone)?;
        events.send(event).map_err(|_| EngineGone)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abort.store(true, Ordering::Relaxed);
        self.events = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

/// How often there is a look for work while nobody asks for anything.
const IDLE_STEP: Duration = Duration::from_millis(100);

/// The next event. While there is none, idle work is done.
fn next(sequence: &mut Sequence, events: &Receiver<EngineEvent>) -> Option<EngineEvent> {
    let begin = Instant::now();
    while sequence.idle(begin.elapsed()) {
        match events.recv_timeout(IDLE_STEP) {
            Ok(event) => return Some(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    events.recv().ok()
}

fn run(mut sequence: Sequence, events: &Receiver<EngineEvent>) {
    while let Some(event) = next(&mut sequence, events) {
        match event {
            EngineEvent::CouldBe { tokens, text, reply } => {
                let vocab = sequence.context().model().vocab();
                let _ = reply.send(vocab.could_be(&tokens, text.as_bytes()));
            }
            EngineEvent::Tenant { tenant } => sequence.set_tenant(&tenant),
            EngineEvent::Settle { at_most, reply } => {
                let _ = reply.send(sequence.settle(at_most));
            }
            EngineEvent::Generate { request, updates, reply } => {
                let result =
                    sequence.generate(&request, &mut |update| updates.send(update).is_ok());
                drop(updates);
                // Nobody may be waiting any more.
                let _ = reply.send(result);
            }
            EngineEvent::Tokenize { text, add_special, reply } => {
                let vocab = sequence.context().model().vocab();
                let tokens = vocab.tokenize(&text, add_special, true);
                let is_exact = vocab.spells(&tokens, text.as_bytes());
                let _ = reply.send((tokens, is_exact));
            }
        }
    }
}
