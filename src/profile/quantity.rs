//! Floor 1: Kubernetes quantities (`1`, `500m`, `1.5`, `2k`, `1Ki`, `1e3`), exactly.

use crate::profile::decimal;

/// What is said of a text that is no quantity.
pub const WHAT: &str = "a quantity such as 1, 500m or 1.5";

/// Reads a quantity in thousandths: `500m` is 500, `1` is 1000. What is finer than a thousandth is rounded up, away
/// from zero, as Kubernetes' `MilliValue` does.
///
/// # Errors
///
/// What the text must be, if it is none or does not fit.
pub fn milli(text: &str) -> Result<i128, String> {
    let bad = || WHAT.to_owned();
    let number_end =
        text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '-' | '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    if number.is_empty() || number.trim_start_matches(['-', '+']).contains(['-', '+']) {
        return Err(bad());
    }
    let (power, binary): (i32, u32) = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => (exponent.strip_prefix(['e', 'E']).and_then(|e| e.parse().ok()).ok_or_else(bad)?, 0),
    };
    if power.abs() > 100 {
        return Err(bad());
    }
    // Nine more digits than a thousandth needs, so that rounding up sees what is lost.
    let (nanos, exact) = decimal::scaled(&format!("{number}e{power}"), 12).ok_or_else(bad)?;
    let nanos = nanos.checked_mul(1_i128 << binary).ok_or_else(bad)?;
    let unit = 1_000_000_000;
    let rest = i128::from(nanos % unit != 0 || (!exact && nanos == 0));
    Ok(nanos / unit + rest * if number.starts_with('-') { -1 } else { 1 })
}

/// Writes thousandths as a quantity: `1`, `500m`.
pub fn from_milli(milli: u64) -> String {
    if milli.is_multiple_of(1_000) { (milli / 1_000).to_string() } else { format!("{milli}m") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_thousandths() {
        for (text, expected) in [
            ("1", Some(1_000)),
            ("500m", Some(500)),
            ("250", Some(250_000)),
            ("0", Some(0)),
            ("1.5", Some(1_500)),
            (".5", Some(500)),
            ("5.", Some(5_000)),
            ("-1", Some(-1_000)),
            ("+1", Some(1_000)),
            ("2k", Some(2_000_000)),
            ("1Ki", Some(1_024_000)),
            ("1.5Ki", Some(1_536_000)),
            ("1e3", Some(1_000_000)),
            ("1E3", Some(1_000_000)),
            ("1e-3", Some(1)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("1n", Some(1)),
            ("0.1m", Some(1)),
            ("1000001u", Some(1_001)),
            ("-1n", Some(-1)),
            ("1e-99", Some(1)),
            ("1 ", None),
            ("", None),
            ("m", None),
            ("1mm", None),
            ("1K", None),
            ("1e", None),
            ("1e1.5", None),
            ("--1", None),
            ("1-1", None),
            ("0x1", None),
            ("1e1000", None),
            ("abc", None),
        ] {
            assert_eq!(milli(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for units in [0, 1, 999, 1_000, 1_001, 5_000_000] {
            assert_eq!(milli(&from_milli(units)), Ok(i128::from(units)));
        }
    }
}
