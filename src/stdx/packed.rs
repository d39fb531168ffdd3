//! Floor 0: a reading of a histogram in few bytes, for keeping many.

use crate::stdx::histogram::Counts;
use crate::stdx::protobuf::{put_varint, varint};

/// A [`Counts`] in two to three bytes a bucket instead of eight: gaps and counts as LEB128.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// Packs a reading.
    pub fn new(counts: &Counts) -> Self {
        let mut bytes = Vec::new();
        counts.gaps().for_each(|number| put_varint(&mut bytes, number));
        Self(bytes.into())
    }

    /// The reading.
    pub fn unpack(&self) -> Counts {
        let mut rest = &*self.0;
        Counts::from_gaps(std::iter::from_fn(|| varint(&mut rest))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::histogram::Histogram;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(values in proptest::collection::vec((0u64..1 << 31, 1u32..300), 0..60)) {
            let histogram = Histogram::default();
            for (value, times) in values {
                (0..times).for_each(|_| histogram.record(Duration::from_micros(value)));
            }
            let counts = histogram.read();
            let packed = Packed::new(&counts);
            prop_assert!(packed.0.len() <= counts.gaps().count() / 2 * 4);
            prop_assert_eq!(packed.unpack(), counts);
        }
    }
}
