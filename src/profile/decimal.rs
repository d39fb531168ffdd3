//! Floor 1: exact numbers from decimal text, so that no ratio or weight is ever a float in between.

/// A whole number in decimal, hexadecimal (`0x`) or octal (`0o`). `None` for what is no whole number, has more than
/// 36 digits, or begins with a zero that YAML 1.1 would take for octal.
pub fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match (digits.strip_prefix("0x"), digits.strip_prefix("0o")) {
        (Some(hex), _) => (hex, 16),
        (None, Some(octal)) => (octal, 8),
        (None, None) => (digits, 10),
    };
    let octal_or_not = radix == 10 && digits.len() > 1 && digits.starts_with('0');
    if digits.is_empty() || digits.len() > 36 || octal_or_not || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -value } else { value })
}

/// A decimal number in units of `10^-digits`, rounded half up, and whether nothing was lost: `("0.15", 6)` is
/// `(150_000, true)`. `None` for what is no decimal number or does not fit in 128 bits.
pub fn scaled(text: &str, digits: u32) -> Option<(i128, bool)> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(part) || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let exponent: i64 = exponent.parse().ok().filter(|e: &i64| e.abs() <= 10_000)?;
    let all: String = [whole, part].concat();
    let significant = all.trim_start_matches('0');
    let shift = i64::try_from(part.len()).ok()?;
    // The value is `significant · 10^power` units.
    let power = exponent - shift + i64::from(digits);
    let (value, exact) = shifted(significant, power)?;
    Some((if negative { -value } else { value }, exact))
}

fn shifted(significant: &str, power: i64) -> Option<(i128, bool)> {
    let significant = if significant.is_empty() { "0" } else { significant };
    if significant == "0" {
        return Some((0, true));
    }
    if power >= 0 {
        let factor = 10_i128.checked_pow(u32::try_from(power).ok()?)?;
        return Some((significant.parse::<i128>().ok()?.checked_mul(factor)?, true));
    }
    let lost = usize::try_from(-power).ok()?;
    let keep = significant.len().saturating_sub(lost);
    let (kept, rest) = significant.split_at(keep);
    let kept: i128 = if kept.is_empty() { 0 } else { kept.parse().ok()? };
    let half = lost <= significant.len() && rest.bytes().next().is_some_and(|b| b >= b'5');
    Some((kept + i128::from(half), rest.bytes().all(|b| b == b'0')))
}

/// `units` of `10^-digits` as a decimal number without trailing zeros: `(150_000, 6)` is `0.15`.
pub fn shown(units: u64, digits: u32) -> String {
    let unit = 10_u64.saturating_pow(digits);
    let part = format!("{:0width$}", units % unit, width = digits as usize);
    let part = part.trim_end_matches('0');
    if part.is_empty() || digits == 0 {
        format!("{}", units / unit)
    } else {
        format!("{}.{part}", units / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_and_rounding_is_noted() {
        for (text, digits, expected) in [
            ("0.15", 6, Some((150_000, true))),
            ("0.2", 6, Some((200_000, true))),
            ("1e-1", 6, Some((100_000, true))),
            ("1.5E3", 0, Some((1500, true))),
            (".5", 3, Some((500, true))),
            ("5.", 3, Some((5000, true))),
            ("0.0000001", 6, Some((0, false))),
            ("0.0000005", 6, Some((1, false))),
            ("0.00000049", 6, Some((0, false))),
            ("-1", 0, Some((-1, true))),
            ("0.1000000000000000055511151231257827", 6, Some((100_000, false))),
            ("0e9999", 6, Some((0, true))),
            ("1e9999", 6, None),
            ("1e-9999", 6, Some((0, false))),
            ("1e99999", 6, None),
            ("0x1", 6, None),
            (".", 6, None),
            ("", 6, None),
            (".inf", 6, None),
            ("1_0", 6, None),
        ] {
            assert_eq!(scaled(text, digits), expected, "{text}");
        }
    }

    #[test]
    fn integers_are_whole_and_never_octal_by_surprise() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-5", Some(-5)),
            ("+7", Some(7)),
            ("0x1F", Some(31)),
            ("0o17", Some(15)),
            ("017", None),
            ("1.0", None),
            ("", None),
            ("1e3", None),
            ("170141183460469231731687303715884105728", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for units in [0, 1, 10, 999_999, 1_000_000, 1_500_000, u64::from(u32::MAX)] {
            assert_eq!(scaled(&shown(units, 6), 6), Some((i128::from(units), true)));
        }
        assert_eq!(shown(5, 0), "5");
    }
}
