//! Liveness, readiness and metrics.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::readiness::Readiness;
use super::{AdminState, Sources, certificates, metrics as rendered};

/// 200 while the process runs and every engine thread turns.
pub(super) async fn livez(State(state): State<AdminState>) -> Response {
    match state.liveness.trouble(&state.sources.engine).await {
        None => "ok\n".into_response(),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response(),
    }
}

pub(super) async fn readyz(State(state): State<AdminState>) -> Response {
    answer(&state).await.into_response()
}

/// Answers as [`readyz`] does, by one word: more people may reach `admin.health_address`.
pub(super) async fn readyz_state(State(state): State<AdminState>) -> Response {
    match answer(&state).await.0 {
        StatusCode::OK => "ready\n".into_response(),
        code => (code, "not ready\n").into_response(),
    }
}

async fn answer(state: &AdminState) -> (StatusCode, String) {
    let AdminState { sources, liveness, .. } = state;
    if let Some(trouble) = liveness.trouble(&sources.engine).await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n"));
    }
    let answer = match sources.readiness() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::Holding(subjects) => (StatusCode::OK, format!("ready, holding {subjects}\n")),
        Readiness::Impaired(why) => (StatusCode::OK, format!("ready, but {why}\n")),
        Readiness::Draining(_) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        Readiness::Unable(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        Readiness::Undecided(cause, None) => (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n")),
        Readiness::Undecided(cause, Some(why)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}: {why}\n"))
        }
    };
    certificates::amend_readiness(answer, &sources.engine)
}

pub(super) async fn metrics(headers: HeaderMap, State(sources): State<Sources>) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = rendered::Format::accepted_by(accept);
    match rendered::render(sources, format) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
