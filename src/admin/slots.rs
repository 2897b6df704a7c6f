//! Places for the connections of one listener of the admin side.
//!
//! Where all are taken, the slowest connection gives its place to a new one, so that no number of slow ones keeps a
//! health check waiting: first the oldest that has not sent its request, then the oldest whose answer takes long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// The connections of one listener.
pub(super) struct Slots {
    /// In the order of their accepts.
    connections: VecDeque<Slot>,
    count_max: usize,
    /// Age from which a connection whose request is served gives way.
    served_for: Duration,
}

struct Slot {
    task: AbortHandle,
    accepted_at: Instant,
    has_asked: HasAsked,
}

/// Set once the head of a connection's request has come. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct HasAsked(Arc<AtomicBool>);

impl HasAsked {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Slots {
    pub fn new(count_max: usize, served_for: Duration) -> Self {
        Self { connections: VecDeque::new(), count_max, served_for }
    }

    /// Runs the connection that `serve` makes, once there is a place for it.
    pub async fn run<F: Future<Output = ()> + Send + 'static>(&mut self, serve: impl FnOnce(HasAsked) -> F) {
        while !self.has_place(Instant::now()) {
            tokio::time::sleep(NEXT_LOOK).await;
        }
        let has_asked = HasAsked::default();
        let task = tokio::spawn(serve(has_asked.clone())).abort_handle();
        self.connections.push_back(Slot { task, accepted_at: Instant::now(), has_asked });
    }

    /// True where there is a place, perhaps because a slow connection was ended.
    fn has_place(&mut self, now: Instant) -> bool {
        self.connections.retain(|slot| !slot.task.is_finished());
        if self.connections.len() < self.count_max {
            return true;
        }
        let is_older = |slot: &Slot, age| now.duration_since(slot.accepted_at) >= age;
        let is_silent = |slot: &Slot| !slot.has_asked.0.load(Ordering::Relaxed) && is_older(slot, ASKING_FOR);
        let slowest = self.connections.iter().position(is_silent);
        let slowest =
            slowest.or_else(|| self.connections.iter().position(|slot| is_older(slot, self.served_for)));
        let Some(slot) = slowest.and_then(|place| self.connections.remove(place)) else { return false };
        slot.task.abort();
        true
    }
}

/// Time that a connection has to send its request while others wait for its place.
const ASKING_FOR: Duration = Duration::from_millis(100);

/// Interval of the looks for a place.
const NEXT_LOOK: Duration = Duration::from_millis(5);
