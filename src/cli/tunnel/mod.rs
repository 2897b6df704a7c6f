//! `sluicegate tunnel`: a client. Carries local connections, or stdin and stdout, to a device's port.
//!
//! A client has few connections and nothing else to do meanwhile, so it uses threads and blocking sockets.

mod forward;
mod reply;
mod token;

use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use socket2::{SockRef, TcpKeepalive};

use super::output::CommandError;
use crate::authz::DeviceUuid;
use crate::wire::Token;
use forward::Ended;
use reply::Refusal;

/// Open a tunnel to a port of a device.
///
/// The token is read from SLUICEGATE_TOKEN or from --token-file, never from an argument, which every
/// user of the machine could read.
#[derive(Debug, clap::Args)]
pub struct TunnelArgs {
    /// The device and its port: UUID:PORT, with or without a suffix, as in UUID.balena:22.
    #[arg(value_name = "UUID:PORT")]
    target: Target,
    /// The client listener of the relay. An IPv6 address stands in brackets.
    #[arg(long, value_name = "HOST:PORT")]
    relay: RelayName,
    /// Take local connections here, each carried by a relay connection of its own; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", conflicts_with = "stdio", default_value_t = ANY_LOCAL_PORT)]
    listen: SocketAddr,
    /// Carry stdin and stdout, as OpenSSH wants of a ProxyCommand.
    #[arg(long)]
    stdio: bool,
    /// Read the token from this file instead of SLUICEGATE_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Why a tunnel could not be opened or did not last; each text ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("there is no token; set SLUICEGATE_TOKEN or name a file by --token-file")]
    TokenMissing,
    #[error(
        "the token in {0} is not one line of visible ASCII; copy it again as `sluicegate token issue` showed it"
    )]
    TokenUnusable(String),
    #[error("the token cannot be read from {}: {source}; check the path and its permissions", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address}: {source}; choose another address by --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{relay} cannot be resolved: {source}; check the name and the resolver")]
    Resolve { relay: RelayName, source: io::Error },
    #[error("{relay} cannot be reached: {source}; check that the relay runs and that its port is open")]
    Connect { relay: RelayName, source: io::Error },
    #[error("{relay} gave no complete reply ({source}); check that it is a sluicegate relay")]
    NoReply { relay: RelayName, source: io::Error },
    #[error("{relay} answered with something that is not HTTP; check that it is a sluicegate relay")]
    NotHttp { relay: RelayName },
    #[error("{0}")]
    Refused(Refusal),
    #[error("the tunnel broke: {0}; the device, the relay or a revoked right has ended it")]
    Broken(io::Error),
    #[error("no thread can be started: {0}; raise the limit on processes")]
    Thread(io::Error),
    #[error("stdin and stdout cannot be used: {0}")]
    Stdio(io::Error),
}

/// Runs until the tunnel ends (`--stdio`), or until the process is told to (`--listen`).
pub fn run(args: TunnelArgs) -> Result<(), CommandError> {
    let token = token::read(args.token_file.as_deref())?;
    let door = Door { relay: args.relay, target: args.target, token };
    if args.stdio {
        door.carry_stdio()?
    } else {
        door.carry_local(args.listen)?
    }
    Ok(())
}

/// What a client asks for: the host as typed, and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
}

/// Where the relay is, unresolved: a name's addresses may change while we listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayName(String);

/// The way to one port of one device.
struct Door {
    relay: RelayName,
    target: Target,
    token: Token,
}

impl Door {
    /// A tunnel that is open: what the device sends is still in the socket, down to its first byte.
    fn open(&self) -> Result<TcpStream, TunnelError> {
        let stream = self.connect()?;
        reply::ask(&stream, &self.target, &self.token)
            .map_err(|source| TunnelError::NoReply { relay: self.relay.clone(), source })?;
        let head = reply::read_head(&stream)
            .map_err(|source| TunnelError::NoReply { relay: self.relay.clone(), source })?;
        let answer = reply::parse(&head).ok_or_else(|| TunnelError::NotHttp { relay: self.relay.clone() })?;
        match answer.into_refusal(&self.target) {
            Some(refusal) => Err(TunnelError::Refused(refusal)),
            None => Ok(stream),
        }
    }

    /// Tries each address of the relay's name in turn.
    fn connect(&self) -> Result<TcpStream, TunnelError> {
        let unresolved = |source| TunnelError::Resolve { relay: self.relay.clone(), source };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.relay.0.to_socket_addrs().map_err(unresolved)? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
                    // Both only help; a tunnel without them still works.
                    let _unset = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                    let _unset = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(TunnelError::Connect { relay: self.relay.clone(), source: last })
    }

    fn carry_stdio(&self) -> Result<(), TunnelError> {
        let tunnel = self.open()?;
        forward::stdio(tunnel)
    }

    fn carry_local(self, address: SocketAddr) -> Result<(), TunnelError> {
        let cannot_listen = |source| TunnelError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(cannot_listen)?;
        let bound = listener.local_addr().map_err(cannot_listen)?;
        writeln!(io::stdout(), "listening on {bound}").map_err(TunnelError::Stdio)?;
        let door = Arc::new(self);
        let (taken, places) = bounded(LOCAL_CONNECTIONS_MAX);
        loop {
            let place = Place::take(&taken, &places);
            match listener.accept() {
                Ok((local, _)) => {
                    let door = Arc::clone(&door);
                    std::thread::Builder::new()
                        .name("tunnel".into())
                        .spawn(move || {
                            door.carry(local);
                            drop(place);
                        })
                        .map_err(TunnelError::Thread)?;
                }
                Err(error) => {
                    // Out of descriptors, or a client that left at once: both pass.
                    eprintln!("a local connection was not taken: {error}");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// One local connection, to its end. A refusal is told and ends this connection alone.
    fn carry(&self, local: TcpStream) {
        let outcome = self.open().and_then(|tunnel| {
            let _unset = local.set_nodelay(true);
            match forward::sockets(&local, &tunnel)? {
                Ended::Whole => Ok(()),
                Ended::Broken(error) => Err(TunnelError::Broken(error)),
            }
        });
        if let Err(error) = outcome {
            // A reset, so that the local program does not take a plain end for an empty answer.
            let _closed_anyway = SockRef::from(&local).set_linger(Some(Duration::ZERO));
            eprintln!("{error}");
        }
    }
}

/// One of the local connections that we carry at a time; given back when dropped.
struct Place {
    places: Receiver<()>,
}

impl Place {
    /// Waits until there is one; meanwhile connections wait in the listener's backlog.
    fn take(taken: &Sender<()>, places: &Receiver<()>) -> Self {
        taken.send(()).expect("the receiver is borrowed by the caller");
        Self { places: places.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _was_taken = self.places.try_recv();
    }
}

impl From<TunnelError> for CommandError {
    fn from(error: TunnelError) -> Self {
        Self::failed(error)
    }
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("write UUID:PORT, for example UUID:22")?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or("the port is a number from 1 to 65535")?;
        let (uuid, suffix) = host.split_once('.').unwrap_or((host, "any"));
        if DeviceUuid::parse(uuid).is_none() {
            return Err("a device's uuid has 32 or 62 hex digits");
        }
        if suffix.is_empty()
            || !suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        {
            return Err("what follows the uuid is not a host name's suffix");
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for RelayName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or("write HOST:PORT, for example relay.example:3128")?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !is_bracketed) {
            return Err("write HOST:PORT, or [IPV6]:PORT with the brackets");
        }
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err("the port is a number from 1 to 65535");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for RelayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const ANY_LOCAL_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// For each of the relay's addresses. A relay is near or not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Shorter than the five minutes after which common NATs forget a silent connection.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Local connections at a time: two threads each, so this stays below common limits on threads.
const LOCAL_CONNECTIONS_MAX: usize = 256;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_target_is_a_uuid_and_a_port() {
        let target: Target = format!("{UUID}:22").parse().unwrap();
        assert_eq!(target.to_string(), format!("{UUID}:22"));
        assert_eq!(format!("{UUID}.balena:22").parse::<Target>().unwrap().host, format!("{UUID}.balena"));
    }

    #[test]
    fn a_target_that_no_relay_could_take_is_told_before_any_connection() {
        for (text, told) in [
            (UUID.to_owned(), "write UUID:PORT"),
            (format!("{UUID}:0"), "1 to 65535"),
            (format!("{UUID}:70000"), "1 to 65535"),
            ("abc:22".to_owned(), "32 or 62 hex digits"),
            (format!("{UUID}.:22"), "suffix"),
            (format!("{UUID}.a\r\nX: y:22"), "suffix"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_relay_is_named_by_host_and_port_in_either_family() {
        for text in ["localhost:3128", "127.0.0.1:3128", "[::1]:3128", "relay.example:443"] {
            assert!(text.parse::<RelayName>().is_ok(), "{text}");
        }
        for text in ["localhost", "::1:3128", "localhost:0", ":3128", "localhost:http"] {
            assert!(text.parse::<RelayName>().is_err(), "{text}");
        }
    }
}
