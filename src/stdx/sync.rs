//! Floor 0: the atomics and locks of the lock-free cells, by one door, so that models can try every order of threads.
//!
//! Here they are the standard library's. `tests/models` builds this very crate with `cfg(loom)`, where they are
//! [loom](https://docs.rs/loom)'s, which run a model under every order of its threads that the memory model allows.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
#[cfg(loom)]
pub use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub use std::sync::{Mutex, MutexGuard};

pub use std::sync::atomic::Ordering;
