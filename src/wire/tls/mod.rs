//! A TLS connection as a value: records in, plain bytes out, and the other way round. No I/O.

mod any_certificate;
mod certificates;
mod load;
mod sealed;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};

use crate::sys::kernel_tls::Keys;
pub use any_certificate::AnyCertificate;
use certificates::{Certificates, CertificatesError};
pub use load::{TlsConfigs, TlsFileError, TlsLoadError};
pub use sealed::Sealed;

/// One side of a TLS connection.
pub struct TlsConnection {
    connection: TlsSide,
    /// Received, and not yet a whole record.
    rest: Vec<u8>,
    /// The peer has said that nothing follows.
    has_ended: bool,
    /// Nothing can be read or written any more.
    has_failed: bool,
}

enum TlsSide {
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
    #[error("the connection has failed before")]
    Failed,
    #[error("a defect of this program")]
    Panic,
}

impl TlsConnection {
    /// The side that is called.
    pub fn accept(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let server = UnbufferedServerConnection::new(config)?;
        Ok(Self {
            connection: TlsSide::Server(server),
            rest: Vec::new(),
            has_ended: false,
            has_failed: false,
        })
    }

    /// The side that calls, and wants `name` in the other's certificate.
    pub fn connect(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let client = UnbufferedClientConnection::new(config, name)?;
        Ok(Self {
            connection: TlsSide::Client(client),
            rest: Vec::new(),
            has_ended: false,
            has_failed: false,
        })
    }

    /// Takes what has come, appends to `plain` what whole records hold, and to `answer` what is to be sent
    /// because of them. After an error, `answer` ends with the alert that tells the peer of it.
    pub fn receive(
        &mut self,
        records: &[u8],
        plain: &mut Vec<u8>,
        answer: &mut Sealed,
    ) -> Result<(), TlsError> {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(records);
        self.open(&mut all, plain, answer)
    }

    /// As [`receive`](Self::receive), where [`rest`](Self::rest) is in front of what has come.
    pub fn open(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        answer: &mut Sealed,
    ) -> Result<(), TlsError> {
        let mut taken = 0;
        loop {
            let (discard, step) = self.step(&mut records[taken..], plain, TlsWrite::Nothing, answer);
            taken += discard;
            match step {
                Ok(TlsStep::Again) => {}
                Ok(TlsStep::PeerEnded) => self.has_ended = true,
                Ok(TlsStep::Done) => break,
                Err(error) => {
                    // The alert is there, and the library takes no more records once it has made one.
                    while self.has_something_to_send() {
                        let _alert = self.step(&mut records[taken..], plain, TlsWrite::Nothing, answer);
                    }
                    self.has_failed = true;
                    return Err(error);
                }
            }
        }
        // A quiet connection holds nothing.
        self.rest = records[taken..].to_vec();
        Ok(())
    }

    /// What has come of a record that is not whole yet.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Appends to `records` what carries `plain` to the peer.
    pub fn write(&mut self, plain: &[u8], records: &mut Sealed) -> Result<(), TlsError> {
        self.put(TlsWrite::Data(plain), records)
    }

    /// Appends to `records` what tells the peer that nothing follows. Only once.
    pub fn end(&mut self, records: &mut Sealed) -> Result<(), TlsError> {
        self.put(TlsWrite::CloseNotify, records)
    }

    fn put(&mut self, what: TlsWrite<'_>, records: &mut Sealed) -> Result<(), TlsError> {
        // The library wants to see what it has seen before, and nothing is opened by that.
        let mut rest = std::mem::take(&mut self.rest);
        let mut plain = Vec::new();
        let outcome = loop {
            let (discard, step) = self.step(&mut rest, &mut plain, what, records);
            rest.drain(..discard);
            match step {
                Ok(TlsStep::Again) => {}
                Ok(TlsStep::PeerEnded) => self.has_ended = true,
                Ok(TlsStep::Done) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.rest = rest;
        outcome
    }

    /// The handshake is over: bytes can go both ways.
    pub fn is_open(&self) -> bool {
        match &self.connection {
            TlsSide::Server(server) => !server.is_handshaking(),
            TlsSide::Client(client) => !client.is_handshaking(),
        }
    }

    /// The handshake went on from an earlier connection's.
    pub fn is_resumed(&self) -> bool {
        let kind = match &self.connection {
            TlsSide::Server(server) => server.handshake_kind(),
            TlsSide::Client(client) => client.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// Both directions are between two records, so that the kernel could go on in this one's place.
    pub fn is_between_records(&self) -> bool {
        self.is_open() && self.rest.is_empty() && !self.has_ended && !self.has_something_to_send()
    }

    /// What the kernel needs for that.
    pub fn into_keys(self) -> Result<Keys, TlsError> {
        let version = match &self.connection {
            TlsSide::Server(server) => server.protocol_version(),
            TlsSide::Client(client) => client.protocol_version(),
        };
        // With them comes what could make the next keys, which no kernel before 6.14 would take.
        let secrets = match self.connection {
            TlsSide::Server(server) => server.dangerous_into_kernel_connection()?.0,
            TlsSide::Client(client) => client.dangerous_into_kernel_connection()?.0,
        };
        Ok(Keys { version: version.ok_or(TlsError::NotOpen)?, secrets })
    }

    /// The peer has said that nothing follows; without that, what came may have been cut off.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn has_something_to_send(&self) -> bool {
        match &self.connection {
            TlsSide::Server(server) => server.wants_write(),
            TlsSide::Client(client) => client.wants_write(),
        }
    }

    fn step(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        write: TlsWrite<'_>,
        out: &mut Sealed,
    ) -> (usize, Result<TlsStep, TlsError>) {
        if self.has_failed {
            return (0, Err(TlsError::Failed));
        }
        match &mut self.connection {
            TlsSide::Server(server) => step(server.process_tls_records(records), plain, write, out),
            TlsSide::Client(client) => step(client.process_tls_records(records), plain, write, out),
        }
    }
}

/// What to do as soon as bytes can be sent.
#[derive(Clone, Copy)]
enum TlsWrite<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

enum TlsStep {
    Again,
    /// All records were taken, and what was to be written is written.
    Done,
    PeerEnded,
}

/// Does what the connection wants done next. Returns with it how many bytes it has taken.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Vec<u8>,
    write: TlsWrite<'_>,
    out: &mut Sealed,
) -> (usize, Result<TlsStep, TlsError>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(TlsStep::Again),
                Some(Ok(record)) => {
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error.into()),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            out.append(0, |room| Ok(data.encode(room)?)).map(|()| TlsStep::Again)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(TlsStep::Again)
        }
        Ok(ConnectionState::PeerClosed) => Ok(TlsStep::PeerEnded),
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match write {
            TlsWrite::Nothing => Ok(TlsStep::Done),
            TlsWrite::Data(data) => out
                .append(sealed_bytes_max(data.len()), |room| Ok(traffic.encrypt(data, room)?))
                .map(|()| TlsStep::Done),
            TlsWrite::CloseNotify => out
                .append(sealed_bytes_max(0), |room| Ok(traffic.queue_close_notify(room)?))
                .map(|()| TlsStep::Done),
        },
        // Early data is not offered, so it never comes; all else waits for the peer.
        Ok(_) => match write {
            TlsWrite::Nothing => Ok(TlsStep::Done),
            TlsWrite::Data(_) | TlsWrite::CloseNotify => Err(TlsError::NotOpen),
        },
    };
    (discard, step)
}

/// Bytes that the records of `len` plain bytes take at most.
const fn sealed_bytes_max(len: usize) -> usize {
    len + (1 + len / RECORD_BYTES_MAX) * RECORD_OVERHEAD_MAX
}

/// Plain bytes of one record (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What a record adds: header, explicit nonce or content type, and tag.
const RECORD_OVERHEAD_MAX: usize = 5 + 8 + 1 + 16;
