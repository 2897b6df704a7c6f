//! Liveness, readiness and metrics.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::readiness::Readiness;
use super::{Sources, certificates, metrics as rendered};

pub(super) async fn livez() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(sources): State<Sources>) -> Response {
    let answer = match sources.readiness() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::Holding(subjects) => (StatusCode::OK, format!("ready, holding {subjects}\n")),
        Readiness::Impaired(why) => (StatusCode::OK, format!("ready, but {why}\n")),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        Readiness::Unable(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        Readiness::Undecided(cause) => (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n")),
    };
    certificates::amend_readiness(answer, &sources.engine).into_response()
}

pub(super) async fn metrics(State(sources): State<Sources>) -> Response {
    match rendered::render(sources) {
        Ok(text) => ([(header::CONTENT_TYPE, rendered::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
