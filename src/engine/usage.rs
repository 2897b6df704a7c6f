//! What tunnels use: each engine thread sums it by key, and another thread collects the sums now and then.
//!
//! A tunnel counts its bytes already. A mark in it says how much of them is in the thread's table; they are added when the
//! thread is asked, and when the tunnel ends or moves. No byte takes longer for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, TryRecvError, bounded};

use super::EngineHandle;
use super::requests::WorkerRequest;
use super::shared::Shared;
use crate::telemetry::{UsageSums, UsageTable};

/// The part of a tunnel's use that is counted.
#[derive(Clone, Copy, Default)]
pub(super) struct UsageMark {
    bytes_up: u64,
    bytes_down: u64,
    /// Tenths of a second that the tunnel was open.
    open_tenths: u32,
    /// The tunnel is counted as opened.
    is_known: bool,
}

/// The use of a tunnel so far.
#[derive(Clone, Copy)]
pub(super) struct TunnelUse {
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Time since the reply.
    pub open_us: u64,
    pub state: TunnelState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TunnelState {
    Open,
    Ended,
    /// It leaves this process, or comes to it, and what it did before is counted.
    Moves,
}

impl UsageMark {
    /// The mark of a tunnel that came from another process, which has counted `so_far`.
    pub fn of_moved(so_far: TunnelUse) -> Self {
        let mut mark = Self::default();
        mark.advance(so_far);
        mark
    }

    /// Returns what has been used since the last count.
    pub fn advance(&mut self, now: TunnelUse) -> UsageSums {
        let tenths = u32::try_from(now.open_us / TENTH_US).unwrap_or(u32::MAX);
        let counted_ms = u64::from(self.open_tenths) * TENTH_US / 1000;
        let open_ms = match now.state {
            TunnelState::Ended => now.open_us / 1000,
            TunnelState::Open | TunnelState::Moves => u64::from(tenths) * TENTH_US / 1000,
        };
        let sums = UsageSums {
            bytes_up: now.bytes_up.saturating_sub(self.bytes_up),
            bytes_down: now.bytes_down.saturating_sub(self.bytes_down),
            opened: u64::from(!self.is_known),
            open: u64::from(now.state == TunnelState::Open),
            tunnel_ms: open_ms.saturating_sub(counted_ms),
        };
        let TunnelUse { bytes_up, bytes_down, .. } = now;
        *self = Self { bytes_up, bytes_down, open_tenths: tenths, is_known: true };
        sums
    }
}

/// Collects the sums of all engine threads. A thread that is late is asked again only once it has answered, so that
/// nothing of it is lost.
pub struct UsageCollector {
    shared: Arc<Shared>,
    /// For each thread, the answer that it owes.
    owed: Vec<Option<Receiver<UsageTable>>>,
}

impl EngineHandle {
    pub fn usage_collector(&self) -> UsageCollector {
        let owed = self.shared.threads.iter().map(|_| None).collect();
        UsageCollector { shared: Arc::clone(&self.shared), owed }
    }
}

impl UsageCollector {
    /// Adds what was used since the last call to `table`, and the number of tunnels that are open. Waits for the engine
    /// threads, for a bounded time.
    pub fn collect(&mut self, table: &mut UsageTable) {
        for (thread, owed) in self.shared.threads.iter().zip(&mut self.owed) {
            if owed.is_some() {
                continue;
            }
            let (answer, answered) = bounded(1);
            let next = UsageTable::with_room_for(thread.counters.sessions.active.get() as usize);
            // A thread that is too busy for a request is asked the next time.
            if thread.requests.send_patiently(WorkerRequest::Usage { next, answer }).is_ok() {
                *owed = Some(answered);
            }
        }
        let give_up_at = Instant::now() + ANSWER_TIME_MAX;
        for owed in &mut self.owed {
            let Some(answered) = owed else { continue };
            if let Ok(sums) = answered.recv_deadline(give_up_at) {
                table.add_table(&sums);
                *owed = None;
            }
        }
        self.collect_ended(table);
    }

    /// Adds what threads have left that do not run any more, and what they have answered by now.
    pub fn collect_ended(&mut self, table: &mut UsageTable) {
        for owed in &mut self.owed {
            match owed.as_ref().map(Receiver::try_recv) {
                Some(Ok(sums)) => {
                    table.add_table(&sums);
                    *owed = None;
                }
                Some(Err(TryRecvError::Disconnected)) => *owed = None,
                Some(Err(TryRecvError::Empty)) | None => {}
            }
        }
        table.add_table(&std::mem::take(&mut self.shared.left_usage.lock()));
    }
}

const TENTH_US: u64 = 100_000;

/// Time in which the engine threads answer. With the most sessions possible they need some 10 ms.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(open_ms: u64, bytes_up: u64, state: TunnelState) -> TunnelUse {
        TunnelUse { bytes_up, bytes_down: 2 * bytes_up, open_us: open_ms * 1000, state }
    }

    #[test]
    fn the_counts_of_a_tunnel_add_up_to_its_whole() {
        let mut mark = UsageMark::default();
        let mut total = UsageSums::default();
        for (open_ms, bytes, state) in [
            (49, 10, TunnelState::Open),
            (1_234, 10, TunnelState::Open),
            (5_999, 700, TunnelState::Open),
            (6_001, 701, TunnelState::Ended),
        ] {
            total.add(&mark.advance(at(open_ms, bytes, state)));
        }
        let expected = UsageSums { bytes_up: 701, bytes_down: 1402, opened: 1, open: 3, tunnel_ms: 6_001 };
        assert_eq!(total, expected);
    }

    #[test]
    fn a_tunnel_that_moved_counts_from_there() {
        let mut old = UsageMark::default();
        let left = old.advance(at(1_050, 10, TunnelState::Moves));
        let mut new = UsageMark::of_moved(at(1_080, 10, TunnelState::Moves));
        let mut total = new.advance(at(2_000, 15, TunnelState::Ended));
        assert_eq!((left.opened, left.open, total.opened), (1, 0, 0));
        total.add(&left);
        assert_eq!((total.bytes_up, total.tunnel_ms), (15, 2_000));
    }

    #[test]
    fn time_is_not_lost_after_years() {
        let mut mark = UsageMark::default();
        let ten_years_ms = 10 * 365 * 24 * 3_600_000;
        mark.advance(at(ten_years_ms, 1, TunnelState::Open));
        assert_eq!(mark.advance(at(ten_years_ms + 1_000, 1, TunnelState::Open)).tunnel_ms, 1_000);
    }
}
