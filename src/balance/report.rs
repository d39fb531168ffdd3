//! Floor 2: reads and writes what servers tell of their load: ORCA's `endpoint-load-metrics`.
//!
//! The forms are those of gRFC A51, xDS's `OrcaLoadReport` and Envoy's ORCA parser: `endpoint-load-metrics` with `TEXT`,
//! `JSON` or `BIN` in front, and `endpoint-load-metrics-bin`, a message in base64, which gRPC servers send in trailers.
//! [`write()`] makes the text form. What a report says comes from a peer: it is read up to a length, and believed within
//! bounds.

use crate::stdx::protobuf::{Value, fields};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// The header of the text, JSON and binary forms.
pub static HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// The header or trailer of a binary message alone.
pub static BINARY_HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// The longest report that is read, in bytes; a report of this crate has 70, one with fifty metrics 2,000.
pub const BYTES_MAX: usize = 4096;
/// The most metrics of a report that are looked at.
pub const METRICS_MAX: usize = 64;
/// The most requests in flight that a report is believed: what twelve bits hold.
pub const IN_FLIGHT_MAX: u32 = 4095;

/// The name of requests in flight among ORCA's named metrics.
const IN_FLIGHT: &str = "requests_in_flight";
/// The name of the recent mean latency, in milliseconds.
const LATENCY: &str = "latency_ms";
/// Busier than this no server is believed to be.
const UTILIZATION_MAX: f64 = 0.99;

/// What a server says of its load.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadReport {
    /// Requests that it works on, of all its callers.
    pub in_flight: Option<f64>,
    /// How long requests took it lately, in seconds.
    pub latency: Option<f64>,
    /// Requests that it answers in a second.
    pub rate: Option<f64>,
    /// How busy it is: 1 is fully. The application's own measure, else the processor's.
    pub utilization: Option<f64>,
}

impl LoadReport {
    /// How many requests it works on, at most [`IN_FLIGHT_MAX`], for a caller who measures `latency` seconds: as it says;
    /// else its rate times the latency (Little's law); else what a queue so busy holds in the mean, `u / (1 - u)`.
    pub fn requests(&self, latency: f32) -> Option<u32> {
        let by_rate = || self.rate.map(|rate| rate * f64::from(latency));
        let by_use =
            || self.utilization.map(|used| used.min(UTILIZATION_MAX)).map(|used| used / (1.0 - used));
        let requests = self.in_flight.or_else(by_rate).or_else(by_use)?;
        Some(requests.clamp(0.0, f64::from(IN_FLIGHT_MAX)).round() as u32)
    }

    fn note(&mut self, name: &str, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        match name {
            "named_metrics.requests_in_flight" => self.in_flight = Some(value),
            "named_metrics.latency_ms" => self.latency = Some(value / 1000.0),
            "rps_fractional" | "rps" if value > 0.0 => self.rate = Some(value),
            "application_utilization" if value > 0.0 => self.utilization = Some(value),
            "cpu_utilization" if value > 0.0 => self.utilization = self.utilization.or(Some(value)),
            _ => {}
        }
    }

    fn said(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// The report in headers or trailers; `None` if there is none that can be read.
pub fn read(headers: &HeaderMap) -> Option<LoadReport> {
    let text = |name| headers.get(name).map(HeaderValue::as_bytes).filter(|it: &&[u8]| it.len() <= BYTES_MAX);
    if let Some(value) = text(&HEADER) {
        let value = std::str::from_utf8(value).ok()?.trim();
        let (form, rest) = value.split_once(' ').unwrap_or((value, ""));
        return match form {
            "TEXT" => from_text(rest),
            "JSON" => from_json(rest),
            "BIN" => from_binary(&base64(rest.trim().as_bytes())?),
            _ => None,
        };
    }
    from_binary(&base64(text(&BINARY_HEADER)?)?)
}

/// The text form of requests in flight and of the recent latency.
pub fn write(in_flight: u32, latency: Duration) -> HeaderValue {
    let micros = latency.as_micros();
    let text = format!(
        "TEXT named_metrics.{IN_FLIGHT}={in_flight},named_metrics.{LATENCY}={}.{:03}",
        micros / 1000,
        micros % 1000
    );
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("TEXT"))
}

/// `name=value` or `name:value`, with commas between.
fn from_text(text: &str) -> Option<LoadReport> {
    let mut report = LoadReport::default();
    for pair in text.split(',').take(METRICS_MAX) {
        let (name, value) = pair.split_once(['=', ':'])?;
        report.note(name.trim(), value.trim().parse().ok()?);
    }
    report.said()
}

fn from_json(text: &str) -> Option<LoadReport> {
    let mut report = LoadReport::default();
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    for (name, value) in object.iter().take(METRICS_MAX) {
        match value {
            serde_json::Value::Object(named) if matches!(name.as_str(), "named_metrics" | "namedMetrics") => {
                for (name, value) in named.iter().take(METRICS_MAX) {
                    report.note(&format!("named_metrics.{name}"), value.as_f64()?);
                }
            }
            _ => {
                // Proto JSON knows both spellings.
                let name = match name.as_str() {
                    "rpsFractional" => "rps_fractional",
                    "applicationUtilization" => "application_utilization",
                    "cpuUtilization" => "cpu_utilization",
                    name => name,
                };
                report.note(name, value.as_f64().unwrap_or(f64::NAN));
            }
        }
    }
    report.said()
}

/// `xds.data.orca.v3.OrcaLoadReport`.
fn from_binary(message: &[u8]) -> Option<LoadReport> {
    let mut report = LoadReport::default();
    for field in fields(message).take(METRICS_MAX) {
        match field.ok()? {
            (1, Value::Fixed64(bits)) => report.note("cpu_utilization", f64::from_bits(bits)),
            (3, Value::Number(rate)) => report.note("rps", rate as f64),
            (6, Value::Fixed64(bits)) => report.note("rps_fractional", f64::from_bits(bits)),
            (8, Value::Bytes(entry)) => named_metric(&mut report, entry)?,
            (9, Value::Fixed64(bits)) => report.note("application_utilization", f64::from_bits(bits)),
            _ => {}
        }
    }
    report.said()
}

/// An entry of a map from names to doubles.
fn named_metric(report: &mut LoadReport, entry: &[u8]) -> Option<()> {
    let (mut name, mut number) = ("", 0.0);
    for field in fields(entry) {
        match field.ok()? {
            (1, Value::Bytes(text)) => name = std::str::from_utf8(text).ok()?,
            (2, Value::Fixed64(bits)) => number = f64::from_bits(bits),
            _ => {}
        }
    }
    report.note(&format!("named_metrics.{name}"), number);
    Some(())
}

/// Base64 of either alphabet, with padding or without, as gRPC allows for binary metadata.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.trim_ascii().split(|byte| *byte == b'=').next()?;
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut held) = (0u32, 0);
    for digit in digits {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(name: &HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.clone(), HeaderValue::from_str(value).unwrap())])
    }

    fn check(value: &str, expected: Option<LoadReport>) {
        assert_eq!(read(&header(&HEADER, value)), expected, "{value}");
    }

    /// Of requests in flight, rate and utilization; below 0 for what is not said.
    fn report(in_flight: f64, rate: f64, utilization: f64) -> Option<LoadReport> {
        let said = |value: f64| (value >= 0.0).then_some(value);
        Some(LoadReport {
            in_flight: said(in_flight),
            latency: None,
            rate: said(rate),
            utilization: said(utilization),
        })
    }

    #[test]
    fn every_form_is_read() {
        let none = -1.0;
        check("TEXT named_metrics.requests_in_flight=3", report(3.0, none, none));
        check("TEXT cpu_utilization=0.3, rps_fractional:10.5 ,eps=0", report(none, 10.5, 0.3));
        check("TEXT application_utilization=0.9,cpu_utilization=0.3", report(none, none, 0.9));
        check("JSON {\"cpu_utilization\": 0.3, \"application_utilization\": 0.8}", report(none, none, 0.8));
        check(
            "JSON {\"rpsFractional\": 7, \"namedMetrics\": {\"requests_in_flight\": 5}}",
            report(5.0, 7.0, none),
        );
        // cpu_utilization 0.5; rps_fractional 8; a string that nobody knows.
        let message = [9, 0, 0, 0, 0, 0, 0, 0xE0, 0x3F, 0x31, 0, 0, 0, 0, 0, 0, 0x20, 0x40, 0x7A, 1, b'x'];
        assert_eq!(from_binary(&message), report(none, 8.0, 0.5));
        check("BIN CQAAAAAAAOA/MQAAAAAAACBAegF4", report(none, 8.0, 0.5));
        let binary = |value| read(&header(&BINARY_HEADER, value));
        assert_eq!(binary("CQAAAAAAAOA/MQAAAAAAACBAegF4"), report(none, 8.0, 0.5));
        assert_eq!(binary("CQAAAAAAAOA_"), report(none, none, 0.5));
        // named_metrics {requests_in_flight: 2}
        let mut message = vec![0x42, 29, 0x0A, 18];
        message.extend(b"requests_in_flight");
        message.extend([0x11, 0, 0, 0, 0, 0, 0, 0, 0x40]);
        assert_eq!(from_binary(&message), report(2.0, none, none));
    }

    #[test]
    fn what_cannot_be_read_or_believed_is_no_report() {
        for value in [
            "",
            "TEXT",
            "TEXT ",
            "TEXT a",
            "TEXT cpu_utilization=x",
            "text cpu_utilization=1",
            "XML <a/>",
            "JSON",
            "JSON {",
            "JSON []",
            "BIN",
            "BIN ****",
            "BIN CQ",
            "TEXT cpu_utilization=NaN",
            "TEXT named_metrics.requests_in_flight=-1",
            "TEXT cpu_utilization=inf",
            "TEXT eps=4",
            "TEXT rps=0",
        ] {
            check(value, None);
        }
        let long = format!("TEXT cpu_utilization=0.5{}", ",a=1".repeat(2000));
        check(&long, None);
        let many = format!("TEXT {}cpu_utilization=0.5", "a=1,".repeat(METRICS_MAX));
        check(&many, None);
        assert_eq!(read(&HeaderMap::new()), None);
    }

    #[test]
    fn a_load_is_never_believed_beyond_its_bounds() {
        let requests = |in_flight, rate, used| report(in_flight, rate, used).unwrap().requests(0.5);
        assert_eq!(requests(7.0, 100.0, 0.5), Some(7));
        assert_eq!(requests(1e300, -1.0, -1.0), Some(IN_FLIGHT_MAX));
        assert_eq!(requests(-1.0, 20.0, 0.9), Some(10));
        assert_eq!(requests(-1.0, -1.0, 0.5), Some(1));
        assert_eq!(requests(-1.0, -1.0, 1e9), Some(99));
        assert_eq!(requests(-1.0, -1.0, -1.0), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(in_flight in 0u32..5000, micros in 0u64..100_000_000) {
            let value = write(in_flight, Duration::from_micros(micros));
            let read = read(&HeaderMap::from_iter([(HEADER.clone(), value)])).unwrap();
            prop_assert_eq!(read.in_flight, Some(f64::from(in_flight)));
            prop_assert!((read.latency.unwrap() * 1e6 - micros as f64).abs() < 1e-3);
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..80), latency: f32) {
            for form in ["TEXT", "JSON", "BIN"] {
                if let Ok(value) = HeaderValue::from_str(&format!("{form} {text}")) {
                    let _ = read(&HeaderMap::from_iter([(HEADER.clone(), value)]));
                }
            }
            if let Some(report) = from_binary(&bytes) {
                prop_assert!(report.requests(latency).is_none_or(|requests| requests <= IN_FLIGHT_MAX));
            }
        }
    }
}
