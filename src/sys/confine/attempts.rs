//! Tries what a confined thread must not be able to do, for tests. Compiled for debug builds alone.
//!
//! Each attempt is made such that it does no harm where it is not refused. Unsafe because most of these calls have no safe
//! wrapper, for good reason.

use std::io;

/// Makes all attempts where `SLUICEGATE_TEST_ATTEMPTS` names a file that must not be opened, and logs the outcomes.
pub(super) fn make(thread: &str) {
    let Some(foreign) = std::env::var_os("SLUICEGATE_TEST_ATTEMPTS") else { return };
    let file = |options: &mut std::fs::OpenOptions| options.open(&foreign).map(drop);
    let null = 0_i64;
    let attempts = [
        // Of a program that is not there, of a process that is not there, and so on.
        ("exec", call(libc::SYS_execve, [c"/nowhere".as_ptr() as i64, null, null, null])),
        ("fork", call(libc::SYS_clone, [(libc::CLONE_FS | libc::CLONE_NEWNS).into(), null, null, null])),
        ("ptrace", call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), NOBODY, null, null])),
        ("memory of others", call(libc::SYS_process_vm_readv, [NOBODY, null, null, null])),
        ("signal", call(libc::SYS_kill, [i64::from(std::process::id()), null, null, null])),
        ("mount", call(libc::SYS_mount, [null; 4])),
        ("namespace", call(libc::SYS_unshare, [null; 4])),
        ("bpf", call(libc::SYS_bpf, [-1, null, null, null])),
        ("keys", call(libc::SYS_keyctl, [-1, null, null, null])),
        ("tracing", call(libc::SYS_perf_event_open, [null, NOBODY, -1, -1])),
        ("user", call(libc::SYS_setresuid, [-1, -1, -1, null])),
        ("core dump", call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 0, null, null])),
        ("packet socket", socket(libc::AF_PACKET, 0)),
        ("virtual machine's socket", socket(libc::AF_VSOCK, 0)),
        ("kernel's crypto", socket(libc::AF_ALG, 0)),
        ("netlink audit", socket(libc::AF_NETLINK, libc::NETLINK_AUDIT)),
        ("terminal's input", call(libc::SYS_ioctl, [-1, libc::TIOCSTI as i64, null, null])),
        ("foreign file", file(std::fs::OpenOptions::new().read(true))),
        ("foreign file's text", file(std::fs::OpenOptions::new().append(true))),
        // Of kinds of threads.
        (
            "thread",
            call(libc::SYS_clone, [(libc::CLONE_THREAD | libc::CLONE_NEWNS).into(), null, null, null]),
        ),
        ("local socket", socket(libc::AF_UNIX, 0)),
        ("network socket", socket(libc::AF_INET, 0)),
        ("any file", call(libc::SYS_openat, [-1, c"nowhere".as_ptr() as i64, null, null])),
        ("code", call(libc::SYS_mprotect, [null, null, libc::PROT_EXEC.into(), null])),
        ("ring", call(libc::SYS_io_uring_setup, [null; 4])),
    ];
    for (name, outcome) in attempts {
        let outcome = match outcome {
            Ok(()) => "done".to_owned(),
            Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), |errno| errno.to_string()),
        };
        tracing::info!("attempt of {thread}: {name}: {outcome}");
    }
}

fn socket(family: i32, protocol: i32) -> io::Result<()> {
    // A datagram socket of most families needs no more than the right to have it.
    let kind = if family == libc::AF_PACKET { libc::SOCK_RAW } else { libc::SOCK_DGRAM };
    call(libc::SYS_socket, [family.into(), (kind | libc::SOCK_CLOEXEC).into(), protocol.into(), 0])
}

/// Calls the kernel. A descriptor that comes of it is left open, as long as a test lasts.
fn call(number: i64, arguments: [i64; 4]) -> io::Result<()> {
    let [first, second, third, fourth] = arguments;
    // SAFETY: the attempts above pass numbers, static text or null, and none of these calls writes to our memory then.
    let done = unsafe { libc::syscall(number, first, second, third, fourth, 0_i64) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A process that is not there: beyond the largest id that Linux gives.
const NOBODY: i64 = 0x7fff_0000;
