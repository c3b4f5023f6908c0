//! What can go wrong.

/// A template could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is no valid Jinja2, or too long.
    #[error("the model's chat template can't be read: {0}; use --raw to pass the prompt as it is")]
    Template(String),
    /// The template refuses this conversation, or runs into an error or a limit.
    #[error("the model's chat template fails: {0}; use --raw to pass the prompt as it is")]
    Render(String),
    /// Rendering takes more work than any honest template needs.
    #[error("the model's chat template takes too much work; use --raw to pass the prompt as it is")]
    Work,
}

impl ChatError {
    pub(crate) fn template(error: &minijinja::Error) -> ChatError {
        ChatError::Template(message(error))
    }

    pub(crate) fn render(error: &minijinja::Error) -> ChatError {
        match error.kind() {
            minijinja::ErrorKind::OutOfFuel => ChatError::Work,
            _ => ChatError::Render(message(error)),
        }
    }
}

/// The message alone: minijinja's place is one in the translated template.
fn message(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}
