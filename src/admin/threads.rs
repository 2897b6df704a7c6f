//! Figures of the engine threads.

use super::api::EngineThread;
use crate::engine::EngineHandle;
use crate::telemetry::EngineCounters;

pub(super) fn all(engine: &EngineHandle) -> Vec<EngineThread> {
    let thread = |(number, (counters, system_id)): (usize, (&EngineCounters, Option<i32>))| EngineThread {
        number,
        cpu_ns: system_id.and_then(cpu_ns),
        turns: counters.hot.turns.get(),
        spins_hit: counters.hot.spins_hit.get(),
        spins_missed: counters.hot.spins_missed.get(),
        sessions: counters.sessions.active.get(),
    };
    engine.counters().zip(engine.system_ids()).enumerate().map(thread).collect()
}

/// CPU time of a thread so far in nanoseconds, spinning included. `None` where the kernel keeps no count.
fn cpu_ns(system_id: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{system_id}/schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_takes_time() {
        let id = nix::unistd::gettid().as_raw();
        let before = cpu_ns(id).unwrap();
        let began = std::time::Instant::now();
        while cpu_ns(id).unwrap() == before {
            assert!(began.elapsed() < std::time::Duration::from_secs(20));
        }
        assert_eq!(cpu_ns(i32::MAX), None);
    }
}
