//! Paths of the admin side, which are the same over TCP and on the local socket.

use axum::Router;
use axum::routing::{get, post};

use super::{AdminState, authz, drain, health, history, page, reload, sessions, status, upgrade, usage};
use crate::authz::UnixMillis;
use crate::usage::UsageBy;

pub const STATUS: &str = "/status.json";
pub const HISTORY: &str = "/history.json";
pub const CAUSES: &str = "/causes.json";
pub const SESSIONS: &str = "/sessions";
pub const USAGE: &str = "/usage";
pub const RELOAD: &str = "/reload";
pub const DRAIN: &str = "/drain";
pub const DRAIN_CANCEL: &str = "/drain/cancel";
pub const UPGRADE: &str = "/upgrade";
pub const AUTHZ_STATUS: &str = "/authz/status";
pub const AUTHZ_DIFF: &str = "/authz/diff";
pub const AUTHZ_COMPARE: &str = "/authz/compare";
pub const AUTHZ_ACCEPT: &str = "/authz/accept";
pub const AUTHZ_EXPECT: &str = "/authz/expect";
pub const AUTHZ_EXPECT_CLEAR: &str = "/authz/expect/clear";
pub const AUTHZ_HISTORY: &str = "/authz/history";
pub const AUTHZ_ROLLBACK: &str = "/authz/rollback";

/// Path of the outcome of the reload `number`.
pub fn reload_outcome(number: &str) -> String {
    format!("{RELOAD}/{number}")
}

/// Path of the report about use since this time, summed by `by`.
pub fn usage(since: UnixMillis, by: UsageBy) -> String {
    format!("{USAGE}?by={}&since={}", by.word(), since.0)
}

/// Path that ends the session `id`.
pub fn session_end(id: &str) -> String {
    format!("{SESSIONS}/{id}/end")
}

/// The paths that `admin.health_address` serves.
pub(super) fn health_only(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz_state))
        .with_state(state)
}

pub(super) fn all(state: AdminState) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route(STATUS, get(status::status))
        .route(HISTORY, get(history::list))
        .route(CAUSES, get(history::causes))
        .route(SESSIONS, get(sessions::list))
        .route(&session_end("{id}"), post(sessions::end))
        .route(USAGE, get(usage::report))
        .route(RELOAD, post(reload::begin))
        .route(&reload_outcome("{number}"), get(reload::outcome))
        .route(DRAIN, post(drain::begin))
        .route(DRAIN_CANCEL, post(drain::cancel))
        .route(UPGRADE, post(upgrade::upgrade))
        .route(AUTHZ_STATUS, get(authz::status))
        .route(AUTHZ_DIFF, get(authz::diff))
        .route(AUTHZ_COMPARE, post(authz::compare))
        .route(AUTHZ_ACCEPT, post(authz::accept))
        .route(AUTHZ_EXPECT, post(authz::expect))
        .route(AUTHZ_EXPECT_CLEAR, post(authz::clear_expectation))
        .route(AUTHZ_HISTORY, get(authz::history))
        .route(AUTHZ_ROLLBACK, post(authz::roll_back))
        .with_state(state)
}
