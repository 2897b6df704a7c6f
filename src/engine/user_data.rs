//! The value that links a completion to its operation: the 64 bits of user data that io_uring returns unchanged.

/// The operation that a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UserData {
    /// An operation of the session in this slot.
    Session { slot: Slot, purpose: Purpose },
    /// The accept operation of the listener with this index.
    Accept { listener: u32 },
    /// The cancellation of an operation that belongs to no session.
    CancelOwn,
    /// An operation of the pooled peer connection in this place of the pool.
    PeerConnection { place: u32, step: PeerStep },
    /// A read of the thread's eventfd, which another thread writes to wake this one.
    Wake,
}

/// The operation that a pooled peer connection has in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerStep {
    Connect,
    Readable,
}

/// A place in the worker's table of sessions. It is reused only when no operation of its last session is in
/// flight, so a completion never reaches another session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Slot(pub u32);

/// One kind of a session's operations. At most one of each kind is in flight at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Purpose {
    /// The receive of the request's head, or of bytes that a refused client still sends.
    Head,
    Connect,
    /// The first of six for each direction, first `Up` and then `Down`: a receive, a poll for bytes to read, a poll
    /// for room to write, a poll for a hangup, and the ring's two splices (into the pipe and out of it).
    UpReceive,
    UpReadable,
    UpWritable,
    UpHangup,
    UpFill,
    UpDrain,
    DownReceive,
    DownReadable,
    DownWritable,
    DownHangup,
    DownFill,
    DownDrain,
    /// A step of a TLS handshake, which another thread computes. The ring does not know it, so it cannot be
    /// cancelled.
    TlsHandshake,
    /// The completion of a cancellation itself.
    Cancel,
}

impl Purpose {
    const ALL: [Self; 16] = [
        Self::Head,
        Self::Connect,
        Self::UpReceive,
        Self::UpReadable,
        Self::UpWritable,
        Self::UpHangup,
        Self::UpFill,
        Self::UpDrain,
        Self::DownReceive,
        Self::DownReadable,
        Self::DownWritable,
        Self::DownHangup,
        Self::DownFill,
        Self::DownDrain,
        Self::TlsHandshake,
        Self::Cancel,
    ];

    /// True for the operations of the splice path; false for a message or a step of the handshake.
    pub const fn is_of_stream(self) -> bool {
        matches!(
            self,
            Self::UpReadable
                | Self::UpWritable
                | Self::UpFill
                | Self::UpDrain
                | Self::DownReadable
                | Self::DownWritable
                | Self::DownFill
                | Self::DownDrain
        )
    }
}

impl UserData {
    pub fn into_bits(self) -> u64 {
        match self {
            Self::Session { slot, purpose } => u64::from(slot.0) << 8 | purpose as u64,
            Self::Accept { listener } => u64::from(listener) << 8 | ACCEPT,
            Self::CancelOwn => CANCEL_OWN,
            Self::PeerConnection { place, step: PeerStep::Connect } => u64::from(place) << 8 | PEER_CONNECT,
            Self::PeerConnection { place, step: PeerStep::Readable } => u64::from(place) << 8 | PEER_READABLE,
            Self::Wake => WAKE,
        }
    }

    /// Reads the bits back; `None` for bits that [`UserData::into_bits`] never returns.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let number = u32::try_from(bits >> 8).ok()?;
        match bits & 0xff {
            ACCEPT => Some(Self::Accept { listener: number }),
            CANCEL_OWN => Some(Self::CancelOwn),
            PEER_CONNECT => Some(Self::PeerConnection { place: number, step: PeerStep::Connect }),
            PEER_READABLE => Some(Self::PeerConnection { place: number, step: PeerStep::Readable }),
            WAKE => Some(Self::Wake),
            purpose => {
                let purpose = *Purpose::ALL.get(usize::try_from(purpose).ok()?)?;
                Some(Self::Session { slot: Slot(number), purpose })
            }
        }
    }
}

const PEER_CONNECT: u64 = 0xfb;
const PEER_READABLE: u64 = 0xfc;
const CANCEL_OWN: u64 = 0xfd;
const ACCEPT: u64 = 0xfe;
const WAKE: u64 = 0xff;

/// The purposes that a session has in flight.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct InFlight {
    purposes: u16,
    /// Number of cancellations in flight; several are possible.
    cancels: u8,
}

impl InFlight {
    pub fn begin(&mut self, purpose: Purpose) {
        if purpose == Purpose::Cancel {
            self.cancels += 1;
            return;
        }
        assert!(!self.has(purpose), "{purpose:?} is in flight already");
        self.purposes |= 1 << purpose as u8;
    }

    pub fn end(&mut self, purpose: Purpose) {
        if purpose == Purpose::Cancel {
            self.cancels -= 1;
            return;
        }
        debug_assert!(self.has(purpose), "{purpose:?} was not in flight");
        self.purposes &= !(1 << purpose as u8);
    }

    pub fn has(self, purpose: Purpose) -> bool {
        self.purposes & 1 << purpose as u8 != 0
    }

    pub fn is_empty(self) -> bool {
        self.purposes == 0 && self.cancels == 0
    }

    /// Iterates over the purposes in flight, cancellations excepted.
    pub fn iter(self) -> impl Iterator<Item = Purpose> {
        Purpose::ALL.into_iter().filter(move |&purpose| purpose != Purpose::Cancel && self.has(purpose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_survives_the_ring() {
        for (place, purpose) in Purpose::ALL.into_iter().enumerate() {
            assert_eq!(purpose as usize, place);
            let user_data = UserData::Session { slot: Slot(u32::MAX), purpose };
            assert_eq!(UserData::from_bits(user_data.into_bits()), Some(user_data));
        }
        for user_data in [UserData::Wake, UserData::CancelOwn, UserData::Accept { listener: 7 }] {
            assert_eq!(UserData::from_bits(user_data.into_bits()), Some(user_data));
        }
        assert_eq!(UserData::from_bits(u64::MAX << 40), None);
        assert_eq!(UserData::from_bits(0x7f), None);
    }
}
