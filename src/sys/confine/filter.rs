//! Filters of system calls (seccomp): made once, put in force for one thread.
//!
//! Unsafe because the crate that makes filters cannot have the kernel log what they refuse.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, sock_filter};

use super::Strictness;

/// System calls that are allowed, each under any of its conditions, or always where it has none.
pub(super) type Allowed = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters of one kind of thread.
pub(super) struct Filters {
    allowed: BpfProgram,
    /// Calls that are answered as a kernel without them would, so that a library goes on to an older call. `None` where
    /// nothing is refused.
    unknown: Option<BpfProgram>,
}

impl Filters {
    pub fn new(allowed: Allowed, strictness: Strictness) -> Result<Self, seccompiler::Error> {
        let architecture = std::env::consts::ARCH.try_into()?;
        let refused = match strictness {
            Strictness::Refuse => SeccompAction::Errno(libc::EPERM as u32),
            Strictness::Log => SeccompAction::Log,
        };
        let unknown: Allowed = TRIED_BY_LIBRARIES
            .into_iter()
            .chain(FIRST_UNKNOWN_CALL..=LAST_UNKNOWN_CALL)
            .filter(|call| !allowed.contains_key(call))
            .map(|call| (call, Vec::new()))
            .collect();
        let not_there = SeccompAction::Errno(libc::ENOSYS as u32);
        let unknown = SeccompFilter::new(unknown, SeccompAction::Allow, not_there, architecture)?;
        let allowed = SeccompFilter::new(allowed, refused, SeccompAction::Allow, architecture)?;
        Ok(Self {
            allowed: allowed.try_into()?,
            unknown: match strictness {
                Strictness::Refuse => Some(unknown.try_into()?),
                Strictness::Log => None,
            },
        })
    }

    /// Puts the filters in force for the calling thread and the ones that it starts. Needs no new privileges.
    pub fn apply(&self) -> io::Result<()> {
        install(&self.allowed, libc::SECCOMP_FILTER_FLAG_LOG)?;
        // The later one of two answers counts, and is not logged: libraries try new calls all the time.
        self.unknown.as_ref().map_or(Ok(()), |unknown| install(unknown, 0))
    }
}

/// `struct sock_fprog` of the kernel's include/uapi/linux/filter.h.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const sock_filter,
}

fn install(program: &BpfProgram, flags: libc::c_ulong) -> io::Result<()> {
    let program = Program { len: program.len() as libc::c_ushort, filter: program.as_ptr() };
    // SAFETY: the kernel reads `program` and the instructions that it points to, which live as long as the caller's
    // borrow, during the call only.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Calls that libraries try first, and whose numbers all architectures share: clone3, openat2, epoll_pwait2, futex_waitv,
/// futex_wake, futex_wait and futex_requeue.
const TRIED_BY_LIBRARIES: [i64; 7] = [435, 437, 441, 449, 454, 455, 456];

/// The first call that is newer than these lists (Linux 6.17 ends before it).
const FIRST_UNKNOWN_CALL: i64 = 470;

/// The last such call. Linux will not reach it for years, and the filter does not get too long.
const LAST_UNKNOWN_CALL: i64 = 560;
