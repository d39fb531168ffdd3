//! Floor 2: reads deadlines from headers, and writes what is left of them.
//!
//! A deadline travels as the time that is left, because clocks differ: gRPC callers send `grpc-timeout`, others
//! [`HEADER`]. Who receives it counts from the request's arrival.

use crate::classify::grpc::is_grpc;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::{Duration, Instant};

/// The time that is left, in milliseconds, for what is not gRPC.
pub static HEADER: HeaderName = HeaderName::from_static("x-enmesh-timeout-ms");
/// gRPC's time that is left ("gRPC over HTTP2": at most 8 digits and a unit).
pub static GRPC_HEADER: HeaderName = HeaderName::from_static("grpc-timeout");

/// The most digits of a gRPC timeout.
const DIGITS_MAX: usize = 8;
/// The most digits of [`HEADER`]: three years.
const MS_DIGITS_MAX: usize = 11;

/// What the headers of a request say of its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// The time that is left: of several, the least.
    pub left: Option<Duration>,
    /// Whether a value could not be read; it then counts as absent.
    pub malformed: bool,
}

/// So many headers are looked at one by one.
const FEW: usize = 12;

/// Reads the deadline of a request.
pub fn read(headers: &HeaderMap) -> Reading {
    let mut reading = Reading::default();
    // To look at a few names costs less than to hash two.
    let absent = || !headers.keys().any(|name| *name == GRPC_HEADER || *name == HEADER);
    if headers.len() <= FEW && absent() {
        return reading;
    }
    let grpc = headers.get_all(&GRPC_HEADER).iter().map(|value| parse_grpc(value.as_bytes()));
    let plain = headers.get_all(&HEADER).iter().map(|value| parse_ms(value.as_bytes()));
    for left in grpc.chain(plain) {
        match (left, reading.left) {
            (None, _) => reading.malformed = true,
            (Some(left), Some(least)) if least <= left => {}
            (left, _) => reading.left = left,
        }
    }
    reading
}

/// The deadline of a request that began at `started`: the earliest of what its caller says, of what its route allows
/// and of what its process was given. `None` only if all are.
pub fn effective(
    started: Instant,
    left: Option<Duration>,
    route: Option<Duration>,
    inherited: Option<Instant>,
) -> Option<Instant> {
    // What lies beyond the end of time is no limit, but a caller who says so is held to a century.
    let at = |left: Duration| started.checked_add(left.min(Duration::from_secs(3_155_760_000)));
    [left.and_then(at), route.and_then(at), inherited].into_iter().flatten().min()
}

/// Reads a `grpc-timeout`: 1 to 8 digits and one of `H M S m u n`, nothing else.
pub fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let number = number(digits, DIGITS_MAX)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Reads [`HEADER`]: 1 to 11 digits.
pub fn parse_ms(value: &[u8]) -> Option<Duration> {
    number(value, MS_DIGITS_MAX).map(Duration::from_millis)
}

fn number(digits: &[u8], max: usize) -> Option<u64> {
    if digits.is_empty() || digits.len() > max {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => Some(sum * 10 + u64::from(digit - b'0')),
        _ => None,
    })
}

/// The header by which a request tells the time that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// [`GRPC_HEADER`].
    Grpc,
    /// [`HEADER`].
    Plain,
}

impl Form {
    /// For what says that it is gRPC as gRPC does, else by [`HEADER`] if it `is_told`; `None`: it tells nobody.
    #[inline]
    pub(crate) fn of(headers: &HeaderMap, is_told: bool) -> Option<Self> {
        if is_grpc(headers) { Some(Self::Grpc) } else { is_told.then_some(Self::Plain) }
    }

    /// Writes the time that is left, rounded down to what the form can hold.
    ///
    /// Its one allocation is the header's value.
    pub(crate) fn write(self, headers: &mut HeaderMap, left: Duration) {
        match self {
            Self::Grpc => headers.insert(GRPC_HEADER.clone(), format_grpc(left)),
            Self::Plain => {
                let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let ms = ms.min(10u64.pow(MS_DIGITS_MAX as u32) - 1);
                headers.insert(HEADER.clone(), HeaderValue::from(ms))
            }
        };
    }
}

/// Writes the time that is left, rounded down to what the form can hold: for what says that it is gRPC as gRPC does,
/// else by [`HEADER`] if it `is_told`.
///
/// Its one allocation is the header's value.
pub fn write(headers: &mut HeaderMap, left: Duration, is_told: bool) {
    if let Some(form) = Form::of(headers, is_told) {
        form.write(headers, left);
    }
}

/// A `grpc-timeout` in the finest unit that its 8 digits can hold.
pub fn format_grpc(left: Duration) -> HeaderValue {
    const LIMIT: u128 = 10u128.pow(DIGITS_MAX as u32);
    let forms = [
        (left.as_nanos(), b'n'),
        (left.as_micros(), b'u'),
        (left.as_millis(), b'm'),
        (u128::from(left.as_secs()), b'S'),
        (u128::from(left.as_secs() / 60), b'M'),
        (u128::from(left.as_secs() / 3600).min(LIMIT - 1), b'H'),
    ];
    let fits = |(number, _): &&(u128, u8)| *number < LIMIT;
    let (mut number, unit) = forms.iter().find(fits).copied().unwrap_or((LIMIT - 1, b'H'));
    let mut text = [unit; DIGITS_MAX + 1];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || at == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&text[at..]).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;
    use proptest::prelude::*;

    fn check(value: &str, expected: Option<Duration>) {
        assert_eq!(parse_grpc(value.as_bytes()), expected, "{value}");
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        check("100m", Some(Duration::from_millis(100)));
        check("0n", Some(Duration::ZERO));
        check("00000001S", Some(Duration::from_secs(1)));
        check("99999999H", Some(Duration::from_secs(359_999_996_400)));
        for bad in [
            "",
            "S",
            "1",
            "-1S",
            "+1S",
            "1.5S",
            " 1S",
            "1 S",
            "1S ",
            "1e3S",
            "0x10S",
            "1s",
            "1h",
            "123456789S",
            "٣S",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn of_several_values_the_least_holds() {
        let headers = |values: &[(HeaderName, &'static str)]| -> HeaderMap {
            values.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
        };
        let reading = read(&headers(&[
            (GRPC_HEADER.clone(), "2S"),
            (HEADER.clone(), "1500"),
            (GRPC_HEADER.clone(), "x"),
        ]));
        assert_eq!(reading, Reading { left: Some(Duration::from_millis(1500)), malformed: true });
        assert_eq!(
            read(&headers(&[(HEADER.clone(), "123456789012")])),
            Reading { left: None, malformed: true }
        );
        assert_eq!(read(&HeaderMap::new()), Reading::default());
    }

    #[test]
    fn the_earliest_limit_holds_and_none_is_infinite() {
        let (now, secs) = (clock::now(), Duration::from_secs);
        assert_eq!(effective(now, None, None, None), None);
        assert_eq!(effective(now, Some(secs(5)), Some(secs(3)), Some(now + secs(4))), Some(now + secs(3)));
        assert_eq!(effective(now, Some(secs(2)), Some(secs(3)), None), Some(now + secs(2)));
        assert!(effective(now, Some(Duration::MAX), None, None).is_some());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_never_longer(nanos: u64, secs in 0u64..359_999_996_400) {
            for left in [Duration::from_nanos(nanos), Duration::from_secs(secs)] {
                let value = format_grpc(left);
                let read = parse_grpc(value.as_bytes()).unwrap();
                prop_assert!(read <= left, "{value:?}");
                // Eight digits lose less than a millionth.
                prop_assert!(left - read <= left / 1_000_000 + Duration::from_nanos(1), "{value:?} {left:?}");
                let mut headers = HeaderMap::new();
                write(&mut headers, left, true);
                prop_assert!(super::read(&headers).left.unwrap() <= left);
            }
        }

        #[test]
        fn no_text_is_read_but_digits_and_a_unit(text in "[-+0-9a-zA-Z. ]{0,12}") {
            let well_formed = text.len() >= 2 && text.len() <= 9
                && text[..text.len() - 1].bytes().all(|b| b.is_ascii_digit())
                && text.ends_with(['H', 'M', 'S', 'm', 'u', 'n']);
            prop_assert_eq!(parse_grpc(text.as_bytes()).is_some(), well_formed);
        }
    }
}
