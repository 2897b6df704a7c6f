//! What this kernel's io_uring can do for us, found out by making a ring.

use super::receive::ReceiveLimit;
use super::ring::{Ring, RingError};

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
        gathering: ring.can_gather(),
    })
}
