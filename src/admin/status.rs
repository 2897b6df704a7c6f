//! `/status.json`: how the node is doing, in figures that only ever grow and in a few that are of now.
//!
//! Whoever asks twice and subtracts has rates; so the node keeps none for anybody.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Json, http};
use serde_json::{Map, Value, json};

use super::caller::{Denied, Viewer};
use super::{AdminState, ProbeStatus, Readiness, Sources, threads};
use crate::authz::UnixMillis;
use crate::control::{Rule, Status};
use crate::engine::Neighbours;
use crate::telemetry::{Cause, Counter, EngineCounters, Handshake, SLOWEST_KEPT};

pub(super) async fn status(viewer: Result<Viewer, Denied>, State(desk): State<AdminState>) -> Response {
    let is_viewer = match viewer {
        Ok(Viewer) => true,
        Err(Denied::NoToken | Denied::NotFromHere | Denied::ReadOnly) => false,
        // Somebody means to be let in, and should know that they are not.
        Err(denied @ (Denied::WrongToken | Denied::TooManyWrong)) => return denied.into_response(),
    };
    let mut body = of_everybody(&desk, is_viewer);
    if is_viewer {
        // An engine that lists no sessions is no reason to show nothing.
        body["top"] = match desk.roster.list(&desk.sources.engine).await {
            Ok(listing) => json!(listing.fastest(TOP_SESSIONS)),
            Err(_) => Value::Null,
        };
    }
    ([(http::header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// What there is to know of the control thread.
pub(super) fn source(status: &Status) -> Value {
    let holds: Map<_, _> = Rule::ALL
        .iter()
        .zip(status.holds)
        .map(|(rule, holds)| (rule.name().to_owned(), holds.into()))
        .collect();
    json!({
        "store": status.store,
        "generation": status.generation,
        "rows": {
            "credentials": status.rows.credentials,
            "grants": status.rows.grants,
            "devices": status.rows.devices,
        },
        "confirmed_at": status.confirmed_at,
        "last_error": status.last_error,
        "hold": status.hold,
        "holds": holds,
        "quarantined": status.quarantined,
        "absences_waiting": status.absences_waiting,
        "absences_honoured": status.absences_honoured,
        "on_probation": status.on_probation,
        "regressions": status.regressions,
        "rollbacks": status.rollbacks,
        "rights_not_understood": status.warnings.not_understood.count,
        "warnings": status.warnings.lines(),
    })
}

fn of_everybody(desk: &AdminState, is_viewer: bool) -> Value {
    let sources = &desk.sources;
    let sum = |of: fn(&EngineCounters) -> &Counter| -> u64 {
        sources.engine.counters().map(|engine| of(engine).get()).sum()
    };
    let (state, why) = readiness(sources.readiness());
    let mut source = source(&sources.control.get());
    if !is_viewer {
        // They name hosts and rows.
        source["store"] = Value::Null;
        if !source["last_error"].is_null() {
            source["last_error"] = "the store cannot be read".into();
        }
        if !source["hold"].is_null() {
            source["hold"]["examples"] = json!([]);
        }
    }
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "at": UnixMillis::now(),
        "readiness": state,
        "why": why,
        "sessions": {
            "active": sum(|engine| &engine.sessions.active),
            "max": sources.engine.sessions_max(),
            "accepted": sum(|engine| &engine.sessions.accepted),
            "refused": sum(|engine| &engine.sessions.refused),
            "undecided": sum(|engine| &engine.sessions.undecided),
            "opened": sum(|engine| &engine.sessions.tunnels_opened),
            "closed": sum(|engine| &engine.sessions.tunnels_closed),
        },
        "bytes": {
            "up_copied": sum(|engine| &engine.hot.bytes_up_copied),
            "up_spliced": sum(|engine| &engine.hot.bytes_up_spliced),
            "up_tls": sum(|engine| &engine.hot.bytes_up_tls),
            "down_copied": sum(|engine| &engine.hot.bytes_down_copied),
            "down_spliced": sum(|engine| &engine.hot.bytes_down_spliced),
            "down_tls": sum(|engine| &engine.hot.bytes_down_tls),
        },
        "refusals": refusals(sources),
        "probe": probe(sources, is_viewer),
        "source": source,
        "nodes": nodes(sources),
        "threads": threads::all(&sources.engine),
        "slowest": slowest(sources, is_viewer),
        "top": null,
        "may": { "see_sessions": is_viewer, "end_with_token": desk.gate.has_token() },
    })
}

fn readiness(readiness: Readiness) -> (&'static str, Option<String>) {
    match readiness {
        Readiness::Ready => ("ready", None),
        Readiness::Holding(rule) => ("holding", Some(format!("rule {rule}"))),
        Readiness::Draining => ("draining", None),
        Readiness::Undecided(cause) => ("undecided", Some(cause.to_string())),
    }
}

/// How many there are, and not which.
fn nodes(sources: &Sources) -> Value {
    let Neighbours { fresh, stale } = sources.engine.neighbours();
    json!({ "fresh": fresh, "stale": stale })
}

/// Why it fails names hosts and files, which are not everybody's business.
fn probe(sources: &Sources, is_viewer: bool) -> ProbeStatus {
    let mut probe = sources.probe.get();
    for path in [&mut probe.local, &mut probe.forwarded] {
        if let Some(failure) = path.last.as_mut().and_then(|last| last.failure.as_mut())
            && !is_viewer
        {
            *failure = "the node's own client is not served".to_owned();
        }
    }
    probe
}

/// Refusals so far, by their true cause.
fn refusals(sources: &Sources) -> BTreeMap<Cause, u64> {
    let mut causes = BTreeMap::<Cause, u64>::new();
    for (label, count) in sources.engine.counters().flat_map(|engine| engine.refusals.nonzero()) {
        *causes.entry(label.cause).or_default() += count;
    }
    causes
}

fn slowest(sources: &Sources, is_viewer: bool) -> Vec<Value> {
    let now = UnixMillis::now();
    let mut all: Vec<Handshake> =
        sources.engine.counters().flat_map(|engine| engine.slowest_handshakes.get(now)).collect();
    all.sort_by_key(|handshake| std::cmp::Reverse(handshake.us));
    all.truncate(SLOWEST_KEPT);
    let shown = |handshake: Handshake| {
        json!({
            "at": handshake.at,
            "us": handshake.us,
            "outcome": handshake.outcome(),
            "session": is_viewer.then(|| handshake.session.to_string()),
            "uuid": handshake.uuid.filter(|_| is_viewer),
            "port": handshake.port.filter(|_| is_viewer),
        })
    };
    all.into_iter().map(shown).collect()
}

/// As many as a screen shows.
const TOP_SESSIONS: usize = 20;
