//! What the guard holds, and what to do about it.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::{Value, json};

use super::caller::{Caller, Operator, Viewer, audit};
use super::{Desk, http, local, status as shown};
use crate::control::CommandError;

pub(super) async fn status(_viewer: Viewer, State(desk): State<Desk>) -> Json<Value> {
    Json(shown::source(&desk.sources.control.get()))
}

pub(super) async fn diff(
    _viewer: Viewer,
    Extension(caller): Extension<Caller>,
    State(desk): State<Desk>,
) -> Response {
    answered(asked(caller, desk.sources.commands.diff()).await)
}

pub(super) async fn accept(Operator(caller): Operator, State(desk): State<Desk>) -> Response {
    let outcome = asked(caller, desk.sources.commands.accept()).await;
    let detail = outcome.as_ref().map(|accepted| format!("rule {}: {}", accepted.rule, accepted.figures));
    audit(&desk, "authz-accept", caller, detail.map_err(ToString::to_string));
    answered(outcome)
}

pub(super) async fn roll_back(Operator(caller): Operator, State(desk): State<Desk>) -> Response {
    let outcome = asked(caller, desk.sources.commands.roll_back()).await;
    let detail = outcome.as_ref().map(|done| format!("from generation {} to {}", done.from.0, done.to.0));
    audit(&desk, "authz-rollback", caller, detail.map_err(ToString::to_string));
    answered(outcome)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "the control thread has not answered in time; it may still do what it was told: `sluicegate authz status` \
         says what came of it"
    )]
    Silent,
}

/// The control thread may have to finish a read, which `store.statement_timeout` bounds.
async fn asked<T>(
    caller: Caller,
    answer: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, AskError> {
    let connection_time = match caller {
        Caller::Local { .. } => local::CONNECTION_TIME,
        Caller::Remote(_) => http::CONNECTION_TIME,
    };
    match tokio::time::timeout(connection_time - TIME_TO_TELL, answer).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(AskError::Silent),
    }
}

fn answered<T: Serialize>(outcome: Result<T, AskError>) -> Response {
    let status = match outcome {
        Ok(done) => return Json(done).into_response(),
        Err(AskError::Command(_)) => StatusCode::CONFLICT,
        Err(AskError::Silent) => StatusCode::GATEWAY_TIMEOUT,
    };
    let error = outcome.err().map(|error| error.to_string());
    (status, Json(json!({ "error": error }))).into_response()
}

/// What is left of a connection's time to say that it is over.
const TIME_TO_TELL: Duration = Duration::from_secs(1);
