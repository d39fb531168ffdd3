//! Floor 2: a few dozen endpoints of a set, in one piece that a change copies.

use crate::balance::alias::Alias;
use crate::balance::set::Slot;

/// Slots of one leaf.
pub(crate) const LEAF: usize = 64;

#[derive(Debug)]
pub(crate) struct Leaf<T> {
    pub(crate) slots: Vec<Option<Slot<T>>>,
    pub(crate) held: usize,
    alias: Alias,
    until: Box<[u64]>,
    pub(crate) weights: Weights,
    pub(crate) changed: bool,
}

/// Weights of many, those of 0 left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights {
    pub(crate) sum: u64,
    pub(crate) count: u32,
    pub(crate) least: u32,
    pub(crate) most: u32,
}

impl Weights {
    pub(crate) const NONE: Self = Self { sum: 0, count: 0, least: u32::MAX, most: 0 };

    fn of(weight: u32) -> Self {
        if weight == 0 {
            return Self::NONE;
        }
        Self { sum: u64::from(weight), count: 1, least: weight, most: weight }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
            least: self.least.min(other.least),
            most: self.most.max(other.most),
        }
    }
}

impl<T: Clone> Clone for Leaf<T> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            held: self.held,
            alias: self.alias.clone(),
            until: self.until.clone(),
            weights: self.weights,
            changed: self.changed,
        }
    }
}

impl<T> Default for Leaf<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            held: 0,
            alias: Alias::default(),
            until: Box::default(),
            weights: Weights::NONE,
            changed: true,
        }
    }
}

impl<T> Leaf<T> {
    /// One at random by weight.
    #[inline(always)]
    pub(crate) fn draw(&self, random: u32) -> Option<&Slot<T>> {
        self.slots.get(self.alias.draw(random)?)?.as_ref()
    }

    /// The one whose weight covers `point`, in the order of slots.
    #[inline]
    pub(crate) fn at(&self, point: u64) -> Option<&Slot<T>> {
        let slot = self.until.partition_point(|until| *until <= point);
        self.slots.get(slot)?.as_ref()
    }

    pub(crate) fn seal(&mut self) {
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        let weights: Vec<u32> =
            self.slots.iter().map(|slot| slot.as_ref().map_or(0, |slot| slot.weight)).collect();
        let wide: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
        self.alias = Alias::new(&wide);
        self.until = running(&wide);
        self.weights = weights.iter().fold(Weights::NONE, |all, weight| all.and(Weights::of(*weight)));
        self.changed = false;
    }
}

/// For each weight the sum of it and those before.
pub(crate) fn running(weights: &[u64]) -> Box<[u64]> {
    let mut sum = 0;
    weights
        .iter()
        .map(|weight| {
            sum += weight;
            sum
        })
        .collect()
}
