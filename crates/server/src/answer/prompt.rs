//! From a question to the request that an engine gets.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use chrono::Local;
use hypura_chat::{Conversation, Parser, Tool};
use hypura_engine::llama::{SamplerParams, Token};
use hypura_engine::{Constrained, GenerateRequest};
use hypura_grammar::{Rule, checked_lark};

use super::{Ask, Input, Memory, Overflow, Sampling, ToolChoice};
use crate::error::{ApiError, ErrorKind};
use crate::models::Lease;

/// What an engine is asked, and what is done with its text.
pub(super) struct Prompt {
    pub(super) request: GenerateRequest,
    /// Tells reasoning, content and calls apart; `None`: all is content.
    pub(super) parser: Option<Parser>,
    /// The prompt as text, if it was text.
    pub(super) text: Option<String>,
    /// Whether the answer has to be a tool call.
    pub(super) is_forced: bool,
}

/// Log probabilities are given for so many of the likeliest tokens at most.
const TOP_LOGPROBS_MAX: usize = 20;

/// Marks the end of a message while it is rendered: private-use characters.
const END_MARK: &str = "\u{f8fe}\u{e0ff}\u{f8fe}";

/// Of a context, one part in this many is left for the answer to a prompt that was cut.
const ANSWER_SHARE: usize = 4;

/// Prepares a request. Renders and tokenizes: no work for a thread that others wait for.
pub(super) fn prepare(lease: &Lease, ask: &Ask) -> Result<Prompt, ApiError> {
    let settings = lease.settings();
    let mut prompt = match &ask.input {
        Input::Chat(conversation) => chat(lease, ask, conversation)?,
        Input::Text(text) => plain(lease, ask, text),
        Input::Tokens(tokens) => of_tokens(lease, ask, tokens.clone())?,
        Input::After(tokens, text) => {
            let mut all = of_tokens(lease, ask, tokens.clone())?.request.prompt;
            all.extend(lease.runner().tokenize(text, tokens.is_empty()));
            of_tokens(lease, ask, all)?
        }
    };
    let request = &mut prompt.request;
    let (n_ctx, n) = (lease.runner().facts().n_ctx, request.prompt.len());
    if n > n_ctx {
        if ask.overflow == Overflow::Refuse || matches!(ask.input, Input::Chat(_)) {
            return Err(too_long(n, n_ctx));
        }
        request.prompt.drain(..n - (n_ctx - n_ctx / ANSWER_SHARE));
        prompt.text = None;
    }
    request.max_tokens = ask.max_tokens.or(settings.max_tokens);
    request.stop = ask.stop.clone().unwrap_or_else(|| settings.stop.clone());
    request.sampler = sampler(&ask.sampling, &settings.sampling, n_ctx);
    request.logprobs = ask.logprobs.map(|n| n.min(TOP_LOGPROBS_MAX));
    request.tenant = Some(ask.tenant.clone());
    Ok(prompt)
}

/// The words are those that clients look for, to shorten a conversation by themselves.
fn too_long(n: usize, n_ctx: usize) -> ApiError {
    ApiError::new(
        ErrorKind::ContextLength,
        format!(
            "the prompt is too long: it has {n} tokens, and the maximum context length is {n_ctx} \
             tokens; shorten it, or ask for more context"
        ),
    )
}

fn of_tokens(lease: &Lease, ask: &Ask, tokens: Vec<Token>) -> Result<Prompt, ApiError> {
    if let Some(unknown) = tokens.iter().find(|&&token| lease.runner().piece(token).is_empty()) {
        return Err(ApiError::bad(format!("this model has no token {unknown}")));
    }
    let constraint = ask.format.clone().map(|rule| Constrained { rule, after: None });
    let request = GenerateRequest { prompt: tokens, constraint, ..GenerateRequest::default() };
    Ok(Prompt { request, parser: None, text: None, is_forced: false })
}

fn plain(lease: &Lease, ask: &Ask, text: &str) -> Prompt {
    let runner = lease.runner().as_ref();
    let tokens = lease.memory().tokenize(runner, &ask.tenant, text, true);
    let constraint = ask.format.clone().map(|rule| Constrained { rule, after: None });
    let request = GenerateRequest { prompt: tokens, constraint, ..GenerateRequest::default() };
    Prompt { request, parser: None, text: Some(text.to_owned()), is_forced: false }
}

fn chat(lease: &Lease, ask: &Ask, conversation: &Conversation) -> Result<Prompt, ApiError> {
    let mut conversation = conversation.clone();
    let settings = lease.settings();
    if let Some(system) = &settings.system
        && conversation.messages.first().is_none_or(|first| first.role != "system")
    {
        conversation.messages.insert(0, hypura_chat::Message::new("system", system.clone()));
    }
    if !settings.messages.is_empty() {
        let at = usize::from(conversation.messages.first().is_some_and(|m| m.role == "system"));
        let before = settings
            .messages
            .iter()
            .map(|(role, text)| hypura_chat::Message::new(role, text.clone()));
        conversation.messages.splice(at..at, before);
    }
    let tools = choose_tools(&conversation.tools, &ask.tool_choice)?;
    conversation.tools.clone_from(&tools);
    let facts = lease.runner().facts();
    let (text, tokens, is_cut) = fitting(lease, ask, &mut conversation)?;
    let format = facts.template.format();
    let parser = format.parser(&text, &tools);
    let is_forced = matches!(ask.tool_choice, ToolChoice::Required | ToolChoice::Function(_));
    let rule = match (&ask.format, is_forced) {
        (_, true) => {
            let forced = format.forced_call(&tools, ask.parallel_tool_calls).ok_or_else(|| {
                ApiError::bad_field("tool_choice", "this model can't be made to call a tool")
            })?;
            let forced = checked_lark(&forced);
            Some(Rule::Lark(forced.map_err(|e| ApiError::bad_field("tools", e.to_string()))?))
        }
        (format, false) => format.clone(),
    };
    let after = parser.is_in_reasoning().then(|| format.reasoning_end()).flatten();
    let constraint = rule.map(|rule| Constrained { rule, after: after.map(str::to_owned) });
    let turn_start = if is_cut { None } else { turn_start(lease, &conversation, &text, &tokens) };
    let request = GenerateRequest {
        prompt: tokens,
        constraint,
        write_control: true,
        turn_start,
        ..GenerateRequest::default()
    };
    Ok(Prompt { request, parser: Some(parser), text: (!is_cut).then_some(text), is_forced })
}

/// The tools that the model is told of.
fn choose_tools(tools: &[Tool], choice: &ToolChoice) -> Result<Vec<Tool>, ApiError> {
    match choice {
        ToolChoice::Auto => Ok(tools.to_vec()),
        ToolChoice::Never => Ok(Vec::new()),
        ToolChoice::Required if tools.is_empty() => {
            Err(ApiError::bad_field("tool_choice", "a tool has to be called, and none is given"))
        }
        ToolChoice::Required => Ok(tools.to_vec()),
        ToolChoice::Function(name) => {
            let chosen: Vec<Tool> = tools.iter().filter(|t| t.name == *name).cloned().collect();
            if chosen.is_empty() {
                let message = format!("there is no tool {name:?} to be called");
                return Err(ApiError::bad_field("tool_choice", message));
            }
            Ok(chosen)
        }
    }
}

/// The conversation as text and as tokens, and whether these were cut. If it is too long and may be
/// cut, the oldest messages are left out, but for the system's and the last; and if that does not
/// suffice, the beginning of what is left.
fn fitting(
    lease: &Lease,
    ask: &Ask,
    conversation: &mut Conversation,
) -> Result<(String, Vec<Token>, bool), ApiError> {
    let runner = lease.runner().as_ref();
    let n_ctx = runner.facts().n_ctx;
    loop {
        let text = render(lease, conversation, true)?;
        let tokens = lease.memory().tokenize(runner, &ask.tenant, &text, true);
        if tokens.is_empty() {
            return Err(ApiError::bad("the conversation is empty; send a message"));
        }
        // Something has to be left for the answer.
        if tokens.len() < n_ctx || ask.overflow == Overflow::Refuse {
            return if tokens.len() > n_ctx {
                Err(too_long(tokens.len(), n_ctx))
            } else {
                Ok((text, tokens, false))
            };
        }
        let last = conversation.messages.len().saturating_sub(1);
        let is_system = |m: &hypura_chat::Message| m.role == "system";
        let oldest = conversation.messages.iter().position(|m| !is_system(m));
        match oldest {
            Some(oldest) if oldest < last => {
                conversation.messages.remove(oldest);
            }
            _ => {
                let kept = tokens.len() - tokens.len().min(n_ctx - n_ctx / ANSWER_SHARE);
                return Ok((text, tokens[kept..].to_vec(), true));
            }
        }
    }
}

/// The conversation as text, with the beginning of an answer if that is asked for. If the assistant
/// said something last, the answer goes on from there: its text is open at the end.
fn render(
    lease: &Lease,
    conversation: &Conversation,
    begins_answer: bool,
) -> Result<String, ApiError> {
    let now = Local::now().fixed_offset();
    let template = &lease.runner().facts().template;
    let render = |conversation: &Conversation, begins_answer| {
        template
            .render_conversation(conversation, begins_answer, now)
            .map_err(|error| ApiError::bad(error.to_string()))
    };
    let goes_on = conversation.messages.last().is_some_and(|last| {
        last.role == "assistant" && last.tool_calls.is_empty() && !last.content.is_empty()
    });
    if !goes_on {
        return render(conversation, begins_answer);
    }
    // What a template puts behind the last message is cut off, whatever it is: behind a mark that no
    // text has.
    let mut marked = conversation.clone();
    if let Some(last) = marked.messages.last_mut() {
        last.content.push_str(END_MARK);
    }
    let text = render(&marked, false)?;
    match text.rfind(END_MARK) {
        Some(end) => Ok(text[..end].to_owned()),
        None => render(conversation, begins_answer),
    }
}

/// Tokens before what the template adds to begin an answer: later prompts of the conversation begin
/// with them, whatever is made of the answer.
fn turn_start(
    lease: &Lease,
    conversation: &Conversation,
    text: &str,
    tokens: &[Token],
) -> Option<usize> {
    let before = render(lease, conversation, false).ok()?;
    let rest = text.strip_prefix(&before).filter(|rest| !rest.is_empty())?;
    let n = lease.runner().tokenize(rest, false).len();
    let start = tokens.len().checked_sub(n)?;
    let said: usize = tokens.get(start..)?.iter().map(|&t| lease.runner().piece(t).len()).sum();
    (said == rest.len() && start > 0).then_some(start)
}

/// What the client said, then what the model's settings say, then the defaults.
fn sampler(said: &Sampling, settings: &Sampling, n_ctx: usize) -> SamplerParams {
    let default = SamplerParams::default();
    let last_n = said.repeat_last_n.or(settings.repeat_last_n);
    let of = |a: Option<f32>, b: Option<f32>, c: f32| a.or(b).unwrap_or(c);
    SamplerParams {
        temperature: of(said.temperature, settings.temperature, default.temperature),
        top_k: said.top_k.or(settings.top_k).unwrap_or(default.top_k),
        top_p: of(said.top_p, settings.top_p, default.top_p),
        min_p: of(said.min_p, settings.min_p, default.min_p),
        typical_p: of(said.typical_p, settings.typical_p, default.typical_p),
        repeat_penalty: of(said.repeat_penalty, settings.repeat_penalty, default.repeat_penalty),
        repeat_last_n: last_n.map_or(default.repeat_last_n, |n| {
            u32::try_from(n).unwrap_or_else(|_| u32::try_from(n_ctx).unwrap_or(u32::MAX))
        }),
        presence_penalty: of(
            said.presence_penalty,
            settings.presence_penalty,
            default.presence_penalty,
        ),
        frequency_penalty: of(
            said.frequency_penalty,
            settings.frequency_penalty,
            default.frequency_penalty,
        ),
        seed: seed(said.seed.or(settings.seed)),
        logit_bias: said.logit_bias.clone(),
    }
}

/// The seed that was asked for, or a new one.
fn seed(asked: Option<i64>) -> u32 {
    match asked.filter(|&seed| seed >= 0) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // any 32 bits will do
        Some(seed) => seed as u32,
        #[allow(clippy::cast_possible_truncation)] // any 32 bits will do
        None => RandomState::new().build_hasher().finish() as u32,
    }
}

/// Remembers what was said, for prompts that go on from it.
pub(super) fn remember(
    memory: &Memory,
    lease: &Lease,
    tenant: &str,
    prompt: (String, Vec<Token>),
    answer: Option<(&str, &[Token])>,
) {
    let (mut text, mut tokens) = prompt;
    let ends = (text.len(), tokens.len());
    if let Some((said, new)) = answer {
        text.push_str(said);
        tokens.extend_from_slice(new);
    }
    memory.remember(lease.runner().as_ref(), tenant, text, tokens, ends);
}
