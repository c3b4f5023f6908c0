//! `'%s' % x`, `'{}'.format(x)` and the time.

use std::fmt::Write as _;

use chrono::{DateTime, FixedOffset};
use minijinja::value::ValueKind;
use minijinja::{Error, FormatStyle, State, Value, format_filter};

use super::operators::invalid;
use super::{python, work};

/// The widest field and the longest precision that a format may ask for.
const WIDTH_MAX: usize = 10_000;

/// `format % value`: a list stands for several values.
pub(super) fn percent(state: &State<'_, '_>, format: &str, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Seq => percent_values(state, format, &value.try_iter()?.collect::<Vec<_>>()),
        _ => percent_values(state, format, std::slice::from_ref(value)),
    }
}

/// `format % tuple(values)`.
pub(super) fn percent_values(
    state: &State<'_, '_>,
    format: &str,
    values: &[Value],
) -> Result<String, Error> {
    let mut plain = String::with_capacity(format.len());
    let mut written = Vec::with_capacity(values.len());
    let mut values = values.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (before, directive) = rest.split_at(at);
        let Some(end) = directive
            .find(|c: char| c.is_ascii_alphabetic())
            .filter(|_| !directive.starts_with("%%") && !directive.starts_with("%("))
        else {
            // An escaped sign, or a key, with which minijinja does the same as Python.
            let length = directive.len().min(2);
            plain.push_str(before);
            plain.push_str(directive.get(..length).unwrap_or(directive));
            rest = directive.get(length..).unwrap_or_default();
            continue;
        };
        let (flags, conversion) = directive.split_at(end);
        plain.push_str(before);
        plain.push_str(flags);
        rest = conversion.get(1..).unwrap_or_default();
        let value = values.next().cloned().unwrap_or(Value::UNDEFINED);
        match conversion.chars().next() {
            Some('s') => written.push(Value::from(python::text(state, &value)?)),
            Some('r' | 'a') => written.push(Value::from(python::repr(state, &value)?)),
            _ => written.push(value),
        }
        plain.push_str(match conversion.chars().next() {
            Some('r' | 'a') => "s",
            _ => conversion.get(..1).unwrap_or_default(),
        });
    }
    plain.push_str(rest);
    written.extend(values.cloned());
    apply(state, FormatStyle::Printf, &plain, &written)
}

/// `format.format(values)`.
pub(super) fn braces(
    state: &State<'_, '_>,
    format: &str,
    values: &[Value],
) -> Result<String, Error> {
    let mut written = Vec::with_capacity(values.len());
    for value in values {
        written.push(match value.kind() {
            ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Undefined => {
                Value::from(python::text(state, value)?)
            }
            // With a specification it must stay a number.
            ValueKind::Number if !value.is_integer() && !format.contains(':') => {
                Value::from(python::text(state, value)?)
            }
            _ => value.clone(),
        });
    }
    apply(state, FormatStyle::StrFormat, format, &written)
}

fn apply(
    state: &State<'_, '_>,
    style: FormatStyle,
    format: &str,
    values: &[Value],
) -> Result<String, Error> {
    let mut widths =
        format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    if format.contains('*') || !widths.all(|w| w.parse().is_ok_and(|w: usize| w <= WIDTH_MAX)) {
        return Err(invalid("a format asks for too wide a field"));
    }
    let mut bytes = format.len().saturating_mul(WIDTH_MAX.min(format.len()));
    for value in values {
        bytes = bytes.saturating_add(value.as_str().map_or(0, str::len));
    }
    work::charge(state, bytes)?;
    let out = format_filter(style, format, values)?;
    work::charge(state, out.len())?;
    Ok(out)
}

/// `now.strftime(format)` in the C locale. A directive that C doesn't know stays as it is.
pub(super) fn time(now: DateTime<FixedOffset>, format: &str) -> String {
    // Those that chrono and C's `strftime` agree on.
    const KNOWN: &str = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYC%";
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (before, directive) = rest.split_at(at);
        out.push_str(before);
        let body = directive.get(1..).unwrap_or_default();
        let flag = body.chars().next().filter(|c| matches!(c, '-' | '_' | '0'));
        let body = body.get(usize::from(flag.is_some())..).unwrap_or_default();
        let Some(letter) = body.chars().next() else {
            out.push_str(directive);
            return out;
        };
        let pattern: String = ['%'].into_iter().chain(flag).chain([letter]).collect();
        match letter {
            'f' => out.push_str(&format!("{:06}", now.timestamp_subsec_micros())),
            // Python's `now()` knows no time zone.
            'z' | 'Z' => {}
            'c' => out.push_str(&now.format("%a %b %e %H:%M:%S %Y").to_string()),
            'x' => out.push_str(&now.format("%m/%d/%y").to_string()),
            letter if KNOWN.contains(letter) => {
                // A flag that makes no sense with the letter is an error in chrono.
                let mut text = String::new();
                match write!(text, "{}", now.format(&pattern)) {
                    Ok(()) => out.push_str(&text),
                    Err(_) => out.push_str(&pattern),
                }
            }
            _ => out.push_str(&pattern),
        }
        rest = body.get(letter.len_utf8()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_c_writes_them() {
        let now = DateTime::parse_from_rfc3339("2025-03-07T09:05:03.000042+01:00").unwrap();
        let cases = [
            ("%d %b %Y", "07 Mar 2025"),
            ("%B %d, %Y", "March 07, 2025"),
            ("%A, %-d %B %Y %H:%M:%S", "Friday, 7 March 2025 09:05:03"),
            ("%c|%x|%f|%z|%Q|%%|%", "Fri Mar  7 09:05:03 2025|03/07/25|000042||%Q|%|%"),
            ("%I %p %y %j", "09 AM 25 066"),
        ];
        for (format, expected) in cases {
            assert_eq!(time(now, format), expected);
        }
    }
}
