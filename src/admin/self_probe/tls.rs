//! TLS to the node's own listener, as the probe speaks it. Whoever answers there is the node itself, so it is
//! asked for no name, and any certificate will do: whether clients trust it, `sluicegate canary` finds out.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::wire::AnyCertificate;

/// Bytes both ways.
pub(super) trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// `stream` with TLS on it; the handshake comes with the first write.
pub(super) fn wrap(stream: TcpStream) -> io::Result<Box<dyn Stream>> {
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
