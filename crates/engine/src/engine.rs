//! The thread that owns a model.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypura_chat::{ChatError, ChatTemplate};
use hypura_grammar::{Constraint, ConstraintError, Rule, TokenText, Vocabulary};
use hypura_kv::{Health, ScopeFields, StoreStats};
use hypura_llama::{Model, ModelInfo, Token};

use crate::board::Board;
use crate::generate::{GenerateError, GenerateRequest, Generated, Update};
use crate::load::Loaded;
use crate::scheduler::{Active, Scheduler};
use crate::status::EngineStatus;
use crate::ticket::{EmbedReply, Happening, Refused, Sink, Ticket};

/// What the engine's thread is asked to do.
#[non_exhaustive]
pub enum EngineEvent {
    /// Generate an answer.
    Generate {
        /// Its number.
        id: u64,
        /// What.
        request: Box<GenerateRequest>,
        /// The form that it has to have.
        constraint: Option<Box<Constraint>>,
        /// Told what happens.
        sink: Sink,
    },
    /// Compute embeddings.
    Embed {
        /// Its number.
        id: u64,
        /// Of what: tokens of each.
        inputs: VecDeque<Vec<Token>>,
        /// Told them.
        reply: EmbedReply,
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
    events: Option<Sender<EngineEvent>>,
    thread: Option<JoinHandle<()>>,
    abort: Arc<AtomicBool>,
    board: Arc<Board>,
    /// Requests under way or waiting, at most.
    requests_max: usize,
    parallel: usize,
    model: Model,
    vocabulary: Mutex<Option<Vocabulary>>,
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
        let Loaded { context, stream, attention, parallel, queue_max, .. } = loaded;
        let model = context.model().clone();
        let kv_fields = attention.as_ref().map(|attention| attention.fields().clone());
        let abort = context.abort_flag();
        let board = Arc::new(Board::new(Arc::clone(&abort)));
        let scheduler = Scheduler::new(context, parallel, stream, attention, Arc::clone(&board));
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("hypura-engine".into())
            .spawn(move || Worker::new(scheduler).run(&receiver))?;
        let vocab = model.vocab();
        Ok(Engine {
            events: Some(sender),
            thread: Some(thread),
            abort,
            board,
            requests_max: parallel.saturating_add(queue_max),
            parallel,
            info: model.info(),
            kv_fields,
            template: model.chat_template(),
            bos: vocab.bos_text().unwrap_or_default(),
            eos: vocab.eos_text().unwrap_or_default(),
            vocabulary: Mutex::default(),
            model,
        })
    }

    /// What llama.cpp says of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model, for its vocabulary.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Requests that are computed together at most.
    pub fn parallel(&self) -> usize {
        self.parallel
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

    /// What it is doing, as of a moment ago.
    pub fn status(&self) -> EngineStatus {
        self.board.status()
    }

    /// Whether tokens from elsewhere can be what `text` was turned into.
    pub fn could_be(&self, tokens: &[Token], text: &str) -> bool {
        self.model.vocab().could_be(tokens, text.as_bytes())
    }

    /// Keeps attention state apart from what was kept before: nothing is shared with other tenants.
    /// Of requests that name a tenant themselves, this says nothing.
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
    pub fn tokenize(&self, text: &str, add_special: bool) -> Vec<Token> {
        // A template that writes the beginning-of-text token itself must not get a second one.
        let add_special = add_special && (self.bos.is_empty() || !text.starts_with(&self.bos));
        self.model.vocab().tokenize(text, add_special, true)
    }

    /// Turns text that goes on from other text into tokens; `None` if they would not spell just
    /// this text (some tokenizers put a space in front).
    pub fn tokenize_exactly(&self, text: &str) -> Option<Vec<Token>> {
        let vocab = self.model.vocab();
        let tokens = vocab.tokenize(text, false, true);
        vocab.spells(&tokens, text.as_bytes()).then_some(tokens)
    }

    /// Begins an answer; `sink` is told what happens, on the engine's thread. Dropping the ticket
    /// ends the answer. Compiling the form that it has to have may take a moment.
    ///
    /// # Errors
    /// When too many requests wait, or the form is none.
    pub fn submit(&self, request: GenerateRequest, sink: Sink) -> Result<Ticket, Refused> {
        let rule = request.constraint.as_ref().map(|form| &form.rule);
        let constraint = rule.map(|rule| self.constraint(rule)).transpose()?.map(Box::new);
        let id = self.enter()?;
        let request = Box::new(request);
        self.send(EngineEvent::Generate { id, request, constraint, sink })
            .map_err(|_| Refused::Gone)?;
        Ok(self.ticket(id))
    }

    /// Computes the embedding of each input (its tokens). Dropping the ticket ends it.
    ///
    /// # Errors
    /// When too many requests wait.
    pub fn embed(&self, inputs: Vec<Vec<Token>>, reply: EmbedReply) -> Result<Ticket, Refused> {
        let id = self.enter()?;
        self.send(EngineEvent::Embed { id, inputs: inputs.into(), reply })
            .map_err(|_| Refused::Gone)?;
        Ok(self.ticket(id))
    }

    fn enter(&self) -> Result<u64, Refused> {
        let busy = || Refused::Busy {
            waiting: self.board.open().saturating_sub(self.parallel),
            retry_after: self.board.expected_wait(self.parallel),
        };
        self.board.enter(self.requests_max).ok_or_else(busy)
    }

    fn ticket(&self, id: u64) -> Ticket {
        let board = Arc::clone(&self.board);
        Ticket::new(move || board.cancel(id))
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
        let (happenings, incoming) = channel();
        let tell: Sink = Box::new(move |happening| happenings.send(happening).is_ok());
        let _ticket = match self.submit(request, tell) {
            Ok(ticket) => ticket,
            Err(Refused::Constraint(error)) => return Ok(Err(error.into())),
            Err(_) => return Err(EngineGone),
        };
        for happening in incoming {
            match happening {
                Happening::Update(update) => sink(update),
                Happening::End(result) => return Ok(result.map(|generated| *generated)),
            }
        }
        Err(EngineGone)
    }

    /// Compiles a form. The vocabulary for it is made once.
    fn constraint(&self, rule: &Rule) -> Result<Constraint, ConstraintError> {
        let mut made = self.vocabulary.lock().unwrap_or_else(PoisonError::into_inner);
        let vocabulary = match &*made {
            Some(vocabulary) => vocabulary.clone(),
            None => made.insert(vocabulary(&self.model)?).clone(),
        };
        drop(made);
        match rule {
            Rule::Lark(text) => {
                Constraint::new(&vocabulary, &Rule::Lark(vocabulary.with_control_tokens(text)))
            }
            rule => Constraint::new(&vocabulary, rule),
        }
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

/// What forms are made of.
fn vocabulary(model: &Model) -> Result<Vocabulary, ConstraintError> {
    let vocab = model.vocab();
    let all = 0..Token::try_from(vocab.n_tokens()).unwrap_or(Token::MAX);
    let unsigned = |token: Token| u32::try_from(token).ok();
    let ends: Vec<u32> = all
        .clone()
        .filter(|&token| vocab.is_end_of_generation(token))
        .filter_map(unsigned)
        .collect();
    let texts = all.map(|token| {
        let bytes = vocab.piece(token, true);
        match (bytes.is_empty(), vocab.is_control(token)) {
            (true, _) => TokenText::Unused,
            (false, true) => TokenText::Control(bytes),
            (false, false) => TokenText::Text(bytes),
        }
    });
    let end = unsigned(vocab.end_of_text()).or(ends.first().copied()).unwrap_or_default();
    Vocabulary::new(texts.collect(), end, &ends)
        .map_err(|error| ConstraintError::Failed { reason: error.to_string() })
}

/// How often there is a look for work while nobody asks for anything.
const IDLE_STEP: Duration = Duration::from_millis(100);

/// What the engine's thread has.
struct Worker {
    scheduler: Scheduler,
    embeds: VecDeque<Embedding>,
}

/// A request for embeddings, and how far it is.
struct Embedding {
    id: u64,
    inputs: VecDeque<Vec<Token>>,
    done: Vec<Vec<f32>>,
    reply: EmbedReply,
}

impl Worker {
    fn new(scheduler: Scheduler) -> Worker {
        Worker { scheduler, embeds: VecDeque::new() }
    }

    fn run(mut self, events: &Receiver<EngineEvent>) {
        loop {
            // Whatever was asked meanwhile comes first: it may share the next step.
            loop {
                match events.try_recv() {
                    Ok(event) => self.handle(event),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.scheduler.interrupt(),
                }
            }
            if self.scheduler.is_busy() || !self.embeds.is_empty() {
                self.embed();
                self.scheduler.step();
            } else {
                match self.wait(events) {
                    Some(event) => self.handle(event),
                    None => return,
                }
            }
        }
    }

    /// The next event. While there is none, idle work is done.
    fn wait(&mut self, events: &Receiver<EngineEvent>) -> Option<EngineEvent> {
        let begin = Instant::now();
        while self.scheduler.idle(begin.elapsed()) {
            match events.recv_timeout(IDLE_STEP) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        events.recv().ok()
    }

    fn handle(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Generate { id, request, constraint, sink } => {
                let n_vocab = self.scheduler.context().model().vocab().n_tokens();
                let constraint = constraint.map(|constraint| *constraint);
                match Active::new(id, *request, constraint, sink, n_vocab) {
                    Ok(active) => self.scheduler.add(Box::new(active)),
                    Err(mut sink) => {
                        self.scheduler.forget(id);
                        sink(Happening::End(Err(GenerateError::Internal("no sampler"))));
                    }
                }
            }
            EngineEvent::Embed { id, inputs, reply } => {
                let done = Vec::with_capacity(inputs.len());
                self.embeds.push_back(Embedding { id, inputs, done, reply });
            }
            EngineEvent::Tenant { tenant } => self.scheduler.set_tenant(&tenant),
            EngineEvent::Settle { at_most, reply } => {
                let _ = reply.send(self.scheduler.settle(at_most));
            }
        }
    }

    /// Computes one embedding, so that answers go on meanwhile.
    fn embed(&mut self) {
        let Some(mut next) = self.embeds.pop_front() else { return };
        if self.scheduler.is_cancelled(next.id) {
            return self.scheduler.forget(next.id);
        }
        let Some(tokens) = next.inputs.pop_front() else {
            self.scheduler.forget(next.id);
            return (next.reply)(Ok(next.done));
        };
        match self.scheduler.embed(&tokens) {
            Some(Ok(vector)) => {
                next.done.push(vector);
                self.embeds.push_front(next);
            }
            // There is no room before others have ended.
            None => {
                next.inputs.push_front(tokens);
                self.embeds.push_front(next);
            }
            Some(Err(error)) => {
                self.scheduler.forget(next.id);
                (next.reply)(Err(error));
            }
        }
    }
}
