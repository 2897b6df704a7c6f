//! `/reload`: has the node read its configuration again, and says what came of it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::api::{ReloadAnswer, ReloadRequested};
use super::caller::{Operator, Viewer, audit};
use super::node_requests::RequestError;
use super::{AdminState, response};

/// Begins a reload. It may take as long as two reads of the store, so its outcome is asked for apart.
pub(super) async fn begin(Operator(caller): Operator, State(state): State<AdminState>) -> Response {
    let requested = state.sources.requests.reload();
    let detail = requested.map(|number| format!("reload {number} begins"));
    audit(&state, "reload", caller, detail.map_err(|error| error.to_string()));
    match requested {
        Ok(number) => response::json(&ReloadRequested { number }),
        Err(error @ RequestError::Busy) => {
            response::failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        Err(error @ RequestError::Gone) => response::failure(StatusCode::CONFLICT, error.to_string()),
    }
}

pub(super) async fn outcome(
    _viewer: Viewer,
    Path(number): Path<u64>,
    State(state): State<AdminState>,
) -> Response {
    match state.sources.requests.outcome(number) {
        Ok(outcome) => response::json(&ReloadAnswer { outcome }),
        Err(unknown) => response::failure(StatusCode::NOT_FOUND, unknown.to_string()),
    }
}
