//! Sizes as people write them.

/// Parses bytes, or a number with K, M, G, T (powers of 1,000; also KB, MB, ...) or KiB, MiB, GiB,
/// TiB (powers of 1,024).
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit_bytes: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        other => return Err(format!("{other:?} is no unit; use K, M, G, KiB, MiB or GiB")),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit_bytes).ok_or_else(|| "that is too large".to_owned());
    }
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size; try 8GiB"))?;
    let bytes = number * unit_bytes as f64;
    if !(0.0..9e18).contains(&bytes) {
        return Err("that is too large".to_owned());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range, as checked
    let bytes = bytes as u64;
    Ok(bytes)
}

/// Bytes for people: powers of 1,024, three digits.
pub(crate) fn show(bytes: u64) -> String {
    let (value, unit, digits) = scaled(bytes);
    format!("{value:.digits$} {unit}")
}

/// A size that can be typed as an option, and that is at least `bytes`.
pub(crate) fn show_enough(bytes: u64) -> String {
    let (value, unit, digits) = scaled(bytes);
    let scale = [1.0, 10.0, 100.0][digits.min(2)];
    let value = (value * scale).ceil() / scale;
    format!("{value:.digits$}{unit}")
}

/// The number, the unit, and the digits behind the point that make three.
fn scaled(bytes: u64) -> (f64, &'static str, usize) {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    (value, UNITS[unit], digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("8GiB", 8 << 30),
            ("8 GiB", 8 << 30),
            ("8G", 8_000_000_000),
            ("1.5gib", 3 << 29),
            ("512m", 512_000_000),
            ("2kB", 2000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1x", "1e9", "99999999999T", "1.2.3G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_show() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1024, "1.00 KiB"),
            (33_672_576, "32.1 MiB"),
            (8 << 30, "8.00 GiB"),
            (1 << 50, "1024 TiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }

    #[test]
    fn enough_is_enough() {
        for bytes in [0, 1, 999, 1000, 1025, 67_973_405, 1_048_576_001, 3 << 30, u64::MAX >> 8] {
            let shown = show_enough(bytes);
            let parsed = parse(&shown).unwrap();
            assert!(parsed >= bytes, "{shown}");
            assert!(parsed <= bytes + bytes / 90, "{shown}");
        }
        assert_eq!(show_enough(67_973_405), "64.9MiB");
    }
}
