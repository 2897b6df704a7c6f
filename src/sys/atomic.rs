//! The atomics of what `tests/loom` examines, which puts its own in the place of this module.

pub use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
