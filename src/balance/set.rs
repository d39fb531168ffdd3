//! Floor 2: the endpoints of a service, laid out so that a draw is constant time and a change costs what changed.

use crate::balance::alias::Alias;
use crate::balance::endpoint::Cell;
use crate::balance::leaf::{LEAF, Leaf, Weights, running};
use crate::stdx::sync::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;

/// The most tiers: two for each of 32 priorities. Endpoints of further priorities share the last tier.
pub const TIERS_MAX: usize = 64;
/// How often a draw by number that met a hole is drawn again: a quarter of the slots may be holes, so that even the
/// fifth draw is one in a thousand.
const REDRAWS_MAX: u32 = 16;

/// Where an endpoint is in its set: the same for as long as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place(u32);

impl Place {
    /// Tier, leaf and slot; at most 2^20 leaves.
    fn new(tier: usize, leaf: usize, slot: usize) -> Self {
        Self((tier as u32) << 26 | (leaf as u32) << 6 | slot as u32)
    }

    /// As a number, to be kept in an atomic.
    pub(crate) fn word(self) -> u32 {
        self.0
    }

    /// From such a number.
    #[inline]
    pub(crate) fn from_word(word: u32) -> Self {
        Self(word)
    }

    fn tier(self) -> usize {
        (self.0 >> 26) as usize
    }

    fn leaf(self) -> usize {
        (self.0 >> 6 & 0xF_FFFF) as usize
    }

    fn slot(self) -> usize {
        (self.0 & 63) as usize
    }
}

/// How near endpoints are: those of the first rank are used first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The priority that discovery gives, 0 first.
    pub priority: u8,
    /// Whether they are in another zone than the caller.
    pub far: bool,
}

/// An endpoint in a set. `T` is what its user keeps beside it.
#[derive(Debug, Clone)]
pub struct Slot<T> {
    /// What is known of it.
    pub cell: Arc<Cell>,
    /// Its weight; 0 gets nothing new.
    pub weight: u32,
    /// What its user keeps.
    pub item: T,
}

/// Endpoints in tiers by rank, each a table of tables: 10 000 endpoints are 157 leaves of 64.
///
/// A clone shares all leaves; a change copies the leaf that it is in and the table of leaves. Nothing that
/// requests write lies here: that is in the [`Cell`]s, which never move.
#[derive(Debug)]
pub struct Set<T> {
    tiers: Vec<Arc<Tier<T>>>,
    /// The tiers that have endpoints, by rank.
    order: Vec<usize>,
    /// The only tier that has endpoints; none while something changes.
    sole: Option<Arc<Tier<T>>>,
}

/// The endpoints of one rank.
#[derive(Debug)]
pub struct Tier<T> {
    index: usize,
    rank: Rank,
    leaves: Vec<Arc<Leaf<T>>>,
    alias: Alias,
    /// For each leaf the weight of it and those before.
    until: Box<[u64]>,
    weights: Weights,
    /// How many slots there are, where one drawn by its number is drawn fairly: all that are held weigh the same, and
    /// at most a quarter are not held. Otherwise 0.
    numbered: u32,
    /// How many are shut; all versions of a tier share it.
    shut: Arc<AtomicU32>,
    changed: bool,
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self { tiers: Vec::new(), order: Vec::new(), sole: None }
    }
}

impl<T> Clone for Set<T> {
    fn clone(&self) -> Self {
        Self { tiers: self.tiers.clone(), order: self.order.clone(), sole: self.sole.clone() }
    }
}

impl<T> Clone for Tier<T> {
    fn clone(&self) -> Self {
        Self {
            index: self.index,
            rank: self.rank,
            leaves: self.leaves.clone(),
            alias: self.alias.clone(),
            until: self.until.clone(),
            weights: self.weights,
            numbered: self.numbered,
            shut: Arc::clone(&self.shut),
            changed: self.changed,
        }
    }
}

impl<T> Set<T> {
    /// The tiers that have endpoints, the nearest first.
    #[inline]
    pub fn tiers(&self) -> impl ExactSizeIterator<Item = &Tier<T>> + Clone {
        self.order.iter().map(|index| &*self.tiers[*index])
    }

    /// The nearest tier that has endpoints.
    #[inline]
    pub fn first(&self) -> Option<&Tier<T>> {
        self.order.first().map(|index| &*self.tiers[*index])
    }

    /// The tier that has endpoints, if there is but one.
    #[inline]
    pub(crate) fn sole(&self) -> Option<&Tier<T>> {
        self.sole.as_deref()
    }

    /// How many endpoints may get something new.
    pub fn usable(&self) -> u32 {
        self.tiers().map(|tier| tier.weights.count).sum()
    }

    /// The endpoint at `place`.
    #[inline]
    pub fn get(&self, place: Place) -> Option<&Slot<T>> {
        self.tiers.get(place.tier())?.get(place)
    }

    /// The tier that `place` is in.
    #[inline]
    pub fn tier(&self, place: Place) -> Option<&Tier<T>> {
        self.tiers.get(place.tier()).map(|tier| &**tier)
    }

    /// All endpoints, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Slot<T>)> {
        self.tiers.iter().flat_map(|tier| tier.places())
    }
}

impl<T: Clone> Set<T> {
    /// A free place for an endpoint of `rank`.
    pub fn vacancy(&mut self, rank: Rank) -> Place {
        let at = self.tier_of(rank);
        let leaves = &self.tiers[at].leaves;
        let index = leaves.iter().position(|leaf| leaf.held < LEAF).unwrap_or(leaves.len());
        let slot = leaves
            .get(index)
            .map_or(0, |leaf| leaf.slots.iter().position(Option::is_none).unwrap_or(leaf.slots.len()));
        Place::new(at, index, slot)
    }

    /// Puts an endpoint in a place that [`Set::vacancy`] gave, or where one is already, and tells its cell. A cell
    /// has one place in one set. [`Set::seal`] must follow before anything is drawn.
    pub fn put(&mut self, place: Place, slot: Slot<T>) {
        slot.cell.settle(place, slot.weight > 0);
        self.sole = None;
        let Some(tier) = self.tiers.get_mut(place.tier()) else { return };
        let tier = Arc::make_mut(tier);
        tier.changed = true;
        if tier.leaves.len() == place.leaf() {
            tier.leaves.push(Arc::new(Leaf::default()));
        }
        let Some(leaf) = tier.leaves.get_mut(place.leaf()) else { return };
        let leaf = Arc::make_mut(leaf);
        leaf.changed = true;
        if leaf.slots.len() == place.slot() {
            leaf.slots.push(None);
        }
        if let Some(old) = leaf.slots.get_mut(place.slot()) {
            leaf.held += usize::from(old.is_none());
            *old = Some(slot);
        }
    }

    /// Takes an endpoint out.
    pub fn remove(&mut self, place: Place) -> Option<Slot<T>> {
        self.get(place)?;
        self.sole = None;
        let tier = Arc::make_mut(self.tiers.get_mut(place.tier())?);
        tier.changed = true;
        let leaf = Arc::make_mut(tier.leaves.get_mut(place.leaf())?);
        leaf.changed = true;
        leaf.held -= 1;
        let slot = leaf.slots.get_mut(place.slot())?.take()?;
        slot.cell.retire();
        Some(slot)
    }

    /// Makes what changed ready to be drawn from.
    pub fn seal(&mut self) {
        self.sole = None;
        for tier in self.tiers.iter_mut().filter(|tier| tier.changed) {
            Arc::make_mut(tier).seal();
        }
        self.order = (0..self.tiers.len()).filter(|index| self.tiers[*index].weights.count > 0).collect();
        self.order.sort_by_key(|index| self.tiers[*index].rank);
        if let [only] = self.order.as_slice() {
            self.sole = self.tiers.get(*only).cloned();
        }
    }

    /// The tier of `rank`, made if there is none: a new one, one that is empty, or the last in rank.
    fn tier_of(&mut self, rank: Rank) -> usize {
        if let Some(index) = self.tiers.iter().position(|tier| tier.rank == rank) {
            return index;
        }
        let empty = self.tiers.iter().position(|tier| tier.leaves.is_empty());
        if empty.is_none() && self.tiers.len() >= TIERS_MAX {
            return (0..self.tiers.len()).max_by_key(|index| self.tiers[*index].rank).unwrap_or(0);
        }
        let index = empty.unwrap_or(self.tiers.len());
        let tier = Arc::new(Tier::new(index, rank));
        match self.tiers.get_mut(index) {
            Some(place) => *place = tier,
            None => self.tiers.push(tier),
        }
        index
    }
}

impl<T> Tier<T> {
    fn new(index: usize, rank: Rank) -> Self {
        Self {
            index,
            rank,
            leaves: Vec::new(),
            alias: Alias::default(),
            until: Box::default(),
            weights: Weights::NONE,
            numbered: 0,
            shut: Arc::default(),
            changed: true,
        }
    }

    /// How many of its endpoints are shut, for their breaker to count.
    pub fn shut(&self) -> &Arc<AtomicU32> {
        &self.shut
    }

    /// The share of its endpoints that are not shut, 0 to 1.
    pub fn usable_share(&self) -> f32 {
        let count = self.weights.count;
        count.saturating_sub(self.shut.load(Relaxed)) as f32 / count.max(1) as f32
    }

    /// The endpoint, if there is but one.
    #[inline]
    pub fn only(&self) -> Option<&Slot<T>> {
        if self.weights.count == 1 { self.at(0) } else { None }
    }

    /// The endpoint at `place`, if that is in this tier.
    #[inline]
    pub fn get(&self, place: Place) -> Option<&Slot<T>> {
        // Of another tier it is beyond all leaves.
        let leaf = (place.0 ^ ((self.index as u32) << 26)) >> 6;
        self.leaves.get(leaf as usize)?.slots.get(place.slot())?.as_ref()
    }

    /// How near it is.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// How many endpoints may get something new.
    #[inline]
    pub fn count(&self) -> u32 {
        self.weights.count
    }

    /// All weights together.
    pub fn weight(&self) -> u64 {
        self.weights.sum
    }

    /// Whether all have one weight.
    #[inline]
    pub fn is_even(&self) -> bool {
        self.weights.least >= self.weights.most
    }

    /// The mean weight over `weight`.
    #[inline]
    pub fn scarcity(&self, weight: u32) -> f32 {
        if self.is_even() {
            return 1.0;
        }
        self.weights.sum as f32 / (self.weights.count as f32 * weight.max(1) as f32)
    }

    /// One endpoint at random by weight.
    #[inline]
    pub fn draw(&self, random: u64) -> Option<&Slot<T>> {
        self.numbered(scaled(random as u32, self.numbered))
            .filter(|_| self.numbered > 0)
            .or_else(|| self.redraw(random))
    }

    /// Two different ones at random, each as likely as any, from one random number; `None` if they differ in weight, if
    /// there is but one, or by bad luck.
    #[inline(always)]
    pub(crate) fn two(&self, random: u64) -> Option<[&Slot<T>; 2]> {
        let others = self.numbered.checked_sub(1)?;
        let first = scaled(random as u32, self.numbered);
        let second = scaled((random >> 32) as u32, others);
        let second = second + u32::from(second >= first);
        Some([self.numbered(first)?, self.numbered(second)?])
    }

    /// The slot of this number, if it is held.
    #[inline(always)]
    fn numbered(&self, number: u32) -> Option<&Slot<T>> {
        let number = number as usize;
        self.leaves.get(number / LEAF)?.slots.get(number % LEAF)?.as_ref()
    }

    /// One at random by weight, where numbers are no way or this one met a hole.
    #[inline(never)]
    fn redraw(&self, random: u64) -> Option<&Slot<T>> {
        let mut again = random;
        for _ in 0..REDRAWS_MAX.min(self.numbered) {
            again = (again ^ again >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
            if let Some(slot) = self.numbered(scaled((again >> 32) as u32, self.numbered)) {
                return Some(slot);
            }
        }
        self.leaves.get(self.alias.draw((random >> 32) as u32)?)?.draw(random as u32)
    }

    /// The endpoint whose weight covers `point`, a number below [`Tier::weight`], in the order of places.
    #[inline]
    pub fn at(&self, point: u64) -> Option<&Slot<T>> {
        let index = self.until.partition_point(|until| *until <= point);
        let leaf = self.leaves.get(index)?;
        let before = if index == 0 { 0 } else { self.until[index - 1] };
        leaf.at(point - before)
    }

    /// The endpoint whose turn is the `turn`th: one after the other if all weigh the same, else spread evenly by
    /// weight (a Kronecker sequence with the golden ratio, whose discrepancy is the least there is).
    #[inline]
    pub fn turn(&self, turn: u64) -> Option<&Slot<T>> {
        if self.weights.count == 0 {
            return None;
        }
        if self.is_even() {
            return self.at(turn % u64::from(self.weights.count) * u64::from(self.weights.most));
        }
        let fraction = turn.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.at(((u128::from(fraction) * u128::from(self.weights.sum)) >> 64) as u64)
    }

    /// The endpoints that may get something new.
    pub fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.leaves.iter().flat_map(|leaf| leaf.slots.iter().flatten()).filter(|slot| slot.weight > 0)
    }

    /// All its endpoints, with their places.
    pub fn places(&self) -> impl Iterator<Item = (Place, &Slot<T>)> {
        self.leaves.iter().enumerate().flat_map(move |(index, leaf)| {
            let place = move |slot| Place::new(self.index, index, slot);
            leaf.slots.iter().enumerate().filter_map(move |(slot, it)| Some((place(slot), it.as_ref()?)))
        })
    }
}

/// `random` of 2^32 as so many of `bound`.
#[inline(always)]
fn scaled(random: u32, bound: u32) -> u32 {
    ((u64::from(random) * u64::from(bound)) >> 32) as u32
}

impl<T: Clone> Tier<T> {
    /// How many slots may be drawn by number.
    fn numbers(&self) -> u32 {
        let Some(last) = self.leaves.last() else { return 0 };
        let slots = (self.leaves.len() - 1) * LEAF + last.slots.len();
        let held: usize = self.leaves.iter().map(|leaf| leaf.held).sum();
        let is_fair = self.is_even() && held == self.weights.count as usize && held >= slots - slots / 4;
        if is_fair { slots as u32 } else { 0 }
    }

    fn seal(&mut self) {
        for leaf in self.leaves.iter_mut().filter(|leaf| leaf.changed) {
            Arc::make_mut(leaf).seal();
        }
        while self.leaves.last().is_some_and(|leaf| leaf.slots.is_empty()) {
            self.leaves.pop();
        }
        let sums: Vec<u64> = self.leaves.iter().map(|leaf| leaf.weights.sum).collect();
        self.alias = Alias::new(&sums);
        self.until = running(&sums);
        self.weights = self.leaves.iter().fold(Weights::NONE, |all, leaf| all.and(leaf.weights));
        self.numbered = self.numbers();
        self.changed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::moment::Moment;
    use crate::stdx::rng::Rng;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NEAR: Rank = Rank { priority: 0, far: false };

    fn slot(id: u32, weight: u32) -> Slot<u32> {
        Slot { cell: Arc::new(Cell::new(id, u64::from(id), Moment::default(), 0.03)), weight, item: id }
    }

    proptest! {
        /// The model: a map from number to weight and rank.
        #[test]
        fn a_set_holds_what_a_map_holds(
            steps in proptest::collection::vec((0u32..300, 0u32..4, 0u8..3, any::<bool>()), 1..400), seed: u64,
        ) {
            let mut set = Set::default();
            let mut map: BTreeMap<u32, (Place, u32, Rank)> = BTreeMap::new();
            for (id, weight, priority, insert) in steps {
                let before = set.clone();
                let rank = Rank { priority, far: priority == 2 };
                if let Some((place, ..)) = map.remove(&id) {
                    prop_assert_eq!(set.remove(place).map(|slot| slot.item), Some(id));
                }
                if insert {
                    let place = set.vacancy(rank);
                    set.put(place, slot(id, weight * 1000));
                    map.insert(id, (place, weight * 1000, rank));
                }
                set.seal();
                drop(before);
            }
            let held: BTreeMap<u32, u32> = set.iter().map(|(_, slot)| (slot.item, slot.weight)).collect();
            let expected: BTreeMap<u32, u32> = map.iter().map(|(id, (_, weight, _))| (*id, *weight)).collect();
            prop_assert_eq!(held, expected);
            for (id, (place, ..)) in &map {
                prop_assert_eq!(set.get(*place).map(|slot| slot.item), Some(*id));
            }
            let ranks: Vec<Rank> = set.tiers().map(Tier::rank).collect();
            prop_assert!(ranks.is_sorted());
            let rng = Rng::seeded(seed);
            for tier in set.tiers() {
                let mut sum = 0;
                for held in tier.slots() {
                    prop_assert_eq!(map[&held.item].2, tier.rank());
                    // Every point of its weight leads to it.
                    prop_assert_eq!(tier.at(sum).map(|slot| slot.item), Some(held.item));
                    sum += u64::from(held.weight);
                    prop_assert_eq!(tier.at(sum - 1).map(|slot| slot.item), Some(held.item));
                }
                prop_assert_eq!(sum, tier.weight());
                prop_assert!(tier.draw(rng.next_u64()).is_some_and(|slot| slot.weight > 0));
            }
        }
    }

    /// Who is drawn how often, by [`Tier::draw`] and [`Tier::two`].
    fn draws(set: &Set<u32>) -> (BTreeMap<u32, f64>, BTreeMap<u32, f64>) {
        let (rng, tier) = (Rng::seeded(5), set.first().unwrap());
        let (mut one, mut two) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..200_000 {
            let random = rng.next_u64();
            *one.entry(tier.draw(random).unwrap().item).or_default() += 1.0 / 200_000.0;
            if let Some([first, second]) = tier.two(random) {
                assert_ne!(first.item, second.item);
                [first, second].iter().for_each(|slot| *two.entry(slot.item).or_default() += 1.0);
            }
        }
        let total: f64 = two.values().sum();
        two.values_mut().for_each(|count| *count /= total);
        (one, two)
    }

    #[test]
    fn draws_by_number_are_even_with_holes_and_without() {
        let check = |count: u32, holes: &[usize], weight: &dyn Fn(u32) -> u32, by_number: bool| {
            let mut set = Set::default();
            let mut places = Vec::new();
            for id in 0..count {
                let place = set.vacancy(NEAR);
                set.put(place, slot(id, weight(id)));
                places.push(place);
            }
            holes.iter().for_each(|at| drop(set.remove(places[*at])));
            set.seal();
            let tier = set.first().unwrap();
            assert_eq!(tier.numbered > 0, by_number, "{count} with {holes:?}");
            let (one, two) = draws(&set);
            let is_even = |draws: &BTreeMap<u32, f64>| {
                let share = 1.0 / f64::from(tier.count());
                draws.len() == tier.count() as usize
                    && draws.values().all(|one| (one / share - 1.0).abs() < 0.1)
            };
            assert!(is_even(&one), "{count} with {holes:?}: {one:?}");
            assert_eq!(!two.is_empty(), by_number && tier.count() > 1, "{count} with {holes:?}");
            assert!(two.is_empty() || is_even(&two), "{count} with {holes:?}: {two:?}");
        };
        let same: &dyn Fn(u32) -> u32 = &|_| 700;
        check(1, &[], same, true);
        check(2, &[], same, true);
        check(10, &[3, 4], same, true);
        check(10, &[9], same, true);
        check(150, &[0, 63, 64, 149], same, true);
        check(8, &[1, 3, 5], same, false);
        check(150, &(0..64).collect::<Vec<_>>(), same, false);
        check(10, &[], &|id| if id == 5 { 0 } else { 700 }, false);
    }

    #[test]
    fn a_change_of_one_in_ten_thousand_copies_one_leaf() {
        let mut set = Set::default();
        let mut places: Vec<Place> = Vec::new();
        for id in 0..10_000 {
            let place = set.vacancy(NEAR);
            set.put(place, slot(id, 1000));
            places.push(place);
        }
        set.seal();
        let mut after = set.clone();
        after.remove(places[5000]);
        let place = after.vacancy(NEAR);
        after.put(place, slot(10_001, 1000));
        after.seal();
        let leaves = |set: &Set<u32>| set.tiers[0].leaves.clone();
        let same = leaves(&set).iter().zip(leaves(&after)).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!((leaves(&after).len(), same), (157, 156));
        assert_eq!(place, places[5000], "the hole is filled");
    }

    #[test]
    fn turns_go_round_and_follow_weights() {
        let turns = |weights: &[u32], count: u64| {
            let mut set = Set::default();
            for (id, weight) in weights.iter().enumerate() {
                let place = set.vacancy(NEAR);
                set.put(place, slot(id as u32, *weight));
            }
            set.seal();
            (0..count).map(|turn| set.first().unwrap().turn(turn).unwrap().item).collect::<Vec<_>>()
        };
        assert_eq!(turns(&[7, 0, 7, 7], 7), [0, 2, 3, 0, 2, 3, 0]);
        let weighted = turns(&[1000, 3000], 100);
        for start in 0..90 {
            let of_three = weighted[start..start + 8].iter().filter(|id| **id == 1).count();
            assert!((5..=7).contains(&of_three), "{weighted:?}");
        }
    }

    #[test]
    fn more_tiers_than_there_may_be_share_the_last() {
        let mut set = Set::default();
        for priority in 0..=255 {
            let place = set.vacancy(Rank { priority, far: false });
            set.put(place, slot(u32::from(priority), 1000));
        }
        set.seal();
        assert_eq!((set.tiers().len(), set.usable()), (TIERS_MAX, 256));
        assert_eq!(set.iter().count(), 256);
    }
}
