//! A TLS connection as a value: records in, plain bytes out, and the other way round. No I/O.

mod certificates;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, ServerConfig};

pub use certificates::{Certificates, CertificatesError};

/// One side of a TLS connection.
pub struct Tls {
    connection: Connection,
    /// The peer has said that nothing follows.
    has_ended: bool,
}

enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, or what it offers or shows is not accepted.
    #[error("{0}")]
    Protocol(#[from] rustls::Error),
    #[error("nothing can be sent before the handshake is over")]
    NotOpen,
    #[error("so much was sent that its keys are used up")]
    Exhausted,
}

impl Tls {
    /// The side that is called.
    pub fn accept(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let server = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection: Connection::Server(server), has_ended: false })
    }

    /// The side that calls, and wants `name` in the other's certificate.
    pub fn connect(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let client = UnbufferedClientConnection::new(config, name)?;
        Ok(Self { connection: Connection::Client(client), has_ended: false })
    }

    /// Takes the complete records at the front of `records`, appends what they hold to `plain`, and what is to
    /// be sent because of them to `answer`. Returns how many bytes were taken; the rest is part of a record.
    ///
    /// After an error, `answer` ends with the alert that tells the peer of it.
    pub fn read(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> Result<usize, TlsError> {
        let mut taken = 0;
        loop {
            let (discard, step) = self.step(&mut records[taken..], plain, Write::Nothing, answer);
            taken += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Done) => return Ok(taken),
                Ok(Step::PeerEnded) => self.has_ended = true,
                Err(error) => {
                    while let (_, Ok(Step::Again)) = self.step(&mut [], plain, Write::Nothing, answer) {}
                    return Err(error);
                }
            }
        }
    }

    /// Appends to `records` what carries `plain` to the peer.
    pub fn write(&mut self, plain: &[u8], records: &mut Vec<u8>) -> Result<(), TlsError> {
        self.put(Write::Data(plain), records)
    }

    /// Appends to `records` what tells the peer that nothing follows. Only once.
    pub fn end(&mut self, records: &mut Vec<u8>) -> Result<(), TlsError> {
        self.put(Write::CloseNotify, records)
    }

    fn put(&mut self, what: Write<'_>, records: &mut Vec<u8>) -> Result<(), TlsError> {
        // Nothing comes of an empty read.
        let mut plain = Vec::new();
        loop {
            match self.step(&mut [], &mut plain, what, records).1? {
                Step::Again => {}
                Step::PeerEnded => self.has_ended = true,
                Step::Done => return Ok(()),
            }
        }
    }

    /// The handshake is over: bytes can go both ways.
    pub fn is_open(&self) -> bool {
        match &self.connection {
            Connection::Server(server) => !server.is_handshaking(),
            Connection::Client(client) => !client.is_handshaking(),
        }
    }

    /// The peer has said that nothing follows; without that, what came may have been cut off.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn step(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        write: Write<'_>,
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, TlsError>) {
        match &mut self.connection {
            Connection::Server(server) => step(server.process_tls_records(records), plain, write, out),
            Connection::Client(client) => step(client.process_tls_records(records), plain, write, out),
        }
    }
}

/// What to do as soon as bytes can be sent.
#[derive(Clone, Copy)]
enum Write<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

enum Step {
    Again,
    /// All records were taken, and what was to be written is written.
    Done,
    PeerEnded,
}

/// Does what the connection wants done next. Returns with it how many bytes it has taken.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Vec<u8>,
    write: Write<'_>,
    out: &mut Vec<u8>,
) -> (usize, Result<Step, TlsError>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Step::Again),
                Some(Ok(record)) => {
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error.into()),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            append(out, 0, |room| data.encode(room)).map(|()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerEnded),
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match write {
            Write::Nothing => Ok(Step::Done),
            Write::Data(data) => append(out, sealed_bytes_max(data.len()), |room| traffic.encrypt(data, room))
                .map(|()| Step::Done),
            Write::CloseNotify => {
                append(out, sealed_bytes_max(0), |room| traffic.queue_close_notify(room)).map(|()| Step::Done)
            }
        },
        // Early data is not offered, so it never comes; all else waits for the peer.
        Ok(_) => match write {
            Write::Nothing => Ok(Step::Done),
            Write::Data(_) | Write::CloseNotify => Err(TlsError::NotOpen),
        },
    };
    (discard, step)
}

/// Has `write` append to `out`, which gets `room` for it, or as much as `write` asks for.
fn append<E: Into<Refused>>(
    out: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), TlsError> {
    let begin = out.len();
    out.resize(begin + room, 0);
    let written = match write(&mut out[begin..]).map_err(Into::into) {
        Err(Refused::TooSmall { wanted }) => {
            out.resize(begin + wanted, 0);
            write(&mut out[begin..]).map_err(Into::into)
        }
        written => written,
    };
    out.truncate(begin + written.as_ref().copied().unwrap_or(0));
    match written {
        Ok(_) => Ok(()),
        Err(_) => Err(TlsError::Exhausted),
    }
}

/// Why the library wrote nothing.
enum Refused {
    TooSmall { wanted: usize },
    Exhausted,
}

impl From<EncodeError> for Refused {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::TooSmall { wanted: size.required_size },
            EncodeError::AlreadyEncoded => Self::Exhausted,
        }
    }
}

impl From<EncryptError> for Refused {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::TooSmall { wanted: size.required_size },
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}

/// Bytes that the records of `len` plain bytes take at most.
const fn sealed_bytes_max(len: usize) -> usize {
    len + (1 + len / RECORD_BYTES_MAX) * RECORD_OVERHEAD_MAX
}

/// Plain bytes of one record (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What a record adds: header, explicit nonce or content type, and tag.
const RECORD_OVERHEAD_MAX: usize = 5 + 8 + 1 + 16;
