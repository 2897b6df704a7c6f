//! What the guard holds, and what to do about it.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::caller::{Caller, Operator, Viewer, audit};
use super::connection::{LOCAL_TIME_MAX, REMOTE_TIME_MAX};
use super::{AdminState, status as shown};
use crate::config::{Queries, RelationQuery};
use crate::control::{CommandError, DiffReport, QueriesError};

pub(super) async fn status(_viewer: Viewer, State(desk): State<AdminState>) -> Json<Value> {
    Json(shown::source(&desk.sources.control.get()))
}

pub(super) async fn diff(
    _viewer: Viewer,
    Extension(caller): Extension<Caller>,
    State(desk): State<AdminState>,
) -> Response {
    answered(asked(caller, desk.sources.commands.diff()).await)
}

/// Queries to be compared with those that run, each the text of a SELECT.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateQueries {
    pub credentials: Option<String>,
    pub grants: Option<String>,
    pub devices: Option<String>,
}

/// Has the store run whatever somebody asks it to, with the relay's rights: for operators.
pub(super) async fn compare(
    Operator(caller): Operator,
    State(desk): State<AdminState>,
    Json(candidate): Json<CandidateQueries>,
) -> Response {
    let outcome = asked(caller, desk.sources.commands.compare(candidate.into())).await;
    let detail = match &outcome {
        Ok(DiffReport { hold: Some(refused), .. }) => Ok(format!("refused by {}", refused.hold)),
        Ok(_) => Ok("the guard would let them".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    audit(&desk, "authz-compare", caller, detail);
    answered(outcome)
}

impl From<CandidateQueries> for Queries {
    fn from(candidate: CandidateQueries) -> Self {
        let query = |sql: Option<String>| sql.map(|sql| RelationQuery { file: "candidate".into(), sql });
        Self {
            credentials: query(candidate.credentials),
            grants: query(candidate.grants),
            devices: query(candidate.devices),
        }
    }
}

pub(super) async fn accept(Operator(caller): Operator, State(desk): State<AdminState>) -> Response {
    let outcome = asked(caller, desk.sources.commands.accept()).await;
    let detail = outcome.as_ref().map(|accepted| format!("rule {}: {}", accepted.rule, accepted.figures));
    audit(&desk, "authz-accept", caller, detail.map_err(ToString::to_string));
    answered(outcome)
}

pub(super) async fn roll_back(Operator(caller): Operator, State(desk): State<AdminState>) -> Response {
    let outcome = asked(caller, desk.sources.commands.roll_back()).await;
    let detail = outcome.as_ref().map(|done| format!("from generation {} to {}", done.from.0, done.to.0));
    audit(&desk, "authz-rollback", caller, detail.map_err(ToString::to_string));
    answered(outcome)
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Queries(#[from] QueriesError),
    #[error(
        "the control thread has not answered in time; it may still do what it was told: `sluicegate authz status` \
         says what came of it"
    )]
    Silent,
}

/// The control thread may have to finish a read, which `store.statement_timeout` bounds.
async fn asked<T, E: Into<AskError>>(
    caller: Caller,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, AskError> {
    let connection_time = match caller {
        Caller::Local { .. } => LOCAL_TIME_MAX,
        Caller::Remote(_) => REMOTE_TIME_MAX,
    };
    match tokio::time::timeout(connection_time - TIME_TO_TELL, answer).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(AskError::Silent),
    }
}

fn answered<T: Serialize>(outcome: Result<T, AskError>) -> Response {
    let status = match outcome {
        Ok(done) => return Json(done).into_response(),
        Err(AskError::Command(_) | AskError::Queries(_)) => StatusCode::CONFLICT,
        Err(AskError::Silent) => StatusCode::GATEWAY_TIMEOUT,
    };
    let error = outcome.err().map(|error| error.to_string());
    (status, Json(json!({ "error": error }))).into_response()
}

/// What is left of a connection's time to say that it is over.
const TIME_TO_TELL: Duration = Duration::from_secs(1);
