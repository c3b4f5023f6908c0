//! `hypura run`: one answer, or a chat.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use anyhow::Context;
use hypura_engine::{
    ChatTemplate, Engine, Finish, GenerateRequest, Generated, LoadSummary, Message, Update, llama,
};

use crate::args::{BaselineArg, RunArgs};
use crate::commands::{chat, model_path};
use crate::failure::{Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::progress::Bar;
use crate::size;

/// The largest prompt that is read from standard input, in bytes.
const STDIN_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let path = model_path(&args.model)?;
    let interactive = args.interactive || (args.prompt.is_none() && std::io::stdin().is_terminal());
    let prompt = if interactive { None } else { Some(read_prompt(args)?) };
    if let Some(path) = &args.stats_json {
        check_writable(path)?;
    }
    let interrupt = Interrupt::install()?;
    let mut bar = Bar::new("loading");
    let mut progress = |share: f32| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1000
        bar.update((share.clamp(0.0, 1.0) * 1000.0) as u64, 1000);
        !interrupt.is_pressed()
    };
    let mut options = args.model.load_options();
    options.trace.clone_from(&args.trace);
    let loaded = match args.baseline {
        None => hypura_engine::load(&path, &options, &mut progress)?,
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
    let engine = Engine::start(loaded).context("can't start the engine's thread")?;
    interrupt.also_set(engine.abort_flag());
    let session = Session { args, engine: &engine, summary: &summary, interrupt: &interrupt };
    let template = session.template()?;
    match prompt {
        None => chat::run(&session, template.as_ref()),
        Some(prompt) => {
            let answer = session.once(&prompt, template.as_ref())?;
            if answer.finish == Finish::Interrupted { Err(Interrupted.into()) } else { Ok(()) }
        }
    }
}

fn read_prompt(args: &RunArgs) -> anyhow::Result<String> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let mut bytes = Vec::new();
    let stdin = std::io::stdin().lock();
    stdin.take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes).context("can't read the prompt")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(UsageError("the prompt is larger than 64 MiB; shorten it".into()).into());
    }
    String::from_utf8(bytes)
        .map_err(|_| UsageError("the prompt is not UTF-8 text; convert it first".into()).into())
}

/// A file that can't be written is better found out before an hour of work than after.
fn check_writable(path: &Path) -> anyhow::Result<()> {
    let open = std::fs::OpenOptions::new().create(true).append(true).open(path);
    open.map(drop)
        .map_err(|error| UsageError(format!("can't write {}: {error}", path.display())).into())
}

/// What an answer needs.
pub(crate) struct Session<'a> {
    pub(crate) args: &'a RunArgs,
    pub(crate) engine: &'a Engine,
    pub(crate) summary: &'a LoadSummary,
    pub(crate) interrupt: &'a Interrupt,
}

impl Session<'_> {
    /// The model's chat template; `None` for a raw prompt, or a model without one.
    fn template(&self) -> anyhow::Result<Option<ChatTemplate>> {
        if self.args.raw {
            return Ok(None);
        }
        Ok(self.engine.chat_template()?)
    }

    /// One answer to one prompt.
    fn once(&self, prompt: &str, template: Option<&ChatTemplate>) -> anyhow::Result<Generated> {
        let text = match template {
            None => prompt.to_owned(),
            Some(template) => {
                let mut messages = self.opening();
                messages.push(Message::new("user", prompt));
                template.render(&messages)?
            }
        };
        let answer = self.answer(&text)?;
        if let Some(path) = &self.args.stats_json {
            let stats = self.summary.run_stats(&answer);
            let json = serde_json::to_string_pretty(&stats)?;
            std::fs::write(path, json + "\n")
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(answer)
    }

    /// The messages that a conversation begins with.
    pub(crate) fn opening(&self) -> Vec<Message> {
        self.args.system.iter().map(|text| Message::new("system", text)).collect()
    }

    /// Generates an answer to a rendered prompt and prints it as it comes.
    pub(crate) fn answer(&self, text: &str) -> anyhow::Result<Generated> {
        let request = GenerateRequest {
            prompt: self.engine.tokenize(text, true)?,
            max_tokens: self.args.max_tokens,
            sampler: self.args.sampling.params(),
            stop: self.args.stop.clone(),
            ignore_end: self.args.ignore_eos,
        };
        let mut bar = Bar::new("reading the prompt");
        let mut out = std::io::stdout().lock();
        let mut broken = None;
        let result = self.engine.generate(request, |update| match update {
            Update::Prompt { done, total } => bar.update(done as u64, total as u64),
            Update::Text(text) => {
                bar.finish();
                let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                if let Err(error) = written
                    && broken.is_none()
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
        let answer = result?;
        // The text alone goes into a pipe; a terminal gets its line ended.
        if std::io::stdout().is_terminal() {
            writeln!(out)?;
        }
        drop(out);
        if !self.args.quiet {
            eprintln!("{}", self.sentence(&answer));
        }
        Ok(answer)
    }

    /// One line about an answer: how fast, from where, and what limited it.
    fn sentence(&self, answer: &Generated) -> String {
        let stats = self.summary.run_stats(answer);
        let mut parts = vec![format!(
            "{} tokens at {:.2}/s",
            stats.generated_tokens, stats.decode_tokens_per_s
        )];
        parts.push(format!(
            "prompt {} at {:.1}/s{}",
            stats.prompt_tokens - stats.kv_tokens_reused,
            stats.prompt_tokens_per_s,
            if stats.kv_tokens_reused > 0 {
                format!(" ({} known)", stats.kv_tokens_reused)
            } else {
                String::new()
            }
        ));
        parts.push(format!("{}, {} layout", stats.mode, stats.layout));
        let decode = &answer.decode_stream;
        if decode.unit_lookups > 0 {
            let rate = decode.unit_hits as f64 / decode.unit_lookups as f64;
            parts.push(format!("{:.1}% of experts found in memory", rate * 100.0));
        }
        let tokens = stats.generated_tokens.saturating_sub(1).max(1) as u64;
        if decode.read_bytes > 0 {
            parts.push(format!("{} read per token", size::show(decode.read_bytes / tokens)));
            let limit = if decode.read_wait > decode.compute { "the drive" } else { "computing" };
            parts.push(format!(
                "limited by {limit} (waited {:.1} s, computed {:.1} s)",
                decode.read_wait.as_secs_f64(),
                decode.compute.as_secs_f64()
            ));
        }
        parts.push(format!(
            "peak memory {} of {}",
            size::show(stats.peak_rss_bytes),
            size::show(stats.budget_bytes)
        ));
        format!("[{}]", parts.join("; "))
    }
}
