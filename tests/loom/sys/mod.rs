//! The product's `sys` as far as it is examined or needed, and what stands in for the rest.

#[path = "../../../src/sys/epoch_cell.rs"]
pub mod epoch_cell;
#[path = "../../../src/sys/memory.rs"]
pub mod memory;
pub mod wake;

/// loom's, in the place of those of std.
pub mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
}
