//! From a question to the events of its answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use hypura_chat::{Delta, Parser};
use hypura_engine::llama::{EmbedError, Token};
use hypura_engine::{
    Finish as EngineFinish, GenerateError, Generated, Happening, Refused, Ticket, Update,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::prompt::{self, Prompt};
use super::{Ask, Event, Finish, Summary, TokenLogprob};
use crate::app::Shared;
use crate::error::{ApiError, ErrorKind};
use crate::models::Lease;
use crate::ops::Counted;

/// Asks a model. Returns when the model is loaded and the request has its turn; what is wrong with it
/// is known by then, as far as it can be.
///
/// # Errors
/// When the model is not there or can't be loaded, the request makes no sense, or too many wait.
pub async fn ask(app: &Shared, ask: Ask) -> Result<Answer, ApiError> {
    let begin = Instant::now();
    let waiting = app.metrics.begin_waiting();
    let lease = app.models.load(&ask.model, ask.keep_alive, ask.num_ctx).await?;
    if !lease.runner().facts().generates {
        let message = format!("{:?} does not support generate", ask.model);
        return Err(ApiError::bad(message));
    }
    let loaded = begin.elapsed();
    let load_time = if lease.was_loaded_for_this() { loaded } else { Duration::ZERO };
    let (sender, happenings) = unbounded_channel();
    let tenant = ask.tenant.clone();
    let (lease, prompt, ticket) = blocking(move || {
        let prompt = prompt::prepare(&lease, &ask)?;
        let sink = Box::new(move |happening| sender.send(happening).is_ok());
        let ticket = lease.runner().generate(prompt.request.clone(), sink);
        let ticket = ticket.map_err(|error| refused(&lease, error))?;
        Ok((lease, prompt, ticket))
    })
    .await?;
    let Prompt { request, parser, text, is_forced } = prompt;
    let mut answer = Answer {
        app: Arc::clone(app),
        happenings,
        ready: VecDeque::new(),
        ticket: Some(ticket),
        lease,
        tenant,
        prompt: request.prompt,
        text,
        parser,
        is_forced,
        begin,
        load_time,
        ttft: None,
        logprobs: Vec::new(),
        calls: 0,
        raw_bytes: 0,
        reasoning_bytes: 0,
        is_over: false,
        is_ended: false,
        counted: waiting,
    };
    answer.wait_for_turn().await?;
    answer.counted = app.metrics.begin_answering();
    Ok(answer)
}

/// Tokens of the prompt that a question makes.
///
/// # Errors
/// As [`ask`].
pub async fn count(app: &Shared, ask: &Ask) -> Result<usize, ApiError> {
    let lease = app.models.load(&ask.model, ask.keep_alive, ask.num_ctx).await?;
    let ask = ask.clone();
    blocking(move || Ok(prompt::prepare(&lease, &ask)?.request.prompt.len())).await
}

/// Does what takes a while on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("internal error: a thread panicked")))
}

/// An answer as it comes. Dropping it ends it within a token.
pub struct Answer {
    app: Shared,
    happenings: UnboundedReceiver<Happening>,
    ready: VecDeque<Event>,
    ticket: Option<Ticket>,
    lease: Lease,
    tenant: String,
    prompt: Vec<Token>,
    text: Option<String>,
    parser: Option<Parser>,
    is_forced: bool,
    begin: Instant,
    load_time: Duration,
    /// From the request to the first token.
    ttft: Option<Duration>,
    /// Tokens whose text has not come yet.
    logprobs: Vec<TokenLogprob>,
    calls: usize,
    /// Bytes of text, and of those that are reasoning.
    raw_bytes: usize,
    reasoning_bytes: usize,
    is_over: bool,
    /// Whether its end is counted.
    is_ended: bool,
    /// As waiting, then as being answered.
    counted: Counted,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_ended {
            self.app.metrics.answer_broke_off(&self.lease.entry().name);
        }
    }
}

impl Answer {
    /// The next event; `None` after the end.
    pub async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The model that answers.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Waits until it is computed.
    async fn wait_for_turn(&mut self) -> Result<(), ApiError> {
        let at_most = self.app.config.limits.queue_timeout;
        match tokio::time::timeout(at_most, self.happenings.recv()).await {
            Ok(Some(Happening::Update(Update::Begin))) => Ok(()),
            Ok(Some(Happening::End(Err(error)))) => Err(failed(&error)),
            Ok(Some(other)) => {
                self.take(other)?;
                Ok(())
            }
            Ok(None) => Err(gone()),
            Err(_) => {
                self.ticket = None;
                let message = format!("there was no place for {} s", at_most.as_secs());
                Err(ApiError::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, ApiError>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let taken = match self.happenings.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(happening)) => self.take(happening),
                Poll::Ready(None) => Err(gone()),
            };
            if let Err(error) = taken {
                self.is_over = true;
                self.ticket = None;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    /// Turns what happened into events.
    fn take(&mut self, happening: Happening) -> Result<(), ApiError> {
        match happening {
            Happening::Update(Update::Token(choice)) => {
                self.begins();
                self.logprobs.push(TokenLogprob {
                    token: choice.token,
                    bytes: choice.bytes,
                    logprob: choice.logprob,
                    top: choice.top,
                });
            }
            Happening::Update(Update::Text(text)) => {
                self.begins();
                self.read(&text);
            }
            Happening::Update(_) => {}
            Happening::End(Ok(generated)) => self.end(*generated),
            Happening::End(Err(error)) => return Err(failed(&error)),
        }
        Ok(())
    }

    fn begins(&mut self) {
        if self.ttft.is_none() {
            self.ttft = Some(self.begin.elapsed());
            self.ready.push_back(Event::Begin);
        }
    }

    fn read(&mut self, text: &str) {
        self.raw_bytes += text.len();
        if !self.logprobs.is_empty() {
            self.ready.push_back(Event::Logprobs(std::mem::take(&mut self.logprobs)));
        }
        match &mut self.parser {
            None => self.ready.push_back(Event::Delta(Delta::Content(text.to_owned()))),
            Some(parser) => {
                let was_reasoning = parser.is_in_reasoning();
                let deltas = parser.push(text);
                if was_reasoning || parser.is_in_reasoning() {
                    self.reasoning_bytes = self.raw_bytes;
                }
                self.tell(deltas);
            }
        }
    }

    fn tell(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            self.calls += usize::from(matches!(delta, Delta::ToolCallBegin { .. }));
            self.ready.push_back(Event::Delta(delta));
        }
    }

    fn end(&mut self, generated: Generated) {
        self.begins();
        if !self.logprobs.is_empty() {
            self.ready.push_back(Event::Logprobs(std::mem::take(&mut self.logprobs)));
        }
        if let Some(mut parser) = self.parser.take() {
            let mut rest = parser.finish();
            // A call that was cut in its opening mark is none.
            rest.retain(|delta| !self.is_forced || !matches!(delta, Delta::Content(_)));
            self.tell(rest);
        }
        let summary = self.summary(&generated);
        self.remember(&generated);
        self.app.metrics.answer_ended(&self.lease.entry().name, &summary);
        self.is_ended = true;
        self.ready.push_back(Event::Done(Box::new(summary)));
        self.is_over = true;
        self.ticket = None;
    }

    fn summary(&self, generated: &Generated) -> Summary {
        let finish = match &generated.finish {
            EngineFinish::Stop(text) => Finish::StopText(text.clone()),
            EngineFinish::Length | EngineFinish::ContextFull => Finish::Length,
            EngineFinish::Interrupted => Finish::Cancelled,
            _ if self.calls > 0 => Finish::ToolCalls,
            _ => Finish::Stop,
        };
        let pieces = generated.tokens.iter().map(|&token| self.lease.runner().piece(token).len());
        let before = |sum: &mut usize, bytes: usize| {
            let from = *sum;
            *sum += bytes;
            Some(from)
        };
        let reasoning_tokens =
            pieces.scan(0, before).take_while(|&from| from < self.reasoning_bytes).count();
        Summary {
            finish,
            prompt_tokens: generated.prompt_tokens,
            reused_tokens: generated.reused_tokens,
            generated_tokens: generated.tokens.len(),
            reasoning_tokens,
            context: [self.prompt.as_slice(), &generated.tokens].concat(),
            load_time: self.load_time,
            queue_time: generated.queue_time,
            prompt_time: generated.prompt_time,
            ttft: self.ttft.unwrap_or_default(),
            decode_time: generated.decode_time,
            total_time: self.begin.elapsed(),
        }
    }

    /// What was said is the beginning of what is asked next.
    fn remember(&mut self, generated: &Generated) {
        let Some(text) = self.text.take() else { return };
        // A stop text is in the tokens and not in the answer.
        let is_whole = generated.is_exact && !matches!(generated.finish, EngineFinish::Stop(_));
        let answer = is_whole.then_some((generated.text.as_str(), generated.tokens.as_slice()));
        let prompt = (text, std::mem::take(&mut self.prompt));
        prompt::remember(self.lease.memory(), &self.lease, &self.tenant, prompt, answer);
    }
}

impl Stream for Answer {
    type Item = Result<Event, ApiError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Event, ApiError>>> {
        self.poll(context)
    }
}

pub(super) fn refused(lease: &Lease, error: Refused) -> ApiError {
    match error {
        Refused::Busy { retry_after, .. } => ApiError {
            retry_after: Some(retry_after),
            ..ApiError::new(ErrorKind::Unavailable, error.to_string())
        },
        Refused::Constraint(error) => ApiError::bad(error.to_string()),
        _ => {
            lease.discard();
            gone()
        }
    }
}

pub(super) fn failed(error: &GenerateError) -> ApiError {
    let kind = match error {
        GenerateError::EmptyPrompt
        | GenerateError::Constraint(_)
        | GenerateError::Embed(EmbedError::Empty | EmbedError::None) => ErrorKind::BadRequest,
        GenerateError::PromptTooLong { .. } | GenerateError::Embed(EmbedError::TooLong { .. }) => {
            ErrorKind::ContextLength
        }
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

pub(super) fn gone() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the model was unloaded; try again")
}
