//! Floor 2: chooses a backend by weight, evenly spread and not by chance.
//!
//! Random draws leave a 1 % canary with anything from 4 to 17 of 1,000 requests. Here the choices follow a fixed
//! schedule in which, after any number of requests, no backend is a whole request away from its share: Tijdeman's
//! solution of the chairman assignment problem (R. Tijdeman, Discrete Mathematics 32, 1980): of those whose next
//! turn may begin, the one whose turn must end soonest.
//!
//! Over any 1,000 requests, wherever one begins to count, a share is exact where the reduced weights' sum divides 1,000
//! (percentages do), and within one request with two backends. With more of odd weights it is within 1.6: no sequence
//! is balanced for any weights of three or more (Fraenkel's conjecture).

use std::sync::atomic::{AtomicU32, Ordering};

/// The longest schedule. Weights whose reduced sum is larger are rounded to parts of 10,000, which moves a share by
/// at most one request in 10,000.
pub const SCHEDULE_MAX: u64 = 10_000;

/// The most backends of one route: Gateway API allows 16.
pub const BACKENDS_MAX: usize = 256;

/// A schedule of backends by weight, and the place in it.
#[derive(Debug, Default)]
pub struct Schedule {
    weights: Box<[u32]>,
    turns: Box<[u16]>,
    next: AtomicU32,
}

impl Schedule {
    /// A schedule for these weights; a weight of 0 gets no turn. At most [`BACKENDS_MAX`] weights are seen.
    pub fn new(weights: &[u32]) -> Self {
        let all = weights;
        let weights = &weights[..weights.len().min(BACKENDS_MAX)];
        let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let divisor = weights.iter().fold(0, |d, w| gcd(d, u64::from(*w))).max(1);
        let parts: Vec<u64> = if sum / divisor <= SCHEDULE_MAX {
            weights.iter().map(|w| u64::from(*w) / divisor).collect()
        } else {
            round(weights, sum)
        };
        Self { weights: all.into(), turns: turns(&parts), next: AtomicU32::new(0) }
    }

    /// The weights that it was made of.
    pub fn weights(&self) -> &[u32] {
        &self.weights
    }

    /// The backend whose turn it is; `None` when no weight is above 0.
    #[inline]
    pub fn next(&self) -> Option<usize> {
        match self.turns.len() {
            0 => None,
            1 => self.turns.first().map(|turn| usize::from(*turn)),
            length => {
                let place = self.next.fetch_add(1, Ordering::Relaxed) as usize % length;
                self.turns.get(place).map(|turn| usize::from(*turn))
            }
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Parts of [`SCHEDULE_MAX`] by largest remainder; what has a weight keeps at least one.
fn round(weights: &[u32], sum: u64) -> Vec<u64> {
    let exact = |w: u32| u64::from(w) * SCHEDULE_MAX;
    let mut parts: Vec<u64> = weights.iter().map(|w| (exact(*w) / sum).max(u64::from(*w > 0))).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(exact(weights[*i]) % sum));
    let missing = SCHEDULE_MAX.saturating_sub(parts.iter().sum());
    for i in order.into_iter().filter(|i| weights[*i] > 0).take(missing as usize) {
        parts[i] += 1;
    }
    parts
}

/// Tijdeman's schedule for `k` backends of which `p` of `n` turns belong to one: its turn `j` (from 0) may begin at
/// time `t` once `t·p/n ≥ j + 1/(2k−2)`, and of those that may, the one goes whose `(j + 1 − 1/(2k−2))·n/p` is least.
fn turns(parts: &[u64]) -> Box<[u16]> {
    let n: u64 = parts.iter().sum();
    let k = parts.iter().filter(|p| **p > 0).count() as u64;
    if k <= 1 {
        let only = parts.iter().position(|p| *p > 0);
        return only.map(|i| i as u16).into_iter().collect();
    }
    let slack = 2 * k - 2;
    let mut given = vec![0u64; parts.len()];
    let mut out = Vec::with_capacity(n as usize);
    for t in 1..=n {
        let may = |i: &usize| t * parts[*i] * slack >= given[*i] * n * slack + n;
        let deadline = |i: &usize| ((given[*i] + 1) * n * slack - n) / parts[*i];
        let open = (0..parts.len()).filter(|i| parts[*i] > 0);
        let due = open.clone().filter(may).min_by_key(deadline).or_else(|| open.min_by_key(deadline));
        if let Some(i) = due {
            given[i] += 1;
            out.push(i as u16);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(weights: &[u32], requests: usize) {
        let schedule = Schedule::new(weights);
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let mut counts = vec![0u64; weights.len()];
        for done in 1..=requests {
            counts[schedule.next().unwrap()] += 1;
            for (count, weight) in counts.iter().zip(weights) {
                let due = f64::from(*weight) / sum * done as f64;
                assert!((*count as f64 - due).abs() < 1.1, "{weights:?} after {done}: {count} for {due}");
            }
        }
    }

    #[test]
    fn after_any_number_of_requests_no_share_is_a_request_off() {
        for weights in [&[9, 1][..], &[1], &[0, 5], &[99, 1], &[1, 1, 1], &[50, 30, 20], &[1, 2, 3, 4, 5]] {
            check(weights, 1000);
        }
        check(&[1_000_000, 333_333, 1], 1000);
        check(&[u32::MAX, u32::MAX - 1], 1000);
    }

    #[test]
    fn without_weight_there_is_no_turn() {
        assert_eq!(Schedule::new(&[]).next(), None);
        assert_eq!(Schedule::new(&[0, 0]).next(), None);
    }

    proptest! {
        #[test]
        fn any_weights_are_spread(weights in proptest::collection::vec(0u32..200, 1..9)) {
            prop_assume!(weights.iter().any(|w| *w > 0));
            check(&weights, 1000);
        }
    }
}
