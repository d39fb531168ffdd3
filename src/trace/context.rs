//! Floor 2: the place of a request in a trace: read from its headers, handed on, written back.

use crate::stdx::rng::Rng;
use crate::trace::b3;
use crate::trace::binary;
use crate::trace::id::{SpanId, TraceId};
use crate::trace::w3c;
use http::header::HeaderMap;
use http::header::HeaderValue;

/// The ways in which a context is written in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `grpc-trace-bin`.
    GrpcBinary,
    /// `b3`.
    B3Single,
    /// `x-b3-…`.
    B3Multi,
}

impl Format {
    /// All of them, in the order in which they are looked for: Linkerd's (linkerd.md §8.8), with `b3` before `x-b3-…` as
    /// B3 has it.
    pub const ALL: [Self; 4] = [Self::W3c, Self::GrpcBinary, Self::B3Single, Self::B3Multi];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats(u8);

impl Formats {
    /// The set of these.
    pub fn of(formats: &[Format]) -> Self {
        Self(formats.iter().fold(0, |set, format| set | format.bit()))
    }

    /// Whether `format` is in it.
    pub fn has(self, format: Format) -> bool {
        self.0 & format.bit() != 0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The place of a request in a trace: the trace, the span that it stands below, and whether the trace is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that what is done under this context stands below.
    pub span: SpanId,
    /// Whether the trace is recorded; `None`: nobody has decided yet.
    pub sampled: Option<bool>,
    /// Whether it is recorded whatever samplers say (B3).
    pub debug: bool,
    /// Whether the trace's number is random as W3C level 2 wants it.
    pub random: bool,
    /// What tracing systems add.
    pub state: Option<HeaderValue>,
    /// How it was written, and so is to be written on.
    pub formats: Formats,
}

impl TraceContext {
    /// The context that headers carry. Of several formats the first of [`Format::ALL`] that can be read counts; all that
    /// are there are written on, so that none of them goes stale. What cannot be read is no context.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut found: Option<Self> = None;
        for format in Format::ALL {
            let Some(read) = Self::read_format(headers, format) else { continue };
            match &mut found {
                None => found = Some(read),
                Some(first) => first.formats.0 |= format.bit(),
            }
        }
        found
    }

    fn read_format(headers: &HeaderMap, format: Format) -> Option<Self> {
        let value = |name: &str| w3c::single(headers, name).map(HeaderValue::as_bytes);
        let (trace, span, decision, random) = match format {
            Format::W3c => {
                let (trace, span, flags) = w3c::parse(value(w3c::TRACEPARENT)?)?;
                let decision =
                    if flags & w3c::SAMPLED == 0 { b3::Decision::Deny } else { b3::Decision::Accept };
                (trace, span, decision, flags & w3c::RANDOM != 0)
            }
            Format::GrpcBinary => {
                let (trace, span, sampled) = binary::parse(value(binary::GRPC_TRACE_BIN)?)?;
                (trace, span, if sampled { b3::Decision::Accept } else { b3::Decision::Deny }, false)
            }
            Format::B3Single => {
                let (trace, span, decision) = b3::parse(value(b3::B3.as_str())?)?;
                (trace, span, decision, false)
            }
            Format::B3Multi => {
                let (trace, span, decision) = b3::read(headers)?;
                (trace, span, decision, false)
            }
        };
        let sampled = match decision {
            b3::Decision::Accept | b3::Decision::Debug => Some(true),
            b3::Decision::Deny => Some(false),
            b3::Decision::Defer => None,
        };
        let state = if format == Format::W3c { w3c::state(headers) } else { None };
        let (debug, formats) = (decision == b3::Decision::Debug, Formats::of(&[format]));
        Some(Self { trace, span, sampled, debug, random, state, formats })
    }

    /// Begins a trace.
    pub fn root(rng: &Rng, formats: Formats) -> Self {
        let formats = if formats.is_empty() { Formats::of(&[Format::W3c]) } else { formats };
        let trace = loop {
            let halves = [rng.next_u64().to_be_bytes(), rng.next_u64().to_be_bytes()].concat();
            let Ok(bytes) = halves.try_into() else { continue };
            if let Some(trace) = TraceId::new(bytes) {
                break trace;
            }
        };
        let span = new_span(rng);
        Self { trace, span, sampled: None, debug: false, random: true, state: None, formats }
    }

    /// The same place in the trace for what stands below `span`.
    #[must_use]
    pub fn below(&self, span: SpanId) -> Self {
        Self { span, ..self.clone() }
    }

    /// Whether it is recorded: as whoever came before decided; else for this share of all traces, by the trace's number, so
    /// that all hops that ask so decide alike.
    pub fn is_sampled(&self, share: f64) -> bool {
        self.sampled.unwrap_or_else(|| {
            let [.., a, b, c, d, e, f, g] = self.trace.bytes();
            let low = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
            (low as f64) < share * (1_u64 << 56) as f64
        })
    }

    /// Writes it into a request's headers, in its formats.
    pub fn write(&self, headers: &mut HeaderMap) {
        let sampled = self.sampled.unwrap_or_default();
        if self.formats.has(Format::W3c) {
            let flags = (u8::from(sampled) * w3c::SAMPLED) | (u8::from(self.random) * w3c::RANDOM);
            if let Some(value) = w3c::write(self.trace, self.span, flags) {
                headers.insert(w3c::TRACEPARENT, value);
            }
            match &self.state {
                Some(state) => drop(headers.insert(w3c::TRACESTATE, state.clone())),
                None => drop(headers.remove(w3c::TRACESTATE)),
            }
        }
        if self.formats.has(Format::GrpcBinary)
            && let Some(value) = binary::write(self.trace, self.span, sampled)
        {
            headers.insert(binary::GRPC_TRACE_BIN, value);
        }
        let decision = match (self.sampled, self.debug) {
            (_, true) => b3::Decision::Debug,
            (Some(true), _) => b3::Decision::Accept,
            (Some(false), _) => b3::Decision::Deny,
            (None, _) => b3::Decision::Defer,
        };
        if self.formats.has(Format::B3Single) {
            b3::write_single(headers, self.trace, self.span, decision);
        }
        if self.formats.has(Format::B3Multi) {
            b3::write(headers, self.trace, self.span, decision);
        }
    }
}

/// A new span's number.
pub fn new_span(rng: &Rng) -> SpanId {
    loop {
        if let Some(span) = SpanId::new(rng.next_u64().to_be_bytes()) {
            return span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::rng::Rng;
    use http::HeaderName;
    use proptest::prelude::*;

    fn headers(values: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    const T: &str = "94d7f6ec6b95f3e916179cb6cfd01390";
    const S: &str = "55ccfce77f972614";

    #[test]
    fn the_first_format_counts_and_all_that_are_there_are_written_on() {
        let w3c = format!("00-{T}-{S}-01");
        let single = format!("{T}-aaaaaaaaaaaaaaaa-0");
        let mut headers = headers(&[("b3", &single), ("traceparent", &w3c), ("tracestate", "a=1")]);
        let read = TraceContext::read(&headers).unwrap();
        assert_eq!((read.span.to_string().as_str(), read.sampled), (S, Some(true)));
        let child = read.below(SpanId::from_hex(b"00000000000000bb").unwrap());
        child.write(&mut headers);
        assert_eq!(headers["traceparent"], format!("00-{T}-00000000000000bb-01"));
        assert_eq!(headers["b3"], format!("{T}-00000000000000bb-1"));
        assert_eq!(headers["tracestate"], "a=1");
        assert!(!headers.contains_key("grpc-trace-bin") && !headers.contains_key("x-b3-traceid"));
    }

    #[test]
    fn what_cannot_be_read_is_no_context_and_the_next_format_counts() {
        let single = format!("{T}-{S}");
        let bad = headers(&[("traceparent", "00-x"), ("b3", &single)]);
        let read = TraceContext::read(&bad).unwrap();
        assert_eq!((read.sampled, read.formats), (None, Formats::of(&[Format::B3Single])));
        assert_eq!(TraceContext::read(&headers(&[("traceparent", "00-x")])), None);
        assert_eq!(TraceContext::read(&HeaderMap::new()), None);
    }

    #[test]
    fn the_parents_word_counts_before_the_share() {
        let rng = Rng::seeded(3);
        let root = TraceContext::root(&rng, Formats::default());
        let told = |sampled| TraceContext { sampled: Some(sampled), ..root.clone() };
        assert!(told(true).is_sampled(0.0) && !told(false).is_sampled(1.0));
        let of_1000 = |share| {
            (0..1000).filter(|_| TraceContext::root(&rng, Formats::default()).is_sampled(share)).count()
        };
        assert_eq!((of_1000(0.0), of_1000(1.0)), (0, 1000));
        assert!((200..300).contains(&of_1000(0.25)));
    }

    proptest! {
        #[test]
        fn every_format_carries_the_context(seed in any::<u64>(), which in 0_usize..4, sampled in any::<bool>()) {
            let formats = Formats::of(&[Format::ALL[which]]);
            let context = TraceContext { sampled: Some(sampled), random: which == 0, ..TraceContext::root(&Rng::seeded(seed), formats) };
            let mut headers = HeaderMap::new();
            context.write(&mut headers);
            prop_assert_eq!(TraceContext::read(&headers), Some(context));
        }

        #[test]
        fn no_header_panics(name in 0_usize..7, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let names = ["traceparent", "tracestate", "grpc-trace-bin", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"];
            let mut headers = headers(&[("traceparent", &format!("00-{T}-{S}-01")), ("x-b3-traceid", T), ("x-b3-spanid", S)]);
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(names[name], value);
            }
            if let Some(context) = TraceContext::read(&headers) {
                context.write(&mut headers);
            }
        }
    }
}
