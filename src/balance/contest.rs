//! Floor 2: compares endpoints of one tier by what one more request would cost there.

use crate::balance::cost::{Glance, Power};
use crate::balance::endpoint::Cell;
use crate::balance::pick::{Ask, Picker};
use crate::balance::set::{Set, Slot, Tier};
use crate::stdx::moment::Moment;
use std::sync::Arc;

/// What a far endpoint costs more than a near one of equal load (docs/balancing.md).
const FAR_FACTOR: f32 = 2.0;
/// How much too many or too few draws for its weight change the cost of an endpoint at most. More of it follows the
/// weights more strictly and decides worse where they are wrong (docs/balancing.md).
const DRAWS_FACTOR: f32 = 1.5;

/// The slot of a cell, while that is where it says.
#[inline]
pub(crate) fn found<'s, T>(tier: &'s Tier<T>, cell: &Arc<Cell>) -> Option<&'s Slot<T>> {
    tier.get(cell.place()).filter(|slot| Arc::ptr_eq(&slot.cell, cell))
}

/// Whether load of `tier` may overflow to `other`: from the near zone to the far ones, never to another priority.
fn is_overflow<T>(tier: &Tier<T>, other: &Tier<T>) -> bool {
    let (own, theirs) = (tier.rank(), other.rank());
    own.priority == theirs.priority && theirs.far && !own.far
}

/// Endpoints of one tier compared by cost, and far ones that its load may overflow to.
pub(crate) struct Contest<'p, 's, T> {
    picker: &'p Picker,
    tier: &'s Tier<T>,
    /// Neither weights nor slow start nor reports matter.
    pub(crate) plain: bool,
    /// Of weights that differ: the draws over their share that are usual among the recently freed.
    usual: Option<f32>,
    pub(crate) at: Glance,
    now: Moment,
    pub(crate) best: Option<&'s Slot<T>>,
    pub(crate) cost: f32,
}

impl<'p, 's, T> Contest<'p, 's, T> {
    #[inline]
    pub(crate) fn new(picker: &'p Picker, tier: &'s Tier<T>, now: Moment) -> Self {
        Self {
            picker,
            tier,
            plain: picker.is_plain(tier),
            usual: None,
            at: picker.glance(now),
            now,
            best: None,
            cost: f32::INFINITY,
        }
    }

    /// Enters those that were measured, then those that were not.
    #[inline(always)]
    pub(crate) fn enter_all(&mut self, power: Power, slots: &[&'s Slot<T>], ties: bool) {
        let mut assumed = false;
        for slot in slots {
            if slot.cell.latency().assumed {
                assumed = true;
            } else if self.plain {
                self.enter_plain(power, slot, ties);
            } else {
                self.stand(slot, self.full_cost(slot, self.tier, None), ties);
            }
        }
        if assumed {
            *self = self.with_assumed(slots, ties);
        }
    }

    /// Those that nobody measured count as fast as the best of those that somebody did, so that a new endpoint is
    /// tried at once, and by one request at a time until it answers.
    #[cold]
    fn with_assumed(self, slots: &[&'s Slot<T>], ties: bool) -> Self {
        let mut contest = self;
        let known = self.best.map(|best| best.cell.latency().secs);
        for slot in slots.iter().filter(|slot| slot.cell.latency().assumed) {
            let cost = self.full_cost(slot, self.tier, known);
            contest.stand(slot, cost, ties || known.is_some());
        }
        contest
    }

    /// Enters one where neither weights nor slow start matter.
    #[inline(always)]
    fn enter_plain(&mut self, power: Power, slot: &'s Slot<T>, ties: bool) {
        let cost = self.picker.formula.weighed(power, &slot.cell.view(), self.at, 1.0);
        self.stand(slot, cost, ties);
    }

    /// Enters the recently freed, those of farther tiers too if load may overflow there, and a random far one.
    #[cold]
    pub(crate) fn with_ring<F: Fn(u32) -> bool>(self, set: &'s Set<T>, ask: &Ask<'_, F>) -> Self {
        let mut contest = self;
        let home = |cell: &Arc<Cell>| {
            let home = set.tier(cell.place())?;
            let near = std::ptr::eq(home, self.tier);
            let slot = found(home, cell)?;
            ((near || is_overflow(self.tier, home)) && ask.allows(cell)).then_some((home, slot, near))
        };
        if !self.tier.is_even() {
            let near = ask.ring.cells().filter_map(home).filter(|(.., near)| *near);
            let logs = near.map(|(home, slot, _)| self.draws(slot, home).ln());
            let (sum, count) = logs.fold((0.0, 0.0), |(sum, count), log| (sum + log, count + 1.0));
            contest.usual = Some((sum / f32::max(count, 1.0)).exp());
        }
        for (home, slot, near) in ask.ring.cells().filter_map(home) {
            let factor = if near { 1.0 } else { FAR_FACTOR };
            let cost = contest.full_cost(slot, home, None) * factor;
            contest.stand(slot, cost, true);
        }
        if let Some(far) = set.tiers().find(|other| is_overflow(self.tier, other))
            && let Some(slot) = self.picker.explore(far, ask)
        {
            let known = contest.best.map(|best| best.cell.latency().secs);
            let cost = contest.full_cost(slot, far, known) * FAR_FACTOR;
            contest.stand(slot, cost, false);
        }
        contest
    }

    #[inline(always)]
    fn stand(&mut self, slot: &'s Slot<T>, cost: f32, ties: bool) {
        if cost < self.cost || ties && cost <= self.cost {
            self.cost = cost;
            self.best = Some(slot);
        }
    }

    /// The cost with all that may count; `known` stands for a latency that nobody measured.
    #[cold]
    fn full_cost(self, slot: &Slot<T>, tier: &Tier<T>, known: Option<f32>) -> f32 {
        let mut view = slot.cell.view();
        if let (Some(known), true) = (known, view.latency.assumed) {
            view.latency.secs = known;
        }
        let scarcity = tier.scarcity(slot.weight);
        let formula = &self.picker.formula;
        let mut cost = formula.weighed_among(&view, self.at, scarcity);
        if !tier.is_even() {
            // Neither the ring nor a latency knows weights, so what an endpoint got lately counts against its share;
            // among the freed only so far that it decides between equals.
            let draws = self.draws(slot, tier);
            cost *= self.usual.map_or(draws, |usual| (draws / usual).clamp(1.0 / DRAWS_FACTOR, DRAWS_FACTOR));
        }
        cost / self.picker.warmth(slot, self.now)
    }

    /// How often an endpoint was drawn lately, over its share.
    fn draws(&self, slot: &Slot<T>, tier: &Tier<T>) -> f32 {
        (slot.cell.draws(self.now) + 1.0) * tier.scarcity(slot.weight)
    }

    /// The cheapest.
    #[inline]
    pub(crate) fn end(self) -> Option<&'s Slot<T>> {
        if let (Some(best), false) = (self.best, self.tier.is_even()) {
            best.cell.drawn(self.now);
        }
        self.best
    }
}

impl<T> Clone for Contest<'_, '_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Contest<'_, '_, T> {}
