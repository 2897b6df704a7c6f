//! The admin side: health, metrics, the status page, the sessions, and the commands on what the guard holds.
//!
//! It serves HTTP over TCP and on a local socket. It reads state that other threads publish. It makes requests of
//! an engine thread only for sessions, and does not wait for long.
//!
//! It runs on one thread with a runtime of its own. A failure here does not stop tunnels.

pub mod api;
mod authz;
mod awaited;
mod caller;
mod certificates;
mod conditions;
mod connection;
mod drain;
mod engine_metrics;
mod guard;
mod health;
mod history;
mod http;
mod label_counts;
mod latency;
mod liveness;
mod local;
mod metrics;
mod node_requests;
mod nodes;
mod openmetrics;
mod page;
mod principal_names;
mod process;
mod readiness;
mod reload;
mod response;
pub mod routes;
mod self_probe;
mod sessions;
mod slots;
mod status;
mod threads;
mod token;
mod token_keys;
mod upgrade;
mod usage;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::FromRef;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::authz::Authority;
use crate::config::{self, KeyProblem};
use crate::control::{Commands, DirectoryErrors, LocationCounts, StatusHandle};
use crate::engine::{EngineHandle, listen_advice};
use crate::handover::OtherProcess;
use crate::sys::service_thread::ServiceThread;
use crate::sys::socket;
use crate::telemetry::{AuditSender, LostEvents};
use crate::usage::UsageHandle;

use api::NodeIdentity;
use history::History;
use liveness::Liveness;
use local::LocalSocket;
use sessions::SessionListCache;
use token::TokenGate;

pub use node_requests::{NodeRequest, NodeRequests, RequestError};
pub use principal_names::PrincipalNames;
pub use self_probe::{ProbeHandle, SelfProbeThread};
pub use token::{NewToken, TokenError};

/// The running admin thread. Dropping it stops the thread and waits for it.
pub struct AdminServer {
    address: SocketAddr,
    health_address: Option<SocketAddr>,
    gate: Arc<TokenGate>,
    history: History,
    /// Copies of the listeners, for a process that takes over.
    copies: AdminSockets,
    accepting: watch::Sender<AdminAccepting>,
    /// Dropped to stop the runtime. Nothing is ever sent. It stands before the thread, which is dropped next and waits
    /// for the runtime.
    _stop: oneshot::Sender<()>,
    _thread: ServiceThread,
}

/// Whether the server accepts connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AdminAccepting {
    /// Another process does, and this one may do so later.
    Paused,
    Yes,
    /// Another process does from here on; with `has_path` also on the local socket's path.
    Left {
        has_path: bool,
    },
}

/// Listeners of the admin side, in the hands of two processes.
#[derive(Default)]
pub struct AdminSockets {
    /// With the address in the configuration.
    pub tcp: Option<(SocketAddr, OwnedFd)>,
    pub local: Option<(PathBuf, OwnedFd)>,
    pub health: Option<(SocketAddr, OwnedFd)>,
}

/// Which process accepts connections at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstAccepting {
    ThisProcess,
    /// Another one, until [`AdminServer::begin`].
    AnotherProcess,
}

/// State of the node that the admin side reads.
#[derive(Clone)]
pub struct Sources {
    pub identity: Arc<Mutex<NodeIdentity>>,
    pub names: PrincipalNames,
    pub engine: EngineHandle,
    pub control: StatusHandle,
    pub authority: Arc<Authority>,
    pub commands: Commands,
    pub requests: NodeRequests,
    pub audit: AuditSender,
    pub audit_lost: LostEvents,
    pub probe: ProbeHandle,
    /// Number of times that the heartbeat of this node could not be written.
    pub directory_errors: DirectoryErrors,
    pub locations: LocationCounts,
    /// The process before, as long as it has sessions.
    pub other: OtherProcess,
    pub usage: UsageHandle,
}

/// State that every request handler gets.
#[derive(Clone)]
struct AdminState {
    sources: Sources,
    gate: Arc<TokenGate>,
    sessions: Arc<SessionListCache>,
    liveness: Liveness,
    history: History,
}

impl FromRef<AdminState> for Sources {
    fn from_ref(state: &AdminState) -> Self {
        state.sources.clone()
    }
}

/// Opens the local socket. Returns `None` where it cannot be created: the node also works without it.
fn local_socket(path: &Path, group: Option<&str>) -> Result<Option<LocalSocket>, AdminServerError> {
    match LocalSocket::bind(path, group) {
        Ok(socket) => Ok(Some(socket)),
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            Err(AdminServerError::Socket { path: path.display().to_string(), source })
        }
        Err(error) => {
            let path = path.display();
            tracing::error!(
                "admin.socket {path} cannot be created ({error}); commands will not reach this node"
            );
            Ok(None)
        }
    }
}

/// The metrics registry requires `Debug` of a collector. There is nothing to show.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AdminServerError {
    #[error("admin.address {address} cannot be listened on: {source}; {}", listen_advice(*address, source))]
    Listen { address: SocketAddr, source: io::Error },
    #[error(
        "admin.socket {path} cannot be listened on: {source}; configure another path, or stop the process that uses it"
    )]
    Socket { path: String, source: io::Error },
    #[error("admin.health_address {address} cannot be listened on: {source}; {}", listen_advice(*address, source))]
    Health { address: SocketAddr, source: io::Error },
    #[error("the admin thread cannot be started: {0}")]
    Thread(io::Error),
    #[error("admin.token_file {path} cannot be used: {source}")]
    Token { path: String, source: TokenError },
}

impl AdminServer {
    /// Returns the reasons why [`start`](Self::start) would fail, as far as files show them. Opens no socket.
    pub fn check(config: &config::Admin) -> Vec<KeyProblem> {
        let Some(file) = config.token_file.as_deref() else { return Vec::new() };
        let problem = |error: TokenError| KeyProblem {
            key: "admin.token_file".to_owned(),
            problem: format!("{} cannot be used: {error}", file.display()),
        };
        TokenGate::open(Some(file)).err().map(problem).into_iter().collect()
    }

    pub fn start(config: &config::Admin, sources: Sources) -> Result<Self, AdminServerError> {
        Self::start_on(AdminSockets::default(), FirstAccepting::ThisProcess, config, sources)
    }

    /// Starts with those of `sockets` that the configuration names; opens the others.
    pub fn start_on(
        sockets: AdminSockets,
        first: FirstAccepting,
        config: &config::Admin,
        sources: Sources,
    ) -> Result<Self, AdminServerError> {
        let configured = config.address;
        let refused = |source| AdminServerError::Listen { address: configured, source };
        let (listener, address) = match sockets.tcp.filter(|(address, _)| *address == configured) {
            Some((_, socket)) => {
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(refused)?;
                let address = listener.local_addr().map_err(refused)?;
                (listener, address)
            }
            None => listen(configured).map_err(refused)?,
        };
        let local = match &config.socket {
            Some(path) => match sockets.local.filter(|(taken, _)| taken == path) {
                Some((_, socket)) => {
                    let failed =
                        |source| AdminServerError::Socket { path: path.display().to_string(), source };
                    Some(LocalSocket::taken_over(socket, path).map_err(failed)?)
                }
                None => local_socket(path, config.socket_group.as_deref())?,
            },
            None => None,
        };
        let local_copy = local.as_ref().and_then(|local| local.duplicate().ok());
        let copies = AdminSockets {
            tcp: listener.try_clone().ok().map(|copy| (configured, OwnedFd::from(copy))),
            local: config.socket.clone().zip(local_copy),
            health: None,
        };
        let health = match (config.health_address, sockets.health) {
            (Some(address), Some((passed, socket))) if passed == address => {
                let failed = |source| AdminServerError::Health { address, source };
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Some((listener, bound))
            }
            (Some(address), _) => {
                Some(listen(address).map_err(|source| AdminServerError::Health { address, source })?)
            }
            (None, _) => None,
        };
        let (health, health_address) = health.unzip();
        let health_copy = health.as_ref().and_then(|health| health.try_clone().ok());
        let copies =
            AdminSockets { health: config.health_address.zip(health_copy.map(OwnedFd::from)), ..copies };
        let gate = TokenGate::open(config.token_file.as_deref());
        let gate = Arc::new(gate.map_err(|source| token_error(config, source))?);
        let history = History::default();
        let state = AdminState {
            sources,
            gate: Arc::clone(&gate),
            sessions: Arc::default(),
            liveness: Liveness::default(),
            history: history.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(AdminServerError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let (accepting, accepts) = watch::channel(match first {
            FirstAccepting::ThisProcess => AdminAccepting::Yes,
            FirstAccepting::AnotherProcess => AdminAccepting::Paused,
        });
        let serve = move |_| runtime.block_on(http::serve(listener, health, local, state, accepts, stopped));
        let thread = ServiceThread::start("admin", serve).map_err(AdminServerError::Thread)?;
        Ok(Self { address, health_address, gate, history, copies, accepting, _stop: stop, _thread: thread })
    }

    /// Accepts connections, which another process did until now.
    pub fn begin(&self) {
        self.accepting.send_replace(AdminAccepting::Yes);
    }

    /// Leaves the accepting to another process, and keeps the listeners. Requests under way go on.
    pub fn pause(&self) {
        self.accepting.send_replace(AdminAccepting::Paused);
    }

    /// Leaves the listeners to another process; requests under way go on. `has_path` where that one uses the local
    /// socket's path.
    pub fn leave(&mut self, has_path: bool) {
        self.copies = AdminSockets::default();
        self.accepting.send_replace(AdminAccepting::Left { has_path });
    }

    /// The last hour, for a process that takes over.
    pub fn history(&self) -> Vec<String> {
        self.history.to_pass()
    }

    /// Shows the last hour of the process before as this node's own.
    pub fn continue_history(&self, passed: &[String]) {
        self.history.continue_from(passed);
    }

    /// Copies of the listeners, for a process that takes over.
    pub fn copies(&self) -> io::Result<AdminSockets> {
        let tcp = self.copies.tcp.as_ref();
        let tcp =
            tcp.map(|(address, socket)| Ok::<_, io::Error>((*address, socket.try_clone()?))).transpose()?;
        let local = self.copies.local.as_ref();
        let local = local
            .map(|(path, socket)| Ok::<_, io::Error>((path.clone(), socket.try_clone()?)))
            .transpose()?;
        let health = self.copies.health.as_ref();
        let health = health
            .map(|(address, socket)| Ok::<_, io::Error>((*address, socket.try_clone()?)))
            .transpose()?;
        Ok(AdminSockets { tcp, local, health })
    }

    /// The path of the local socket, where there is one.
    pub fn has_local_socket_at(&self, path: &Path) -> bool {
        self.copies.local.as_ref().is_some_and(|(own, _)| own == path)
    }

    /// Reads the token of `config` for [`replace_token`](Self::replace_token).
    pub fn read_token(config: &config::Admin) -> Result<NewToken, AdminServerError> {
        TokenGate::read(config.token_file.as_deref()).map_err(|source| token_error(config, source))
    }

    pub fn replace_token(&self, token: NewToken) {
        self.gate.replace(token);
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bound `admin.health_address`.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health_address
    }
}

/// Returns a listener and its real address.
fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = socket::listen_alone(address)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn token_error(config: &config::Admin, source: TokenError) -> AdminServerError {
    let path = config.token_file.as_deref().unwrap_or(Path::new("")).display().to_string();
    AdminServerError::Token { path, source }
}
