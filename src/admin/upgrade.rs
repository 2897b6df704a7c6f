//! `/upgrade`: hands over to the program that is on disk.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::caller::{Operator, audit};
use super::{AdminState, response};
use crate::handover::UpgradeTicket;

/// Answers once the hand-over has succeeded, and its tunnels have moved, or has failed.
pub(super) async fn upgrade(Operator(caller): Operator, State(state): State<AdminState>) -> Response {
    let (ticket, request) = UpgradeTicket::new();
    let outcome = match state.sources.requests.upgrade(Some(ticket)) {
        Ok(()) => request.outcome().await,
        Err(refused) => Err(refused.to_string()),
    };
    let told = outcome.as_ref().map(|outcome| format!("process {}", outcome.pid)).map_err(Clone::clone);
    audit(&state, "upgrade", caller, told);
    match outcome {
        Ok(outcome) => response::json(&outcome),
        Err(why) => response::failure(StatusCode::CONFLICT, why),
    }
}
