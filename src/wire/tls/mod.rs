//! A TLS connection as a value: records in, plain bytes out, and the other way round. No I/O, apart from [`load`].

mod any_certificate;
mod certificates;
mod explain;
mod load;
mod node_name;
mod pem;
mod sealed;
#[cfg(test)]
mod tests;
mod trust;
mod validity;

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, HandshakeKind, ServerConfig};

use crate::sys::kernel_tls::Keys;
pub use any_certificate::AnyCertificate;
use certificates::{Certificates, CertificatesError};
pub use explain::{explain, explain_certificate, explain_io, instead};
pub use load::{TlsConfigs, TlsFileError, TlsLoadError};
pub use node_name::{certificate_name, node_name};
pub use pem::{PemFileError, read_certificates, read_private_key};
pub use sealed::Sealed;
pub use trust::{TrustError, TrustedCertificates};
pub use validity::{CertificateState, ShownCertificate};

/// One side of a TLS connection.
pub struct TlsConnection {
    connection: TlsSide,
    /// The received part of a record that is not complete.
    rest: Vec<u8>,
    /// The peer has ended its direction with a close_notify.
    has_ended: bool,
    /// The connection has failed; nothing can be read or written.
    has_failed: bool,
}

enum TlsSide {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, or its offer or its certificate is not accepted.
    #[error("{}", explain(.0))]
    Protocol(#[from] rustls::Error),
    #[error("nothing can be sent before the handshake is over")]
    NotOpen,
    #[error("its keys are used up, after very many records")]
    Exhausted,
    #[error("the connection has failed before")]
    Failed,
    #[error("a defect in this program")]
    Panic,
}

impl TlsConnection {
    /// Makes the server side.
    pub fn accept(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let server = UnbufferedServerConnection::new(config)?;
        Ok(Self {
            connection: TlsSide::Server(server),
            rest: Vec::new(),
            has_ended: false,
            has_failed: false,
        })
    }

    /// Makes the client side. The server's certificate must have `name`.
    pub fn connect(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let client = UnbufferedClientConnection::new(config, name)?;
        Ok(Self {
            connection: TlsSide::Client(client),
            rest: Vec::new(),
            has_ended: false,
            has_failed: false,
        })
    }

    /// Opens received records. Appends their plain bytes to `plain`, and to `answer` the records that must be sent
    /// in reply. After an error, `answer` ends with the alert for the peer.
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

    /// Opens received records as [`receive`](Self::receive) does, with [`rest`](Self::rest) in front of them.
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
                    // Write the alert. The library accepts no more records after it.
                    while self.has_something_to_send() {
                        let _alert = self.step(&mut records[taken..], plain, TlsWrite::Nothing, answer);
                    }
                    self.has_failed = true;
                    return Err(error);
                }
            }
        }
        // An idle connection holds no memory.
        self.rest = records[taken..].to_vec();
        Ok(())
    }

    /// The received part of a record that is not complete.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Appends to `records` the records that carry `plain`.
    pub fn write(&mut self, plain: &[u8], records: &mut Sealed) -> Result<(), TlsError> {
        self.put(TlsWrite::Data(plain), records)
    }

    /// Appends to `records` the close_notify that ends this direction. Call it once.
    pub fn end(&mut self, records: &mut Sealed) -> Result<(), TlsError> {
        self.put(TlsWrite::CloseNotify, records)
    }

    fn put(&mut self, what: TlsWrite<'_>, records: &mut Sealed) -> Result<(), TlsError> {
        // The library must see the incomplete record again; nothing is opened by that.
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

    /// True once the handshake is over and bytes can pass both ways.
    pub fn is_open(&self) -> bool {
        match &self.connection {
            TlsSide::Server(server) => !server.is_handshaking(),
            TlsSide::Client(client) => !client.is_handshaking(),
        }
    }

    /// True where the handshake resumed an earlier connection.
    pub fn is_resumed(&self) -> bool {
        let kind = match &self.connection {
            TlsSide::Server(server) => server.handshake_kind(),
            TlsSide::Client(client) => client.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// True where both directions are between two records, so that the kernel could continue the connection.
    pub fn is_between_records(&self) -> bool {
        self.is_open() && self.rest.is_empty() && !self.has_ended && !self.has_something_to_send()
    }

    /// The certificate that the other side has shown.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        let certificates = match &self.connection {
            TlsSide::Server(server) => server.peer_certificates(),
            TlsSide::Client(client) => client.peer_certificates(),
        };
        certificates?.first()
    }

    /// The keys by which the kernel continues the connection.
    pub fn into_keys(self) -> Result<Keys, TlsError> {
        let version = match &self.connection {
            TlsSide::Server(server) => server.protocol_version(),
            TlsSide::Client(client) => client.protocol_version(),
        };
        // The second part could make the next keys; no kernel before 6.14 accepts new keys.
        let secrets = match self.connection {
            TlsSide::Server(server) => server.dangerous_into_kernel_connection()?.0,
            TlsSide::Client(client) => client.dangerous_into_kernel_connection()?.0,
        };
        Ok(Keys { version: version.ok_or(TlsError::NotOpen)?, secrets })
    }

    /// True once the peer has ended its direction with a close_notify. A stream without one may have been cut off.
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

/// The bytes to seal once that is possible.
#[derive(Clone, Copy)]
enum TlsWrite<'a> {
    Nothing,
    Data(&'a [u8]),
    CloseNotify,
}

enum TlsStep {
    Again,
    /// All records were read, and all bytes to be written are written.
    Done,
    PeerEnded,
}

/// Does the next step that the connection asks for. Returns the number of bytes that it has read, and the step.
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
        // Early data is not offered, so it never arrives; all other states wait for the peer.
        Ok(_) => match write {
            TlsWrite::Nothing => Ok(TlsStep::Done),
            TlsWrite::Data(_) | TlsWrite::CloseNotify => Err(TlsError::NotOpen),
        },
    };
    (discard, step)
}

/// The size of the records for `len` plain bytes at most.
const fn sealed_bytes_max(len: usize) -> usize {
    len + (1 + len / RECORD_BYTES_MAX) * RECORD_OVERHEAD_MAX
}

/// Plain bytes of one record at most (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Bytes that a record adds at most: header, explicit nonce or content type, and tag.
const RECORD_OVERHEAD_MAX: usize = 5 + 8 + 1 + 16;
