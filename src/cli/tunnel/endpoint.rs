//! The relay that a client connects to, and the steps from a connect to an open tunnel.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::StreamOwned;
use socket2::{SockRef, TcpKeepalive};

use super::connection::{DeadlineStream, RelayConnection};
use super::names::{RelayName, TunnelTarget};
use super::refusal::TunnelRefusal;
use super::tls::ClientTls;
use super::{ClientTlsError, TunnelError};
use super::{race, reply};
use crate::wire::Token;

/// A relay, with the TLS settings for it.
pub struct RelayEndpoint {
    pub name: RelayName,
    /// `None` for a connection without TLS.
    pub tls: Option<ClientTls>,
}

impl RelayEndpoint {
    /// Connects to the first of `addresses` that accepts by `until`. They are tried side by side.
    pub fn connect(&self, addresses: &[SocketAddr], until: Instant) -> Result<TcpStream, TunnelError> {
        let stream = race::connect_first(addresses, until)
            .map_err(|source| TunnelError::Connect { relay: self.name.clone(), source })?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
        // Both settings only help; a tunnel works without them.
        let _unset = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let _unset = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Runs the TLS handshake, where the relay uses TLS.
    pub fn secure(&self, socket: TcpStream, until: Instant) -> Result<RelayConnection, TunnelError> {
        let mut bounded = DeadlineStream::new(socket, until);
        let Some(tls) = &self.tls else { return Ok(RelayConnection::Plain(bounded)) };
        let failed = |source| ClientTlsError::of(&self.name, &tls.name, source);
        let mut connection = tls.connection().map_err(|error| failed(io::Error::other(error)))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut bounded).map_err(failed)?;
        }
        Ok(RelayConnection::Tls(Box::new(StreamOwned::new(connection, bounded))))
    }

    /// Requests a tunnel. Returns `None` once it is open; no byte of the device has been read from `link`.
    pub fn request(
        &self,
        link: &mut RelayConnection,
        target: &TunnelTarget,
        token: &Token,
    ) -> Result<Option<TunnelRefusal>, TunnelError> {
        let head = reply::send_request(link, target, token)
            .and_then(|()| reply::read_head(link))
            .map_err(|source| self.no_reply(source))?;
        let head = reply::parse(&head).ok_or_else(|| TunnelError::NotHttp { relay: self.name.clone() })?;
        Ok(head.into_refusal(target))
    }

    /// Classifies a missing reply. A relay that requires a client certificate reports it only here.
    fn no_reply(&self, source: io::Error) -> TunnelError {
        match &self.tls {
            Some(tls) if source.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
                ClientTlsError::of(&self.name, &tls.name, source).into()
            }
            _ => TunnelError::NoReply { relay: self.name.clone(), source },
        }
    }
}

/// Idle time before the first keepalive. Common NATs forget a silent connection after five minutes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
