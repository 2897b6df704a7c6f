//! The TLS side of a connection: its keys and state, and the records that are still to be sent.

use std::io;

use rustls::pki_types::CertificateDer;

use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::{Taken, send_until_full};
use crate::sys::kernel_tls::Keys;
use crate::wire::{Sealed, TlsConnection, TlsError};

pub(in crate::engine) struct TlsStream {
    tls: TlsConnection,
    outgoing: SendBuffer,
    /// The alert `close_notify` was written: nothing follows.
    is_ended: bool,
}

/// Bytes for a socket that had no room for all of them.
#[derive(Default)]
pub(in crate::engine) struct SendBuffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl TlsStream {
    pub fn new(tls: TlsConnection) -> Self {
        Self { tls, outgoing: SendBuffer::default(), is_ended: false }
    }

    /// Takes bytes that the socket has received, and appends the data of whole records to `plain`. After an error
    /// there may be an alert to send.
    pub fn receive(&mut self, records: &[u8], plain: &mut Vec<u8>) -> Result<(), TlsError> {
        self.answering(|tls, answer| tls.receive(records, plain, answer))
    }

    /// Copies the received part of the next record to the front of `records`, and returns its length. The caller
    /// receives behind it, and gives both to [`open`](Self::open).
    pub fn copy_rest(&self, records: &mut [u8]) -> Result<usize, OversizedRecord> {
        let rest = self.tls.rest();
        if rest.len() > RECORD_BYTES_MAX {
            return Err(OversizedRecord);
        }
        records[..rest.len()].copy_from_slice(rest);
        Ok(rest.len())
    }

    /// Opens `records` in place; otherwise the same as [`receive`](Self::receive). [`copy_rest`](Self::copy_rest)
    /// has filled their front.
    pub fn open(&mut self, records: &mut [u8], plain: &mut Vec<u8>) -> Result<(), TlsError> {
        self.answering(|tls, answer| tls.open(records, plain, answer))
    }

    fn answering(
        &mut self,
        act: impl FnOnce(&mut TlsConnection, &mut Sealed) -> Result<(), TlsError>,
    ) -> Result<(), TlsError> {
        // Rarely used after the handshake, and then small: keys that change, alerts.
        let mut answer = Sealed::default();
        let outcome = act(&mut self.tls, &mut answer);
        self.outgoing.bytes.extend_from_slice(answer.bytes());
        outcome
    }

    /// Appends the records that carry `plain` to `sealed`.
    pub fn seal(&mut self, plain: &[u8], sealed: &mut Sealed) -> Result<(), TlsError> {
        self.tls.write(plain, sealed)
    }

    /// Appends the alert `close_notify` to `sealed`; once.
    pub fn end(&mut self, sealed: &mut Sealed) -> Result<(), TlsError> {
        if std::mem::replace(&mut self.is_ended, true) { Ok(()) } else { self.tls.end(sealed) }
    }

    /// The records that are still to be sent.
    pub fn outgoing(&mut self) -> &mut SendBuffer {
        &mut self.outgoing
    }

    /// True between two records of either direction, when the kernel can take over.
    pub fn is_between_records(&self) -> bool {
        self.tls.is_between_records() && self.outgoing.is_empty() && !self.is_ended
    }

    /// The keys, with which the kernel takes over.
    pub fn into_keys(self) -> Result<Keys, TlsError> {
        self.tls.into_keys()
    }

    /// The certificate that the other side has shown.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.peer_certificate()
    }

    /// The handshake is over.
    pub fn is_open(&self) -> bool {
        self.tls.is_open()
    }

    /// The handshake went on from an earlier connection's.
    pub fn is_resumed(&self) -> bool {
        self.tls.is_resumed()
    }

    /// The other side has sent the alert `close_notify`: nothing follows.
    pub fn has_ended(&self) -> bool {
        self.tls.has_ended()
    }
}

impl SendBuffer {
    /// Sends the kept bytes and then `bytes`, and keeps the rest.
    pub fn send<K: Kernel>(&mut self, bytes: &[u8], kernel: &K, socket: &K::Socket) -> Taken {
        let mut taken = self.flush(kernel, socket);
        if taken.outcome.is_err() {
            return taken;
        }
        let mut unsent = bytes;
        if self.is_empty() {
            let Taken { bytes: sent, outcome } = send_until_full(kernel, socket, bytes);
            taken = Taken { bytes: taken.bytes + sent, outcome };
            unsent = &bytes[sent..];
        }
        self.bytes.extend_from_slice(unsent);
        taken
    }

    /// Sends kept bytes until the socket has no room.
    pub fn flush<K: Kernel>(&mut self, kernel: &K, socket: &K::Socket) -> Taken {
        let taken = send_until_full(kernel, socket, &self.bytes[self.sent..]);
        self.sent += taken.bytes;
        if self.sent == self.bytes.len() {
            *self = Self::default();
        }
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A record that is longer than any may be, or a message of the handshake that never ends.
#[derive(Debug, thiserror::Error)]
#[error("the peer has begun a record that is longer than any may be")]
pub(in crate::engine) struct OversizedRecord;

impl From<OversizedRecord> for io::Error {
    fn from(error: OversizedRecord) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Bytes of a record with all that protects it (RFC 5246, section 6.2.3).
pub(in crate::engine) const RECORD_BYTES_MAX: usize = 5 + 16 * 1024 + 2048;
