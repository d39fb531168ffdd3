//! Floor 2: who asks whom for what most: live requests counted by path, as `linkerd viz top` does.

use crate::tap::event::{Event, StreamId};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The most lines that are kept apart. Paths come from whoever sends requests, so their number has no end; those beyond count in
/// one line whose path is `[other]`.
pub const ROWS_MAX: usize = 1000;

/// The most requests whose end is waited for: ten times what an observer is sent in a second. The oldest is forgotten first.
const OPEN_MAX: usize = 10_000;

/// What tells a line from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// Who asks: the process that tells it, or what it knows of its caller.
    pub source: String,
    /// Who is asked.
    pub destination: String,
    /// The method.
    pub method: String,
    /// The path, without its query.
    pub path: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// What it counts.
    #[serde(flatten)]
    pub key: Key,
    /// How many requests ended.
    pub count: u64,
    /// The shortest, from the request to the end of its response.
    pub best: Duration,
    /// The longest.
    pub worst: Duration,
    /// The latest.
    pub last: Duration,
    /// How many of them succeeded.
    pub successes: u64,
    /// How many failed; one whose caller went away did neither.
    pub failures: u64,
}

impl Line {
    /// The share that succeeded.
    pub fn success_rate(&self) -> Option<f64> {
        let ended = self.successes + self.failures;
        (ended > 0).then(|| self.successes as f64 / ended as f64)
    }
}

type Id = (String, StreamId);

/// Counts of live requests.
#[derive(Debug, Default)]
pub struct Top {
    open: BTreeMap<Id, Key>,
    order: VecDeque<Id>,
    lines: BTreeMap<Key, Line>,
}

impl Top {
    /// Takes an event.
    pub fn take(&mut self, event: &Event) {
        if let Some(begun) = &event.request_init_event {
            let (source, destination) = ends(event);
            let key = Key { source, destination, method: begun.method.clone(), path: begun.path.clone() };
            self.begin((event.process.clone(), begun.id), key);
        }
        if let Some(end) = &event.response_end_event
            && let Some(key) = self.open.remove(&(event.process.clone(), end.id))
        {
            self.end(key, end.since_request_init.into(), &end.outcome);
        }
    }

    fn begin(&mut self, id: Id, key: Key) {
        if self.order.len() >= OPEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.open.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.open.insert(id, key);
    }

    fn end(&mut self, key: Key, time: Duration, outcome: &str) {
        let key = match self.lines.contains_key(&key) || self.lines.len() < ROWS_MAX {
            true => key,
            false => Key {
                source: "-".into(),
                destination: "-".into(),
                method: "-".into(),
                path: "[other]".into(),
            },
        };
        let line = self.lines.entry(key).or_insert_with_key(|key| Line {
            key: key.clone(),
            count: 0,
            best: time,
            worst: time,
            last: time,
            successes: 0,
            failures: 0,
        });
        line.count += 1;
        (line.best, line.worst, line.last) = (line.best.min(time), line.worst.max(time), time);
        match outcome {
            "success" => line.successes += 1,
            "failure" => line.failures += 1,
            _ => {}
        }
    }

    /// The lines, the most frequent first.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = self.lines.values().cloned().collect();
        lines.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        lines
    }
}

/// Who asks whom: the process that tells an event is one end, and says what it knows of the other.
fn ends(event: &Event) -> (String, String) {
    let own = event.process.clone();
    if event.proxy_direction == "OUTBOUND" {
        return (own, format!("{}:{}", event.destination.ip, event.destination.port));
    }
    let id = event.source.metadata.get("client_id").filter(|id| !id.is_empty());
    (id.unwrap_or(&event.source.ip).clone(), own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(direction: &str, what: serde_json::Value) -> Event {
        let mut event = json!({
            "source": {"ip": "10.0.0.1", "port": 4, "metadata": {"client_id": "web-id"}},
            "destination": {"ip": "10.0.0.2", "port": 80, "metadata": {}},
            "routeMeta": null, "proxyDirection": direction, "process": "voting",
        });
        for (key, value) in what.as_object().unwrap() {
            event[key] = value.clone();
        }
        serde_json::from_value(event).unwrap()
    }

    fn call(top: &mut Top, direction: &str, stream: u64, path: &str, ms: u32, outcome: &str) {
        let id = json!({"base": 1, "stream": stream});
        let begun = json!({"requestInitEvent": {"id": id, "method": "GET", "scheme": "http", "authority": "a", "path": path, "headers": null}});
        top.take(&event(direction, begun));
        let since = json!({"seconds": 0, "nanos": ms * 1_000_000});
        let end = json!({"responseEndEvent": {"id": id, "sinceRequestInit": since, "sinceResponseInit": null, "responseBytes": 0,
                          "trailers": null, "grpcStatusCode": null, "outcome": outcome}});
        top.take(&event(direction, end));
    }

    #[test]
    fn requests_are_counted_by_who_asks_whom_for_what() {
        let mut top = Top::default();
        for (stream, (path, ms, outcome)) in
            [("/a", 5, "success"), ("/a", 1, "failure"), ("/a", 9, "success"), ("/b", 2, "cancelled")]
                .iter()
                .enumerate()
        {
            call(&mut top, "INBOUND", stream as u64, path, *ms, outcome);
        }
        let lines = top.lines();
        let ms = Duration::from_millis;
        let first = &lines[0];
        assert_eq!(
            (&*first.key.source, &*first.key.destination, &*first.key.path),
            ("web-id", "voting", "/a")
        );
        assert_eq!((first.count, first.best, first.worst, first.last), (3, ms(1), ms(9), ms(9)));
        assert_eq!((first.success_rate(), lines[1].success_rate()), (Some(2.0 / 3.0), None));
        call(&mut top, "OUTBOUND", 9, "/a", 1, "success");
        let out = top.lines().into_iter().find(|line| line.key.source == "voting").unwrap();
        assert_eq!(out.key.destination, "10.0.0.2:80");
    }

    #[test]
    fn endless_paths_and_requests_without_end_cost_a_bounded_memory() {
        let mut top = Top::default();
        for n in 0..ROWS_MAX as u64 + 500 {
            call(&mut top, "INBOUND", n, &format!("/{n}"), 1, "success");
        }
        let lines = top.lines();
        assert_eq!((lines.len(), &*lines[0].key.path, lines[0].count), (ROWS_MAX + 1, "[other]", 500));
        for n in 0..2 * OPEN_MAX as u64 {
            let id = StreamId { base: 2, stream: n };
            top.begin(("p".to_owned(), id), lines[0].key.clone());
        }
        assert!(top.open.len() <= OPEN_MAX && top.order.len() <= OPEN_MAX);
    }
}
