//! The routes, and the bounds of the server behind them.

use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::oneshot;

use super::{Readiness, Sources, metrics};

/// Serves until `stopped` resolves.
pub(super) async fn serve(listener: TcpListener, sources: Sources, stopped: oneshot::Receiver<()>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin side has lost its listener"),
    };
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn(within_time))
        .with_state(sources);
    let serving = axum::serve(listener, routes);
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::error!(%error, "the admin side has ended");
            }
        }
        // A scrape that is under way is not worth waiting for.
        _ = stopped => {}
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(sources): State<Sources>) -> Response {
    match sources.readiness() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        Readiness::Undecided(cause) => (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n")),
    }
    .into_response()
}

async fn metrics(State(sources): State<Sources>) -> Response {
    match metrics::render(sources) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn within_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "too slow\n").into_response(),
    }
}

/// What one request may take, once its head was read.
const REQUEST_TIME: Duration = Duration::from_secs(5);
