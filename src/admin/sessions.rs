//! `/sessions`: lists the sessions of the node with their rates, and ends one of them.
//!
//! Requests share a list for [`LIST_AGE_MAX`], so that many pages and terminals together make the engine list its
//! sessions no more often than that.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use crossbeam::channel::{Receiver, TryRecvError};
use tokio::sync::Mutex;

use super::api::{EndedSession, SessionId, SessionInfo, SessionListing};
use super::caller::{Operator, Viewer, audit};
use super::{AdminState, Sources, response};
use crate::authz::PrincipalId;
use crate::engine::{EndResult, EngineBusy, PathKind, SessionRow, SessionState};
use crate::handover::OtherProcess;

/// The newest list of sessions, which requests share.
#[derive(Default)]
pub(super) struct SessionListCache {
    newest: Mutex<Option<Arc<TimedListing>>>,
}

/// A list of sessions, and the moment when it was made.
pub(super) struct TimedListing {
    made_at: Instant,
    listing: SessionListing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum SessionsError {
    #[error(transparent)]
    Busy(#[from] EngineBusy),
    #[error("an engine thread has not answered in {} s; see the log of the relay", ANSWER_TIME_MAX.as_secs())]
    Silent,
    #[error("no session has this id; `sluicegate sessions` lists them")]
    NotFound,
    #[error("the id of a session is a number; `sluicegate sessions` lists them")]
    NoId,
}

impl SessionListCache {
    /// Returns a list that is at most [`LIST_AGE_MAX`] old.
    pub async fn list(&self, sources: &Sources) -> Result<Arc<TimedListing>, SessionsError> {
        let mut newest = self.newest.lock().await;
        if let Some(listing) = &*newest
            && listing.made_at.elapsed() < LIST_AGE_MAX
        {
            return Ok(Arc::clone(listing));
        }
        let mut pending = sources.engine.list_sessions()?;
        let mut list = poll_answer(|| pending.poll()).await?;
        list.rows.extend(rows_of_other(&sources.other).await);
        let mut listing = TimedListing::new(list.rows, list.left_out, newest.as_deref());
        listing.add_names(&sources.names.get());
        Ok(Arc::clone(newest.insert(Arc::new(listing))))
    }

    async fn end(&self, id: u64, sources: &Sources) -> Result<(), SessionsError> {
        let mut pending = sources.engine.end_session(id)?;
        if poll_answer(|| pending.poll()).await? == EndResult::Ended {
            return Ok(());
        }
        let answered = sources.other.end(id);
        let was_found = poll_answer(|| poll_other(&answered)).await?.unwrap_or(false);
        if was_found { Ok(()) } else { Err(SessionsError::NotFound) }
    }
}

impl TimedListing {
    /// Makes a list of `rows`, with rates where `before` is recent.
    fn new(rows: Vec<SessionRow>, left_out: usize, before: Option<&Self>) -> Self {
        let made_at = Instant::now();
        let mut sessions: Vec<_> = rows.into_iter().map(SessionInfo::from).collect();
        if let Some(before) = before.filter(|before| made_at.duration_since(before.made_at) < RATE_PERIOD_MAX)
        {
            let seconds = made_at.duration_since(before.made_at).as_secs_f64();
            let known: HashMap<SessionId, &SessionInfo> =
                before.listing.sessions.iter().map(|session| (session.id, session)).collect();
            for session in &mut sessions {
                let Some(then) = known.get(&session.id) else { continue };
                let rate = |now: u64, then: u64| Some((now.saturating_sub(then) as f64 / seconds) as u64);
                session.rate_up = rate(session.bytes_up, then.bytes_up);
                session.rate_down = rate(session.bytes_down, then.bytes_down);
            }
        }
        Self { made_at, listing: SessionListing { sessions, left_out } }
    }

    fn add_names(&mut self, names: &HashMap<PrincipalId, String>) {
        for session in &mut self.listing.sessions {
            session.principal_name = session.principal.and_then(|id| names.get(&id).cloned());
        }
    }

    /// Returns the `count` fastest sessions, both directions together, the fastest first.
    pub fn fastest(&self, count: usize) -> Vec<&SessionInfo> {
        let mut sessions: Vec<_> = self.listing.sessions.iter().collect();
        sessions.sort_by_key(|session| {
            let rate = session.rate_up.unwrap_or(0) + session.rate_down.unwrap_or(0);
            std::cmp::Reverse((rate, session.bytes_up + session.bytes_down, session.id))
        });
        sessions.truncate(count);
        sessions
    }
}

impl From<SessionRow> for SessionInfo {
    fn from(row: SessionRow) -> Self {
        let SessionRow { facts, state, since, tunnel, .. } = row;
        let path = |path: PathKind| Cow::Borrowed(path_word(path));
        Self {
            id: SessionId(facts.session),
            client: facts.client,
            principal: facts.principal,
            principal_name: None,
            credential: facts.credential,
            grant: facts.grant,
            device: facts.device,
            uuid: facts.uuid,
            port: facts.port,
            generation: facts.generation,
            state: Cow::Borrowed(state_word(state)),
            since,
            handshake_us: tunnel.map(|tunnel| tunnel.handshake_us),
            bytes_up: tunnel.map_or(0, |tunnel| tunnel.up.bytes),
            bytes_down: tunnel.map_or(0, |tunnel| tunnel.down.bytes),
            path_up: tunnel.map(|tunnel| path(tunnel.up.path)),
            path_down: tunnel.map(|tunnel| path(tunnel.down.path)),
            rate_up: None,
            rate_down: None,
        }
    }
}

const fn state_word(state: SessionState) -> &'static str {
    match state {
        SessionState::Securing => "securing",
        SessionState::Head => "head",
        SessionState::Dialling => "dialling",
        SessionState::Open => "open",
        SessionState::HalfClosed => "half-closed",
        SessionState::Refused => "refused",
        SessionState::Closing => "closing",
    }
}

const fn path_word(path: PathKind) -> &'static str {
    match path {
        PathKind::Copy => "copy",
        PathKind::Splice => "splice",
        PathKind::Tls => "tls",
    }
}

impl IntoResponse for SessionsError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Busy(_) | Self::Silent => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NoId => StatusCode::BAD_REQUEST,
        };
        response::failure(status, self.to_string())
    }
}

pub(super) async fn list(
    _viewer: Viewer,
    State(state): State<AdminState>,
) -> Result<Response, SessionsError> {
    let list = state.sessions.list(&state.sources).await?;
    Ok(response::json(&list.listing))
}

pub(super) async fn end(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Result<Response, SessionsError> {
    let number = id.parse().map_err(|_| SessionsError::NoId)?;
    let result = state.sessions.end(number, &state.sources).await;
    let outcome =
        result.map(|()| format!("session {number}")).map_err(|error| format!("session {number}: {error}"));
    audit(&state, "session-end", caller, outcome);
    result?;
    Ok(response::json(&EndedSession { ended: id }))
}

/// The sessions of the process before. Where it does not answer, they are not on the list.
async fn rows_of_other(other: &OtherProcess) -> Vec<SessionRow> {
    if other.sessions() == 0 {
        return Vec::new();
    }
    let answered = other.list();
    poll_answer(|| poll_other(&answered)).await.ok().flatten().unwrap_or_default()
}

/// The answer of the process before; an empty one where it is gone.
fn poll_other<T>(answered: &Receiver<T>) -> Option<Option<T>> {
    match answered.try_recv() {
        Ok(answer) => Some(Some(answer)),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(None),
    }
}

/// Polls until an engine thread has answered. The thread cannot wake us without waiting for us, so we poll.
async fn poll_answer<T>(mut poll: impl FnMut() -> Option<T>) -> Result<T, SessionsError> {
    let give_up_at = Instant::now() + ANSWER_TIME_MAX;
    loop {
        if let Some(answer) = poll() {
            return Ok(answer);
        }
        if Instant::now() >= give_up_at {
            return Err(SessionsError::Silent);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Age up to which a list is served again.
const LIST_AGE_MAX: Duration = Duration::from_millis(250);

/// Longest period over which a rate still describes the present.
const RATE_PERIOD_MAX: Duration = Duration::from_secs(10);

/// Time in which an engine thread must answer. A thread with the most sessions possible needs far less.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

const POLL_INTERVAL: Duration = Duration::from_millis(1);
