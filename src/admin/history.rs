//! The last hour of the node, in a ring of bounded size, so that a page that is opened after an incident shows it.
//!
//! The page draws it. Prometheus keeps more; this is for the machine where nobody looks at a dashboard. It passes to the
//! process that takes over; a restart begins anew.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{AdminState, Sources, response};
use crate::authz::UnixMillis;
use crate::control::api::HoldStatus;
use crate::telemetry::{Cause, Counter, EngineCounters};

/// The points of the last hour. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct History(Arc<Mutex<VecDeque<HistoryPoint>>>);

/// Changes since the point before. They name nobody.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct HistoryPoint {
    at: UnixMillis,
    /// Bytes per second.
    up: u64,
    down: u64,
    /// Sessions at this time.
    sessions: u64,
    /// Tunnels that opened.
    opened: u64,
    /// Refusals by cause, of the [`CAUSES_KEPT`] most frequent ones.
    refusals: BTreeMap<Cow<'static, str>, u64>,
    /// Names of what was held at this time; the first [`HOLDS_KEPT`].
    holds: Vec<String>,
}

/// Counts so far.
#[derive(Clone, Default)]
struct Counts {
    up: u64,
    down: u64,
    opened: u64,
    refusals: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct HistoryReport {
    /// Time between two points.
    every_ms: u64,
    /// The oldest first.
    points: Vec<HistoryPoint>,
}

/// Adds a point every [`EVERY`].
pub(super) async fn record(sources: Sources, history: History) -> std::convert::Infallible {
    let (mut before, mut began) = (Counts::now(&sources), UnixMillis::now());
    loop {
        tokio::time::sleep(EVERY).await;
        let (counts, at) = (Counts::now(&sources), UnixMillis::now());
        let elapsed = Duration::from_millis(at.0.saturating_sub(began.0).max(1) as u64);
        let mut point = counts.since(&before, at, elapsed);
        point.sessions = sources.engine.sessions_active().saturating_add(sources.other.sessions());
        let held = sources.control.get().held;
        point.holds = held.iter().take(HOLDS_KEPT).map(HoldStatus::subject).collect();
        history.add(point);
        (before, began) = (counts, at);
    }
}

pub(super) async fn list(State(state): State<AdminState>) -> Response {
    let points = state.history.0.lock().iter().cloned().collect();
    let report = HistoryReport { every_ms: EVERY.as_millis() as u64, points };
    ([(header::CACHE_CONTROL, "no-store")], response::json(&report)).into_response()
}

/// The sentence of each cause, for people.
pub(super) async fn causes() -> Response {
    let meanings: BTreeMap<&str, &str> =
        Cause::ALL.iter().map(|cause| (cause.slug(), cause.meaning())).collect();
    response::json(&meanings).into_response()
}

impl History {
    /// The points for a process that takes over, the oldest first.
    pub fn to_pass(&self) -> Vec<String> {
        self.0.lock().iter().filter_map(|point| serde_json::to_string(point).ok()).collect()
    }

    /// Puts the points of the process before in front. What this version does not understand is left out.
    pub fn continue_from(&self, passed: &[String]) {
        let passed = passed.iter().filter_map(|point| serde_json::from_str::<HistoryPoint>(point).ok());
        let own = std::mem::take(&mut *self.0.lock());
        let first_own = own.front().map(|point| point.at);
        // While two processes ran, the old one had the clients.
        let earlier = passed.filter(|point| first_own.is_none_or(|first| point.at < first));
        earlier.chain(own.iter().cloned()).for_each(|point| self.add(point));
    }

    fn add(&self, point: HistoryPoint) {
        let mut points = self.0.lock();
        if points.len() >= POINTS_MAX {
            points.pop_front();
        }
        points.push_back(point);
    }
}

impl Counts {
    fn now(sources: &Sources) -> Self {
        let sum = |of: fn(&EngineCounters) -> &Counter| -> u64 {
            sources.engine.counters().map(|engine| of(engine).get()).sum()
        };
        let mut refusals = BTreeMap::new();
        for (label, count) in sources.engine.counters().flat_map(|engine| engine.refusals.nonzero()) {
            *refusals.entry(label.cause.slug()).or_default() += count;
        }
        Self {
            up: sum(|engine| &engine.hot.bytes_up_copied)
                + sum(|engine| &engine.hot.bytes_up_spliced)
                + sum(|engine| &engine.hot.bytes_up_tls),
            down: sum(|engine| &engine.hot.bytes_down_copied)
                + sum(|engine| &engine.hot.bytes_down_spliced)
                + sum(|engine| &engine.hot.bytes_down_tls),
            opened: sum(|engine| &engine.sessions.tunnels_opened),
            refusals,
        }
    }

    /// The point at `at`, `elapsed` after `before`.
    fn since(&self, before: &Self, at: UnixMillis, elapsed: Duration) -> HistoryPoint {
        let per_second =
            |now: u64, then: u64| (now.saturating_sub(then) as f64 / elapsed.as_secs_f64()) as u64;
        let mut refusals: Vec<(&'static str, u64)> = self
            .refusals
            .iter()
            .map(|(cause, count)| {
                (*cause, count.saturating_sub(before.refusals.get(cause).copied().unwrap_or(0)))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        refusals.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        refusals.truncate(CAUSES_KEPT);
        HistoryPoint {
            at,
            up: per_second(self.up, before.up),
            down: per_second(self.down, before.down),
            sessions: 0,
            opened: self.opened.saturating_sub(before.opened),
            refusals: refusals.into_iter().map(|(cause, count)| (Cow::Borrowed(cause), count)).collect(),
            holds: Vec::new(),
        }
    }
}

/// Time between two points.
const EVERY: Duration = Duration::from_secs(10);

/// Points of one hour. With every cause and hold, they take less than 1 MiB.
const POINTS_MAX: usize = 360;

/// Causes that a point keeps; more at once are noise in a picture of an hour.
const CAUSES_KEPT: usize = 8;

/// Holds that a point names.
const HOLDS_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: i64) -> HistoryPoint {
        Counts::default().since(&Counts::default(), UnixMillis(at), EVERY)
    }

    #[test]
    fn a_point_has_what_happened_since_the_one_before() {
        let before =
            Counts { up: 100, down: 0, opened: 3, refusals: [("draining", 5), ("method", 1)].into() };
        let after = Counts {
            up: 2_100,
            down: 30,
            opened: 4,
            refusals: [("draining", 9), ("method", 1), ("no-grant", 2)].into(),
        };
        let point = after.since(&before, UnixMillis(7), EVERY);
        assert_eq!((point.up, point.down, point.opened), (200, 3, 1));
        let expected = [("draining", 4), ("no-grant", 2)].map(|(cause, count)| (Cow::Borrowed(cause), count));
        assert_eq!(point.refusals, expected.into());
    }

    #[test]
    fn a_point_keeps_the_most_frequent_causes() {
        let slugs = Cause::ALL.iter().take(20).map(|cause| cause.slug());
        let after = Counts { refusals: slugs.clone().zip(1..).collect(), ..Counts::default() };
        let kept = after.since(&Counts::default(), UnixMillis(0), EVERY).refusals;
        assert_eq!(kept.len(), CAUSES_KEPT);
        assert!(kept.values().all(|count| *count > (20 - CAUSES_KEPT) as u64), "{kept:?}");
    }

    #[test]
    fn the_ring_has_an_hour_and_no_more() {
        let history = History::default();
        (0..POINTS_MAX as i64 + 5).for_each(|at| history.add(point(at)));
        let points = history.0.lock();
        assert_eq!((points.len(), points[0].at), (POINTS_MAX, UnixMillis(5)));
        assert_eq!(EVERY * POINTS_MAX as u32, Duration::from_secs(60 * 60));
    }

    #[test]
    fn a_process_that_takes_over_goes_on_with_the_points_of_the_one_before() {
        let old = History::default();
        (1..=POINTS_MAX as i64).for_each(|at| old.add(point(at)));
        let new = History::default();
        // Both have one of the time when it started.
        (POINTS_MAX as i64..).take(3).for_each(|at| new.add(point(at)));
        let mut passed = old.to_pass();
        passed.push(r#"{"at":"of a later version"}"#.to_owned());
        new.continue_from(&passed);
        let at: Vec<i64> = new.0.lock().iter().map(|point| point.at.0).collect();
        assert_eq!(at, (3..POINTS_MAX as i64 + 3).collect::<Vec<_>>());
    }
}
