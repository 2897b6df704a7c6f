//! Whether every engine thread turns.
//!
//! A thread without work sleeps and does not turn by itself. So a check wakes all threads and waits for a turn of each.
//! It is made only when somebody asks, and costs the threads one turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::engine::EngineHandle;

/// The last check, which all callers share. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Liveness {
    last: Arc<Mutex<Option<Check>>>,
}

struct Check {
    at: Instant,
    stuck: Option<usize>,
}

impl Liveness {
    /// Says why the node does not serve the clients of one thread; `None` where every thread turns.
    pub async fn trouble(&self, engine: &EngineHandle) -> Option<String> {
        // Callers that come meanwhile wait for this check, and take its result.
        let mut last = self.last.lock().await;
        let stuck = match &*last {
            Some(check) if check.at.elapsed() < CHECK_AGE_MAX => check.stuck,
            _ => {
                let stuck = stuck_thread(engine).await;
                *last = Some(Check { at: Instant::now(), stuck });
                stuck
            }
        };
        let waited = humantime::format_duration(TURN_MAX);
        stuck.map(|number| format!("engine thread {number} has not turned for {waited}"))
    }
}

/// The number of a thread that takes no turn in [`TURN_MAX`] after it was woken.
async fn stuck_thread(engine: &EngineHandle) -> Option<usize> {
    let turns = || engine.counters().map(|counters| counters.hot.turns.get());
    let before: Vec<u64> = turns().collect();
    engine.nudge();
    let give_up_at = Instant::now() + TURN_MAX;
    let mut pause = FIRST_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(NEXT_LOOK_MAX);
        let stuck = turns().zip(&before).position(|(now, before)| now == *before);
        if stuck.is_none() || Instant::now() >= give_up_at {
            return stuck;
        }
    }
}

/// Time in which a woken thread takes a turn. A turn takes 1 ms at most; a machine without a free CPU needs more.
const TURN_MAX: Duration = Duration::from_secs(2);

/// Age up to which the result of a check stands for the next caller.
const CHECK_AGE_MAX: Duration = Duration::from_millis(500);

/// Time that a thread usually needs to wake and turn.
const FIRST_LOOK: Duration = Duration::from_micros(200);

const NEXT_LOOK_MAX: Duration = Duration::from_millis(50);
