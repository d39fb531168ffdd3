//! Floor 2: chooses the endpoint of one request.

use crate::balance::cost::Formula;
use crate::balance::hash::Table;
use crate::balance::ring::Freed;
use crate::balance::set::{Set, Slot, Tier};
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often an unusable draw is drawn again before all are looked at. With half of the endpoints shut that
/// happens once in 65 536 picks.
const DRAWS_MAX: u32 = 16;
/// The most endpoints compared by [`Rule::Choices`], as gRPC A48 has it.
pub const CHOICES_MAX: u8 = 10;
/// What a far endpoint costs more than a near one of equal load (docs/balancing.md).
const FAR_FACTOR: f32 = 2.0;
/// A new endpoint's share begins at a tenth, as Envoy's slow start has it.
const SLOW_START_MIN: f32 = 0.1;

/// A rule for choosing.
#[derive(Debug, Clone)]
pub enum Rule {
    /// The cheapest of the recently freed and two random ones.
    Freed,
    /// The cheapest of so many random ones.
    Choices(u8),
    /// One after the other.
    Turn(Arc<AtomicU64>),
    /// Any.
    Random,
    /// The one that the request's hash falls to, in the table of its tier.
    Hash(Arc<[Table]>),
}

/// How a service's endpoints are chosen from.
#[derive(Debug, Clone)]
pub struct Picker {
    /// The rule.
    pub rule: Rule,
    /// What an endpoint costs, for the rules that compare.
    pub formula: Formula,
    /// How long a new endpoint gets less than its share.
    pub slow_start: Option<Duration>,
    /// Below this share of usable endpoints (0 to 1) a tier's traffic overflows to the next.
    pub overflow_below: f32,
}

/// What one request asks for.
pub struct Ask<'a, F> {
    /// When.
    pub now: Moment,
    /// Chance.
    pub rng: &'a Rng,
    /// What is hashed.
    pub hash: Option<u64>,
    /// The endpoints that this thread recently saw freed.
    pub ring: &'a [Freed],
    /// Whether shut endpoints are used too, because too few are open.
    pub panic: bool,
    /// Which endpoints the request would rather not meet again.
    pub avoid: F,
}

impl<F> std::fmt::Debug for Ask<'_, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask").field("now", &self.now).field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl<F: Fn(u32) -> bool> Ask<'_, F> {
    #[inline]
    fn allows<T>(&self, slot: &Slot<T>) -> bool {
        (self.panic || slot.cell.is_open()) && !(self.avoid)(slot.cell.id())
    }
}

impl Picker {
    /// An endpoint for `ask`: a usable one that the request has not met, else any usable one, else `None`.
    #[inline]
    pub fn pick<'s, T, F: Fn(u32) -> bool>(&self, set: &'s Set<T>, ask: &Ask<'_, F>) -> Option<&'s Slot<T>> {
        let (index, tier) = self.tier(set, ask)?;
        if let Some(only) = tier.only().filter(|slot| set.tiers().len() == 1 && ask.allows(slot)) {
            return Some(only);
        }
        self.pick_in(set, (index, tier), ask).or_else(|| self.pick_anywhere(set, ask))
    }

    /// The tier of one request: the nearest, but for what its lack of usable endpoints makes overflow.
    #[inline]
    fn tier<'s, T, F>(&self, set: &'s Set<T>, ask: &Ask<'_, F>) -> Option<(usize, &'s Tier<T>)> {
        let mut tiers = set.tiers();
        if tiers.len() <= 1 {
            return Some((0, tiers.next()?));
        }
        self.overflow(set, ask)
    }

    /// Envoy's priority levels: each tier takes what its usable share over the threshold is of the traffic, the
    /// next the rest; when all together take less than everything, in proportion.
    fn overflow<'s, T, F>(&self, set: &'s Set<T>, ask: &Ask<'_, F>) -> Option<(usize, &'s Tier<T>)> {
        let takes = |tier: &Tier<T>| (tier.usable_share() / self.overflow_below.max(0.01)).min(1.0);
        let all: f32 = set.tiers().map(takes).sum::<f32>().min(1.0);
        let mut left = ask.rng.unit() as f32 * all;
        for (index, tier) in set.tiers().enumerate() {
            left -= takes(tier);
            if left < 0.0 {
                return Some((index, tier));
            }
        }
        Some((0, set.first()?))
    }

    #[inline]
    fn pick_in<'s, T, F: Fn(u32) -> bool>(
        &self,
        set: &'s Set<T>,
        (index, tier): (usize, &'s Tier<T>),
        ask: &Ask<'_, F>,
    ) -> Option<&'s Slot<T>> {
        match &self.rule {
            Rule::Freed => self.freed(set, tier, ask),
            Rule::Choices(choices) => self.choices(tier, usize::from(*choices), ask),
            Rule::Turn(turn) => self.draw_by(ask, |_| tier.turn(turn.fetch_add(1, Relaxed))),
            Rule::Random => self.draw(tier, ask),
            Rule::Hash(tables) => match (ask.hash, tables.get(index)) {
                (Some(hash), Some(table)) => {
                    table.find(hash, |place| set.get(place).filter(|slot| ask.allows(slot)))
                }
                _ => self.draw(tier, ask),
            },
        }
    }

    /// When luck or the tier has nothing: one by weight of all usable ones that the request has not met, tier by
    /// tier; then of all usable ones. Looks at every endpoint.
    #[cold]
    fn pick_anywhere<'s, T, F: Fn(u32) -> bool>(
        &self,
        set: &'s Set<T>,
        ask: &Ask<'_, F>,
    ) -> Option<&'s Slot<T>> {
        let fresh = |slot: &&Slot<T>| ask.allows(slot);
        let usable = |slot: &&Slot<T>| ask.panic || slot.cell.is_open();
        set.tiers()
            .find_map(|tier| by_weight(|| tier.slots().filter(fresh), ask.rng))
            .or_else(|| set.tiers().find_map(|tier| by_weight(|| tier.slots().filter(usable), ask.rng)))
    }

    /// One usable endpoint at random by weight, a new one less often.
    #[inline]
    fn draw<'s, T, F: Fn(u32) -> bool>(&self, tier: &'s Tier<T>, ask: &Ask<'_, F>) -> Option<&'s Slot<T>> {
        self.draw_by(ask, |random| tier.draw(random))
    }

    #[inline]
    fn draw_by<'s, T, F: Fn(u32) -> bool>(
        &self,
        ask: &Ask<'_, F>,
        draw: impl Fn(u64) -> Option<&'s Slot<T>>,
    ) -> Option<&'s Slot<T>> {
        let mut new = None;
        for _ in 0..DRAWS_MAX {
            let slot = draw(ask.rng.next_u64())?;
            if !ask.allows(slot) {
                continue;
            }
            let share = self.warmth(slot, ask.now);
            if share >= 1.0 || ask.rng.unit() < f64::from(share) {
                return Some(slot);
            }
            new = Some(slot);
        }
        new
    }

    /// One usable endpoint at random by weight, whatever its age.
    #[inline]
    fn explore<'s, T, F: Fn(u32) -> bool>(&self, tier: &'s Tier<T>, ask: &Ask<'_, F>) -> Option<&'s Slot<T>> {
        for _ in 0..DRAWS_MAX {
            let slot = tier.draw(ask.rng.next_u64())?;
            if ask.allows(slot) {
                return Some(slot);
            }
        }
        None
    }

    /// The share that a new endpoint gets already, 0.1 to 1.
    #[inline]
    fn warmth<T>(&self, slot: &Slot<T>, now: Moment) -> f32 {
        let Some(window) = self.slow_start else { return 1.0 };
        let age = now.millis().wrapping_sub(slot.cell.born_ms()) as f32;
        (age / (window.as_secs_f32() * 1000.0).max(1.0)).clamp(SLOW_START_MIN, 1.0)
    }

    fn choices<'s, T, F: Fn(u32) -> bool>(
        &self,
        tier: &'s Tier<T>,
        choices: usize,
        ask: &Ask<'_, F>,
    ) -> Option<&'s Slot<T>> {
        let first = Entry { slot: self.explore(tier, ask)?, tier, factor: 1.0 };
        let mut drawn = [first; CHOICES_MAX as usize];
        let mut count = 1;
        for _ in 1..choices.min(drawn.len()).min(tier.count() as usize) {
            let again = |slot: &&Slot<T>| drawn[..count].iter().any(|other| std::ptr::eq(other.slot, *slot));
            // A second chance to be another one; then the same one twice does no harm.
            let next = self.explore(tier, ask).filter(|slot| !again(slot));
            let Some(slot) = next.or_else(|| self.explore(tier, ask)) else { break };
            drawn[count].slot = slot;
            count += 1;
        }
        let mut contest = Contest::new(self, ask.now);
        contest.enter_all(&drawn[..count], false);
        contest.best
    }

    /// The cheapest of the recently freed and two random ones; of four random ones when none was freed.
    #[inline]
    fn freed<'s, T, F: Fn(u32) -> bool>(
        &self,
        set: &'s Set<T>,
        tier: &'s Tier<T>,
        ask: &Ask<'_, F>,
    ) -> Option<&'s Slot<T>> {
        let mut contest = Contest::new(self, ask.now);
        let random = ask.rng.next_u64();
        let len = ask.ring.len();
        // From a random place on, so that equals are equally likely.
        let start = (((random >> 32) * len as u64) >> 32) as usize;
        for freed in ask.ring[start..].iter().chain(&ask.ring[..start]) {
            let found = set.get(freed.place).filter(|slot| slot.cell.id() == freed.id && slot.weight > 0);
            if let (Some(slot), Some(home)) = (found, set.tier(freed.place))
                && let Some(factor) = reach(tier, home).filter(|_| ask.allows(slot))
            {
                contest.enter(&Entry { slot, tier: home, factor }, false);
            }
        }
        let first = Entry { slot: self.explore(tier, ask)?, tier, factor: 1.0 };
        let second = self.other(set, tier, ask).unwrap_or(first);
        // Two of so many: the explorers' part of the ties.
        contest.enter_all(&[first, second], (random as u32 as usize) % (len + 2) < 2);
        if contest.entered < 4 {
            let more =
                |entry: Entry<'s, T>| Entry { slot: self.explore(tier, ask).unwrap_or(entry.slot), ..first };
            contest.enter_all(&[more(first), more(first)], false);
        }
        let best = contest.best?;
        if !tier.is_even() {
            best.cell.drawn(ask.now);
        }
        Some(best)
    }

    /// A second explorer: of the far tier if there is one, so that load overflows to it, else of the same.
    #[inline]
    fn other<'s, T, F: Fn(u32) -> bool>(
        &self,
        set: &'s Set<T>,
        tier: &'s Tier<T>,
        ask: &Ask<'_, F>,
    ) -> Option<Entry<'s, T>> {
        let far =
            set.tiers().find_map(|other| Some((other, reach(tier, other).filter(|factor| *factor > 1.0)?)));
        let (tier, factor) = far.unwrap_or((tier, 1.0));
        Some(Entry { slot: self.explore(tier, ask)?, tier, factor })
    }
}

/// What an endpoint of `other` costs more for a request of `tier`; `None` if it may not have it. Load overflows
/// from the near zone to the far ones, and never to another priority.
#[inline]
fn reach<T>(tier: &Tier<T>, other: &Tier<T>) -> Option<f32> {
    match (tier.rank(), other.rank()) {
        (own, theirs) if own == theirs => Some(1.0),
        (own, theirs) if own.priority == theirs.priority && theirs.far => Some(FAR_FACTOR),
        _ => None,
    }
}

/// An endpoint in a contest.
struct Entry<'s, T> {
    slot: &'s Slot<T>,
    tier: &'s Tier<T>,
    factor: f32,
}

impl<T> Clone for Entry<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Entry<'_, T> {}

/// Endpoints compared by cost.
struct Contest<'p, 's, T> {
    picker: &'p Picker,
    now: Moment,
    best: Option<&'s Slot<T>>,
    cost: f32,
    /// The least latency of those that were measured.
    known: f32,
    entered: u32,
}

impl<'p, 's, T> Contest<'p, 's, T> {
    #[inline]
    fn new(picker: &'p Picker, now: Moment) -> Self {
        Self { picker, now, best: None, cost: f32::INFINITY, known: f32::INFINITY, entered: 0 }
    }

    /// Enters those that were measured, then those that were not: they count as the best of the former, so that
    /// a new endpoint is tried at once, and by one request at a time until it answers.
    #[inline]
    fn enter_all(&mut self, entries: &[Entry<'s, T>], ties: bool) {
        let mut assumed = false;
        for entry in entries {
            if entry.slot.cell.latency().assumed {
                assumed = true;
            } else {
                self.enter(entry, ties);
            }
        }
        if assumed {
            let entries = entries.iter().filter(|entry| entry.slot.cell.latency().assumed);
            entries.for_each(|entry| self.enter(entry, ties || self.known < f32::INFINITY));
        }
    }

    #[inline]
    fn enter(&mut self, entry: &Entry<'s, T>, ties: bool) {
        let slot = entry.slot;
        let mut view = slot.cell.view(self.now);
        if !view.latency.assumed {
            self.known = self.known.min(view.latency.secs);
        } else if self.known < f32::INFINITY {
            view.latency.secs = self.known;
        }
        let scarcity = entry.tier.scarcity(slot.weight);
        let mut cost = self.picker.formula.weighed(&view, self.now, scarcity) * entry.factor;
        if !entry.tier.is_even() && matches!(self.picker.rule, Rule::Freed) {
            // The ring knows no weights, so what an endpoint got lately counts against its share.
            cost *= (slot.cell.draws(self.now) + 1.0) * scarcity;
        }
        if self.picker.slow_start.is_some() {
            cost /= self.picker.warmth(slot, self.now);
        }
        self.entered += 1;
        if cost < self.cost || ties && cost <= self.cost {
            self.cost = cost;
            self.best = Some(slot);
        }
    }
}

/// One at random by weight, of any number.
fn by_weight<'s, T: 's, I: Iterator<Item = &'s Slot<T>>>(
    slots: impl Fn() -> I,
    rng: &Rng,
) -> Option<&'s Slot<T>> {
    let total: u64 = slots().map(|slot| u64::from(slot.weight)).sum();
    let mut left = ((u128::from(rng.next_u64()) * u128::from(total)) >> 64) as u64;
    let found = slots().find(|slot| {
        let here = left < u64::from(slot.weight);
        left = left.saturating_sub(u64::from(slot.weight));
        here
    });
    // What was usable a moment ago may not be now.
    found.or_else(|| slots().next())
}
