//! The system calls that a relay makes, and the errors that each may give it.

use std::collections::BTreeMap;

use nix::errno::Errno;

/// A system call.
#[derive(Clone, Copy)]
pub struct Call {
    pub name: &'static str,
    pub number: i64,
    pub errors: &'static [Errno],
    pub bears: Bears,
}

/// What a relay can bear of a call that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bears {
    /// It goes on, and is as before once the call works again.
    All,
    /// The process may end: without memory, neither the allocator nor the loader of threads can go on. A service manager
    /// starts it anew.
    MayEnd,
}

macro_rules! calls {
    ($($name:ident $number:ident $bears:ident [$($error:ident)*])*) => {
        &[$(Call {
            name: stringify!($name),
            number: libc::$number,
            errors: &[$(Errno::$error),*],
            bears: Bears::$bears,
        }),*]
    };
}

/// Every call that a relay makes and that can fail. Errors are those that its manual page names for what a relay does by
/// it, and that no right use of it excludes.
pub const CALLS: &[Call] = calls! {
    accept4 SYS_accept4 All [EMFILE ENFILE ENOMEM ENOBUFS ECONNABORTED EINTR EPERM]
    bind SYS_bind All [EADDRINUSE EACCES EADDRNOTAVAIL ENOMEM]
    brk SYS_brk MayEnd [ENOMEM]
    capset SYS_capset All [EPERM]
    chmod SYS_chmod All [EPERM EROFS EIO]
    fchmod SYS_fchmod All [EPERM EROFS EIO]
    chown SYS_chown All [EPERM EROFS]
    clock_nanosleep SYS_clock_nanosleep All [EINTR]
    clone3 SYS_clone3 All [EAGAIN ENOMEM]
    close SYS_close All [EINTR]
    close_range SYS_close_range All [EMFILE ENOMEM]
    connect SYS_connect All [EINTR EAGAIN ECONNREFUSED EADDRNOTAVAIL ENETUNREACH ETIMEDOUT EACCES]
    epoll_create1 SYS_epoll_create1 All [EMFILE ENFILE ENOMEM]
    epoll_ctl SYS_epoll_ctl All [ENOMEM ENOSPC]
    epoll_wait SYS_epoll_wait All [EINTR]
    eventfd2 SYS_eventfd2 All [EMFILE ENFILE ENOMEM]
    fallocate SYS_fallocate All [ENOSPC EIO EINTR EOPNOTSUPP]
    fchown SYS_fchown All [EPERM EROFS]
    fcntl SYS_fcntl All [EAGAIN EINTR ENOLCK EPERM EMFILE EIO]
    fdatasync SYS_fdatasync All [EIO ENOSPC EDQUOT EINTR]
    flock SYS_flock All [EINTR ENOLCK EAGAIN]
    fstat SYS_fstat All [EIO ENOMEM]
    fsync SYS_fsync All [EIO ENOSPC EDQUOT EINTR]
    ftruncate SYS_ftruncate All [EIO EINTR EPERM]
    futex SYS_futex All [EINTR EAGAIN]
    getdents64 SYS_getdents64 All [EIO ENOENT]
    getrandom SYS_getrandom All [EINTR]
    getsockname SYS_getsockname All [ENOBUFS]
    getsockopt SYS_getsockopt All [ENOMEM]
    io_uring_enter SYS_io_uring_enter All [EINTR EAGAIN EBUSY ENOMEM]
    io_uring_register SYS_io_uring_register All [ENOMEM EBUSY EMFILE]
    io_uring_setup SYS_io_uring_setup All [EMFILE ENFILE ENOMEM EPERM ENOSYS]
    ioctl SYS_ioctl All [EIO ENOTTY]
    landlock_add_rule SYS_landlock_add_rule All [ENOMEM]
    landlock_create_ruleset SYS_landlock_create_ruleset All [EMFILE ENFILE ENOMEM ENOSYS EOPNOTSUPP]
    landlock_restrict_self SYS_landlock_restrict_self All [ENOMEM EPERM]
    listen SYS_listen All [EADDRINUSE]
    lseek SYS_lseek All [EINVAL]
    madvise SYS_madvise All [ENOMEM EAGAIN]
    mkdir SYS_mkdir All [EACCES ENOSPC EROFS EIO]
    mmap SYS_mmap MayEnd [ENOMEM EAGAIN]
    mprotect SYS_mprotect MayEnd [ENOMEM]
    mremap SYS_mremap MayEnd [ENOMEM]
    newfstatat SYS_newfstatat All [EACCES EIO ENOMEM]
    open SYS_open All [EMFILE ENFILE EACCES EIO]
    openat SYS_openat All [EMFILE ENFILE EACCES EIO EROFS ENOSPC ENOMEM EINTR]
    pipe2 SYS_pipe2 All [EMFILE ENFILE]
    poll SYS_poll All [EINTR ENOMEM]
    ppoll SYS_ppoll All [EINTR ENOMEM]
    pread64 SYS_pread64 All [EIO EINTR]
    prlimit64 SYS_prlimit64 All [EPERM]
    pwrite64 SYS_pwrite64 All [EIO ENOSPC EDQUOT EINTR]
    read SYS_read All [EIO EINTR]
    readlink SYS_readlink All [EACCES EIO]
    recvfrom SYS_recvfrom All [EINTR ECONNRESET ENOMEM ETIMEDOUT]
    recvmsg SYS_recvmsg All [EINTR EAGAIN ENOMEM]
    rename SYS_rename All [EIO ENOSPC EACCES EROFS]
    rmdir SYS_rmdir All [EACCES EBUSY]
    sched_getaffinity SYS_sched_getaffinity All [EPERM]
    sched_setaffinity SYS_sched_setaffinity All [EPERM EINVAL]
    sendmsg SYS_sendmsg All [EINTR EAGAIN ENOBUFS ENOMEM]
    seccomp SYS_seccomp All [ENOMEM]
    sendto SYS_sendto All [EINTR EAGAIN ECONNRESET EPIPE ENOBUFS ENOMEM]
    setpriority SYS_setpriority All [EPERM]
    setsockopt SYS_setsockopt All [ENOBUFS ENOMEM ENOPROTOOPT EPERM]
    shutdown SYS_shutdown All [ENOTCONN ENOBUFS]
    socket SYS_socket All [EMFILE ENFILE ENOBUFS ENOMEM EACCES EAFNOSUPPORT]
    socketpair SYS_socketpair All [EMFILE ENFILE ENOMEM]
    splice SYS_splice All [EAGAIN EINTR ENOMEM]
    statx SYS_statx All [EACCES EIO ENOMEM]
    timerfd_create SYS_timerfd_create All [EMFILE ENOMEM]
    umask SYS_umask All []
    unlink SYS_unlink All [EACCES EROFS EIO]
    unlinkat SYS_unlinkat All [EACCES EROFS EIO]
    write SYS_write All [EIO ENOSPC EDQUOT EINTR EPIPE]
    writev SYS_writev All [EIO ENOSPC EINTR]
};

/// Calls that cannot fail where a relay makes them, that end it, or that belong to the loader and to the start of threads.
const WITHOUT_ERRORS: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_capget,
    libc::SYS_clock_gettime,
    libc::SYS_clone,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_fadvise64,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_membarrier,
    libc::SYS_munmap,
    libc::SYS_prctl,
    libc::SYS_pidfd_open,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_uname,
    libc::SYS_wait4,
];

/// Every number that a census asks about: all calls but those that end a process or come from the kernel itself.
pub fn census_numbers() -> impl Iterator<Item = i64> {
    let never = [
        libc::SYS_rt_sigreturn,
        libc::SYS_execve,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_execveat,
        libc::SYS_restart_syscall,
    ];
    (0..462).filter(move |number| !never.contains(number))
}

/// Numbers of a census that no line here has.
pub fn census_misses(counts: &BTreeMap<i64, u32>) -> Vec<i64> {
    let is_known =
        |number: i64| WITHOUT_ERRORS.contains(&number) || CALLS.iter().any(|call| call.number == number);
    counts.keys().copied().filter(|number| !is_known(*number)).collect()
}
