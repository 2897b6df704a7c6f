//! `/drain`: takes the node out of service for a while, and back.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::api::{DrainBegun, DrainEnded, DrainRequest};
use super::caller::{Caller, Operator, audit};
use super::node_requests::RequestError;
use super::response::JsonBody;
use super::{AdminState, response};

/// Begins a drain, or changes how long the present one lasts.
pub(super) async fn begin(
    Operator(caller): Operator,
    State(state): State<AdminState>,
    JsonBody(DrainRequest { lasts }): JsonBody<DrainRequest>,
) -> Response {
    let begun = state.sources.requests.drain(lasts).await;
    let detail = |begun: &DrainBegun| match lasts {
        Some(lasts) => format!("for {}", humantime::format_duration(lasts)),
        None => {
            format!("until it is told to serve; lame duck {}", humantime::format_duration(begun.lame_duck))
        }
    };
    reply(&state, "drain", caller, begun, detail)
}

pub(super) async fn cancel(Operator(caller): Operator, State(state): State<AdminState>) -> Response {
    let ended = state.sources.requests.serve().await;
    let detail = |ended: &DrainEnded| match ended.was_draining {
        true => "new clients are served again".to_owned(),
        false => "it did not drain".to_owned(),
    };
    reply(&state, "drain-cancel", caller, ended, detail)
}

fn reply<T: Serialize>(
    state: &AdminState,
    command: &'static str,
    caller: Caller,
    outcome: Result<T, RequestError>,
    detail: impl FnOnce(&T) -> String,
) -> Response {
    audit(state, command, caller, outcome.as_ref().map(detail).map_err(ToString::to_string));
    match outcome {
        Ok(done) => response::json(&done),
        Err(error @ RequestError::Busy) => {
            response::failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        Err(error @ RequestError::Gone) => response::failure(StatusCode::CONFLICT, error.to_string()),
    }
}
