//! What this kernel's io_uring can do for us, found out by making a ring.

use io_uring::IoUring;
use io_uring::types::Fd;

use super::ring::{First, Ring, RingError, limited_receive};

/// Beyond what the relay cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// A multishot receive can end after a number of bytes (Linux 6.17), so that streams need fewer calls.
    pub counted_receive: bool,
    /// A wait can go on for several completions (Linux 6.12).
    pub gathering: bool,
}

/// Fails where there is no ring that the relay could use.
pub fn probe() -> Result<Features, RingError> {
    let ring = Ring::new()?;
    Ok(Features {
        counted_receive: ring.receive_limit() == ReceiveLimit::Counted,
        gathering: ring.inner().params().is_feature_min_timeout(),
    })
}

/// Whether the kernel can end a multishot receive after a number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReceiveLimit {
    Counted,
    /// A multishot receive would go on for as long as there are bytes and buffers, whatever became of the
    /// bytes before; so receives are single.
    Missing,
}

impl ReceiveLimit {
    /// Asks by a limited receive from a descriptor that is none: a kernel that knows the limit gets as far
    /// as the descriptor, one that does not refuses the field.
    pub(super) fn probe(ring: &mut IoUring) -> Result<Self, RingError> {
        let entry = limited_receive(Fd(-1), First::Read);
        // SAFETY: the entry points to no memory.
        let pushed = unsafe { ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "the queue of a new ring is empty");
        ring.submit_and_wait(1).map_err(RingError::Setup)?;
        let result = ring.completion().next().map(|completion| completion.result());
        Ok(if result == Some(-libc::EBADF) { Self::Counted } else { Self::Missing })
    }
}
