//! `hypura run`: one answer, or a chat.

use std::io::{ErrorKind, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hypura_engine::{
    ChatTemplate, Engine, Finish, GenerateError, GenerateRequest, Generated, LoadError,
    LoadSummary, Message, Settled, Update, io, llama, plan, reader,
};

use crate::args::{BaselineArg, RunArgs};
use crate::commands::conversation::{Conversation, Sessions};
use crate::commands::lines::Lines;
use crate::commands::{chat, check_threads, closing, model_path};
use crate::failure::{Interrupted, UsageError, reason, sentence};
use crate::interrupt::Interrupt;
use crate::output::{TextOut, say};
use crate::progress::Bar;

/// How long the end of a run waits for attention state to be written.
const SETTLE_AT_MOST: Duration = Duration::from_secs(30);

/// The largest prompt that is read from standard input, in bytes.
const STDIN_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    check_threads(&args.model)?;
    let path = model_path(&args.model)?;
    let sessions = Sessions::of(args)?;
    let interactive = args.interactive || (args.prompt.is_none() && std::io::stdin().is_terminal());
    let prompt = if interactive { String::new() } else { read_prompt(args)? };
    for path in [&args.stats_json, &args.trace].into_iter().flatten() {
        check_writable(path)?;
    }
    // The line editor takes Ctrl-C over when it is made, for as long as it lives. So it comes first.
    let lines = if interactive { Some(Lines::open()?) } else { None };
    let interrupt = Interrupt::install()?;
    let mut bar = Bar::new("loading");
    let mut progress = |share: f32| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1000
        bar.update((share.clamp(0.0, 1.0) * 1000.0) as u64, 1000);
        !interrupt.is_pressed()
    };
    let mut options = args.model.load_options();
    options.speculate = !args.no_speculate;
    options.keep_segments = args.segments;
    options.experts_on_cpu = args.baseline_experts_on_cpu;
    options.gpu_layers = args.baseline_gpu_layers;
    let defaults = io::EngineConfig::default();
    let depth = args.read_depth.map_or(defaults.depth, |depth| depth as usize);
    options.reader = reader(io::EngineConfig {
        kind: args.reader.kind(),
        depth,
        read_ahead_depth: defaults.read_ahead_depth.min(depth),
        ..defaults
    });
    if args.no_history {
        options.history_dir = None;
    }
    options.trace.clone_from(&args.trace);
    if let (Some(kv), Some(tenant)) =
        (&mut options.kv, sessions.as_ref().and_then(Sessions::tenant))
    {
        tenant.clone_into(&mut kv.tenant);
    }
    let loaded = match args.baseline {
        None => hypura_engine::load(&path, &options, &mut progress)
            .map_err(|error| with_hot_cache(error, args))?,
        Some(source) => {
            let source = match source {
                BaselineArg::Read => llama::plain::Source::Read,
                BaselineArg::Mmap => llama::plain::Source::Mmap,
            };
            hypura_engine::load_baseline(&path, source, &options, &mut progress)?
        }
    };
    bar.finish();
    let summary = loaded.summary();
    if args.trace.is_some() && summary.plan().mode == plan::Mode::FullResident {
        return Err(UsageError(
            "there is nothing to trace, as no experts are streamed; use a smaller --memory".into(),
        )
        .into());
    }
    if let Some(asked) = args.model.ctx
        && asked > summary.plan().n_ctx
    {
        tracing::warn!(
            "--ctx {asked} is cut to the {} tokens that the model was trained for",
            summary.plan().n_ctx
        );
    }
    let engine = Engine::start(loaded).context("can't start the engine's thread")?;
    interrupt.also_set(engine.abort_flag());
    let running = Running { args, engine: &engine, summary: &summary, interrupt: &interrupt };
    let template = running.template()?;
    let mut conversation = running.conversation(sessions)?;
    if let Some(lines) = lines {
        let result = chat::run(&running, template.as_ref(), &mut conversation, lines);
        running.settle()?;
        return result;
    }
    let answer = running.once(&mut conversation, &prompt, template.as_ref())?;
    if answer.finish == Finish::Interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

fn read_prompt(args: &RunArgs) -> anyhow::Result<String> {
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => read_stdin()?,
    };
    if args.raw {
        return Ok(prompt);
    }
    let prompt = prompt.trim_end_matches(['\r', '\n']);
    if prompt.trim().is_empty() {
        return Err(UsageError(
            "the prompt is empty; give one with -p, or on standard input".into(),
        )
        .into());
    }
    Ok(prompt.to_owned())
}

fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let stdin = std::io::stdin().lock();
    stdin.take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes).context("can't read the prompt")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(UsageError("the prompt is larger than 64 MiB; shorten it".into()).into());
    }
    String::from_utf8(bytes)
        .map_err(|_| UsageError("the prompt is not UTF-8 text; convert it first".into()).into())
}

/// A budget may be too small because of what was asked to stay in memory.
fn with_hot_cache(error: LoadError, args: &RunArgs) -> anyhow::Error {
    let is_budget = matches!(
        error,
        LoadError::Plan(plan::PlanError::BudgetTooSmall { .. }) | LoadError::BudgetTooSmall { .. }
    );
    let error = error.into();
    if is_budget && args.model.kv.hot_cache.is_some() {
        return UsageError(format!("{}, or a smaller --hot-cache", sentence(&error))).into();
    }
    error
}

/// A file that can't be written is better found out before an hour of work than after. Leaves
/// nothing behind.
pub(crate) fn check_writable(path: &Path) -> anyhow::Result<()> {
    let made = match std::fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            std::fs::OpenOptions::new().append(true).open(path).map(drop)
        }
        Err(error) => Err(error),
    };
    made.map_err(|error| {
        UsageError(format!("can't write {}: {}", path.display(), reason(&error))).into()
    })
}

/// What an answer needs.
pub(crate) struct Running<'a> {
    pub(crate) args: &'a RunArgs,
    pub(crate) engine: &'a Engine,
    pub(crate) summary: &'a LoadSummary,
    pub(crate) interrupt: &'a Interrupt,
}

impl Running<'_> {
    /// The model's chat template; `None` for a raw prompt, or a model without one.
    fn template(&self) -> anyhow::Result<Option<ChatTemplate>> {
        if self.args.raw {
            return Ok(None);
        }
        match self.engine.chat_template()? {
            // A session is a conversation.
            None if self.args.session.is_some() => Ok(Some(ChatTemplate::chatml()?)),
            template => Ok(template),
        }
    }

    /// One answer to one prompt.
    fn once(
        &self,
        conversation: &mut Conversation,
        prompt: &str,
        template: Option<&ChatTemplate>,
    ) -> anyhow::Result<Generated> {
        let text = match template {
            None => prompt.to_owned(),
            Some(template) => {
                conversation.messages.push(Message::new("user", prompt));
                template.render(&conversation.messages)?
            }
        };
        self.answer(conversation, &text, false)
    }

    /// The conversation that goes on, or the beginning of one.
    fn conversation(&self, sessions: Option<Sessions>) -> anyhow::Result<Conversation> {
        let opening = self.args.system.iter().map(|text| Message::new("system", text)).collect();
        let model = crate::commands::model_name(&self.args.model.model);
        Conversation::begin(opening, sessions, self.engine, model)
    }

    /// Waits until attention state is written.
    pub(crate) fn settle(&self) -> anyhow::Result<Option<Settled>> {
        let settled = self.engine.settle(SETTLE_AT_MOST)?;
        if settled.as_ref().is_some_and(|settled| !settled.is_complete) {
            tracing::warn!("some of the attention state was not written in time");
        }
        Ok(settled)
    }

    /// Generates an answer to a rendered prompt, prints it as it comes, adds it to the conversation,
    /// and reports on it.
    pub(crate) fn answer(
        &self,
        conversation: &mut Conversation,
        text: &str,
        in_chat: bool,
    ) -> anyhow::Result<Generated> {
        let prompt = conversation.transcript().tokenize(self.engine, text);
        let request = GenerateRequest {
            prompt: prompt.clone(),
            max_tokens: self.args.max_tokens.map(|n| n as usize),
            sampler: self.args.sampling.params(),
            stop: self.args.stop.clone(),
            ignore_end: self.args.ignore_eos,
            ..GenerateRequest::default()
        };
        let mut bar = Bar::new("reading the prompt");
        let mut out = TextOut::new();
        let mut broken = None;
        let mut said = String::new();
        let result = self.engine.generate(request, |update| match update {
            Update::Prompt { done, total } => bar.update(done as u64, total as u64),
            Update::Text(piece) => {
                bar.finish();
                said.push_str(&piece);
                conversation.in_progress(text, &prompt, &said);
                if broken.is_none()
                    && let Err(error) = out.write(&piece)
                {
                    self.engine.abort_flag().store(true, std::sync::atomic::Ordering::SeqCst);
                    broken = Some(error);
                }
            }
            _ => {}
        })?;
        bar.finish();
        if let Some(error) = broken {
            return Err(error.into());
        }
        let is_silent = self.args.quiet
            && result.as_ref().is_ok_and(|answer| {
                !matches!(answer.finish, Finish::Interrupted | Finish::ContextFull)
            });
        out.finish(in_chat, !is_silent)?;
        let answer = result.map_err(|error| self.explain(error))?;
        conversation.answered(text, prompt, &answer)?;
        if answer.finish == Finish::ContextFull {
            tracing::warn!(
                "the answer ends early, as the context of {} tokens is full",
                self.summary.plan().n_ctx
            );
        }
        let is_cut_off = answer.finish == Finish::Interrupted && answer.tokens.is_empty();
        if !self.args.quiet && !is_cut_off {
            say(closing::sentence(&self.summary.run_stats(&answer, None), &answer));
        }
        // In a chat the answer is there, and the next message should not wait.
        let wait = !in_chat || self.args.stats_json.is_some();
        let settled = if wait { self.settle()? } else { None };
        self.write_stats(&answer, settled.as_ref())?;
        Ok(answer)
    }

    /// What the user can do about a failed answer depends on what was asked for.
    fn explain(&self, error: GenerateError) -> anyhow::Error {
        let GenerateError::PromptTooLong { prompt_tokens, n_ctx } = error else {
            return error.into();
        };
        let is_model_limit = u32::try_from(n_ctx).is_ok_and(|n| n < self.args.model.ctx_tokens());
        let advice = match (is_model_limit, &self.args.session) {
            (true, Some(_)) => {
                "the model was trained for no more, so begin a session of another name"
            }
            (true, None) => "the model was trained for no more, so shorten it",
            (false, Some(_)) => "raise --ctx or begin a session of another name",
            (false, None) => "shorten it or raise --ctx",
        };
        UsageError(format!(
            "the prompt has {prompt_tokens} tokens, but the context holds {n_ctx}; {advice}"
        ))
        .into()
    }

    fn write_stats(&self, answer: &Generated, settled: Option<&Settled>) -> anyhow::Result<()> {
        let Some(path) = &self.args.stats_json else { return Ok(()) };
        let json = serde_json::to_string_pretty(&self.summary.run_stats(answer, settled))?;
        std::fs::write(path, json + "\n").with_context(|| format!("can't write {}", path.display()))
    }
}
