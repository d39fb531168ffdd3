//! Floor 2: what is made once for each key, kept while anybody holds it, and for a while longer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Values by key. Beyond `max` keys all further ones share one value.
#[derive(Debug)]
pub struct Kept<K, T> {
    max: usize,
    items: Mutex<BTreeMap<K, Item<T>>>,
}

#[derive(Debug)]
struct Item<T> {
    value: Arc<T>,
    /// Since when nobody but this holds it.
    gone: Option<Instant>,
}

impl<K: Ord + Clone, T> Kept<K, T> {
    /// None yet, and at most so many.
    pub fn new(max: usize) -> Self {
        Self { max, items: Mutex::default() }
    }

    /// The value of `key`, or that of `other` when there are too many; made when first asked for.
    pub fn get(&self, key: &K, other: impl FnOnce() -> K, make: impl FnOnce(&K) -> T) -> Arc<T> {
        let mut items = self.lock();
        let key = if items.contains_key(key) || items.len() < self.max { key.clone() } else { other() };
        let item = items.entry(key).or_insert_with_key(|key| Item { value: Arc::new(make(key)), gone: None });
        item.gone = None;
        Arc::clone(&item.value)
    }

    /// All values, in order of their keys.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().map(|item| Arc::clone(&item.value)).collect()
    }

    /// Those that somebody holds, and those that lately nobody does: what they did last is told once more. Forgets what
    /// nobody held for `retain`.
    pub fn sweep(&self, now: Instant, retain: Duration) -> Vec<Arc<T>> {
        let mut told = Vec::new();
        self.lock().retain(|_, item| {
            let is_held = Arc::strong_count(&item.value) > 1;
            match (is_held, item.gone) {
                (true, _) => item.gone = None,
                (false, None) => item.gone = Some(now),
                (false, Some(gone)) => return now.saturating_duration_since(gone) < retain,
            }
            told.push(Arc::clone(&item.value));
            true
        });
        told
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Item<T>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdx::clock;

    #[test]
    fn what_nobody_holds_is_told_once_more_and_forgotten_later() {
        let kept: Kept<u8, u8> = Kept::new(2);
        let (start, retain) = (clock::now(), Duration::from_secs(60));
        let at = |secs| start + Duration::from_secs(secs);
        let held = kept.get(&1, || 0, |key| *key);
        drop(kept.get(&2, || 0, |key| *key));
        assert_eq!(kept.sweep(at(0), retain).len(), 2);
        assert_eq!(kept.sweep(at(59), retain), [Arc::clone(&held)]);
        assert_eq!(kept.all().len(), 2);
        kept.sweep(at(60), retain);
        assert_eq!(kept.all(), [Arc::clone(&held)]);
        drop(kept.get(&3, || 0, |key| *key));
        assert_eq!((*kept.get(&4, || 0, |key| *key), *kept.get(&5, || 0, |key| *key)), (0, 0));
    }
}
