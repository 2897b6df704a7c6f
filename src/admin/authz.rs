//! `/authz/…`: the state of the guard, and the commands on what it holds.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use super::api::{CandidateQueries, DiffReport};
use super::caller::{Caller, Operator, Viewer, audit};
use super::connection::{LOCAL_TIME_MAX, REMOTE_TIME_MAX};
use super::status::source_status;
use super::{AdminState, response};
use crate::config::{Queries, RelationQuery};
use crate::control::{GuardCommandError, QueriesError};

pub(super) async fn status(_viewer: Viewer, State(state): State<AdminState>) -> Response {
    response::json(&source_status(&state.sources.control.get()))
}

pub(super) async fn diff(
    _viewer: Viewer,
    Extension(caller): Extension<Caller>,
    State(state): State<AdminState>,
) -> Response {
    reply(ask_control(caller, state.sources.commands.diff()).await)
}

/// Compares the candidate with the queries in force. Only operators may: the store runs the given SQL with the
/// relay's rights.
pub(super) async fn compare(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    Json(candidate): Json<CandidateQueries>,
) -> Response {
    let outcome = ask_control(caller, state.sources.commands.compare(candidate.into())).await;
    let detail = match &outcome {
        Ok(DiffReport { hold: Some(refused), .. }) => Ok(format!("refused by {}", refused.hold)),
        Ok(_) => Ok("the guard would let them pass".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    audit(&state, "authz-compare", caller, detail);
    reply(outcome)
}

impl From<CandidateQueries> for Queries {
    fn from(candidate: CandidateQueries) -> Self {
        let query = |sql: Option<String>| sql.map(|sql| RelationQuery { file: "candidate".into(), sql });
        Self {
            credentials: query(candidate.credentials),
            grants: query(candidate.grants),
            devices: query(candidate.devices),
            ended: query(candidate.ended),
        }
    }
}

pub(super) async fn accept(Operator(caller): Operator, State(state): State<AdminState>) -> Response {
    let outcome = ask_control(caller, state.sources.commands.accept()).await;
    let detail = outcome.as_ref().map(|accepted| format!("rule {}: {}", accepted.rule, accepted.figures));
    audit(&state, "authz-accept", caller, detail.map_err(ToString::to_string));
    reply(outcome)
}

pub(super) async fn roll_back(Operator(caller): Operator, State(state): State<AdminState>) -> Response {
    let outcome = ask_control(caller, state.sources.commands.roll_back()).await;
    let detail = outcome.as_ref().map(|done| format!("from generation {} to {}", done.from.0, done.to.0));
    audit(&state, "authz-rollback", caller, detail.map_err(ToString::to_string));
    reply(outcome)
}

#[derive(Debug, thiserror::Error)]
enum ControlReplyError {
    #[error(transparent)]
    Command(#[from] GuardCommandError),
    #[error(transparent)]
    Queries(#[from] QueriesError),
    #[error(
        "the control thread has not answered in time; it may still carry out the command: check with `sluicegate \
         authz status`"
    )]
    Silent,
}

/// Waits for the control thread, which may first have to finish a read; `store.statement_timeout` bounds that.
async fn ask_control<T, E: Into<ControlReplyError>>(
    caller: Caller,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, ControlReplyError> {
    let time_max = match caller {
        Caller::Local { .. } => LOCAL_TIME_MAX,
        Caller::Remote(_) => REMOTE_TIME_MAX,
    };
    match tokio::time::timeout(time_max - REPLY_TIME, answer).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(ControlReplyError::Silent),
    }
}

fn reply<T: Serialize>(outcome: Result<T, ControlReplyError>) -> Response {
    let error = match outcome {
        Ok(done) => return Json(done).into_response(),
        Err(error) => error,
    };
    let status = match error {
        ControlReplyError::Command(_) | ControlReplyError::Queries(_) => StatusCode::CONFLICT,
        ControlReplyError::Silent => StatusCode::GATEWAY_TIMEOUT,
    };
    response::failure(status, error.to_string())
}

/// Part of a connection's time that is kept to reply that the control thread was silent.
const REPLY_TIME: Duration = Duration::from_secs(1);
