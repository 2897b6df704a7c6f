//! The multishot receive that the kernel ends after a number of bytes, where it can.
//!
//! Unsafe because the io_uring crate has no setter for that number: it is written into the entry.

use std::io;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use super::buffers::GROUP;

/// The first thing that the kernel does for a receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// Read at once: bytes have probably arrived.
    Read,
    /// Wait until the socket is readable: probably no bytes have arrived, and a read would fail.
    Wait,
}

/// The kernel's ability to end a multishot receive after a number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReceiveLimit {
    Counted,
    /// A multishot receive would continue while there are bytes and buffers, even when earlier bytes could not
    /// be sent on. So receives are single.
    Missing,
}

impl ReceiveLimit {
    /// Tries a limited receive on an invalid descriptor. A kernel that knows the limit fails at the descriptor;
    /// another refuses the field.
    pub(super) fn probe(ring: &mut IoUring) -> io::Result<Self> {
        let entry = limited_receive(Fd(-1), First::Read);
        // SAFETY: the entry points to no memory.
        let pushed = unsafe { ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "the queue of a new ring is empty");
        let give_up_at = Instant::now() + PROBE_MAX;
        loop {
            let submitted = ring.submit_and_wait(1);
            if let Some(completion) = ring.completion().next() {
                return Ok(if completion.result() == -libc::EBADF { Self::Counted } else { Self::Missing });
            }
            match submitted {
                // A signal, or a want of resources, which passes.
                Err(error) if Instant::now() >= give_up_at || !is_passing(&error) => return Err(error),
                _ => std::thread::sleep(PROBE_PAUSE),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// Builds a multishot receive that the kernel ends after [`RECEIVE_BYTES_MAX`].
pub(super) fn limited_receive(socket: Fd, first: First) -> squeue::Entry {
    let mut entry = opcode::RecvMulti::new(socket, GROUP).build();
    // SAFETY: an entry is the kernel's 64-byte io_uring_sqe (`repr(C)`, checked below), the four bytes at
    // `OPTLEN_OFFSET` are its `optlen` and the two at `IOPRIO_OFFSET` its `ioprio`, plain numbers for which
    // the crate has no setters.
    unsafe {
        let entry = (&raw mut entry).cast::<u8>();
        entry.add(OPTLEN_OFFSET).cast::<u32>().write(RECEIVE_BYTES_MAX as u32);
        if first == First::Wait {
            let ioprio = entry.add(IOPRIO_OFFSET).cast::<u16>();
            ioprio.write(ioprio.read() | RECVSEND_POLL_FIRST);
        }
    }
    entry
}

/// Bytes that one stream receive delivers at most, apart from the rest of its last buffer. It bounds the bytes
/// that a direction has to keep when its sink stops reading, and one session's share of a turn.
pub const RECEIVE_BYTES_MAX: usize = 128 * 1024;

/// Time for which a kernel may refuse the probe for want of resources, and the pause between two attempts.
const PROBE_MAX: Duration = Duration::from_secs(2);
const PROBE_PAUSE: Duration = Duration::from_millis(1);

/// `optlen` in `struct io_uring_sqe` of the kernel's include/uapi/linux/io_uring.h.
const OPTLEN_OFFSET: usize = 44;

/// `ioprio` in the same struct, which holds the flags of a receive.
const IOPRIO_OFFSET: usize = 2;

/// IORING_RECVSEND_POLL_FIRST of the same file.
const RECVSEND_POLL_FIRST: u16 = 1;

const _: () = assert!(size_of::<squeue::Entry>() == 64 && align_of::<squeue::Entry>() >= 4);
