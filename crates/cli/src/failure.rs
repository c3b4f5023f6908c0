//! Exit codes.

use std::process::ExitCode;

use hypura_engine::{GenerateError, LoadError, ResolveError, llama, plan};

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
        if error.is::<UsageError>() || error.is::<plan::PlanError>() {
            return Some(Failure::Usage);
        }
        if error.is::<ResolveError>() || error.is::<hypura_engine::gguf::OpenError>() {
            return Some(Failure::Model);
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let broken = error.kind() == std::io::ErrorKind::BrokenPipe;
            return Some(if broken { Failure::BrokenPipe } else { Failure::Io });
        }
        if let Some(error) = error.downcast_ref::<LoadError>() {
            return Some(match error {
                LoadError::Plan(_) | LoadError::BudgetTooSmall { .. } => Failure::Usage,
                LoadError::Llama(llama::LoadError::Cancelled) => Failure::Interrupted,
                LoadError::Llama(llama::LoadError::Io(_)) | LoadError::Changed(_) => Failure::Io,
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
