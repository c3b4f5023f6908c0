//! `keep_alive`: how long a model stays loaded.
//!
//! A number is seconds; a text is a duration as Go's `time.ParseDuration` reads it
//! (<https://pkg.go.dev/time#ParseDuration>); whatever is negative is for ever (`api.Duration` in
//! Ollama's `api/types.go`).

use std::time::Duration;

use serde_json::Value;

use crate::answer::KeepAlive;
use crate::error::ApiError;

/// Nanoseconds of the longest duration that Go knows, 292 years: that is for ever.
const NANOS_MAX: u64 = i64::MAX as u64;
/// Bytes of a text that an error shows.
const SHOWN_CHARS_MAX: usize = 40;

/// The value of the field; null is as good as absent.
///
/// # Errors
/// When it is no number and no duration.
pub(crate) fn keep_alive(value: Option<&Value>) -> Result<Option<KeepAlive>, ApiError> {
    let nanos = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => of_seconds(number.as_f64().unwrap_or(-1.0)),
        Some(Value::String(text)) => of_text(text)
            .map_err(|reason| ApiError::bad_field("keep_alive", format!("keep_alive: {reason}")))?,
        Some(_) => {
            let message = "keep_alive has to be a number of seconds or a duration like \"5m\"";
            return Err(ApiError::bad_field("keep_alive", message));
        }
    };
    Ok(Some(match nanos {
        Some(nanos) if nanos < NANOS_MAX => KeepAlive::For(Duration::from_nanos(nanos)),
        _ => KeepAlive::Forever,
    }))
}

/// `None` is negative, or longer than all durations.
fn of_seconds(seconds: f64) -> Option<u64> {
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    u64::try_from(duration.as_nanos()).ok()
}

/// Go's duration in nanoseconds; `None` is negative.
fn of_text(text: &str) -> Result<Option<u64>, String> {
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let invalid = || format!("time: invalid duration {shown:?}");
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_negative = text.starts_with('-');
    if unsigned == "0" {
        return Ok(Some(0));
    }
    let (mut rest, mut total) = (unsigned, 0_u128);
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {shown:?}"));
        }
        let unit_nanos = nanos_of(unit)
            .ok_or_else(|| format!("time: unknown unit {unit:?} in duration {shown:?}"))?;
        let whole =
            if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| invalid())? };
        total += u128::from(whole) * u128::from(unit_nanos) + part_of(fraction, unit_nanos);
        if total > u128::from(NANOS_MAX) {
            return Err(invalid());
        }
        rest = after;
    }
    let nanos = u64::try_from(total).map_err(|_| invalid())?;
    Ok((!is_negative || nanos == 0).then_some(nanos))
}

/// Leading digits, and what follows.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// `0.FRACTION` of a unit. What is below a nanosecond of the longest unit does not count.
fn part_of(fraction: &str, unit_nanos: u64) -> u128 {
    let (mut nanos, mut scale) = (0_u128, 1_u128);
    for digit in fraction.bytes().take(18) {
        nanos = nanos * 10 + u128::from(digit - b'0') * u128::from(unit_nanos);
        scale *= 10;
    }
    nanos / scale
}

fn nanos_of(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // The sign for micro, and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let seconds = |s: f64| Some(KeepAlive::For(Duration::from_secs_f64(s)));
        let forever = Some(KeepAlive::Forever);
        for (value, want) in [
            (json!(null), None),
            (json!(0), seconds(0.0)),
            (json!(300), seconds(300.0)),
            (json!(0.5), seconds(0.5)),
            (json!(-1), forever),
            (json!(-0.1), forever),
            (json!(1e300), forever),
            (json!("0"), seconds(0.0)),
            (json!("-0s"), seconds(0.0)),
            (json!("5m"), seconds(300.0)),
            (json!("+5m"), seconds(300.0)),
            (json!("1h30m"), seconds(5400.0)),
            (json!("1.5h"), seconds(5400.0)),
            (json!(".5s"), seconds(0.5)),
            (json!("1.s"), seconds(1.0)),
            (json!("250ms"), seconds(0.25)),
            (json!("1\u{b5}s1\u{3bc}s1us"), seconds(0.000_003)),
            (json!("-1m"), forever),
            (json!("-1s"), forever),
            (json!("2562047h47m16.854775807s"), forever),
        ] {
            assert_eq!(keep_alive(Some(&value)).unwrap(), want, "{value}");
        }
        assert_eq!(keep_alive(None).unwrap(), None);
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for (value, reason) in [
            (json!(""), "invalid duration \"\""),
            (json!("5"), "missing unit in duration \"5\""),
            (json!("-1"), "missing unit in duration \"-1\""),
            (json!("5 m"), "unknown unit \" m\""),
            (json!("m"), "invalid duration"),
            (json!("."), "invalid duration"),
            (json!("5d"), "unknown unit \"d\""),
            (json!("1h-2m"), "unknown unit \"h-\""),
            (json!("9999999999999h"), "invalid duration"),
            (json!("99999999999999999999999h"), "invalid duration"),
            (json!("forever"), "invalid duration"),
            (json!(true), "number of seconds"),
            (json!(["5m"]), "number of seconds"),
        ] {
            let error = keep_alive(Some(&value)).unwrap_err();
            assert!(error.message.contains(reason), "{value}: {error}");
            assert_eq!(error.field.as_deref(), Some("keep_alive"));
        }
    }
}
