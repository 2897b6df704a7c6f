//! HTTP for operators: health, metrics, a status page, who is connected, what is held and what to do about it;
//! the same over TCP and on a local socket, but for what one may. Reads what others publish, and asks an engine
//! only for what it has time for.
//!
//! One thread with a runtime of its own. Whatever happens to it, tunnels go on.

pub mod api;
mod authz;
mod caller;
mod connection;
mod guard;
mod health;
mod http;
mod label_counts;
mod latency;
mod local;
mod metrics;
mod nodes;
mod openmetrics;
mod page;
mod process;
mod response;
pub mod routes;
mod self_probe;
mod sessions;
mod status;
mod threads;
mod token;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::FromRef;
use tokio::sync::oneshot;

use crate::authz::{Authority, UnixMillis};
use crate::config;
use crate::control::{Commands, LocationCounts, Rule, StatusHandle};
use crate::engine::EngineHandle;
use crate::sys::service_thread::ServiceThread;
use crate::telemetry::{AuditSender, Cause, LostEvents};

use local::LocalSocket;
use sessions::SessionListCache;
use token::TokenGate;

pub use self_probe::{ProbeHandle, SelfProbe};
pub use token::TokenError;

/// The running admin thread; dropping it stops the thread and waits for it.
pub struct AdminServer {
    address: SocketAddr,
    /// Dropped to stop the runtime; nothing is ever sent. Stands before the thread, which is dropped after it and
    /// waits.
    _stop: oneshot::Sender<()>,
    _thread: ServiceThread,
}

/// What the admin side reads.
#[derive(Clone)]
pub struct Sources {
    pub engine: EngineHandle,
    pub control: StatusHandle,
    pub authority: Arc<Authority>,
    pub commands: Commands,
    pub audit: AuditSender,
    pub audit_lost: LostEvents,
    pub probe: ProbeHandle,
    /// Times that the directory of nodes could not be kept.
    pub directory_errors: Arc<AtomicU64>,
    pub locations: LocationCounts,
}

/// What every request is served from.
#[derive(Clone)]
struct AdminState {
    sources: Sources,
    gate: Arc<TokenGate>,
    sessions: Arc<SessionListCache>,
}

impl FromRef<AdminState> for Sources {
    fn from_ref(state: &AdminState) -> Self {
        state.sources.clone()
    }
}

/// `None` where there can be none at `path`: a node is worth having without, since clients don't need it.
fn local_socket(path: &Path, group: Option<&str>) -> Result<Option<LocalSocket>, AdminServerError> {
    match LocalSocket::bind(path, group) {
        Ok(socket) => Ok(Some(socket)),
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            Err(AdminServerError::Socket { path: path.display().to_string(), source })
        }
        Err(error) => {
            let path = path.display();
            tracing::error!("admin.socket {path} cannot be made ({error}); commands will not find this node");
            Ok(None)
        }
    }
}

/// For the registry, which wants it of every collector; there is nothing to show.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AdminServerError {
    #[error("admin.address {address} cannot be listened on: {source}; is another process there?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("admin.socket {path} cannot be listened on: {source}; name another path, or end who is there")]
    Socket { path: String, source: io::Error },
    #[error("the admin thread cannot be started: {0}")]
    Thread(io::Error),
    #[error("admin.token_file {path} cannot be used: {source}")]
    Token { path: String, source: TokenError },
}

/// Whether the node should be sent clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Readiness {
    Ready,
    /// Ready, on the last good snapshot: the guard keeps the store's last word back.
    Holding(Rule),
    Draining,
    /// Nothing can be decided: no snapshot, or one that is too old.
    Undecided(Cause),
}

impl AdminServer {
    pub fn start(config: &config::Admin, sources: Sources) -> Result<Self, AdminServerError> {
        let address = config.address;
        let refused = |source| AdminServerError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let local = config
            .socket
            .as_deref()
            .map(|path| local_socket(path, config.socket_group.as_deref()))
            .transpose()?
            .flatten();
        let gate =
            TokenGate::open(config.token_file.as_deref()).map_err(|source| AdminServerError::Token {
                path: config.token_file.as_deref().unwrap_or(Path::new("")).display().to_string(),
                source,
            })?;
        let state = AdminState { sources, gate: Arc::new(gate), sessions: Arc::default() };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(AdminServerError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let serve = move |_| runtime.block_on(http::serve(listener, local, state, stopped));
        let thread = ServiceThread::start("admin", serve).map_err(AdminServerError::Thread)?;
        Ok(Self { address, _stop: stop, _thread: thread })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Sources {
    fn readiness(&self) -> Readiness {
        if self.engine.is_draining() {
            return Readiness::Draining;
        }
        match self.authority.trouble(UnixMillis::now()) {
            Some(undecided) => Readiness::Undecided(undecided.into()),
            None => match self.control.get().hold {
                Some(held) => Readiness::Holding(held.hold.rule),
                None => Readiness::Ready,
            },
        }
    }
}
