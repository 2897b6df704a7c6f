//! The files of the product that threads meet in, with loom's atomics under them, for the models beside this.
//!
//! Compiled as they are: `sys/epoch_cell.rs` with the real crossbeam-epoch, whose own support for loom `--cfg
//! crossbeam_loom` turns on, all of `authz`, and `engine/signals.rs`. loom runs a model in every order in which
//! its threads can take their turns, and lets a load see every value that its ordering permits.
//!
//! Stand-ins are `sys::wake`, for an eventfd and the ring's poll of it, and `engine`, for a thread that does
//! what `Worker::turn` does, in its order, with a list under a lock for its queue: crossbeam-queue cannot be
//! examined. So the order in `worker.rs` itself is not proven, but what has to be kept there is.
//!
//! Not modelled: orders with more than [`PREEMPTIONS_MAX`] preemptions; sequentially consistent loads and
//! stores, which loom takes for acquire and release (fences, which crossbeam-epoch rests on, it has); atomics
//! of std in `authz::DecisionLog`, which carry figures and no rights; plain memory that loom does not know of, so
//! that the release of the root's own swap is not needed here, where a pin's fence orders what comes before.
#![cfg(crossbeam_loom)]

#[path = "../../src/authz/mod.rs"]
#[allow(dead_code, reason = "models use a part")]
pub mod authz;
#[allow(dead_code, reason = "no model drains")]
pub mod engine;
pub mod sys;
#[path = "../../src/wire"]
mod wire {
    #[allow(dead_code, reason = "decisions name replies, and nobody writes them")]
    mod reply;

    pub use reply::Reply;
}

/// Runs `model` in every order of its threads.
pub fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS_MAX);
    builder.check(model);
}

/// Times that a thread is stopped where it could have gone on: enough for every fault that was tried.
/// `LOOM_MAX_PREEMPTIONS` overrides it; a third one takes ten times as long.
pub const PREEMPTIONS_MAX: usize = 2;
