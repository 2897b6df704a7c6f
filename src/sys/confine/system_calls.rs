//! The system calls that the relay, its libraries and its kinds of threads use.
//!
//! A call with conditions is allowed where one of them holds. Only plain numbers can be conditions: a filter cannot read
//! the memory that an argument points to.

use std::collections::BTreeMap;

use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::ThreadKind;
use super::filter::Allowed;

/// What any thread of the process may call. Not among them, to name a few: execve, fork, ptrace, mount, bpf, kill,
/// unshare, setuid, process_vm_readv, perf_event_open, userfaultfd, init_module, keyctl, reboot.
pub(super) fn of_the_process() -> Allowed {
    let mut allowed = always(&[MEMORY, CLOCKS, THREADS, DESCRIPTORS, FILES, SOCKETS, RING, ITSELF].concat());
    allowed.extend([
        (libc::SYS_mmap, Vec::new()),
        (libc::SYS_mprotect, Vec::new()),
        (libc::SYS_clone, vec![rule(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)]),
        (libc::SYS_socket, sockets(&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6], NETLINK_ROUTE)),
        (libc::SYS_socketpair, sockets(&[libc::AF_UNIX], NONE)),
        (libc::SYS_prctl, one_of(0, &PRCTL_OPTIONS)),
        (libc::SYS_ioctl, one_of(1, &IOCTL_REQUESTS)),
        // Limits of this process alone.
        (libc::SYS_prlimit64, vec![rule(0, EVERY_BIT, 0)]),
        // `abort` signals the thread itself, and nothing else is signalled.
        (libc::SYS_tgkill, vec![rule(0, EVERY_BIT, u64::from(std::process::id()))]),
    ]);
    allowed
}

/// What a kind of threads may call, of that.
pub(super) fn of_threads(kind: ThreadKind) -> Allowed {
    let mut allowed = match kind {
        ThreadKind::Service => {
            let mut allowed = of_the_process();
            RING.iter().for_each(|call| _ = allowed.remove(call));
            return allowed;
        }
        ThreadKind::Engine => {
            let mut allowed = always(&[MEMORY, CLOCKS, DESCRIPTORS, SOCKETS, RING].concat());
            let domains = sockets(&[libc::AF_INET, libc::AF_INET6], NONE);
            allowed.extend([(libc::SYS_socket, domains), (libc::SYS_ioctl, one_of(1, &IOCTL_REQUESTS))]);
            allowed
        }
        ThreadKind::Handshake => {
            let mut allowed = always(&[MEMORY, CLOCKS].concat());
            allowed
                .extend([libc::SYS_read, libc::SYS_write, libc::SYS_writev].map(|call| (call, Vec::new())));
            // A log that goes to the system's journal.
            allowed.extend([libc::SYS_sendto, libc::SYS_sendmsg].map(|call| (call, Vec::new())));
            allowed
        }
    };
    // The second half of the filter. A filter can take away only.
    allowed.insert(libc::SYS_seccomp, Vec::new());
    // No code but what the program has loaded.
    let no_code = || vec![rule(2, libc::PROT_EXEC as u64, 0)];
    allowed.extend([(libc::SYS_mmap, no_code()), (libc::SYS_mprotect, no_code())]);
    allowed.insert(libc::SYS_prctl, one_of(0, &PRCTL_OPTIONS));
    allowed.insert(libc::SYS_tgkill, vec![rule(0, EVERY_BIT, u64::from(std::process::id()))]);
    allowed
}

fn always(calls: &[i64]) -> Allowed {
    calls.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<_, _>>()
}

/// `argument & mask == value`, of its lower half, where the kernel reads the numbers used here.
fn rule(argument: u8, mask: u64, value: u64) -> SeccompRule {
    let condition = condition(argument, mask, value);
    SeccompRule::new(vec![condition]).expect("a rule with a condition")
}

fn condition(argument: u8, mask: u64, value: u64) -> SeccompCondition {
    let masked = SeccompCmpOp::MaskedEq(mask);
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, masked, value).expect("one of six arguments")
}

fn one_of(argument: u8, values: &[u64]) -> Vec<SeccompRule> {
    values.iter().map(|value| rule(argument, EVERY_BIT, *value)).collect()
}

/// Sockets of these families, and of `pairs` of a family and a protocol.
fn sockets(families: &[libc::c_int], pairs: &[(libc::c_int, libc::c_int)]) -> Vec<SeccompRule> {
    let families = families.iter().map(|family| rule(0, EVERY_BIT, *family as u64));
    let pairs = pairs.iter().map(|(family, protocol)| {
        let conditions =
            vec![condition(0, EVERY_BIT, *family as u64), condition(2, EVERY_BIT, *protocol as u64)];
        SeccompRule::new(conditions).expect("a rule with conditions")
    });
    families.chain(pairs).collect()
}

const EVERY_BIT: u64 = u32::MAX as u64;

/// The resolver of glibc, and the list of this machine's addresses, ask the kernel for addresses and routes.
const NETLINK_ROUTE: &[(libc::c_int, libc::c_int)] = &[(libc::AF_NETLINK, libc::NETLINK_ROUTE)];

const NONE: &[(libc::c_int, libc::c_int)] = &[];

/// Options of prctl: names of threads and of memory, large pages, the flags that were set at the start.
const PRCTL_OPTIONS: [u64; 9] = [
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
    libc::PR_CAPBSET_READ as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_SET_THP_DISABLE as u64,
    libc::PR_GET_THP_DISABLE as u64,
];

/// Requests of ioctl: blocking, bytes that wait, whether a descriptor is a terminal and how large it is, names and
/// indices of interfaces.
const IOCTL_REQUESTS: [u64; 10] = [
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::TIOCOUTQ,
    libc::TCGETS,
    // TCGETS2, which newer versions of glibc use.
    0x802c_542a,
    libc::TIOCGWINSZ,
    libc::SIOCGIFNAME,
    libc::SIOCGIFINDEX,
    libc::SIOCGIFFLAGS,
];

/// Memory, and what the allocator and the threads' runtime do besides.
const MEMORY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
];

const CLOCKS: &[i64] = &[
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

const THREADS: &[i64] = &[
    libc::SYS_get_robust_list,
    libc::SYS_getpriority,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_setaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
];

/// Calls on descriptors that are open, or that lead nowhere: pipes and counters.
const DESCRIPTORS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    // The system's journal takes long messages as such a file. Nothing here is executed.
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Files; Landlock says which.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Calls on sockets, without the one that makes them.
const SOCKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// A ring's own calls; the ring has a list of its operations besides.
const RING: &[i64] = &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_uring_setup];

/// Facts about this process, and the filter of a thread.
const ITSELF: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getppid,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getuid,
    libc::SYS_seccomp,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];
