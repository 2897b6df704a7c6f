//! The relay's files that several threads share, built on loom's atomics, for the models in `../models`.
//!
//! loom runs a model in every order in which its threads can take turns, and with every value that an atomic
//! load may return under its ordering.
//!
//! Three parts are the relay's own files, unchanged: `sys/epoch_cell.rs`, all of `authz`, and
//! `engine/worker/signals.rs`. The crossbeam-epoch below them is the real one; `--cfg crossbeam_loom`
//! switches on its support for loom.
//!
//! Two parts are stand-ins:
//! - [`sys::wake`] stands for an eventfd and the ring's poll of it.
//! - [`engine`] stands for an engine thread. It does the steps of `Worker::turn` in the same order. Its queue
//!   is a list under a lock, because loom cannot examine crossbeam-queue. The models prove that this order
//!   is right. They do not prove that `worker/mod.rs` keeps to it.
//!
//! loom does not examine:
//! - orders with more than [`PREEMPTIONS_MAX`] preemptions;
//! - sequentially consistent loads and stores, which it treats as acquire and release. It does model
//!   sequentially consistent fences, on which crossbeam-epoch depends;
//! - the atomics of std in `authz::DecisionLog`, which hold figures and decide nothing;
//! - plain memory that is not in loom's cells. The models therefore pass even if the swap of an `EpochCell`
//!   does not release, because the fence of a pin orders the writes before it.
#![cfg(crossbeam_loom)]

#[path = "../../../src/authz/mod.rs"]
#[allow(dead_code, reason = "the models use a part of it")]
pub mod authz;
#[allow(dead_code, reason = "no model drains")]
pub mod engine;
pub mod sys;
#[path = "../../../src/wire"]
mod wire {
    #[allow(dead_code, reason = "decisions contain replies, and no model writes one")]
    mod reply;

    pub use reply::Reply;
}

/// Runs `model` once for each order of its threads.
pub fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS_MAX);
    builder.check(model);
}

/// Preemptions per order: how often loom stops a thread that could have gone on. Two were enough to find
/// every fault that we planted; a third takes ten times as long. `LOOM_MAX_PREEMPTIONS` overrides this value.
pub const PREEMPTIONS_MAX: usize = 2;
