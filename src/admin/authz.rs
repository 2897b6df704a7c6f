//! `/authz/…`: the state of the guard, and the commands on what it holds.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use super::api::{
    AcceptRequest, Accepted, CandidateQueries, ClearRequest, ExpectRequest, Group, HoldStatus,
    RollbackRequest, RolledBack,
};
use super::caller::{Caller, Operator, Viewer, audit};
use super::connection::{LOCAL_TIME_MAX, REMOTE_TIME_MAX};
use super::response::JsonBody;
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
    JsonBody(candidate): JsonBody<CandidateQueries>,
) -> Response {
    let outcome = ask_control(caller, state.sources.commands.compare(candidate.into())).await;
    let detail = match &outcome {
        Ok(report) if report.holds.is_empty() => Ok("the guard would let them pass".to_owned()),
        Ok(report) => {
            let holds: Vec<String> = report.holds.iter().map(HoldStatus::to_string).collect();
            Ok(format!("held would be {}", holds.join("; ")))
        }
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

/// Publishes what is held, if it is what the requester has seen.
pub(super) async fn accept(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    JsonBody(AcceptRequest { digest, group }): JsonBody<AcceptRequest>,
) -> Response {
    let outcome = ask_control(caller, state.sources.commands.accept(digest.clone(), group)).await;
    let detail = outcome.as_ref().map(|Accepted { groups, rows, generation }| {
        let groups: Vec<String> = groups.iter().map(Group::to_string).collect();
        format!("{rows} rows ({}), generation {}, digest {digest}", groups.join(", "), generation.0)
    });
    audit(&state, "authz-accept", caller, detail.map_err(ToString::to_string));
    reply(outcome)
}

pub(super) async fn expect(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    JsonBody(request): JsonBody<ExpectRequest>,
) -> Response {
    let lasts = humantime::format_duration(request.lasts);
    let asked = format!("{} {}, {} rows for {lasts}", request.relation, request.kind, request.rows);
    let outcome = ask_control(caller, state.sources.commands.expect(request)).await;
    let detail = outcome.as_ref().map(|_| asked.clone());
    audit(&state, "authz-expect", caller, detail.map_err(|error| format!("{asked}: {error}")));
    reply(outcome)
}

pub(super) async fn clear_expectation(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    JsonBody(ClearRequest { group }): JsonBody<ClearRequest>,
) -> Response {
    let outcome = ask_control(caller, state.sources.commands.clear_expectation(group)).await;
    let detail =
        outcome.as_ref().map(|cleared| format!("{group}: {} of {} rows used", cleared.used, cleared.rows));
    audit(&state, "authz-expect-clear", caller, detail.map_err(ToString::to_string));
    reply(outcome)
}

pub(super) async fn history(
    _viewer: Viewer,
    Extension(caller): Extension<Caller>,
    State(state): State<AdminState>,
) -> Response {
    reply(ask_control(caller, state.sources.commands.history()).await)
}

pub(super) async fn roll_back(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    JsonBody(RollbackRequest { generation }): JsonBody<RollbackRequest>,
) -> Response {
    let outcome = ask_control(caller, state.sources.commands.roll_back(generation)).await;
    let detail = outcome.as_ref().map(|RolledBack { from, to, in_force, rows }| {
        format!("from generation {} to {}, {rows} rows, in force as {}", from.0, to.0, in_force.0)
    });
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
