//! Finds out what this kernel's io_uring can do, by making a ring.

use super::receive::ReceiveLimit;
use super::ring::{Ring, RingError};

/// Features of io_uring that the relay uses where they are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Linux 6.17: a multishot receive can end after a number of bytes, so that streams need fewer calls.
    pub counted_receive: bool,
    /// Linux 6.12: a wait can go on for several completions.
    pub gathering: bool,
}

/// Probes the kernel. Fails where the relay cannot have a ring at all.
pub fn probe() -> Result<Features, RingError> {
    let ring = Ring::new()?;
    Ok(Features {
        counted_receive: ring.receive_limit() == ReceiveLimit::Counted,
        gathering: ring.can_gather(),
    })
}
