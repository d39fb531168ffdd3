//! Floor 2: draws one of many by weight in constant time.

/// Walker's alias method in whole numbers (A. J. Walker, 1977; M. D. Vose, 1991): each column holds at most two
/// entries, so one random number finds one by weight. Shares are exact to one in 2^32.
#[derive(Debug, Clone, Default)]
pub struct Alias {
    columns: Box<[Column]>,
}

#[derive(Debug, Clone, Copy)]
struct Column {
    /// Below it the column's own entry is drawn, from it on the other.
    threshold: u32,
    other: u32,
}

impl Alias {
    /// A table for these weights. Entries of weight 0 are never drawn; without any weight nothing is.
    pub fn new(weights: &[u64]) -> Self {
        let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        if total == 0 {
            return Self::default();
        }
        // Each weight times the number of columns: a full column holds `total`.
        let count = weights.len() as u128;
        let mut left: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * count).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|index| left[*index] < total);
        let mut columns = vec![Column { threshold: u32::MAX, other: 0 }; weights.len()];
        while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
            // `left < total`, so the quotient is below 2^32.
            let threshold = ((left[poor] << 32) / total) as u32;
            columns[poor] = Column { threshold, other: rich as u32 };
            left[rich] -= total - left[poor];
            if left[rich] < total {
                large.pop();
                small.push(rich);
            }
        }
        for index in large.into_iter().chain(small) {
            columns[index] = Column { threshold: u32::MAX, other: index as u32 };
        }
        Self { columns: columns.into_boxed_slice() }
    }

    /// The entry that `random` draws; `None` if there is nothing to draw.
    #[inline]
    pub fn draw(&self, random: u32) -> Option<usize> {
        let scaled = u64::from(random) * self.columns.len() as u64;
        let index = (scaled >> 32) as usize;
        let column = self.columns.get(index)?;
        Some(if (scaled as u32) < column.threshold { index } else { column.other as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::rng::Rng;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_drawn_from_nothing() {
        assert_eq!(Alias::new(&[]).draw(7), None);
        assert_eq!(Alias::new(&[0, 0]).draw(7), None);
    }

    #[test]
    fn extreme_weights_keep_their_share() {
        let table = Alias::new(&[u64::from(u32::MAX), 0, 1]);
        let rng = Rng::seeded(3);
        let other = (0..1_000_000).filter(|_| table.draw((rng.next_u64() >> 32) as u32) != Some(0)).count();
        assert!(other <= 1, "{other}");
    }

    proptest! {
        /// The model: the share of each entry, added up over its columns, is its weight's.
        #[test]
        fn columns_hold_exactly_the_weights(weights in proptest::collection::vec(0u64..1_000_000, 1..100)) {
            let table = Alias::new(&weights);
            let total: u64 = weights.iter().sum();
            let mut shares = vec![0f64; weights.len()];
            for (index, column) in table.columns.iter().enumerate() {
                let own = f64::from(column.threshold) / f64::from(u32::MAX);
                shares[index] += own / weights.len() as f64;
                shares[column.other as usize] += (1.0 - own) / weights.len() as f64;
            }
            for (share, weight) in shares.iter().zip(&weights).filter(|_| total > 0) {
                prop_assert!((share - *weight as f64 / total as f64).abs() < 1e-6);
                prop_assert!(*weight > 0 || *share < 1e-9);
            }
        }
    }
}
