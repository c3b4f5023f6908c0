//! How hard a model thinks.

use hypura_chat::Think;

use crate::error::ApiError;

/// What `reasoning_effort` asks for. Models know three words for it; what OpenAI adds below and above
/// is the nearest of them.
pub(super) fn effort(field: &str, effort: Option<&str>) -> Result<Option<Think>, ApiError> {
    let word = match effort {
        None => return Ok(None),
        Some("none") => return Ok(Some(Think::Off)),
        Some("minimal" | "low") => "low",
        Some("medium") => "medium",
        Some("high" | "xhigh" | "max") => "high",
        Some(_) => {
            let message = format!("{field} must be none, minimal, low, medium, high, xhigh or max");
            return Err(ApiError::bad_field(field, message));
        }
    };
    Ok(Some(Think::Effort(word.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_effort() {
        let check = |word: &str, think: Think| {
            assert_eq!(effort("reasoning_effort", Some(word)).unwrap(), Some(think));
        };
        check("none", Think::Off);
        check("minimal", Think::Effort("low".into()));
        check("medium", Think::Effort("medium".into()));
        check("max", Think::Effort("high".into()));
        assert_eq!(effort("reasoning_effort", None).unwrap(), None);
        let error = effort("reasoning.effort", Some("huge")).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("reasoning.effort"));
    }
}
