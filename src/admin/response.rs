//! JSON responses, and bodies of requests.

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

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

/// The body of a request as JSON. A body that is none is refused like every other failure.
pub(super) struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(refused) => Err(failure(refused.status(), refused.body_text())),
        }
    }
}
