//! `/sessions`: who is connected to what, how fast it goes, and the end of one of them.
//!
//! A list serves everybody who asks in the next moment, so that no number of pages and terminals has the
//! engines list more often than [`LIST_EVERY`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::AdminState;
use super::caller::{Operator, Viewer, audit};
use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId, UnixMillis};
use crate::engine::{EndResult, EngineBusy, EngineHandle, PathKind, SessionRow, SessionState};

/// The newest list, and what it takes to tell how fast each session goes.
#[derive(Default)]
pub(super) struct SessionListCache {
    newest: Mutex<Option<Arc<SessionListing>>>,
}

/// All sessions of one moment.
pub(super) struct SessionListing {
    taken: Instant,
    pub sessions: Vec<SessionView>,
    /// Sessions that came while the list was made, beyond the room for them.
    pub left_out: usize,
}

/// A session as others are told of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SessionView {
    /// As text: it can be above what a number holds in JavaScript.
    #[serde(serialize_with = "as_text")]
    id: u64,
    client: Option<SocketAddr>,
    principal: Option<PrincipalId>,
    credential: Option<CredentialId>,
    grant: Option<GrantId>,
    device: Option<DeviceId>,
    uuid: Option<DeviceUuid>,
    port: Option<u16>,
    generation: Option<Generation>,
    state: SessionState,
    since: UnixMillis,
    handshake_us: Option<u64>,
    /// Up is from client to device.
    bytes_up: u64,
    bytes_down: u64,
    path_up: Option<PathKind>,
    path_down: Option<PathKind>,
    /// Bytes per second since the list before; absent where that is long ago, or the session was not on it.
    rate_up: Option<u64>,
    rate_down: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum SessionsError {
    #[error(transparent)]
    Busy(#[from] EngineBusy),
    #[error("an engine thread has not answered in {} s; its log may say why", ANSWER_TIME.as_secs())]
    Silent,
    #[error("there is no such session; `sluicegate sessions` lists them")]
    NotFound,
    #[error("a session's id is a number; `sluicegate sessions` lists them")]
    NoId,
}

impl SessionListCache {
    /// A list that is not older than [`LIST_EVERY`].
    pub async fn list(&self, engine: &EngineHandle) -> Result<Arc<SessionListing>, SessionsError> {
        let mut newest = self.newest.lock().await;
        if let Some(listing) = &*newest
            && listing.taken.elapsed() < LIST_EVERY
        {
            return Ok(Arc::clone(listing));
        }
        let mut under_way = engine.list_sessions()?;
        let list = answer_of(|| under_way.poll()).await?;
        let listing = SessionListing::new(list.rows, list.left_out, newest.as_deref());
        Ok(Arc::clone(newest.insert(Arc::new(listing))))
    }

    async fn end(&self, id: u64, engine: &EngineHandle) -> Result<(), SessionsError> {
        let mut under_way = engine.end_session(id)?;
        match answer_of(|| under_way.poll()).await? {
            EndResult::Ended => Ok(()),
            EndResult::NotFound => Err(SessionsError::NotFound),
        }
    }
}

impl SessionListing {
    fn new(rows: Vec<SessionRow>, left_out: usize, before: Option<&Self>) -> Self {
        let taken = Instant::now();
        let mut sessions: Vec<_> = rows.into_iter().map(SessionView::new).collect();
        if let Some(before) = before.filter(|before| taken.duration_since(before.taken) < RATE_OVER) {
            let seconds = taken.duration_since(before.taken).as_secs_f64();
            let known: HashMap<u64, &SessionView> =
                before.sessions.iter().map(|view| (view.id, view)).collect();
            for view in &mut sessions {
                let Some(then) = known.get(&view.id) else { continue };
                let rate = |now: u64, then: u64| Some((now.saturating_sub(then) as f64 / seconds) as u64);
                view.rate_up = rate(view.bytes_up, then.bytes_up);
                view.rate_down = rate(view.bytes_down, then.bytes_down);
            }
        }
        Self { taken, sessions, left_out }
    }

    /// The `count` fastest, both directions together, the fastest first.
    pub fn fastest(&self, count: usize) -> Vec<&SessionView> {
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_by_key(|view| {
            let rate = view.rate_up.unwrap_or(0) + view.rate_down.unwrap_or(0);
            std::cmp::Reverse((rate, view.bytes_up + view.bytes_down, view.id))
        });
        sessions.truncate(count);
        sessions
    }
}

impl SessionView {
    fn new(row: SessionRow) -> Self {
        let SessionRow { facts, state, since, tunnel } = row;
        Self {
            id: facts.session,
            client: facts.client,
            principal: facts.principal,
            credential: facts.credential,
            grant: facts.grant,
            device: facts.device,
            uuid: facts.uuid,
            port: facts.port,
            generation: facts.generation,
            state,
            since,
            handshake_us: tunnel.map(|tunnel| tunnel.handshake_us),
            bytes_up: tunnel.map_or(0, |tunnel| tunnel.up.bytes),
            bytes_down: tunnel.map_or(0, |tunnel| tunnel.down.bytes),
            path_up: tunnel.map(|tunnel| tunnel.up.path),
            path_down: tunnel.map(|tunnel| tunnel.down.path),
            rate_up: None,
            rate_down: None,
        }
    }
}

impl IntoResponse for SessionsError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Busy(_) | Self::Silent => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NoId => StatusCode::BAD_REQUEST,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

pub(super) async fn list(_viewer: Viewer, State(desk): State<AdminState>) -> Result<Response, SessionsError> {
    let listing = desk.roster.list(&desk.sources.engine).await?;
    Ok(Json(json!({ "sessions": listing.sessions, "left_out": listing.left_out })).into_response())
}

pub(super) async fn end(
    Operator(caller): Operator,
    State(desk): State<AdminState>,
    Path(id): Path<String>,
) -> Result<Response, SessionsError> {
    let number = id.parse().map_err(|_| SessionsError::NoId)?;
    let ended = desk.roster.end(number, &desk.sources.engine).await;
    let outcome =
        ended.map(|()| format!("session {number}")).map_err(|error| format!("session {number}: {error}"));
    audit(&desk, "session-end", caller, outcome);
    ended?;
    Ok(Json(json!({ "ended": id })).into_response())
}

/// What an engine thread is found to have answered. It cannot wake this thread without waiting for it, so it
/// is looked at.
async fn answer_of<T>(mut poll: impl FnMut() -> Option<T>) -> Result<T, SessionsError> {
    let give_up_at = Instant::now() + ANSWER_TIME;
    loop {
        if let Some(answer) = poll() {
            return Ok(answer);
        }
        if Instant::now() >= give_up_at {
            return Err(SessionsError::Silent);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn as_text<S: serde::Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// The age up to which a list is as good as a new one.
const LIST_EVERY: Duration = Duration::from_millis(250);

/// The longest time over which a rate says something of now.
const RATE_OVER: Duration = Duration::from_secs(10);

/// Far more than a thread with every session there may be needs.
const ANSWER_TIME: Duration = Duration::from_secs(2);

const LOOK_EVERY: Duration = Duration::from_millis(1);
