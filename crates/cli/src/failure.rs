//! What a failure is called, and its exit code.

use std::process::ExitCode;

use hypura_engine::hub::PullError;
use hypura_engine::plan::PlanError;
use hypura_engine::{EstimateError, GenerateError, LoadError, OptimizeError, ResolveError, llama};

use hypura_server::ServeError;

use crate::commands::bench::ChildFailed;
use crate::commands::optimize;
use crate::commands::trace::UnsoundTrace;
use crate::size;

/// What kind of failure it is, for the exit code. The numbers are documented in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A bug of ours, or something that nobody foresaw.
    Internal,
    /// What was asked for can't be done: a wrong option, a budget that is too small, a prompt
    /// that does not fit. (clap uses the same number.)
    Usage,
    /// The model can't be found, read or understood.
    Model,
    /// Reading failed while the model ran.
    Io,
    /// Ctrl-C.
    Interrupted,
    /// Whoever read our output has gone.
    BrokenPipe,
}

/// Somebody pressed Ctrl-C before there was anything to show.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// What the user asked for makes no sense.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl Failure {
    pub(crate) fn of(error: &anyhow::Error) -> Failure {
        error.chain().find_map(Failure::of_one).unwrap_or(Failure::Internal)
    }

    fn of_one(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
        if error.is::<Interrupted>() {
            return Some(Failure::Interrupted);
        }
        if let Some(error) = error.downcast_ref::<ChildFailed>() {
            return Some(error.failure);
        }
        if error.is::<UsageError>() || error.is::<PlanError>() {
            return Some(Failure::Usage);
        }
        if error.is::<UnsoundTrace>() {
            return Some(Failure::Model);
        }
        if error.is::<ResolveError>() || error.is::<hypura_engine::gguf::OpenError>() {
            return Some(Failure::Model);
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let broken = error.kind() == std::io::ErrorKind::BrokenPipe;
            return Some(if broken { Failure::BrokenPipe } else { Failure::Io });
        }
        if let Some(error) = error.downcast_ref::<PullError>() {
            return Some(pull_failure(error));
        }
        if error.is::<ServeError>() {
            return Some(Failure::Io);
        }
        if let Some(error) = error.downcast_ref::<OptimizeError>() {
            return Some(optimize::failure_of(error));
        }
        if let Some(error) = error.downcast_ref::<EstimateError>() {
            return match error {
                // Told by what is behind it.
                EstimateError::Load(error) => Failure::of_one(error),
                EstimateError::Trace { .. } => Some(Failure::Model),
                _ => Some(Failure::Usage),
            };
        }
        if let Some(error) = error.downcast_ref::<LoadError>() {
            return Some(match error {
                LoadError::Plan(_)
                | LoadError::BudgetTooSmall { .. }
                | LoadError::GpuBudgetTooSmall { .. }
                | LoadError::Gpu(_)
                | LoadError::HotOnGpu
                | LoadError::ResidentTooLarge { .. }
                | LoadError::HotLayout
                | LoadError::HotBaseline => Failure::Usage,
                LoadError::Llama(llama::LoadError::Cancelled) => Failure::Interrupted,
                LoadError::NothingToTrace => Failure::Usage,
                LoadError::Llama(llama::LoadError::Io(_))
                | LoadError::Changed(_)
                | LoadError::Fingerprint(_)
                | LoadError::Trace(_) => Failure::Io,
                LoadError::Llama(llama::LoadError::Internal(_)) | LoadError::Other(_) => {
                    Failure::Internal
                }
                _ => Failure::Model,
            });
        }
        if let Some(error) = error.downcast_ref::<GenerateError>() {
            return Some(match error {
                GenerateError::EmptyPrompt | GenerateError::PromptTooLong { .. } => Failure::Usage,
                GenerateError::Decode(llama::DecodeError::Residency(text))
                    if !text.starts_with("internal") =>
                {
                    Failure::Io
                }
                _ => Failure::Internal,
            });
        }
        None
    }

    /// What a process of this program that ended with this exit code failed of.
    pub(crate) fn of_code(code: i32) -> Failure {
        match code {
            2 => Failure::Usage,
            3 => Failure::Model,
            4 => Failure::Io,
            130 => Failure::Interrupted,
            _ => Failure::Internal,
        }
    }

    pub(crate) fn is_silent(self) -> bool {
        self == Failure::BrokenPipe
    }

    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Internal => 1,
            Failure::Usage => 2,
            Failure::Model => 3,
            Failure::Io => 4,
            Failure::Interrupted => 130,
            Failure::BrokenPipe => 141,
        })
    }
}

fn pull_failure(error: &PullError) -> Failure {
    match error {
        PullError::OllamaRegistry { .. }
        | PullError::Reference { .. }
        | PullError::Name(_)
        | PullError::Endpoint { .. } => Failure::Usage,
        PullError::NoGguf { .. }
        | PullError::NotThere { .. }
        | PullError::MissingPart { .. }
        | PullError::NoChecksum { .. }
        | PullError::Denied { .. }
        | PullError::NotFound { .. }
        | PullError::NotGguf { .. }
        | PullError::Model(_) => Failure::Model,
        PullError::Cancelled => Failure::Interrupted,
        _ => Failure::Io,
    }
}

/// An error in one sentence, with what is behind it as far as that is not said already.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    if Failure::of(error) == Failure::Interrupted {
        return Interrupted.to_string();
    }
    if let Some(sentence) = error.downcast_ref::<LoadError>().and_then(budget_sentence) {
        return sentence;
    }
    if let Some(LoadError::Plan(PlanError::QuantizedValuesNeedFlashAttention)) =
        error.downcast_ref()
    {
        return "values of another type than f16 need flash attention; use --flash-attention on, or \
                --kv-type-v f16"
            .to_owned();
    }
    // Only writing to standard output fails without a context.
    if let Some(error) = error.chain().next().and_then(|e| e.downcast_ref::<std::io::Error>()) {
        return format!("can't write to standard output: {}", reason(error));
    }
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1) {
        let said = cause.to_string();
        if sentence.contains(&said) {
            continue;
        }
        sentence.push_str(": ");
        sentence.push_str(&cause.downcast_ref().map_or(said, reason));
    }
    sentence
}

/// An I/O error as part of a sentence: `No such file or directory (os error 2)` without capital and
/// number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split_once(" (os error ").map_or(text.as_str(), |(text, _)| text);
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// A budget that is too small, with sizes that can be typed.
fn budget_sentence(error: &LoadError) -> Option<String> {
    let of_model = |n_ctx: u32| format!("this model with a context of {n_ctx} tokens");
    let of_buffers = || "this model's buffers".to_owned();
    let (option, what, budget_bytes, needed_bytes) = match error {
        LoadError::Plan(PlanError::BudgetTooSmall { smallest_bytes, budget_bytes, n_ctx }) => {
            ("memory", of_model(*n_ctx), budget_bytes, smallest_bytes)
        }
        LoadError::Plan(PlanError::GpuBudgetTooSmall { smallest_bytes, budget_bytes, n_ctx }) => {
            ("gpu-memory", of_model(*n_ctx), budget_bytes, smallest_bytes)
        }
        LoadError::Plan(PlanError::WeightsBudgetTooSmall { smallest_bytes, budget_bytes }) => {
            ("weights-memory", "this model".to_owned(), budget_bytes, smallest_bytes)
        }
        LoadError::BudgetTooSmall { needed_bytes, budget_bytes } => {
            ("memory", of_buffers(), budget_bytes, needed_bytes)
        }
        LoadError::GpuBudgetTooSmall { needed_bytes, budget_bytes } => {
            ("gpu-memory", of_buffers(), budget_bytes, needed_bytes)
        }
        LoadError::ResidentTooLarge { needed_bytes } => {
            return Some(format!(
                "the whole model in memory is too large for the budget; use --memory {} or more",
                size::show_enough(*needed_bytes)
            ));
        }
        _ => return None,
    };
    let (of_gpu, otherwise) = match option {
        "memory" => ("", ", or a smaller --ctx"),
        "gpu-memory" => (" of GPU memory", ", a smaller --ctx, or --gpu off"),
        _ => ("", ""),
    };
    Some(format!(
        "{}{of_gpu} is too small for {what}; use --{option} {} or more{otherwise}",
        size::show(*budget_bytes),
        size::show_enough(*needed_bytes),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_twice() {
        let io = || std::io::Error::other("Disk on fire (os error 5)");
        for (error, expected) in [
            (anyhow::Error::new(io()).context("can't write x"), "can't write x: disk on fire"),
            (anyhow::Error::new(io()), "can't write to standard output: disk on fire"),
            (anyhow::anyhow!("inner").context("outer (inner)"), "outer (inner)"),
            (Interrupted.into(), "interrupted"),
            (UsageError("no".into()).into(), "no"),
        ] {
            assert_eq!(sentence(&error), expected);
        }
    }

    #[test]
    fn budgets_are_named_in_sizes_that_suffice() {
        let smallest_bytes = 67_973_405;
        let plan = PlanError::BudgetTooSmall { smallest_bytes, budget_bytes: 1 << 20, n_ctx: 2048 };
        assert_eq!(
            sentence(&LoadError::Plan(plan).into()),
            "1.00 MiB is too small for this model with a context of 2048 tokens; \
             use --memory 64.9MiB or more, or a smaller --ctx"
        );
        let plan =
            PlanError::GpuBudgetTooSmall { smallest_bytes, budget_bytes: 1 << 20, n_ctx: 2048 };
        let error = LoadError::Plan(plan).into();
        assert_eq!(
            sentence(&error),
            "1.00 MiB of GPU memory is too small for this model with a context of 2048 tokens; \
             use --gpu-memory 64.9MiB or more, a smaller --ctx, or --gpu off"
        );
        assert_eq!(Failure::of(&error), Failure::Usage);
        let error = LoadError::GpuBudgetTooSmall { needed_bytes: smallest_bytes, budget_bytes: 7 };
        assert_eq!(Failure::of(&error.into()), Failure::Usage);
    }
}
