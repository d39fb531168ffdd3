//! Traces and taps against the corpus: contexts in headers, and the lines of `linkerd viz tap`.

#[path = "support/corpus.rs"]
mod support;

use enmesh::tap::event::Event;
use enmesh::tap::text::{Width, lines};
use enmesh::trace::context::TraceContext;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use support::{cases, vectors};

fn read(name: &'static str, value: &str) -> Option<TraceContext> {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header"));
    TraceContext::read(&headers)
}

#[test]
fn traceparents_are_read_as_w3c_has_it() {
    let Some(file) = vectors("linkerd-tracing.json") else { return };
    for case in cases(&file, "traceparent") {
        let text = case["v"].as_str().expect("a value");
        let context = read("traceparent", text);
        // Linkerd reads version 00 alone; W3C wants later ones read too (docs/linkerd-differences.md, "Traces").
        let is_later = text.len() == 55 && text.get(2..3) == Some("-") && !text.starts_with("00");
        assert_eq!(context.is_some(), case["ok"] == true || is_later, "{case}");
        if let (Some(context), Some(sampled)) = (context, case["sampled"].as_bool()) {
            assert_eq!(context.sampled, Some(sampled), "{case}");
        }
    }
    for case in cases(&file, "traceparent_quirks") {
        assert_eq!(case["w3c"], "reject", "{case}");
        assert_eq!(read("traceparent", case["v"].as_str().expect("a value")), None, "{case}");
    }
}

#[test]
fn formats_have_linkerds_precedence() {
    let Some(file) = vectors("linkerd-tracing.json") else { return };
    assert_eq!(file["precedence"], json!(["traceparent", "grpc-trace-bin", "x-b3-*"]));
    let id = |digit: &str| digit.repeat(32);
    let mut headers = HeaderMap::new();
    let mut insert = |name: &'static str, value: String| {
        headers.insert(HeaderName::from_static(name), value.parse().expect("a value"));
        TraceContext::read(&headers).map(|context| context.trace.to_string())
    };
    assert_eq!(insert("x-b3-traceid", id("3")), None);
    assert_eq!(insert("x-b3-spanid", "3".repeat(16)), Some(id("3")));
    // Version 0, trace 22…, span 22…, sampled.
    let binary = "AAAiIiIiIiIiIiIiIiIiIiIiASIiIiIiIiIiAgE=";
    assert_eq!(insert("grpc-trace-bin", binary.to_owned()), Some(id("2")));
    assert_eq!(insert("traceparent", format!("00-{}-{}-01", id("1"), "1".repeat(16))), Some(id("1")));
}

/// The event that a line of `linkerd viz tap` tells.
fn event(line: &str) -> Event {
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
    let number = |text: Option<&str>| -> u64 {
        let digits: String = text.unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_default()
    };
    let peer = |text: &str, tls: Option<&str>| {
        let (ip, port) = text.rsplit_once(':').expect("a port");
        let mut metadata = serde_json::Map::new();
        if let Some(tls) = tls.filter(|tls| !tls.is_empty()) {
            metadata.insert("tls".to_owned(), tls.into());
        }
        json!({"ip": ip.trim_matches(['[', ']']), "port": port.parse::<u16>().expect("a port"), "metadata": metadata})
    };
    let (base, stream) = field("id=").and_then(|id| id.split_once(':')).expect("an id");
    let id = json!({"base": base.parse::<u32>().expect("a number"), "stream": stream.parse::<u64>().expect("a number")});
    let inbound = field("proxy=") == Some("in");
    let tls = field("tls=");
    let micros = |name| std::time::Duration::from_micros(number(field(name)));
    let span = |time: std::time::Duration| json!({"seconds": time.as_secs(), "nanos": time.subsec_nanos()});
    let mut event = json!({
        "source": peer(field("src=").expect("a source"), tls.filter(|_| inbound)),
        "destination": peer(field("dst=").expect("a destination"), tls.filter(|_| !inbound)),
        "routeMeta": null,
        "proxyDirection": if inbound { "INBOUND" } else { "OUTBOUND" },
    });
    match &line[..3] {
        "req" => {
            event["requestInitEvent"] = json!({"id": id, "method": field(":method="), "scheme": "HTTP",
                "authority": field(":authority="), "path": field(":path="), "headers": null});
        }
        "rsp" => {
            event["responseInitEvent"] = json!({"id": id, "sinceRequestInit": span(micros("latency=")),
                "httpStatus": number(field(":status=")), "headers": null});
        }
        _ => {
            event["responseEndEvent"] = json!({"id": id, "sinceRequestInit": span(micros("duration=")),
                "sinceResponseInit": span(micros("duration=")), "responseBytes": number(field("response-length=")),
                "trailers": null, "grpcStatusCode": number(field("grpc-status="))});
        }
    }
    serde_json::from_value(event).expect("an event")
}

#[test]
fn events_are_the_lines_of_linkerds_tap() {
    let Some(file) = vectors("linkerd-viz.json") else { return };
    for line in cases(&file["tap"], "lines") {
        let line = line.as_str().expect("a line");
        // Linkerd pads the direction to three letters.
        let padded = line.replace("proxy=in src", "proxy=in  src");
        let seen = lines(&event(line), Width::Usual);
        assert!(seen == line || seen == padded, "{seen}\n{line}");
    }
}
