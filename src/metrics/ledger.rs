//! Floor 2: all series that are shown, gathered from what counts: caps, expiry, and what changed.

use crate::metrics::exemplars::Exemplar;
use crate::metrics::families::{ALL, Family, Kind};
use crate::metrics::registry::Registry;
use crate::stdx::histogram::Counts;
use metrics::Label;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The most series of one family: what 10 000 endpoints have that end in five ways each. More are added up in one series
/// labelled `overflow="true"`, and `enmesh_series_overflow_total` tells it.
pub const SERIES_MAX: usize = 50_000;

/// How long a series is shown after what it tells of is gone: as long as Linkerd's (linkerd.md §8.1). What is still
/// configured is shown for ever, however idle.
pub const RETAIN: Duration = Duration::from_secs(600);

/// Something that can tell what it counted.
pub trait Collect: Send + Sync {
    /// Tells all series and their totals. It is asked at each scrape and never by a request.
    fn collect(&self, sink: &mut Sink<'_>);
}

/// Where [`Collect`] tells series. Two that are told with the same labels are added up; gauges too.
#[derive(Debug)]
pub struct Sink<'a> {
    ledger: &'a mut Ledger,
    now: Instant,
}

impl Sink<'_> {
    /// A running total. When it is less than at the last time, it is taken to have begun again from 0.
    pub fn counter(&mut self, family: &Family, labels: &[Label], total: u64) {
        self.with(family, labels, |entry| entry.told_count += total);
    }

    /// A value that holds now.
    pub fn gauge(&mut self, family: &Family, labels: &[Label], value: f64) {
        self.with(family, labels, |entry| entry.told_value += value);
    }

    /// Running totals by size.
    pub fn histogram(&mut self, family: &Family, labels: &[Label], counts: &Counts) {
        self.histogram_with(family, labels, counts, &[]);
    }

    /// The same, with calls whose traces are recorded.
    pub fn histogram_with(
        &mut self,
        family: &Family,
        labels: &[Label],
        counts: &Counts,
        exemplars: &[Exemplar],
    ) {
        self.with(family, labels, |entry| {
            entry.told_sizes = entry.told_sizes.merge(counts);
            entry.sizes.exemplars.extend_from_slice(exemplars);
        });
    }

    /// The time of this gathering.
    pub fn now(&self) -> Instant {
        self.now
    }

    fn with(&mut self, family: &Family, labels: &[Label], tell: impl FnOnce(&mut Entry)) {
        let (tick, now) = (self.ledger.tick, self.now);
        if let Some(shelf) = self.ledger.shelves.get_mut(family.name) {
            let entry = shelf.entry(labels, self.ledger.series_max);
            if entry.tick != tick {
                entry.begin(tick, now);
            } else {
                entry.merged = true;
            }
            tell(entry);
        }
    }
}

/// The series of all families.
#[derive(Debug)]
pub struct Ledger {
    shelves: BTreeMap<&'static str, Shelf>,
    tick: u64,
    series_max: usize,
    retain: Duration,
    /// The buckets of duration histograms, if not the families' own.
    buckets: Option<Arc<[f64]>>,
    /// Where changes are passed on to.
    out: Option<Registry>,
}

/// The series of one family.
#[derive(Debug)]
pub struct Shelf {
    family: &'static Family,
    series: BTreeMap<Box<[Label]>, Entry>,
    overflowed: u64,
}

/// A series.
#[derive(Debug, Default)]
pub struct Entry {
    tick: u64,
    told_at: Option<Instant>,
    /// Whether several ever told it at once: then its sum falls when one of them goes, and that is no new beginning.
    merged: bool,
    told_count: u64,
    told_value: f64,
    told_sizes: Counts,
    last_count: u64,
    last_sizes: Counts,
    /// What a counter shows.
    pub count: u64,
    /// What a gauge shows.
    pub value: f64,
    /// What a histogram shows.
    pub sizes: Sizes,
}

/// A histogram as it is shown.
#[derive(Debug, Default)]
pub struct Sizes {
    /// For each bucket how many fell into it and no smaller one; the last one is beyond all bounds.
    pub buckets: Vec<u64>,
    /// All values added up.
    pub sum: f64,
    /// Calls among them whose traces are recorded.
    pub exemplars: Vec<Exemplar>,
}

impl Default for Ledger {
    fn default() -> Self {
        let shelf =
            |family: &'static Family| (family.name, Shelf { family, series: BTreeMap::new(), overflowed: 0 });
        Self {
            shelves: ALL.iter().map(shelf).collect(),
            tick: 0,
            series_max: SERIES_MAX,
            retain: RETAIN,
            buckets: None,
            out: None,
        }
    }
}

impl Ledger {
    /// Passes on what changes to a recorder of the `metrics` facade.
    #[must_use]
    pub fn passing_to(mut self, registry: Registry) -> Self {
        self.out = Some(registry);
        self
    }

    /// Shows at most so many series of a family. Default [`SERIES_MAX`].
    #[must_use]
    pub fn with_series_max(mut self, series_max: usize) -> Self {
        self.series_max = series_max;
        self
    }

    /// Shows series for so long after they are gone. Default [`RETAIN`].
    #[must_use]
    pub fn with_retain(mut self, retain: Duration) -> Self {
        self.retain = retain;
        self
    }

    /// Cuts the histograms of durations at these seconds, rising, and not where Linkerd does.
    #[must_use]
    pub fn with_buckets(mut self, seconds: impl Into<Arc<[f64]>>) -> Self {
        self.buckets = Some(seconds.into());
        self
    }

    /// Asks all `sources` that still live, and forgets what expired.
    pub fn gather(&mut self, sources: &[Weak<dyn Collect>], now: Instant) {
        self.tick += 1;
        let mut sink = Sink { ledger: self, now };
        for source in sources.iter().filter_map(Weak::upgrade) {
            source.collect(&mut sink);
        }
        self.tell_itself(now);
        let Self { shelves, tick, retain, buckets, out, .. } = self;
        for shelf in shelves.values_mut() {
            let bounds = shelf.family.bounds(buckets.as_deref());
            shelf.series.retain(|labels, entry| {
                if entry.tick == *tick {
                    entry.settle(shelf.family, &bounds, labels, out.as_ref());
                } else if entry.value != 0.0 {
                    entry.fall(shelf.family, labels, out.as_ref());
                }
                entry.told_at.is_some_and(|told| now.saturating_duration_since(told) <= *retain)
            });
        }
    }

    /// The families that have series, in order of their names, with the buckets of the histograms.
    pub fn shelves(&self) -> impl Iterator<Item = (&Shelf, Vec<f64>)> {
        let full = self.shelves.values().filter(|shelf| !shelf.series.is_empty());
        full.map(|shelf| (shelf, shelf.family.bounds(self.buckets.as_deref())))
    }

    fn tell_itself(&mut self, now: Instant) {
        use crate::metrics::families::{SERIES, SERIES_OVERFLOW};
        let sizes: Vec<_> = self
            .shelves
            .values()
            .filter(|shelf| !shelf.series.is_empty() && shelf.family.name != SERIES.name)
            .map(|shelf| (shelf.family.name, shelf.series.len(), shelf.overflowed))
            .collect();
        let mut sink = Sink { ledger: self, now };
        for (name, series, overflowed) in sizes {
            let labels = [Label::from_static_parts("family", name)];
            sink.gauge(&SERIES, &labels, series as f64);
            if overflowed > 0 {
                sink.counter(&SERIES_OVERFLOW, &labels, overflowed);
            }
        }
    }
}

impl Family {
    /// The bounds of its buckets in its own scale.
    fn bounds(&self, seconds: Option<&[f64]>) -> Vec<f64> {
        match (self.kind, seconds) {
            (Kind::Histogram(scale, _), Some(seconds)) => {
                seconds.iter().map(|second| second * scale.per_second()).collect()
            }
            (Kind::Histogram(_, bounds), None) => bounds.to_vec(),
            (Kind::Counter | Kind::Gauge, _) => Vec::new(),
        }
    }
}

impl Shelf {
    /// The family.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Its series, in order of labels.
    pub fn series(&self) -> impl Iterator<Item = (&[Label], &Entry)> {
        self.series.iter().map(|(labels, entry)| (&**labels, entry))
    }

    fn entry(&mut self, labels: &[Label], max: usize) -> &mut Entry {
        let overflow = [Label::from_static_parts("overflow", "true")];
        let known = self.series.contains_key(labels);
        let labels = if known || self.series.len() < max {
            labels
        } else {
            self.overflowed += 1;
            &overflow
        };
        self.series.entry(labels.into()).or_default()
    }
}

impl Entry {
    fn begin(&mut self, tick: u64, now: Instant) {
        (self.tick, self.told_at) = (tick, Some(now));
        (self.told_count, self.told_value) = (0, 0.0);
        self.told_sizes = Counts::default();
        self.sizes.exemplars.clear();
    }

    /// Takes what was told as what is shown, and passes on what changed.
    fn settle(&mut self, family: &Family, bounds: &[f64], labels: &[Label], out: Option<&Registry>) {
        match family.kind {
            Kind::Counter => {
                let begun_again = self.told_count < self.last_count && !self.merged;
                let before = if begun_again { 0 } else { self.last_count };
                let more = self.told_count.saturating_sub(before);
                self.last_count = self.told_count;
                self.count += more;
                if let Some(out) = out {
                    // Also when it is 0, so that an exporter does not take it for gone.
                    out.counter(family.name, labels.to_vec()).increment(more);
                }
            }
            Kind::Gauge => {
                self.value = self.told_value;
                if let Some(out) = out {
                    out.gauge(family.name, labels.to_vec()).set(self.value);
                }
            }
            Kind::Histogram(scale, _) => {
                let begun_again = self.told_sizes.total() < self.last_sizes.total() && !self.merged;
                let before =
                    if begun_again { Counts::default() } else { std::mem::take(&mut self.last_sizes) };
                let more = self.told_sizes.since(&before);
                self.last_sizes = std::mem::take(&mut self.told_sizes);
                self.sizes.buckets.resize(bounds.len() + 1, 0);
                for (micros, count) in more.iter() {
                    let value = micros / 1e6 * scale.per_second();
                    self.sizes.buckets[bounds.partition_point(|bound| *bound < value)] += count;
                    self.sizes.sum += value * count as f64;
                    if let Some(out) = out {
                        let count = usize::try_from(count).unwrap_or(usize::MAX);
                        out.histogram(family.name, labels.to_vec()).record_many(value, count);
                    }
                }
            }
        }
    }

    /// What told a gauge is gone.
    fn fall(&mut self, family: &Family, labels: &[Label], out: Option<&Registry>) {
        self.value = 0.0;
        if let (Some(out), Kind::Gauge) = (out, family.kind) {
            out.gauge(family.name, labels.to_vec()).set(0.0);
        }
    }
}
