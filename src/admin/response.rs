//! JSON responses.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::api::ErrorBody;

/// A response with `body`, its keys in alphabetical order.
pub(super) fn json(body: &impl Serialize) -> Response {
    match serde_json::to_value(body) {
        Ok(sorted) => Json(sorted).into_response(),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

pub(super) fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(ErrorBody { error })).into_response()
}
