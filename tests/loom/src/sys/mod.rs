//! The files of the relay's `sys` that the models need, and stand-ins for the others.

#[path = "../../../../src/sys/epoch_cell.rs"]
pub mod epoch_cell;
#[path = "../../../../src/sys/memory.rs"]
pub mod memory;
pub mod wake;

/// The atomics of loom, in place of those of std.
pub mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
}
