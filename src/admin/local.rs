//! The local socket: what only somebody on this machine who may open it can ask and tell the node.
//!
//! HTTP as on the other side, and bounded in the same way. Whatever changes something is audited, with the
//! user and the process that asked.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::{Sources, http};
use crate::control::{CommandError, Rule, Status};
use crate::telemetry::{AuditEvent, OperatorCommand};

/// Where the routes are, for those who ask.
pub const STATUS: &str = "/authz/status";
pub const DIFF: &str = "/authz/diff";
pub const ACCEPT: &str = "/authz/accept";
pub const ROLLBACK: &str = "/authz/rollback";

/// A listener at a path, which goes when this does.
pub(super) struct LocalSocket {
    listener: StdListener,
    path: PathBuf,
}

impl LocalSocket {
    /// Takes the place of a socket that nobody listens on any more, and of nothing else.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if StdStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        // Made where nobody else can reach it, so that it is never open to more than its owner.
        let aside = tempfile::Builder::new().prefix(".socket-").tempdir_in(folder)?;
        let made = aside.path().join("s");
        let listener = StdListener::bind(&made)?;
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        std::fs::rename(&made, path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Ends with an error only.
    pub(super) async fn serve(&self, sources: Sources) -> io::Error {
        let routes = Router::new()
            .route(STATUS, get(status))
            .route(DIFF, get(diff))
            .route(ACCEPT, post(accept))
            .route(ROLLBACK, post(roll_back))
            .with_state(sources);
        match self.listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => accept_all(listener, routes).await,
            Err(error) => error,
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Default)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

async fn accept_all(listener: UnixListener, routes: Router) -> io::Error {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().map(|peer| Peer { uid: Some(peer.uid()), pid: peer.pid() });
                let routes = routes.clone().layer(Extension(peer.unwrap_or_default()));
                drop(tokio::spawn(http::answer(stream, routes, place, CONNECTION_TIME)));
            }
            Err(error) => {
                tracing::warn!(%error, "a local connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn status(State(sources): State<Sources>) -> Json<serde_json::Value> {
    Json(shown(&sources.control.get()))
}

async fn diff(State(sources): State<Sources>) -> Response {
    answered(sources.commands.diff().await)
}

async fn accept(State(sources): State<Sources>, Extension(peer): Extension<Peer>) -> Response {
    let outcome = sources.commands.accept().await;
    let detail = outcome.as_ref().map(|accepted| format!("rule {}: {}", accepted.rule, accepted.figures));
    audit(&sources, "authz-accept", peer, detail.map_err(|error| *error));
    answered(outcome)
}

async fn roll_back(State(sources): State<Sources>, Extension(peer): Extension<Peer>) -> Response {
    let outcome = sources.commands.roll_back().await;
    let detail = outcome.as_ref().map(|done| format!("from generation {} to {}", done.from.0, done.to.0));
    audit(&sources, "authz-rollback", peer, detail.map_err(|error| *error));
    answered(outcome)
}

fn answered<T: Serialize>(outcome: Result<T, CommandError>) -> Response {
    match outcome {
        Ok(done) => Json(done).into_response(),
        Err(error) => (StatusCode::CONFLICT, Json(json!({ "error": error.to_string() }))).into_response(),
    }
}

fn audit(sources: &Sources, command: &'static str, peer: Peer, outcome: Result<String, CommandError>) {
    let (outcome, detail) = match outcome {
        Ok(detail) => ("done", detail),
        Err(error) => ("refused", error.to_string()),
    };
    tracing::warn!(command, uid = peer.uid, pid = peer.pid, outcome, "an operator's command: {detail}");
    let event = OperatorCommand { command, uid: peer.uid, pid: peer.pid, outcome, detail };
    if !sources.audit.send(AuditEvent::OperatorCommand(event)) {
        tracing::error!(command, "the audit log's queue is full; this command is in the log alone");
    }
}

/// What there is to know of the control thread.
fn shown(status: &Status) -> serde_json::Value {
    let holds: serde_json::Map<_, _> = Rule::ALL
        .iter()
        .zip(status.holds)
        .map(|(rule, holds)| (rule.name().to_owned(), holds.into()))
        .collect();
    json!({
        "store": status.store,
        "generation": status.generation,
        "rows": {
            "credentials": status.rows.credentials,
            "grants": status.rows.grants,
            "devices": status.rows.devices,
        },
        "confirmed_at": status.confirmed_at,
        "last_error": status.last_error,
        "hold": status.hold,
        "holds": holds,
        "quarantined": status.quarantined,
        "absences_waiting": status.absences_waiting,
        "absences_honoured": status.absences_honoured,
        "on_probation": status.on_probation,
        "regressions": status.regressions,
        "rollbacks": status.rollbacks,
        "rights_not_understood": status.remarks.not_understood.count,
        "remarks": status.remarks.lines(),
    })
}

const SOCKET_MODE: u32 = 0o600;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 8;

/// From accept to the end of the answer, for which the control thread may have to finish a read.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// Accept fails for want of descriptors, which is not over at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
