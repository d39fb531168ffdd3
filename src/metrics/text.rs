//! Floor 2: series as text: Prometheus's own (exposition format 0.0.4), or OpenMetrics 1.0, which knows exemplars.

use crate::metrics::families::{Kind, Scale};
use crate::metrics::ledger::{Ledger, Shelf, Sizes};
use metrics::Label;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::UNIX_EPOCH;

/// How series are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Prometheus's text, which everybody reads.
    #[default]
    Classic,
    /// OpenMetrics, with exemplars: for whoever asks for it, as Prometheus does.
    Open,
}

impl Form {
    /// What is said of it in a response's `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::Open => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes all families of `ledger`, in order of their names.
pub fn render(ledger: &Ledger, form: Form, text: &mut String) {
    for (shelf, bounds) in ledger.shelves() {
        // Writing to a string does not fail.
        let _ = write_family(shelf, &bounds, form, text);
    }
}

/// The name of a counter's family: OpenMetrics knows it without the ending of its series.
fn family_name(name: &str, is_counter: bool, form: Form) -> &str {
    let is_cut = is_counter && form == Form::Open;
    if is_cut { name.strip_suffix("_total").unwrap_or(name) } else { name }
}

fn write_family(shelf: &Shelf, bounds: &[f64], form: Form, text: &mut String) -> std::fmt::Result {
    let family = shelf.family();
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(..) => "histogram",
    };
    let name = family_name(family.name, family.kind == Kind::Counter, form);
    // OpenMetrics wants a quote in a help to be escaped.
    let help = if form == Form::Open { family.help.replace('"', "\\\"") } else { family.help.to_owned() };
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for (labels, entry) in shelf.series() {
        match family.kind {
            Kind::Counter => {
                write_name(family.name, "", labels, None, text)?;
                writeln!(text, " {}", entry.count)?;
            }
            Kind::Gauge => {
                write_name(family.name, "", labels, None, text)?;
                writeln!(text, " {}", entry.value)?;
            }
            Kind::Histogram(scale, _) => {
                let cut = Cut { name: family.name, bounds, scale, form };
                cut.write(labels, &entry.sizes, text)?;
            }
        }
    }
    Ok(())
}

/// How a histogram is written.
struct Cut<'a> {
    name: &'a str,
    bounds: &'a [f64],
    scale: Scale,
    form: Form,
}

impl Cut<'_> {
    fn write(&self, labels: &[Label], sizes: &Sizes, text: &mut String) -> std::fmt::Result {
        let mut total = 0;
        let mut low = f64::NEG_INFINITY;
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        for (bound, count) in bounds.zip(&sizes.buckets) {
            total += count;
            write_name(self.name, "_bucket", labels, Some(bound), text)?;
            write!(text, " {total}")?;
            if self.form == Form::Open && *count > 0 {
                self.write_exemplar(sizes, low, bound, text)?;
            }
            text.push('\n');
            low = bound;
        }
        write_name(self.name, "_sum", labels, None, text)?;
        writeln!(text, " {}", sizes.sum)?;
        write_name(self.name, "_count", labels, None, text)?;
        writeln!(text, " {total}")
    }

    /// The newest call of the bucket whose trace is recorded, if there is one.
    fn write_exemplar(&self, sizes: &Sizes, low: f64, high: f64, text: &mut String) -> std::fmt::Result {
        let value = |latency: std::time::Duration| latency.as_secs_f64() * self.scale.per_second();
        let here = sizes.exemplars.iter().filter(|one| {
            let value = value(one.latency);
            value > low && value <= high
        });
        let Some(one) = here.max_by_key(|one| one.at) else { return Ok(()) };
        let at = one.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (trace, span, value) = (one.trace, one.span, value(one.latency));
        write!(text, " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {value} {at:.3}")
    }
}

/// What another exporter wrote as [`Form::Classic`], as [`Form::Open`]: without empty lines, with the names that counters have
/// there. A counter whose series do not end as OpenMetrics wants is of unknown type.
pub fn opened(classic: &str) -> String {
    let of = |line: &str, word: &str| -> Option<(String, String)> {
        let (name, rest) = line.strip_prefix(word)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let kinds: BTreeMap<String, String> = classic.lines().filter_map(|line| of(line, "# TYPE ")).collect();
    let mut open = String::with_capacity(classic.len());
    for line in classic.lines().filter(|line| !line.is_empty()) {
        let told = of(line, "# TYPE ").map(|told| ("TYPE", told));
        match told.or_else(|| of(line, "# HELP ").map(|told| ("HELP", told))) {
            Some((word, (name, rest))) => {
                let is_counter = kinds.get(&name).is_some_and(|kind| kind == "counter");
                let is_known = !is_counter || name.ends_with("_total");
                let name = family_name(&name, is_counter, Form::Open);
                let rest = if word == "TYPE" && !is_known { "unknown" } else { rest.as_str() };
                open += &format!("# {word} {name} {rest}\n");
            }
            None if line.starts_with('#') => {}
            None => {
                open += line;
                open.push('\n');
            }
        }
    }
    open
}

fn write_name(
    name: &str,
    suffix: &str,
    labels: &[Label],
    bound: Option<f64>,
    text: &mut String,
) -> std::fmt::Result {
    write!(text, "{name}{suffix}")?;
    let mut mark = '{';
    for label in labels {
        write!(text, "{mark}{}=\"", label.key())?;
        for c in label.value().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
        mark = ',';
    }
    match bound {
        Some(bound) if bound.is_infinite() => write!(text, "{mark}le=\"+Inf\"}}"),
        Some(bound) => write!(text, "{mark}le=\"{bound}\"}}"),
        None if labels.is_empty() => Ok(()),
        None => text.write_char('}'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::families;
    use crate::metrics::ledger::{Collect, Sink};
    use crate::stdx::clock;
    use crate::stdx::histogram::Histogram;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    type Tell = Box<dyn Fn(&mut Sink<'_>) + Send>;

    /// A source that a test changes between gatherings.
    struct Fake(Mutex<Tell>);

    impl Collect for Fake {
        fn collect(&self, sink: &mut Sink<'_>) {
            (self.0.lock().unwrap())(sink);
        }
    }

    fn gathered(ledger: &mut Ledger, secs: u64, tell: impl Fn(&mut Sink<'_>) + Send + 'static) -> String {
        let source: Arc<dyn Collect> = Arc::new(Fake(Mutex::new(Box::new(tell))));
        let start = *START.get_or_init(clock::now);
        ledger.gather(&[Arc::downgrade(&source)], start + Duration::from_secs(secs));
        let mut text = String::new();
        render(ledger, Form::Classic, &mut text);
        let own = |line: &&str| !line.contains("enmesh_series") && !line.starts_with('#');
        text.lines().filter(own).map(|line| format!("{line}\n")).collect()
    }

    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();

    fn label(value: &'static str) -> [Label; 1] {
        [Label::from_static_parts("dst", value)]
    }

    #[test]
    fn a_histogram_is_cut_at_linkerds_bounds_and_a_label_is_escaped() {
        let histogram = Histogram::default();
        for micros in [1, 1_000, 2_400_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let counts = histogram.read();
        let tell = move |sink: &mut Sink<'_>| {
            sink.histogram(&families::OUT_HTTP_DURATION, &label("a\"\\\n"), &counts)
        };
        let text = gathered(&mut Ledger::default(), 0, tell);
        let name = "outbound_http_route_request_duration_seconds";
        let expected = [
            r#"_bucket{dst="a\"\\\n",le="0.05"} 2"#,
            r#"_bucket{dst="a\"\\\n",le="0.5"} 2"#,
            r#"_bucket{dst="a\"\\\n",le="1"} 2"#,
            r#"_bucket{dst="a\"\\\n",le="10"} 3"#,
            r#"_bucket{dst="a\"\\\n",le="+Inf"} 3"#,
        ];
        for (line, expected) in text.lines().zip(expected) {
            assert_eq!(line, format!("{name}{expected}"));
        }
        assert!(text.ends_with("_count{dst=\"a\\\"\\\\\\n\"} 3\n"), "{text}");
    }

    #[test]
    fn openmetrics_names_counters_without_their_ending_and_has_the_newest_trace_of_each_bucket() {
        use crate::metrics::exemplars::Exemplar;
        use crate::trace::id::{SpanId, TraceId};
        let one = |n: u8, millis: u64, secs: u64| Exemplar {
            trace: TraceId::new([n; 16]).unwrap(),
            span: SpanId::new([n; 8]).unwrap(),
            latency: Duration::from_millis(millis),
            at: std::time::UNIX_EPOCH + Duration::from_secs(secs),
        };
        // The last one's bucket has no call of its own: told as far as another bucket, or not yet.
        let told = [one(0x11, 20, 5), one(0x22, 40, 9), one(0x33, 2_000, 7), one(0x44, 600, 8)];
        let histogram = Histogram::default();
        [20, 40, 2_000].into_iter().for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let counts = histogram.read();
        let source: Arc<dyn Collect> = Arc::new(Fake(Mutex::new(Box::new(move |sink: &mut Sink<'_>| {
            sink.histogram_with(&families::OUT_HTTP_DURATION, &label("a"), &counts, &told);
            sink.counter(&families::BREAKER_SPARED, &label("a"), 3);
        }))));
        let (mut ledger, mut open) = (Ledger::default(), String::new());
        ledger.gather(&[Arc::downgrade(&source)], clock::now());
        render(&ledger, Form::Open, &mut open);
        let ids = |n: &str| format!("trace_id=\"{}\",span_id=\"{}\"", n.repeat(16), n.repeat(8));
        let name = "outbound_http_route_request_duration_seconds";
        for line in [
            "# TYPE enmesh_breaker_spared counter".to_owned(),
            "enmesh_breaker_spared_total{dst=\"a\"} 3".to_owned(),
            format!("{name}_bucket{{dst=\"a\",le=\"0.05\"}} 2 # {{{}}} 0.04 9.000", ids("22")),
            format!("{name}_bucket{{dst=\"a\",le=\"1\"}} 2"),
            format!("{name}_bucket{{dst=\"a\",le=\"10\"}} 3 # {{{}}} 2 7.000", ids("33")),
        ] {
            assert!(open.lines().any(|shown| shown == line), "{line}\n{open}");
        }
    }

    #[test]
    fn what_another_exporter_wrote_becomes_openmetrics() {
        let classic = "# HELP a_total How often\n# TYPE a_total counter\na_total 1\n\n# A comment\n# TYPE b counter\nb{x=\"# y\"} 2\n\n# TYPE c summary\nc_sum 3\n";
        let open = "# HELP a How often\n# TYPE a counter\na_total 1\n# TYPE b unknown\nb{x=\"# y\"} 2\n# TYPE c summary\nc_sum 3\n";
        assert_eq!(opened(classic), open);
    }

    #[test]
    fn a_counter_never_falls_and_what_is_gone_expires() {
        let mut ledger = Ledger::default();
        let tell = |value| {
            move |sink: &mut Sink<'_>| {
                sink.counter(&families::BREAKER_SPARED, &label("a"), value);
                sink.gauge(&families::BREAKER_SHUT, &label("a"), value as f64);
            }
        };
        let shown = |count, value| {
            format!(
                "enmesh_breaker_shut_endpoints{{dst=\"a\"}} {value}\nenmesh_breaker_spared_total{{dst=\"a\"}} {count}\n"
            )
        };
        assert_eq!(gathered(&mut ledger, 0, tell(5)), shown(5, 5));
        assert_eq!(gathered(&mut ledger, 1, tell(7)), shown(7, 7));
        // It begins again.
        assert_eq!(gathered(&mut ledger, 2, tell(3)), shown(10, 3));
        // It is gone, and for ten minutes shown as it was.
        assert_eq!(gathered(&mut ledger, 3, |_| {}), shown(10, 0));
        assert_eq!(gathered(&mut ledger, 602, |_| {}), shown(10, 0));
        assert_eq!(gathered(&mut ledger, 603, |_| {}), "");
    }

    #[test]
    fn series_beyond_the_cap_are_added_up_and_lose_nothing() {
        let mut ledger = Ledger::default().with_series_max(3);
        let tell = |counts: [u64; 5]| {
            move |sink: &mut Sink<'_>| {
                for (name, count) in ["a", "b", "c", "d", "e"].into_iter().zip(counts) {
                    sink.counter(&families::BREAKER_SPARED, &label(name), count);
                }
            }
        };
        let sum = |text: &str| {
            text.lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
        };
        let text = gathered(&mut ledger, 0, tell([1, 2, 3, 4, 5]));
        assert_eq!((text.lines().count(), sum(&text)), (4, 15));
        assert!(text.contains("{overflow=\"true\"} 9"), "{text}");
        assert_eq!(sum(&gathered(&mut ledger, 1, tell([2, 2, 3, 4, 7]))), 18);
    }
}
