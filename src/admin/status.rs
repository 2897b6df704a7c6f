//! Builds `/status.json` and `/authz/status` from the state of the node.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::api::{
    ByteCounts, NodeCounts, NodeFigures, NodeIdentity, Null, Permissions, PublicHandshake, PublicHold,
    PublicRelation, PublicSource, PublicStatus, ReadinessState, RowsInForce, STATE_ERROR, STORE_ERROR,
    SessionCounts, SessionId, SlowHandshake, SourceFigures, SourceStatus, StatusReport,
};
use super::caller::{Denied, Viewer};
use super::conditions::Audience;
use super::readiness::Readiness;
use super::{AdminState, Sources, response, threads};
use crate::authz::UnixMillis;
use crate::control::ControlStatus;
use crate::control::api::Rule;
use crate::engine::{DirectoryCounts, ServicePhase};
use crate::sys::confine::confinement;
use crate::telemetry::{Counter, EngineCounters, RequestTiming, SLOWEST_KEPT};

pub(super) async fn status(viewer: Result<Viewer, Denied>, State(state): State<AdminState>) -> Response {
    let body = match viewer {
        Ok(Viewer) => response::json(&report(&state).await),
        Err(Denied::NoToken | Denied::NotFromHere | Denied::ReadOnly) => {
            response::json(&public_status(&state))
        }
        // The requester expects to be let in, and has to know that it was not.
        Err(denied @ (Denied::WrongToken | Denied::TooManyWrong)) => return denied.into_response(),
    };
    ([(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// The store and the guard, for an operator.
pub(super) fn source_status(status: &ControlStatus) -> SourceStatus {
    SourceStatus {
        store: status.store.clone(),
        last_error: status.last_error.clone(),
        holds: status.held.clone(),
        expectations: status.expectations.clone(),
        relations: status.relations.clone(),
        state_unsaved: status.state_unsaved.clone(),
        figures: source_figures(status),
    }
}

async fn report(state: &AdminState) -> StatusReport {
    let sources = &state.sources;
    // The report is worth having without sessions, so an engine that is busy does not fail it.
    let listing = state.sessions.list(sources).await.ok();
    StatusReport {
        figures: node_figures(
            state,
            Permissions { see_sessions: true, end_with_token: state.gate.has_token() },
        ),
        node: identity(sources),
        config: sources.requests.status(),
        confinement: Some(confinement()),
        conditions: sources.conditions(Audience::Operator),
        probe: sources.probe.get(),
        source: source_status(&sources.control.get()),
        slowest: slowest(sources).map(SlowHandshake::from).collect(),
        top: listing.map(|listing| listing.fastest(TOP_SESSIONS).into_iter().cloned().collect()),
    }
}

/// The node, with what each listener has counted.
fn identity(sources: &Sources) -> NodeIdentity {
    let mut node = sources.identity.lock().clone();
    for (place, listener) in node.listeners.iter_mut().enumerate() {
        for counters in sources.engine.counters().filter_map(|engine| engine.listeners.get(place)) {
            listener.counts.sessions += counters.active.get();
            listener.counts.opened += counters.tunnels_opened.get();
            listener.counts.refused += counters.refused.get();
        }
    }
    node
}

fn public_status(state: &AdminState) -> PublicStatus {
    let sources = &state.sources;
    PublicStatus {
        figures: node_figures(
            state,
            Permissions { see_sessions: false, end_with_token: state.gate.has_token() },
        ),
        node: Null,
        config: Null,
        confinement: Null,
        conditions: sources.conditions(Audience::Outsider),
        probe: sources.probe.get().into(),
        source: public_source(&sources.control.get()),
        slowest: slowest(sources).map(PublicHandshake::from).collect(),
        top: Null,
    }
}

fn public_source(status: &ControlStatus) -> PublicSource {
    PublicSource {
        store: Null,
        last_error: status.last_error.as_ref().map(|_| STORE_ERROR),
        holds: status.held.iter().cloned().map(PublicHold::from).collect(),
        expectations: [],
        relations: status.relations.iter().cloned().map(PublicRelation::from).collect(),
        state_unsaved: status.state_unsaved.as_ref().map(|_| STATE_ERROR),
        figures: source_figures(status),
    }
}

fn source_figures(status: &ControlStatus) -> SourceFigures {
    let holds = Rule::ALL.iter().zip(status.hold_counts).map(|(rule, holds)| (rule.name().to_owned(), holds));
    SourceFigures {
        generation: status.generation,
        rows: RowsInForce {
            credentials: status.rows.credentials,
            grants: status.rows.grants,
            devices: status.rows.devices,
        },
        confirmed_at: status.confirmed_at,
        holds_by_rule: holds.collect(),
        budgets: status.budgets.clone(),
        disputed_devices: status.disputed_devices,
        quarantined: status.quarantined,
        absences_waiting: status.absences_waiting,
        absences_honoured: status.absences_honoured,
        on_probation: status.on_probation,
        regressions: status.regressions,
        rollbacks: status.rollbacks,
        rights_not_understood: status.warnings.not_understood.count,
        warnings: status.warnings.lines(),
    }
}

fn node_figures(state: &AdminState, may: Permissions) -> NodeFigures {
    let sources = &state.sources;
    let sum = |of: fn(&EngineCounters) -> &Counter| -> u64 {
        sources.engine.counters().map(|engine| of(engine).get()).sum()
    };
    let (readiness, why) = readiness(sources.readiness());
    let DirectoryCounts { fresh, stale } = sources.engine.directory_counts();
    NodeFigures {
        version: crate::VERSION.to_owned(),
        at: UnixMillis::now(),
        readiness,
        why,
        sessions: SessionCounts {
            active: sum(|engine| &engine.sessions.active) + sources.other.sessions(),
            max: sources.engine.sessions_max().into(),
            accepted: sum(|engine| &engine.sessions.accepted),
            refused: sum(|engine| &engine.sessions.refused),
            undecided: sum(|engine| &engine.sessions.undecided),
            opened: sum(|engine| &engine.sessions.tunnels_opened),
            closed: sum(|engine| &engine.sessions.tunnels_closed),
        },
        bytes: ByteCounts {
            up_copied: sum(|engine| &engine.hot.bytes_up_copied),
            up_spliced: sum(|engine| &engine.hot.bytes_up_spliced),
            up_tls: sum(|engine| &engine.hot.bytes_up_tls),
            down_copied: sum(|engine| &engine.hot.bytes_down_copied),
            down_spliced: sum(|engine| &engine.hot.bytes_down_spliced),
            down_tls: sum(|engine| &engine.hot.bytes_down_tls),
        },
        refusals: refusals(sources),
        nodes: NodeCounts { fresh, stale },
        threads: threads::all(&sources.engine),
        decides_until: sources.authority.decides_until(),
        may,
    }
}

fn readiness(readiness: Readiness) -> (ReadinessState, Option<String>) {
    match readiness {
        Readiness::Ready => (ReadinessState::Ready, None),
        Readiness::Holding(subjects) => (ReadinessState::Holding, Some(subjects)),
        Readiness::Impaired(why) => (ReadinessState::Impaired, Some(why)),
        Readiness::Draining(ServicePhase::LameDuck) => {
            (ReadinessState::Draining, Some("and still serves new clients".to_owned()))
        }
        Readiness::Draining(_) => (ReadinessState::Draining, None),
        Readiness::Unable(missing) => (ReadinessState::Unable, Some(missing)),
        Readiness::Undecided(cause, None) => (ReadinessState::Undecided, Some(cause.to_string())),
        Readiness::Undecided(cause, Some(why)) => {
            (ReadinessState::Undecided, Some(format!("{cause}: {why}")))
        }
    }
}

/// Refusals so far, by their true cause.
fn refusals(sources: &Sources) -> BTreeMap<String, u64> {
    let mut causes = BTreeMap::new();
    for (label, count) in sources.engine.counters().flat_map(|engine| engine.refusals.nonzero()) {
        *causes.entry(label.cause.slug().to_owned()).or_default() += count;
    }
    causes
}

/// The slowest of all threads, the slowest first.
fn slowest(sources: &Sources) -> impl Iterator<Item = RequestTiming> {
    let now = UnixMillis::now();
    let mut all: Vec<RequestTiming> =
        sources.engine.counters().flat_map(|engine| engine.slowest_requests.get(now)).collect();
    all.sort_by_key(|handshake| std::cmp::Reverse(handshake.us));
    all.truncate(SLOWEST_KEPT);
    all.into_iter()
}

impl From<RequestTiming> for SlowHandshake {
    fn from(handshake: RequestTiming) -> Self {
        let outcome = handshake.outcome().into();
        let RequestTiming { at, us, session, uuid, port, .. } = handshake;
        Self { at, us, outcome, session: SessionId(session), uuid, port }
    }
}

impl From<RequestTiming> for PublicHandshake {
    fn from(handshake: RequestTiming) -> Self {
        let RequestTiming { at, us, .. } = handshake;
        Self { at, us, outcome: handshake.outcome(), session: Null, uuid: Null, port: Null }
    }
}

/// Number of sessions in [`StatusReport::top`]; a screen shows no more.
const TOP_SESSIONS: usize = 20;
