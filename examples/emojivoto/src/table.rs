//! What the terminal shows: a table of routes over the last seconds, redrawn in place, or the same as plain lines.

use enmesh::metrics::stat::Reading;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// What the figures are counted over: long enough that a vote each second makes a rate, short enough that an edited
/// profile shows.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The running totals of one route, as of now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Total {
    /// The heading it stands under, such as `web → voting-svc`.
    pub group: String,
    /// The route, or the replica.
    pub route: String,
    /// Whether attempts are counted apart from calls: only a client sees them.
    pub has_attempts: bool,
    /// The totals.
    pub reading: Reading,
}

/// One row: a route over the window.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// The heading it stands under.
    pub group: String,
    /// The route, or the replica.
    pub route: String,
    /// The share of calls that succeeded, as callers saw it.
    pub success: Option<f64>,
    /// Calls each second.
    pub rps: f64,
    /// Half the answers came within this time.
    pub p50: Option<Duration>,
    /// 95 % did.
    pub p95: Option<Duration>,
    /// 99 % did.
    pub p99: Option<Duration>,
    /// What was sent for it.
    pub actual: Option<Actual>,
}

/// What a client really sent for its calls.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Actual {
    /// The share of attempts that succeeded.
    pub success: Option<f64>,
    /// Attempts each second.
    pub rps: f64,
    /// Attempts beyond the first, each second.
    pub retries: f64,
}

/// Readings of the last [`WINDOW`].
#[derive(Debug, Default)]
pub struct History {
    readings: VecDeque<(Instant, Readings)>,
}

/// Readings by group and route.
type Readings = BTreeMap<(String, String), Reading>;

impl History {
    /// Takes the totals of `now`, and answers with what happened since the start of the window.
    pub fn rows(&mut self, now: Instant, totals: Vec<Total>) -> Vec<Row> {
        // The one reading that is as old as the window stays, for the others to be measured against.
        while self.readings.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.readings.pop_front();
        }
        let none = Readings::new();
        let (from, before) = self.readings.front().map_or((now, &none), |(at, totals)| (*at, totals));
        let seconds = now.duration_since(from).as_secs_f64();
        let row = |total: &Total| {
            let key = (total.group.clone(), total.route.clone());
            let reading = before.get(&key).map_or_else(|| total.reading.clone(), |b| total.reading.since(b));
            Row::new(total, &reading, seconds)
        };
        let rows = totals.iter().map(row).collect();
        let by_key = totals.into_iter().map(|t| ((t.group, t.route), t.reading)).collect();
        self.readings.push_back((now, by_key));
        rows
    }
}

impl Row {
    fn new(total: &Total, reading: &Reading, seconds: f64) -> Self {
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let actual = Actual {
            success: reading.actual_success_rate(),
            rps: rate(reading.attempts),
            retries: rate(reading.retries()),
        };
        Self {
            group: total.group.clone(),
            route: total.route.clone(),
            success: reading.success_rate(),
            rps: rate(reading.requests),
            p50: reading.latency.quantile(0.50),
            p95: reading.latency.quantile(0.95),
            p99: reading.latency.quantile(0.99),
            actual: total.has_attempts.then_some(actual),
        }
    }

    /// The row as one line of `key=value` words, for a log.
    pub fn plain(&self) -> String {
        let mut line = format!(
            "{}: {} success={} rps={:.1} p50={} p95={} p99={}",
            self.group,
            self.route,
            percent(self.success),
            self.rps,
            latency(self.p50),
            latency(self.p95),
            latency(self.p99),
        );
        if let Some(actual) = self.actual {
            let success = percent(actual.success);
            // Writing to a `String` cannot fail.
            let _ = write!(
                line,
                " actual_success={success} actual_rps={:.1} retries={:.1}/s",
                actual.rps, actual.retries
            );
        }
        line
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2}%", 100.0 * share))
}

fn latency(time: Option<Duration>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    match time.as_secs_f64() * 1e3 {
        millis if millis < 9.95 => format!("{millis:.1}ms"),
        millis if millis < 9_950.0 => format!("{millis:.0}ms"),
        millis => format!("{:.0}s", millis / 1e3),
    }
}

/// What stands above and below the rows.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// Where to click.
    pub url: String,
    /// How long it has run.
    pub uptime: Duration,
    /// Hints below the table, name and text.
    pub notes: Vec<(&'static str, String)>,
    /// What is wrong, such as a profile that cannot be used.
    pub faults: Vec<String>,
}

/// Whether the table is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// By ANSI sequences.
    Ansi,
    /// Not at all.
    None,
}

struct Paint(Colour);

impl Paint {
    fn dye(&self, code: &str, text: &str) -> String {
        match self.0 {
            Colour::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
            Colour::None => text.to_owned(),
        }
    }

    fn bold(&self, text: &str) -> String {
        self.dye("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.dye("2", text)
    }

    /// Green from 99 %, yellow from 90 %, red below.
    fn success(&self, share: Option<f64>) -> String {
        let text = format!("{:>8}", percent(share));
        match share {
            None => self.dim(&text),
            Some(share) if share >= 0.99 => self.dye("32", &text),
            Some(share) if share >= 0.90 => self.dye("33", &text),
            Some(_) => self.dye("31", &text),
        }
    }
}

/// The table as lines of at most 80 characters. It leaves out what a reader can add up: attempts each second are calls
/// and retries.
pub fn render(frame: &Frame, rows: &[Row], colour: Colour) -> Vec<String> {
    let paint = Paint(colour);
    let up = frame.uptime.as_secs();
    let (title, url) = (paint.bold("emojivoto on enmesh"), paint.dye("1;36", &frame.url));
    let time = format!("up {}m{:02}s, last {} s", up / 60, up % 60, WINDOW.as_secs());
    let mut lines = vec![
        format!(" {title}  open {url}  {}", paint.dim(&time)),
        String::new(),
        paint.dim(&format!(
            " {:<21} {:>8} {:>6} {:>6} {:>6} {:>6}   {:>8} {:>8}",
            "ROUTE", "SUCCESS", "RPS", "P50", "P95", "P99", "ACTUAL", "RETRIES"
        )),
    ];
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = &row.group;
            lines.push(paint.bold(&format!(" {group}")));
        }
        lines.push(line(&paint, row));
    }
    lines.push(String::new());
    for fault in &frame.faults {
        for (i, part) in wrap(fault, 76).iter().enumerate() {
            lines.push(paint.dye("31", &format!(" {} {part}", if i == 0 { "!" } else { " " })));
        }
    }
    for (name, text) in &frame.notes {
        lines.push(format!(" {} {text}", paint.dim(&format!("{name:<9}"))));
    }
    lines
}

/// The text in lines of at most `width` characters, where its words allow it.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn line(paint: &Paint, row: &Row) -> String {
    let mut line = format!(
        "  {:<20} {} {:>6.1} {:>6} {:>6} {:>6}",
        row.route,
        paint.success(row.success),
        row.rps,
        latency(row.p50),
        latency(row.p95),
        latency(row.p99),
    );
    if let Some(actual) = row.actual {
        let retries = format!("{:>6.1}/s", actual.retries);
        let retries = if actual.retries > 0.0 { paint.dye("33", &retries) } else { paint.dim(&retries) };
        let _ = write!(line, "   {} {retries}", paint.success(actual.success));
    }
    line
}

/// What a terminal must be sent to show `lines` where the last ones stood. Each line is placed by its number and
/// cut at the right edge, so that a small window shows less and never scrolls.
pub fn paint(lines: &[String]) -> String {
    let mut out = String::from("\x1b[?7l");
    for (i, line) in lines.iter().enumerate() {
        let _ = write!(out, "\x1b[{};1H{line}\x1b[K", i + 1);
    }
    out.push_str("\x1b[J\x1b[?7h");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(requests: u64, successes: u64, attempts: u64) -> Total {
        let reading = Reading {
            requests,
            successes,
            failures: requests - successes,
            attempts,
            attempt_successes: successes,
            attempt_failures: attempts - successes,
            ..Reading::default()
        };
        Total {
            group: "web → voting-svc".to_owned(), route: "Vote".to_owned(), has_attempts: true, reading
        }
    }

    #[test]
    fn rows_say_what_happened_within_the_window() {
        let mut history = History::default();
        let start = enmesh::stdx::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        history.rows(at(0), vec![total(0, 0, 0)]);
        let rows = history.rows(at(5), vec![total(50, 45, 60)]);
        let actual = Actual { success: Some(0.75), rps: 12.0, retries: 2.0 };
        assert_eq!((rows[0].rps, rows[0].success, rows[0].actual), (10.0, Some(0.9), Some(actual)));
        history.rows(at(10), vec![total(60, 50, 70)]);
        // Since second 5, the last reading that is at least ten seconds old.
        let rows = history.rows(at(15), vec![total(70, 65, 80)]);
        assert_eq!((rows[0].rps, rows[0].success), (2.0, Some(1.0)));
    }

    #[test]
    fn a_route_seen_for_the_first_time_counts_from_nothing() {
        let mut history = History::default();
        let start = enmesh::stdx::clock::now();
        history.rows(start, vec![]);
        let rows = history.rows(start + Duration::from_secs(2), vec![total(4, 4, 4)]);
        assert_eq!(rows[0].rps, 2.0);
    }

    #[test]
    fn a_line_is_readable_by_people_and_by_grep() {
        let row = Row {
            group: "web → voting-svc".to_owned(),
            route: "Vote".to_owned(),
            success: Some(0.9995),
            rps: 8.44,
            p50: Some(Duration::from_micros(1_250)),
            p95: Some(Duration::from_millis(40)),
            p99: None,
            actual: Some(Actual { success: None, rps: 9.0, retries: 0.56 }),
        };
        assert_eq!(
            row.plain(),
            "web → voting-svc: Vote success=99.95% rps=8.4 p50=1.2ms p95=40ms p99=- actual_success=- \
             actual_rps=9.0 retries=0.6/s"
        );
    }

    #[test]
    fn the_table_is_the_same_with_and_without_colour_and_fits_a_narrow_terminal() {
        let frame = Frame { url: "http://127.0.0.1:8080".to_owned(), ..Frame::default() };
        let row =
            Row { route: "FindByShortcode".to_owned(), actual: Some(Actual::default()), ..Row::default() };
        let plain = render(&frame, std::slice::from_ref(&row), Colour::None).join("\n");
        let coloured = render(&frame, &[row], Colour::Ansi).join("\n");
        let mut stripped = coloured;
        for code in ["0", "1", "2", "31", "32", "33", "1;36"] {
            stripped = stripped.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(stripped, plain);
        assert!(plain.lines().all(|line| line.chars().count() <= 80), "{plain}");
    }

    #[test]
    fn a_long_fault_is_told_to_its_end() {
        let lines = wrap("one two three  four, and_a_word_longer_than_a_line five", 9);
        assert_eq!(lines, ["one two", "three", "four,", "and_a_word_longer_than_a_line", "five"]);
        assert_eq!(wrap("", 9), [""]);
    }

    #[test]
    fn a_redraw_moves_no_line_of_the_screen_up() {
        let painted = paint(&["one".to_owned(), "two".to_owned()]);
        assert!(!painted.contains('\n'));
        assert!(painted.contains("\x1b[2;1Htwo\x1b[K"));
    }
}
