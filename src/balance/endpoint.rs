//! Floor 2: what is known of one endpoint: 64 bytes of atomics, read and written by every thread without a lock.

use crate::balance::cost::{Formula, Latency, Others, View, risen, waiting_since};
use crate::balance::set::Place;
use crate::stdx::moment::Moment;
use crate::stdx::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What is known of one endpoint. Reading changes nothing.
///
/// Requests that wait for their response's headers are counted with the sum of their starts in one word, so that
/// a reader always sees a count and a sum that belong together: the sum is in ticks of 16 µs and wraps, and
/// `count · now - sum` is the age of all together modulo 2^44 ticks, whatever wrapped. Requests whose headers
/// came but whose body is not at its end count in `streams`: they load the endpoint, and say nothing of latency.
/// At most 2^20 - 1 requests wait at one endpoint at once.
#[derive(Debug)]
#[repr(align(64))]
pub struct Cell {
    waiting: AtomicU64,
    latency: AtomicU64,
    health: AtomicU64,
    /// Streams in the low half, above them what it says of others' requests.
    streams: AtomicU64,
    gate: AtomicU32,
    born_ms: u32,
    id: u32,
    key: u64,
    draws: AtomicU64,
    place: AtomicU32,
}

/// The bit of the gate that says that an endpoint gets nothing new, whatever its breaker says: it drains, or left.
const RETIRED: u32 = 4;

impl Cell {
    /// A new endpoint of which nothing is known; until a request ends, `assumed` seconds stand for its latency.
    /// `key` is a hash of what names it.
    pub fn new(id: u32, key: u64, now: Moment, assumed: f32) -> Self {
        Self {
            waiting: AtomicU64::new(0),
            latency: AtomicU64::new(Latency::assumed(assumed, now).pack()),
            health: AtomicU64::new(Latency { secs: 1.0, stamp: now.millis(), assumed: false }.pack_share()),
            streams: AtomicU64::new(0),
            gate: AtomicU32::new(0),
            born_ms: now.millis(),
            id,
            key,
            draws: AtomicU64::new(0),
            place: AtomicU32::new(0),
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A hash of what names it.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Counts a draw, for sets whose weights differ.
    pub fn drawn(&self, now: Moment) {
        let draws = Latency { secs: self.draws(now) + 1.0, stamp: now.millis(), assumed: false };
        self.draws.store(draws.pack(), Relaxed);
    }

    /// How often it was drawn in the last seconds, as far as [`Cell::drawn`] was told.
    #[inline]
    pub fn draws(&self, now: Moment) -> f32 {
        Formula::faded_count(Latency::unpack(self.draws.load(Relaxed)), now)
    }

    /// When it was first seen, in milliseconds.
    pub fn born_ms(&self) -> u32 {
        self.born_ms
    }

    /// Where it is in its set.
    #[inline]
    pub fn place(&self) -> Place {
        Place::from_word(self.place.load(Relaxed))
    }

    /// Takes a place in a set, to get new requests or only to finish what it has.
    pub fn settle(&self, place: Place, serves: bool) {
        self.place.store(place.word(), Relaxed);
        if serves {
            self.gate.fetch_and(!RETIRED, Relaxed);
        } else {
            self.retire();
        }
    }

    /// It gets nothing new from now on.
    pub fn retire(&self) {
        self.gate.fetch_or(RETIRED, Relaxed);
    }

    /// Its breaker's word, for the breaker to write, but for bit 2, which says that it is retired.
    pub fn gate(&self) -> &AtomicU32 {
        &self.gate
    }

    /// Whether its breaker lets everybody in and it is not retired.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.gate.load(Relaxed) & (RETIRED | 3) == 0
    }

    /// Whether it gets new requests, but for its breaker.
    #[inline]
    pub fn serves(&self) -> bool {
        self.gate.load(Relaxed) & RETIRED == 0
    }

    /// A request was sent.
    #[inline]
    pub fn begin(&self, start: Moment) {
        self.waiting.fetch_add(waiting_since(start), Relaxed);
    }

    /// The response's headers came, or it is known that none will; `start` as it was given to [`Cell::begin`].
    #[inline]
    pub fn headers(&self, start: Moment) {
        self.waiting.fetch_sub(waiting_since(start), Relaxed);
    }

    /// A response's body is under way.
    #[inline]
    pub fn stream_begins(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    /// A response's body came to its end.
    #[inline]
    pub fn stream_ends(&self) {
        self.streams.fetch_sub(1, Relaxed);
    }

    /// Requests in flight, to the end of their responses.
    pub fn in_flight(&self) -> u32 {
        let view = self.view();
        view.count() + view.streams()
    }

    /// The endpoint says that it works on so many requests at `now`; what this process has there is not counted twice.
    /// Of two reports at once either may count. Returns how many are others'.
    pub fn reported(&self, requests: u32, now: Moment) -> u32 {
        let count = requests.saturating_sub(self.in_flight());
        let others = Others::new(count, now);
        let word = |seen: u64| Some(seen & u64::from(u32::MAX) | u64::from(others.word()) << 32);
        let _ = self.streams.fetch_update(Relaxed, Relaxed, word);
        count
    }

    /// Learns a latency. Of many threads that learn at once one or two get through, which is enough for an average.
    #[inline]
    pub fn learn(&self, formula: &Formula, now: Moment, secs: f32) {
        let mut old = self.latency.load(Relaxed);
        for _ in 0..2 {
            let new = formula.learn(Latency::unpack(old), now, secs).pack();
            match self.latency.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    /// Learns that a request took at least so long (its caller gave up waiting).
    pub fn learn_at_least(&self, formula: &Formula, now: Moment, secs: f32) {
        let known = Latency::unpack(self.latency.load(Relaxed));
        if !known.assumed && secs > known.secs {
            self.learn(formula, now, secs);
        }
    }

    /// Learns that a request went well or not. `now` is asked only if it matters.
    #[inline]
    pub fn judge(&self, went_well: bool, now: impl FnOnce() -> Moment) {
        let mut old = self.health.load(Relaxed);
        if went_well && Latency::unpack_share(old).secs >= 1.0 {
            return;
        }
        let now = now();
        for _ in 0..2 {
            let new = Formula::judged(Latency::unpack_share(old), now, went_well).pack_share();
            match self.health.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    /// The latency as last learned.
    #[inline]
    pub fn latency(&self) -> Latency {
        Latency::unpack(self.latency.load(Relaxed))
    }

    /// The share of requests that went well lately, 0 to 1.
    pub fn health(&self, now: Moment) -> f32 {
        Formula::forgiven(Latency::unpack_share(self.health.load(Relaxed)), now)
    }

    /// All that a score is made of, of an endpoint that was measured: a little cheaper, and of no meaning otherwise.
    #[inline(always)]
    pub fn measured_view(&self) -> View {
        self.view_of(Latency::unpack_measured(self.latency.load(Relaxed)))
    }

    /// All that a score is made of.
    #[inline(always)]
    pub fn view(&self) -> View {
        self.view_of(self.latency())
    }

    /// Whether one more request costs more here than at `other`, of two that are measured and well and of a formula for
    /// which [`Formula::compares_two`]; `None` of others. What [`Formula::score`] says of both, in half the instructions.
    #[inline(always)]
    pub(crate) fn costs_more_than(&self, other: &Self, formula: &Formula, now: Moment) -> Option<bool> {
        let health = |cell: &Self| Latency::unpack_share(cell.health.load(Relaxed));
        let latency = |cell: &Self| Latency::unpack_measured(cell.latency.load(Relaxed));
        let (here, there) = (latency(self), latency(other));
        if !(health(self).is_whole() & health(other).is_whole() & here.is_measured() & there.is_measured()) {
            return None;
        }
        if !formula.counts_latency() {
            return Some(other.waiting_view(there).load() < self.waiting_view(here).load());
        }
        let millis = now.millis();
        let (own, others) = (formula.faded(here, millis)?, formula.faded(there, millis)?);
        let view = self.waiting_view(here);
        let own = risen(own, &view, now) * view.load();
        let view = other.waiting_view(there);
        Some(risen(others, &view, now) * view.load() < own)
    }

    /// What waits and streams here, read when it is used and no sooner, so that registers suffice; of well endpoints.
    #[inline(always)]
    fn waiting_view(&self, latency: Latency) -> View {
        let (waiting, streams) = (self.waiting.load(Relaxed), self.streams.load(Relaxed));
        View { latency, health: Latency { secs: 1.0, ..latency }, waiting, streams }
    }

    #[inline(always)]
    fn view_of(&self, latency: Latency) -> View {
        View {
            latency,
            health: Latency::unpack_share(self.health.load(Relaxed)),
            waiting: self.waiting.load(Relaxed),
            streams: self.streams.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::cost::{Estimator, Power, TICK_SECS, ticks};
    use proptest::prelude::*;
    use std::time::Duration;

    fn at(secs: f64) -> Moment {
        Moment::from_micros((secs * 1e6) as u64)
    }

    #[test]
    fn a_cell_is_one_cache_line() {
        assert_eq!((size_of::<Cell>(), align_of::<Cell>()), (64, 64));
    }

    #[test]
    fn reading_changes_nothing() {
        let cell = Cell::new(1, 0, at(0.0), 0.03);
        let formula = Formula::default();
        cell.learn(&formula, at(1.0), 0.5);
        let once = formula.score(&cell.view(), at(30.0));
        (0..100).for_each(|i| assert_eq!((i, cell.view().count()), (i, 0)));
        assert_eq!(formula.score(&cell.view(), at(30.0)), once);
    }

    proptest! {
        /// The model: both scores, of latencies that fade by `exp`.
        #[test]
        fn the_dearer_of_two_is_the_one_whose_score_is_more(
            secs in (1e-6f32..100.0, 1e-6f32..100.0), ages in (0u32..900_000, 0u32..900_000), soon: (bool, bool),
            waiting in (0u64..4, 0u64..4), streams in (0u64..4, 0u64..4), well: (bool, bool), latency_counts: bool,
        ) {
            let now = Moment::from_micros(1_000_000_000);
            let one = |secs, age: u32, soon: bool, waiting: u64, streams, well: bool| {
                let cell = Cell::new(1, 1, now, 0.03);
                let stamp = now.millis() - if soon { age / 1000 } else { age };
                cell.latency.store(Latency { secs, stamp, assumed: false }.pack(), Relaxed);
                (0..waiting).for_each(|_| cell.begin(Moment::from_micros(999_000_000)));
                (0..streams).for_each(|_| cell.stream_begins());
                cell.judge(well, || now);
                cell
            };
            let first = one(secs.0, ages.0, soon.0, waiting.0, streams.0, well.0);
            let second = one(secs.1, ages.1, soon.1, waiting.1, streams.1, well.1);
            let power = if latency_counts { Power::One } else { Power::None };
            let formula = Formula::new(Estimator::Peak, power, Duration::from_secs(10), Duration::ZERO);
            prop_assert!(formula.compares_two() && !Formula::default().compares_two());
            let forgotten = |cell: &Cell| latency_counts && now.millis() - cell.latency().stamp > 550_000;
            let (a, b) = (formula.score(&first.view(), now), formula.score(&second.view(), now));
            match first.costs_more_than(&second, &formula, now) {
                None => prop_assert!(!well.0 || !well.1 || forgotten(&first) || forgotten(&second)),
                // Between those that differ by less than both errors either may be taken.
                Some(found) if (a / b - 1.0).abs() < 0.003 => prop_assert!(latency_counts || found == (b < a)),
                Some(found) => {
                    // Where the age of what waits is all but what may be, it counts twice or not at all.
                    let is_close = |cell: &Cell| {
                        let (view, count) = (cell.view(), cell.view().count() as f32);
                        let may_be = formula.estimate(view.latency, now) * (count + 1.5 * count.sqrt());
                        count > 0.0 && (view.age_ticks(now) as f32 * TICK_SECS / may_be - 1.0).abs() < 0.003
                    };
                    let either = latency_counts && (is_close(&first) || is_close(&second));
                    prop_assert!(found == (b < a) || either, "{} {}", a, b);
                }
            }
        }

        #[test]
        fn count_and_age_are_exact_whatever_wraps(
            base in 0u64..u64::MAX / 2,
            starts in proptest::collection::vec(0u64..10_000_000, 0..50),
            ended in proptest::collection::vec(any::<bool>(), 50),
        ) {
            let cell = Cell::new(1, 0, at(0.0), 0.03);
            let moment = |offset: u64| Moment::from_micros(base + offset);
            starts.iter().for_each(|start| cell.begin(moment(*start)));
            let mut left = Vec::new();
            for (start, ended) in starts.iter().zip(ended) {
                if ended { cell.headers(moment(*start)) } else { left.push(moment(*start)) }
            }
            let now = moment(20_000_000);
            let view = cell.view();
            let expected: u64 = left.iter().map(|start| ticks(now) - ticks(*start)).sum();
            prop_assert_eq!((view.count() as usize, view.age_ticks(now)), (left.len(), expected));
        }
    }
}
