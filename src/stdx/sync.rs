//! Floor 0: the atomics and locks of the lock-free cells, by one door, so that models can try every order of threads.
//!
//! Here they are the standard library's. `tests/models` builds this very crate with `cfg(loom)`, where they are
//! [loom](https://docs.rs/loom)'s, which run a model under every order of its threads that the memory model allows.

#[cfg(not(loom))]
pub use arc_swap::ArcSwap as Swap;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
#[cfg(loom)]
pub use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub use std::sync::{Mutex, MutexGuard};

pub use std::sync::atomic::Ordering;

/// What stands for `arc-swap`, which has models of its own, while ours are run: one pointer, read and replaced as a whole.
#[cfg(loom)]
#[derive(Debug)]
pub struct Swap<T>(Mutex<std::sync::Arc<T>>);

#[cfg(loom)]
impl<T> Swap<T> {
    /// Holds `value`.
    pub fn from_pointee(value: T) -> Self {
        Self(Mutex::new(std::sync::Arc::new(value)))
    }

    /// What it holds now.
    pub fn load_full(&self) -> std::sync::Arc<T> {
        std::sync::Arc::clone(&self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The same.
    pub fn load(&self) -> std::sync::Arc<T> {
        self.load_full()
    }

    /// Holds `value` from now on.
    pub fn store(&self, value: std::sync::Arc<T>) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = value;
    }
}
