//! What a completion is about, packed into the 64 bits that the ring carries along.

/// A session's slot and one of its purposes, or a purpose of the worker itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UserData {
    Session {
        slot: Slot,
        purpose: Purpose,
    },
    /// The listener with this index accepted or failed.
    Accept {
        listener: u32,
    },
    /// The cancellation of something that is no session's.
    CancelOwn,
    /// Of the spare connection in this place.
    Spare {
        place: u32,
        step: SpareStep,
    },
    /// Another thread wants attention.
    Wake,
}

/// What a spare connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SpareStep {
    Connect,
    Readable,
}

/// A place in the worker's table of sessions. It is reused only once nothing of its last session is in
/// flight any more, so a completion never finds a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Slot(pub u32);

/// Which of a session's operations; at most one of each is in flight at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Purpose {
    /// Head bytes, or what a refused client still sends.
    Head,
    Connect,
    /// One direction's receive, readiness, room, hangup watch and ring splices; `Up` then `Down`.
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
    /// A step of the client's handshake, which other threads take. It is not the ring's, and cannot be cancelled.
    Shake,
    /// A cancellation's own completion.
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
        Self::Shake,
        Self::Cancel,
    ];

    /// Whether it is part of moving a stream, rather than a message or a step of the handshake.
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
            Self::Spare { place, step: SpareStep::Connect } => u64::from(place) << 8 | SPARE_CONNECT,
            Self::Spare { place, step: SpareStep::Readable } => u64::from(place) << 8 | SPARE_READABLE,
            Self::Wake => WAKE,
        }
    }

    /// `None` for bits that [`UserData::into_bits`] never made.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let number = u32::try_from(bits >> 8).ok()?;
        match bits & 0xff {
            ACCEPT => Some(Self::Accept { listener: number }),
            CANCEL_OWN => Some(Self::CancelOwn),
            SPARE_CONNECT => Some(Self::Spare { place: number, step: SpareStep::Connect }),
            SPARE_READABLE => Some(Self::Spare { place: number, step: SpareStep::Readable }),
            WAKE => Some(Self::Wake),
            purpose => {
                let purpose = *Purpose::ALL.get(usize::try_from(purpose).ok()?)?;
                Some(Self::Session { slot: Slot(number), purpose })
            }
        }
    }
}

const SPARE_CONNECT: u64 = 0xfb;
const SPARE_READABLE: u64 = 0xfc;
const CANCEL_OWN: u64 = 0xfd;
const ACCEPT: u64 = 0xfe;
const WAKE: u64 = 0xff;

/// Which purposes of a session are in flight.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct InFlight {
    purposes: u16,
    /// Cancellations, of which there may be several.
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

    /// Everything in flight but cancellations.
    pub fn iter(self) -> impl Iterator<Item = Purpose> {
        Purpose::ALL.into_iter().filter(move |&purpose| purpose != Purpose::Cancel && self.has(purpose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_ring() {
        for (place, purpose) in Purpose::ALL.into_iter().enumerate() {
            assert_eq!(purpose as usize, place);
            let token = UserData::Session { slot: Slot(u32::MAX), purpose };
            assert_eq!(UserData::from_bits(token.into_bits()), Some(token));
        }
        for token in [UserData::Wake, UserData::CancelOwn, UserData::Accept { listener: 7 }] {
            assert_eq!(UserData::from_bits(token.into_bits()), Some(token));
        }
        assert_eq!(UserData::from_bits(u64::MAX << 40), None);
        assert_eq!(UserData::from_bits(0x7f), None);
    }
}
