//! The atomics of the files that `tests/loom` examines. The models there replace this module by loom's own atomics.

pub use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
