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

/// Lowers the priority of the calling thread, so that others on its CPU run first.
pub fn give_way() -> io::Result<()> {
    const CALLING_THREAD: libc::id_t = 0;
    // SAFETY: `setpriority` takes three numbers and touches no memory of ours.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, CALLING_THREAD, NICE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nice value: about a tenth of the CPU time that a thread of normal priority gets beside it.
const NICE: libc::c_int = 10;

/// Pins the calling thread to `cpu`.
pub fn pin_thread(cpu: Cpu) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu.0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
