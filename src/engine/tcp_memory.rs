//! Watches the memory that the system's TCP connections hold, and has stalled tunnels end before it runs out.
//!
//! A tunnel whose reader stalls holds what its writer could still send: up to the largest values of
//! `net.ipv4.tcp_rmem` and `tcp_wmem` on each side. A few hundred of them, of one principal, can take all that
//! `net.ipv4.tcp_mem` allows, and then the kernel slows down every connection of the machine. So tunnels that move
//! nothing make room for those that do.
//!
//! The counts are the kernel's own, of the whole machine. A thread reads them, since a read of /proc may wait.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// The thread that watches. Dropping it stops the thread.
#[derive(Default)]
pub(super) struct TcpMemoryWatch {
    _thread: ServiceThread,
}

/// Pages of TCP memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TcpMemory {
    in_use: u64,
    /// The second value of `net.ipv4.tcp_mem`, from which the kernel slows all connections down.
    pressure: u64,
}

impl TcpMemoryWatch {
    pub fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let shared = Arc::clone(shared);
        Ok(Self { _thread: ServiceThread::start("tcp-memory", move |stop| watch(&shared, &stop))? })
    }
}

fn watch(shared: &Shared, stop: &StopSignal) {
    let mut trouble = LogOnChange::default();
    let mut unread = LogOnChange::default();
    let mut pause = Duration::ZERO;
    while !stop.is_stopped_within(pause) {
        let read = TcpMemory::read();
        match read {
            // It may be for want of a descriptor, which passes.
            None if unread.changes_to(()) => {
                tracing::warn!(
                    "the system does not say how much memory TCP has; stalled tunnels make no room"
                );
            }
            Some(_) if unread.ends() => tracing::info!("the system says again how much memory TCP has"),
            _ => {}
        }
        let memory = read.filter(|memory| memory.is_short());
        pause = if memory.is_some() { SHED_EVERY } else { WATCH_EVERY };
        match memory {
            Some(memory) => {
                if trouble.changes_to(()) {
                    tracing::error!(
                        in_use = memory.in_use,
                        pressure = memory.pressure,
                        "TCP memory runs short (pages of net.ipv4.tcp_mem); tunnels that have stalled longest are reset \
                         until it does not. docs/limits.md says what to tune"
                    );
                }
                shared.shed_stalled();
            }
            None if trouble.ends() => tracing::info!("TCP memory is enough again"),
            None => {}
        }
    }
}

impl TcpMemory {
    fn read() -> Option<Self> {
        let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
        Self::parse(&read("/proc/net/sockstat")?, &read("/proc/sys/net/ipv4/tcp_mem")?)
    }

    fn parse(sockstat: &str, tcp_mem: &str) -> Option<Self> {
        let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "))?;
        let in_use = tcp.split_once(" mem ")?.1.split_whitespace().next()?.parse().ok()?;
        let pressure = tcp_mem.split_whitespace().nth(1)?.parse().ok()?;
        Some(Self { in_use, pressure })
    }

    fn is_short(self) -> bool {
        self.in_use.saturating_mul(100) >= self.pressure.saturating_mul(SHORT_PERCENT)
    }
}

/// Share of the value from which the kernel slows all connections down, above which stalled tunnels end.
const SHORT_PERCENT: u64 = 75;

/// Interval of the looks. A reader that stalls behind 10 Gbit/s lets 250 MB pile up in that time, in as many tunnels as
/// have room for it.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// Interval of the looks while tunnels are reset: the kernel frees their memory at once.
const SHED_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_from_three_quarters_of_what_makes_the_kernel_slow() {
        let sockstat = |pages| {
            format!(
                "sockets: used 100\nTCP: inuse 79 orphan 0 tw 854 alloc 79 mem {pages}\nUDP: inuse 0 mem 0\n"
            )
        };
        let is_short = |pages: u64| TcpMemory::parse(&sockstat(pages), "300\t400\t600\n").unwrap().is_short();
        assert_eq!([0, 299, 300, 5_000].map(is_short), [false, false, true, true]);
        assert_eq!(TcpMemory::parse("TCP: inuse 1", "1 2 3"), None);
        assert_eq!(TcpMemory::parse(&sockstat(1), ""), None);
    }
}
