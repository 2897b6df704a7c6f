//! Which CPUs this process may use, and pinning a thread to one.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// A CPU's number, as in `/proc/cpuinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu(pub usize);

/// The CPUs that this process may use, in ascending order; at least one.
pub fn allowed() -> io::Result<Vec<Cpu>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).map(Cpu).collect())
}

/// Pins the calling thread.
pub fn pin_thread(cpu: Cpu) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu.0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
