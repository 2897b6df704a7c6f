//! TLS between the self-probe and the node's own listener. The other end is the node itself, so any name and any
//! certificate pass. `sluicegate canary` tests whether clients trust the certificate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::wire::AnyCertificate;

/// A plain or an encrypted stream.
pub(super) trait ProbeStream: Read + Write {}

impl<S: Read + Write> ProbeStream for S {}

/// Wraps `stream` in TLS. The handshake runs on the first write.
pub(super) fn wrap(stream: TcpStream) -> io::Result<Box<dyn ProbeStream>> {
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(AnyCertificate::new(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(Box::new(StreamOwned::new(connection, stream)))
}
