//! Floor 2: series as Prometheus text (exposition format 0.0.4).

use crate::metrics::families::Kind;
use crate::metrics::ledger::{Entry, Ledger, Shelf};
use metrics::Label;
use std::fmt::Write;

/// Writes all families of `ledger`, in order of their names.
pub fn render(ledger: &Ledger, text: &mut String) {
    for (shelf, bounds) in ledger.shelves() {
        // Writing to a string does not fail.
        let _ = write_family(shelf, &bounds, text);
    }
}

fn write_family(shelf: &Shelf, bounds: &[f64], text: &mut String) -> std::fmt::Result {
    let family = shelf.family();
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(..) => "histogram",
    };
    writeln!(text, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help)?;
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
            Kind::Histogram(..) => write_sizes(family.name, labels, entry, bounds, text)?,
        }
    }
    Ok(())
}

fn write_sizes(
    name: &str,
    labels: &[Label],
    entry: &Entry,
    bounds: &[f64],
    text: &mut String,
) -> std::fmt::Result {
    let mut total = 0;
    let bounds = bounds.iter().copied().chain([f64::INFINITY]);
    for (bound, count) in bounds.zip(&entry.sizes.buckets) {
        total += count;
        write_name(name, "_bucket", labels, Some(bound), text)?;
        writeln!(text, " {total}")?;
    }
    write_name(name, "_sum", labels, None, text)?;
    writeln!(text, " {}", entry.sizes.sum)?;
    write_name(name, "_count", labels, None, text)?;
    writeln!(text, " {total}")
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
        render(ledger, &mut text);
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
