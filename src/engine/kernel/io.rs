//! Operations of one session, their completions, and inline calls that are interrupted or would block.

use std::io;

use super::{Kernel, SocketOperation};
use crate::engine::user_data::{InFlight, Purpose, Slot, UserData};
use crate::sys::buffers::FilledBuffer;
use crate::telemetry::HotCounters;

/// A session's access to the kernel for one call: it queues operations under the session's slot.
pub(in crate::engine) struct Io<'a, K: Kernel> {
    pub kernel: &'a mut K,
    pub slot: Slot,
    pub in_flight: &'a mut InFlight,
    pub counters: &'a HotCounters,
}

/// The result of an operation, as a session sees it.
#[derive(Debug)]
pub(in crate::engine) struct Outcome {
    /// The return value, negative for an errno.
    pub result: i32,
    /// The operation goes on.
    pub more: bool,
    /// The buffer that a receive filled; to be given back once.
    pub buffer: Option<FilledBuffer>,
}

impl<K: Kernel> Io<'_, K> {
    pub fn submit(&mut self, purpose: Purpose, operation: SocketOperation<'_, K>) {
        self.in_flight.begin(purpose);
        self.kernel.submit(UserData::Session { slot: self.slot, purpose }, operation);
    }

    /// Cancels the operation for `purpose`, if one is in flight.
    pub fn cancel(&mut self, purpose: Purpose) {
        if self.in_flight.has(purpose) && purpose != Purpose::TlsHandshake {
            self.in_flight.begin(Purpose::Cancel);
            self.kernel.cancel(
                UserData::Session { slot: self.slot, purpose: Purpose::Cancel },
                UserData::Session { slot: self.slot, purpose },
            );
        }
    }
}

impl Outcome {
    /// Returns the buffer of a completion that nobody reads.
    pub fn give_back<K: Kernel>(self, kernel: &mut K) {
        give_back(self.buffer, kernel);
    }
}

/// Returns a buffer that nobody reads, if there is one.
pub(in crate::engine) fn give_back<K: Kernel>(buffer: Option<FilledBuffer>, kernel: &mut K) {
    if let Some(buffer) = buffer {
        kernel.give_back(buffer);
    }
}

/// Calls again while interrupted; `None` for "would block".
pub(in crate::engine) fn retrying(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(moved) => return Ok(Some(moved)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The part of some bytes that a socket took, also where it failed after that.
#[must_use]
pub(in crate::engine) struct Taken {
    pub bytes: usize,
    pub outcome: io::Result<()>,
}

impl Taken {
    /// The number of bytes, for a caller to whom they do not count where the socket has failed.
    pub fn unless_failed(self) -> io::Result<usize> {
        self.outcome.map(|()| self.bytes)
    }
}

/// Sends until all is sent or the socket has no room.
pub(in crate::engine) fn send_until_full<K: Kernel>(kernel: &K, socket: &K::Socket, bytes: &[u8]) -> Taken {
    let mut sent = 0;
    while sent < bytes.len() {
        match retrying(|| kernel.send(socket, &bytes[sent..])) {
            Ok(Some(taken)) => sent += taken,
            Ok(None) => break,
            Err(error) => return Taken { bytes: sent, outcome: Err(error) },
        }
    }
    Taken { bytes: sent, outcome: Ok(()) }
}

/// True where a receive got no bytes and can be repeated: no buffer was free, or it was interrupted.
pub(in crate::engine) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR | libc::EAGAIN))
}

/// The error of a completion whose result is negative.
pub(in crate::engine) fn errno(result: i32) -> io::Error {
    io::Error::from_raw_os_error(-result)
}
