//! How long a model stays loaded, as clients write it.

use std::time::Duration;

use serde_json::Value;

use crate::answer::KeepAlive;
use crate::error::ApiError;

/// Seconds in a unit of Go's `time.ParseDuration`.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Reads `keep_alive` as Ollama does: seconds as a number, or a text such as `5m` or `1h30m`. What is
/// negative is forever.
///
/// # Errors
/// When it is neither.
pub(crate) fn parse(field: &Value) -> Result<KeepAlive, ApiError> {
    let seconds = match field {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok().or_else(|| duration(text)),
        _ => None,
    };
    match seconds.filter(|seconds| seconds.is_finite()) {
        None => Err(ApiError::bad_field(
            "keep_alive",
            "keep_alive must be seconds as a number, or a duration such as \"5m\"",
        )),
        Some(seconds) if seconds < 0.0 => Ok(KeepAlive::Forever),
        // Longer than a `Duration` can be is forever.
        Some(seconds) => {
            Ok(Duration::try_from_secs_f64(seconds).map_or(KeepAlive::Forever, KeepAlive::For))
        }
    }
}

/// Seconds of a duration as Go writes it: numbers, each with its unit.
fn duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(number_end);
        let unit_end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * unit;
        rest = behind;
    }
    Some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations() {
        let seconds = |seconds: f64| KeepAlive::For(Duration::from_secs_f64(seconds));
        for (field, expected) in [
            (json!(90), seconds(90.0)),
            (json!(0), seconds(0.0)),
            (json!("90"), seconds(90.0)),
            (json!("5m"), seconds(300.0)),
            (json!("1h30m1.5s"), seconds(5401.5)),
            (json!("250ms"), seconds(0.25)),
            (json!(-1), KeepAlive::Forever),
            (json!("-1m"), KeepAlive::Forever),
            (json!(1e300), KeepAlive::Forever),
        ] {
            assert_eq!(parse(&field).unwrap(), expected, "{field}");
        }
    }

    #[test]
    fn no_durations() {
        for text in ["", "m", "5x", "5m5", "soon", "NaN", "-"] {
            assert!(parse(&json!(text)).is_err(), "{text:?}");
        }
        assert!(parse(&json!([5])).is_err());
    }
}
