//! `sluicegate tunnel`: a client that connects local connections, or stdin and stdout, to a port of a device.
//!
//! A client has few connections, so it uses threads and blocking sockets.

mod connection;
mod endpoint;
mod forward;
mod names;
mod race;
mod refusal;
mod reply;
mod tls;
mod tls_carrier;
mod token;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use rustls::pki_types::ServerName;
use socket2::SockRef;

use super::output::CommandError;
use crate::wire::Token;
use forward::{BrokenEnd, TunnelEnd};

pub use connection::RelayConnection;
pub use endpoint::RelayEndpoint;
pub use names::{RelayName, TunnelTarget};
pub use refusal::TunnelRefusal;
pub use tls::{ClientTls, ClientTlsError, server_name};
pub use token::read as read_token;

/// Open a tunnel to a port of a device.
///
/// The token is read from SLUICEGATE_TOKEN or from --token-file. It is never an argument: every user of the machine
/// could read it there.
#[derive(Debug, clap::Args)]
pub struct TunnelArgs {
    /// Device and port: UUID:PORT, with or without a suffix, as in UUID.balena:22.
    #[arg(value_name = "UUID:PORT")]
    target: TunnelTarget,
    /// Address of the relay's client listener. Write an IPv6 address in brackets.
    #[arg(long, value_name = "HOST:PORT")]
    relay: RelayName,
    /// Accept local connections here, and open a tunnel for each. Port 0 picks a free port.
    #[arg(long, value_name = "ADDR", conflicts_with = "stdio", default_value_t = ANY_LOCAL_PORT)]
    listen: SocketAddr,
    /// Connect stdin and stdout to the device, as a ProxyCommand of OpenSSH does.
    #[arg(long)]
    stdio: bool,
    /// Read the token from this file instead of SLUICEGATE_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Connect without TLS. Everybody on the way can then read the token.
    #[arg(long, conflicts_with_all = ["tls", "ca", "server_name"])]
    plain: bool,
    /// Connect with TLS to a loopback address too. To all others, TLS is the default.
    #[arg(long)]
    tls: bool,
    /// PEM file with the certificates to trust, instead of those of this machine: of a CA, or of the relay itself.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Name that the relay's certificate must have, if it differs from the host in --relay.
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    server_name: Option<ServerName<'static>>,
}

impl TunnelArgs {
    /// True where the token and the tunnel go through TLS. An option that only TLS has a use for asks for it.
    fn uses_tls(&self) -> bool {
        let asks = self.tls || self.ca.is_some() || self.server_name.is_some();
        asks || !(self.plain || self.relay.is_loopback())
    }
}

/// Reason why a tunnel failed. Each text ends in a remedy.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("there is no token; set SLUICEGATE_TOKEN or name a file with --token-file")]
    TokenMissing,
    #[error(
        "the token in {0} is not one line of visible ASCII; copy it again as `sluicegate token issue` showed it"
    )]
    TokenUnusable(String),
    #[error("the token cannot be read from {}: {source}; check the path and its permissions", path.display())]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{relay} cannot be resolved: {source}; check the name and the resolver")]
    Resolve { relay: RelayName, source: io::Error },
    #[error("{relay} cannot be reached: {source}; check that the relay runs and that its port is open")]
    Connect { relay: RelayName, source: io::Error },
    #[error("{relay} gave no complete reply ({source}); check that it is a sluicegate relay")]
    NoReply { relay: RelayName, source: io::Error },
    #[error("{relay} answered with something that is not HTTP; check that it is a sluicegate relay")]
    NotHttp { relay: RelayName },
    #[error(transparent)]
    Tls(#[from] ClientTlsError),
    #[error("{0}")]
    Refused(TunnelRefusal),
    #[error("the tunnel broke: {0}; the device or the relay has ended it, or a right was revoked")]
    Broken(io::Error),
    #[error("the local connection broke: {0}; the program on this machine has ended it")]
    Local(io::Error),
    #[error("stdin cannot be read: {0}; check where it comes from")]
    Stdin(io::Error),
    #[error("stdout was closed; the program that reads it has ended, and so does the tunnel")]
    StdoutClosed,
    #[error("stdout cannot be written: {0}; check where it leads to")]
    Stdout(io::Error),
    #[error("no thread can be started: {0}; raise the limit on processes")]
    Thread(io::Error),
    #[error("stdin and stdout cannot be used: {0}")]
    Stdio(io::Error),
}

/// Runs until the tunnel ends (`--stdio`), or until the process is killed (`--listen`).
pub fn run(args: TunnelArgs) -> Result<(), CommandError> {
    let token = token::read(args.token_file.as_deref())?;
    let tls =
        args.uses_tls().then(|| ClientTls::new(&args.relay, args.ca.as_deref(), args.server_name.as_ref()));
    let tls = tls.transpose().map_err(TunnelError::from)?;
    let client = TunnelClient { relay: RelayEndpoint { name: args.relay, tls }, target: args.target, token };
    if args.stdio {
        client.carry_stdio()?
    } else {
        client.carry_local(args.listen)?
    }
    Ok(())
}

/// A client of one port of one device.
struct TunnelClient {
    relay: RelayEndpoint,
    target: TunnelTarget,
    token: Token,
}

impl TunnelClient {
    /// Opens a tunnel. No byte of the device has been read from it.
    fn open(&self) -> Result<RelayConnection, TunnelError> {
        let unresolved = |source| TunnelError::Resolve { relay: self.relay.name.clone(), source };
        let addresses = self.relay.name.resolve().map_err(unresolved)?;
        let socket = self.relay.connect(&addresses, Instant::now() + CONNECT_TIMEOUT)?;
        let mut link = self.relay.secure(socket, Instant::now() + REPLY_TIMEOUT)?;
        link.set_deadline(Instant::now() + REPLY_TIMEOUT);
        match self.relay.request(&mut link, &self.target, &self.token)? {
            Some(refusal) => Err(TunnelError::Refused(refusal)),
            None => Ok(link),
        }
    }

    fn carry_stdio(&self) -> Result<(), TunnelError> {
        match self.open()? {
            RelayConnection::Plain(socket) => {
                let tunnel = socket.into_socket().map_err(TunnelError::Broken)?;
                forward::stdio(tunnel)?.into_result(LocalKind::Stdio)
            }
            RelayConnection::Tls(stream) => {
                let (input, output) = forward::take_stdio().map_err(TunnelError::Stdio)?;
                let socket = stream.sock.into_socket().map_err(TunnelError::Broken)?;
                let local = tls_carrier::LocalEnd { input: input.into(), output: output.into() };
                tls_carrier::carry(stream.conn, socket, local).into_result(LocalKind::Stdio)
            }
        }
    }

    fn carry_local(self, address: SocketAddr) -> Result<(), TunnelError> {
        let cannot_listen = |source| TunnelError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(cannot_listen)?;
        let bound = listener.local_addr().map_err(cannot_listen)?;
        writeln!(io::stdout(), "listening on {bound}").map_err(TunnelError::Stdio)?;
        let client = Arc::new(self);
        let (acquired, permits) = bounded(LOCAL_CONNECTIONS_MAX);
        loop {
            let permit = ConnectionPermit::acquire(&acquired, &permits);
            match listener.accept() {
                Ok((local, _)) => {
                    let client = Arc::clone(&client);
                    std::thread::Builder::new()
                        .name("tunnel".into())
                        .spawn(move || {
                            client.carry(local);
                            drop(permit);
                        })
                        .map_err(TunnelError::Thread)?;
                }
                Err(error) => {
                    // Both causes pass: a lack of descriptors, or a client that left at once.
                    eprintln!("a local connection was not accepted: {error}");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Carries one local connection to its end. A refusal is printed, and ends this connection alone.
    fn carry(&self, local: TcpStream) {
        let outcome = self.open().and_then(|link| {
            let _unset = local.set_nodelay(true);
            match link {
                RelayConnection::Plain(socket) => {
                    let tunnel = socket.into_socket().map_err(TunnelError::Broken)?;
                    forward::sockets(&local, &tunnel)?.into_result(LocalKind::Connection)
                }
                RelayConnection::Tls(stream) => {
                    let ends = local.try_clone().and_then(|input| Ok((input, local.try_clone()?)));
                    let (input, output) = ends.map_err(TunnelError::Broken)?;
                    let socket = stream.sock.into_socket().map_err(TunnelError::Broken)?;
                    let local = tls_carrier::LocalEnd { input: input.into(), output: output.into() };
                    tls_carrier::carry(stream.conn, socket, local).into_result(LocalKind::Connection)
                }
            }
        });
        if let Err(error) = outcome {
            // Reset the local connection, so that the program does not take the end for an empty response.
            let _closed_anyway = SockRef::from(&local).set_linger(Some(Duration::ZERO));
            eprintln!("{error}");
        }
    }
}

/// Permission to carry one more local connection. Dropping it returns it.
struct ConnectionPermit {
    permits: Receiver<()>,
}

impl ConnectionPermit {
    /// Waits for a permit. Meanwhile, connections wait in the listener's backlog.
    fn acquire(acquired: &Sender<()>, permits: &Receiver<()>) -> Self {
        acquired.send(()).expect("the receiver is borrowed by the caller");
        Self { permits: permits.clone() }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let _was_acquired = self.permits.try_recv();
    }
}

/// The local end of a tunnel.
#[derive(Clone, Copy)]
enum LocalKind {
    Stdio,
    Connection,
}

impl TunnelEnd {
    fn into_result(self, local: LocalKind) -> Result<(), TunnelError> {
        match self {
            Self::Whole => Ok(()),
            Self::Broken(broken) => Err(broken.into_error(local)),
        }
    }
}

impl BrokenEnd {
    /// Names the end that failed as the user knows it.
    fn into_error(self, local: LocalKind) -> TunnelError {
        match (self, local) {
            (Self::Tunnel(error), _) => TunnelError::Broken(error),
            (Self::Input(error) | Self::Output(error), LocalKind::Connection) => TunnelError::Local(error),
            (Self::Input(error), LocalKind::Stdio) => TunnelError::Stdin(error),
            (Self::Output(error), LocalKind::Stdio) if error.kind() == io::ErrorKind::BrokenPipe => {
                TunnelError::StdoutClosed
            }
            (Self::Output(error), LocalKind::Stdio) => TunnelError::Stdout(error),
        }
    }
}

impl From<TunnelError> for CommandError {
    fn from(error: TunnelError) -> Self {
        Self::failed(error)
    }
}

const ANY_LOCAL_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Time to connect to the relay, at whichever of its addresses. A relay is near, or not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the TLS handshake, and for a reply. A relay replies within `timeouts.head` plus `timeouts.connect`.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Number of local connections at a time. Each has two threads, so this stays below common limits on threads.
const LOCAL_CONNECTIONS_MAX: usize = 256;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
