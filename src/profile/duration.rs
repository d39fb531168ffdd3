//! Floor 1: durations as each dialect writes them.
//!
//! | function | who writes so | form |
//! |---|---|---|
//! | [`go`] | ServiceProfile, Consul, `enmesh.dev/v1` | `1m30.5s`, `.5s`, `0`; units `ns us µs ms s m h` |
//! | [`gateway`] | Gateway API | `1h30m`, `500ms`: one to four whole numbers of five digits; units `h m s ms` |
//! | [`annotation`] | Linkerd's annotations and environment | one whole number and `ms s m h d`, or `0` |
//! | [`protobuf`] | Istio's and Envoy's JSON | seconds with up to nine decimals: `1.5s` |
//!
//! The errors are what the text must be, to stand behind "must be": [`Field::parse`] takes them so.
//!
//! [`Field::parse`]: crate::profile::reader::Field::parse

use std::time::Duration;

/// What is said of a text that is no duration of Go.
pub const WHAT_GO: &str = "a duration such as 250ms, 10s or 1m30s";

/// Nanoseconds of each of Go's units. `µ` exists twice in Unicode, and Go takes both.
const GO_UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration as Go's `time.ParseDuration` does, in nanoseconds: signed, at most 2^63-1 (about 292 years).
///
/// # Errors
///
/// What the text must be, if it is none or is too long.
pub fn go_signed(text: &str) -> Result<i64, String> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    let limit = 1_u64 << 63;
    let bad = || WHAT_GO.to_owned();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let (number, after) =
            rest.split_at(rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len()));
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let (_, nanos) = GO_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && part.is_empty()) || part.contains('.') {
            return Err(bad());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        total = whole
            .checked_mul(*nanos)
            .and_then(|n| n.checked_add(fraction(part, *nanos)))
            .and_then(|n| n.checked_add(total))
            .filter(|n| *n <= limit)
            .ok_or_else(|| "a duration of 292 years at most".to_owned())?;
        rest = next;
    }
    let signed = if negative { -i128::from(total) } else { i128::from(total) };
    i64::try_from(signed).map_err(|_| "a duration of 292 years at most".to_owned())
}

/// `0.digits` of a unit, cut to whole nanoseconds. Digits beyond the eighteenth do not count, as in Go.
fn fraction(digits: &str, nanos: u64) -> u64 {
    let digits = digits.get(..18.min(digits.len())).unwrap_or_default();
    let scale = 10_u128.pow(u32::try_from(digits.len()).unwrap_or(18));
    let value: u128 = digits.parse().unwrap_or(0);
    u64::try_from(value * u128::from(nanos) / scale).unwrap_or(0)
}

/// Reads a duration of Go that is not negative.
///
/// # Errors
///
/// What the text must be.
pub fn go(text: &str) -> Result<Duration, String> {
    match u64::try_from(go_signed(text)?) {
        Ok(nanos) => Ok(Duration::from_nanos(nanos)),
        Err(_) => Err("a duration that is not negative".to_owned()),
    }
}

/// Writes a duration as Go's `Duration.String` does: `0s`, `1.5ms`, `1h0m0s`. [`go`] reads it back.
pub fn to_go(time: Duration) -> String {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_unit(nanos, 3, "µs"),
        1_000_000..1_000_000_000 => with_unit(nanos, 6, "ms"),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = with_unit(nanos % 60_000_000_000, 9, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// Writes a duration for people: as [`to_go`], without the parts that are zero: `10s`, `1h`, `1m30s`.
pub fn to_text(time: Duration) -> String {
    let long = to_go(time);
    let without_seconds = long.strip_suffix("m0s").map_or(long.clone(), |rest| format!("{rest}m"));
    without_seconds.strip_suffix("h0m").map_or(without_seconds.clone(), |rest| format!("{rest}h"))
}

fn with_unit(nanos: u64, digits: u32, unit: &str) -> String {
    format!("{}{unit}", crate::profile::decimal::shown(nanos, digits))
}

/// Reads a duration of Gateway API (GEP-2257): one to four whole numbers of up to five digits, each with `h`, `m`,
/// `s` or `ms`.
///
/// # Errors
///
/// What the text must be.
pub fn gateway(text: &str) -> Result<Duration, String> {
    let bad = || "a duration such as 1h30m or 500ms, of whole numbers".to_owned();
    let mut millis: u64 = 0;
    let mut rest = text;
    for part in 0..5 {
        if rest.is_empty() && part > 0 {
            return Ok(Duration::from_millis(millis));
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if part == 4 || !(1..=5).contains(&digits) {
            return Err(bad());
        }
        let (number, after) = rest.split_at(digits);
        let (unit, next) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let unit = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return Err(bad()),
        };
        millis += number.parse::<u64>().map_err(|_| bad())? * unit;
        rest = next;
    }
    Err(bad())
}

/// Writes a duration as Gateway API does, if it can be: a whole number of milliseconds below 100,000 hours.
pub fn to_gateway(time: Duration) -> Option<String> {
    let millis =
        u64::try_from(time.as_millis()).ok().filter(|_| time.subsec_nanos().is_multiple_of(1_000_000))?;
    let parts = [
        (millis / 3_600_000, "h"),
        (millis / 60_000 % 60, "m"),
        (millis / 1_000 % 60, "s"),
        (millis % 1_000, "ms"),
    ];
    let shown: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    match (millis, millis / 3_600_000) {
        (0, _) => Some("0s".to_owned()),
        (_, hours) => (hours <= 99_999).then_some(shown),
    }
}

/// Reads a duration of Linkerd's annotations and environment: a whole number and `ms`, `s`, `m`, `h` or `d`, or a
/// bare `0`; blanks around it do not count.
///
/// # Errors
///
/// What the text must be.
pub fn annotation(text: &str) -> Result<Duration, String> {
    let bad = || "a whole number with ms, s, m, h or d, such as 250ms".to_owned();
    let text = text.trim();
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number.bytes().all(|b| b == b'0') => 1,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(|| "a duration below 584 million years".to_owned())
}

/// Reads a duration of protobuf's JSON: seconds with up to nine decimals and an `s`, not negative.
///
/// # Errors
///
/// What the text must be.
pub fn protobuf(text: &str) -> Result<Duration, String> {
    let bad = || "seconds such as 1.5s".to_owned();
    let number = text.strip_suffix('s').ok_or_else(bad)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(part) || part.len() > 9 {
        return Err(bad());
    }
    // The longest duration of protobuf: 10,000 years.
    let seconds = whole.parse::<u64>().ok().filter(|s| *s <= 315_576_000_000).ok_or_else(bad)?;
    let nanos = format!("{part:0<9}").parse::<u32>().map_err(|_| bad())?;
    Ok(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(read: fn(&str) -> Result<Duration, String>, cases: &[(&str, Option<u64>)]) {
        for (text, nanos) in cases {
            assert_eq!(read(text).ok(), nanos.map(Duration::from_nanos), "{text}");
        }
    }

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    #[test]
    fn go_durations_are_read_as_go_does() {
        check(
            go,
            &[
                ("0", Some(0)),
                ("+0", Some(0)),
                ("-0", Some(0)),
                ("5s", Some(5 * S)),
                ("5.s", Some(5 * S)),
                (".5s", Some(500 * MS)),
                ("1m30.5s", Some(90_500 * MS)),
                ("1h2m3.5s", Some(3_723_500 * MS)),
                ("100us", Some(100_000)),
                ("1µs", Some(1_000)),
                ("1μs", Some(1_000)),
                ("5ns", Some(5)),
                ("0.3ns", Some(0)),
                ("1s1s", Some(2 * S)),
                ("0.9223372036854775807h", Some(3_320_413_933_267)),
                ("9223372036854775807ns", Some(9_223_372_036_854_775_807)),
                ("9223372036854775808ns", None),
                ("3000000h", None),
                ("99999999999999999999s", None),
                ("10", None),
                ("", None),
                ("+", None),
                (".s", None),
                ("1.2.3s", None),
                ("s", None),
                ("1 s", None),
                (" 1s", None),
                ("1d", None),
                ("-5s", None),
                ("one-second", None),
                ("1e3s", None),
                ("1s,", None),
            ],
        );
        assert_eq!(go_signed("-1.5s"), Ok(-1_500_000_000));
        assert_eq!(go_signed("-9223372036854775808ns"), Ok(i64::MIN));
    }

    #[test]
    fn go_durations_are_written_as_go_does() {
        for (nanos, go, text) in [
            (0, "0s", "0s"),
            (1, "1ns", "1ns"),
            (1_100, "1.1µs", "1.1µs"),
            (2_200_000, "2.2ms", "2.2ms"),
            (3_300 * MS, "3.3s", "3.3s"),
            (245 * S, "4m5s", "4m5s"),
            (245_001 * MS, "4m5.001s", "4m5.001s"),
            (18_367_001 * MS, "5h6m7.001s", "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s", "8m0.000000001s"),
            (3_600 * S, "1h0m0s", "1h"),
            (600 * S, "10m0s", "10m"),
            (5_400 * S, "1h30m0s", "1h30m"),
            (3_610 * S, "1h0m10s", "1h0m10s"),
        ] {
            let time = Duration::from_nanos(nanos);
            assert_eq!((to_go(time).as_str(), to_text(time).as_str()), (go, text));
        }
    }

    #[test]
    fn gateway_durations_are_whole_and_short() {
        check(
            gateway,
            &[
                ("1h", Some(3_600 * S)),
                ("1h30m", Some(5_400 * S)),
                ("500ms", Some(500 * MS)),
                ("1h1m1s1ms", Some(3_661_001 * MS)),
                ("99999h", Some(99_999 * 3_600 * S)),
                ("1m1h", Some(3_660 * S)),
                ("0s", Some(0)),
                ("1h1m1s1ms1s", None),
                ("100000s", None),
                ("1.5s", None),
                ("0", None),
                ("", None),
                ("-1s", None),
                ("1us", None),
                ("1s ", None),
            ],
        );
        assert_eq!(to_gateway(Duration::from_millis(5_400_001)).as_deref(), Some("1h30m1ms"));
        assert_eq!(to_gateway(Duration::from_micros(1)), None);
        assert_eq!(to_gateway(Duration::from_secs(3_600 * 100_000)), None);
    }

    #[test]
    fn annotation_durations_are_one_number_and_a_unit() {
        check(
            annotation,
            &[
                (" 10s ", Some(10 * S)),
                ("1d", Some(86_400 * S)),
                ("0", Some(0)),
                ("0ms", Some(0)),
                ("1 s", None),
                ("00", Some(0)),
                ("0.5s", None),
                ("5", None),
                ("-5s", None),
                ("1h30m", None),
                ("999999999999999999d", None),
                ("", None),
            ],
        );
    }

    #[test]
    fn protobuf_durations_are_seconds() {
        check(
            protobuf,
            &[
                ("1.5s", Some(1_500 * MS)),
                ("0s", Some(0)),
                ("0.000000001s", Some(1)),
                ("1.0000000001s", None),
                ("1m", None),
                (".5s", None),
                ("-1s", None),
                ("315576000001s", None),
            ],
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in prop_oneof![0..=i64::MAX as u64, 0..10_000_000_000_u64]) {
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(go(&to_go(time)), Ok(time));
            prop_assert_eq!(go(&to_text(time)), Ok(time));
            let millis = Duration::from_millis(nanos / 1_000_000);
            if let Some(text) = to_gateway(millis) {
                prop_assert_eq!(gateway(&text), Ok(millis));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.hmsnuµd ]{0,30}") {
            let _ = (go(&text), gateway(&text), annotation(&text), protobuf(&text));
        }
    }
}
