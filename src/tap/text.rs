//! Floor 2: an event as a line of text, as `linkerd viz tap` writes it (linkerd.md §8.6), with what went wrong behind.

use crate::tap::event::{Event, Header, Peer, Span};
use std::fmt::Write;
use std::time::Duration;

/// How much of an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// What Linkerd's default says.
    Usual,
    /// Services, route, attempt and labels too.
    Wide,
}

/// The names of the gRPC codes, as Go writes them.
const GRPC: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The lines of an event: one, and one for each header that it has. No line can hold a control character: a request
/// cannot write on the screen of whoever watches it.
pub fn lines(event: &Event, width: Width) -> String {
    let mut out = String::new();
    let inbound = event.proxy_direction == "INBOUND";
    let (kind, id) = match (&event.request_init_event, &event.response_init_event, &event.response_end_event)
    {
        (Some(init), ..) => ("req", init.id),
        (_, Some(init), _) => ("rsp", init.id),
        (.., Some(end)) => ("end", end.id),
        _ => return out,
    };
    let direction = match event.proxy_direction.as_str() {
        "INBOUND" => "in ",
        "OUTBOUND" => "out",
        _ => "",
    };
    let known = if inbound { &event.source } else { &event.destination };
    let tls = known.metadata.get("tls").map_or("", String::as_str);
    let (src, dst) = (address(&event.source), address(&event.destination));
    put(
        &mut out,
        format_args!("{kind} id={}:{} proxy={direction} src={src} dst={dst} tls={tls}", id.base, id.stream),
    );
    if let Some(init) = &event.request_init_event {
        put(
            &mut out,
            format_args!(" :method={} :authority={} :path={}", init.method, init.authority, init.path),
        );
        if let Some(reason) = &init.reason {
            put(&mut out, format_args!(" retry={} because={reason}", event.attempt));
        }
        told(&mut out, event, width);
        headers(&mut out, init.headers.as_deref());
    } else if let Some(init) = &event.response_init_event {
        put(
            &mut out,
            format_args!(" :status={} latency={}µs", init.http_status, micros(init.since_request_init)),
        );
        told(&mut out, event, width);
        headers(&mut out, init.headers.as_deref());
    } else if let Some(end) = &event.response_end_event {
        if let Some(code) = end.grpc_status_code {
            match GRPC.get(code as usize) {
                Some(name) => put(&mut out, format_args!(" grpc-status={name}")),
                None => put(&mut out, format_args!(" grpc-status=Code({code})")),
            }
        } else if let Some(code) = end.reset_error_code {
            put(&mut out, format_args!(" reset-error={code}"));
        }
        let since = end.since_response_init.unwrap_or_default();
        put(&mut out, format_args!(" duration={}µs response-length={}B", micros(since), end.response_bytes));
        if let Some(error) = &end.error {
            put(&mut out, format_args!(" error={error}"));
        } else if end.outcome == "cancelled" {
            out.push_str(" cancelled");
        }
        if let Some(rule) = &end.rule {
            put(&mut out, format_args!(" rule={rule}"));
        }
        if let Some(rule) = &end.audit {
            put(&mut out, format_args!(" audit={rule}"));
        }
        told(&mut out, event, width);
        headers(&mut out, end.trailers.as_deref());
    }
    out
}

/// What the wide form adds.
fn told(out: &mut String, event: &Event, width: Width) {
    if width == Width::Usual {
        return;
    }
    put(out, format_args!(" src_res={} dst_res={}", event.process, event.service));
    if let Some(route) = event.route_meta.as_ref().and_then(|meta| meta.get("route")) {
        put(out, format_args!(" rt_route={route:?}"));
    }
    put(out, format_args!(" attempt={}", event.attempt));
    if let Some(trace) = &event.trace_id {
        put(out, format_args!(" trace={trace}"));
    }
    for (name, value) in event.source.metadata.iter().filter(|(name, _)| *name != "tls") {
        put(out, format_args!(" src_{name}={value}"));
    }
    for (name, value) in event.destination.metadata.iter().filter(|(name, _)| *name != "tls") {
        put(out, format_args!(" dst_{name}={value}"));
    }
}

fn headers(out: &mut String, headers: Option<&[Header]>) {
    for Header { name, value_str } in headers.unwrap_or_default() {
        out.push_str("\n  ");
        put(out, format_args!("{name}: {value_str}"));
    }
}

/// Writes without anything that is not printable: control characters, and what turns the direction of writing.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    let text = text.to_string();
    for letter in text.chars() {
        if letter.is_control()
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
        {
            // Writing into a string does not fail.
            let _ = write!(out, "{}", letter.escape_unicode());
        } else {
            out.push(letter);
        }
    }
}

fn address(peer: &Peer) -> String {
    if peer.ip.contains(':') {
        format!("[{}]:{}", peer.ip, peer.port)
    } else {
        format!("{}:{}", peer.ip, peer.port)
    }
}

fn micros(span: Span) -> u128 {
    Duration::from(span).as_micros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(json: &str) -> Event {
        let head = r#"{"source":{"ip":"0.0.0.1","port":0},"destination":{"ip":"ff01::1","port":0,"metadata":{"tls":"true"}},"routeMeta":null,"proxyDirection":"OUTBOUND","#;
        serde_json::from_str(&format!("{head}{json}")).unwrap()
    }

    const REQUEST: &str = r#""requestInitEvent":{"id":{"base":1,"stream":0},"method":"GET","scheme":"HTTPS","authority":"localhost","path":"/some/path","headers":null}}"#;

    #[test]
    fn lines_are_linkerds() {
        assert_eq!(
            lines(&event(REQUEST), Width::Usual),
            "req id=1:0 proxy=out src=0.0.0.1:0 dst=[ff01::1]:0 tls=true :method=GET :authority=localhost :path=/some/path"
        );
        let mut end = event(
            r#""responseEndEvent":{"id":{"base":1,"stream":0},"sinceRequestInit":{"seconds":100},"sinceResponseInit":{"seconds":100},"responseBytes":1337,"trailers":null,"grpcStatusCode":666}}"#,
        );
        end.destination.metadata.clear();
        assert_eq!(
            lines(&end, Width::Usual),
            "end id=1:0 proxy=out src=0.0.0.1:0 dst=[ff01::1]:0 tls= grpc-status=Code(666) duration=100000000µs response-length=1337B"
        );
        let response = Event {
            source: Peer {
                metadata: [("tls".to_owned(), "true".to_owned())].into(),
                ..Peer::at("10.1.3.76:57152".parse().ok())
            },
            destination: Peer::at("10.1.3.74:7000".parse().ok()),
            proxy_direction: "INBOUND".to_owned(),
            ..event(
                r#""responseInitEvent":{"id":{"base":0,"stream":1},"sinceRequestInit":{"nanos":1234000},"httpStatus":200,"headers":[{"name":"a","valueStr":"b"}]}}"#,
            )
        };
        assert_eq!(
            lines(&response, Width::Usual),
            "rsp id=0:1 proxy=in  src=10.1.3.76:57152 dst=10.1.3.74:7000 tls=true :status=200 latency=1234µs\n  a: b"
        );
    }

    #[test]
    fn the_wide_form_says_more() {
        let mut wide = event(REQUEST);
        wide.attempt = 1;
        wide.route_meta = Some([("route".to_owned(), "GET /a b".to_owned())].into());
        wide.destination.metadata.insert("zone".to_owned(), "a".to_owned());
        if let Some(init) = &mut wide.request_init_event {
            init.reason = Some("status 503".to_owned());
        }
        let line = lines(&wide, Width::Wide);
        let end = r#":path=/some/path retry=1 because=status 503 src_res= dst_res= rt_route="GET /a b" attempt=1 dst_zone=a"#;
        assert!(line.ends_with(end), "{line}");
    }

    proptest! {
        #[test]
        fn no_request_writes_on_the_screen(path in ".{0,40}", rule in "[\u{0}-\u{1f}\u{202e}\u{9b}]{0,9}") {
            let mut event = event(REQUEST);
            if let Some(init) = &mut event.request_init_event {
                init.path = format!("{path}{rule}");
            }
            let line = lines(&event, Width::Wide);
            let bad = line.chars().find(|letter| letter.is_control() || *letter == '\u{202e}');
            prop_assert_eq!(bad, None);
        }
    }
}
