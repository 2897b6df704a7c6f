//! Whether clients are refused what the baseline allows.
//!
//! Engines report such refusals: they decide once more by what is in force with the inferred losses of the window given
//! back. An explicit end explains itself and is never among them. One refusal is a person's work; many, of several
//! subjects, or of one that carries most of the traffic, are a query that slipped within its budget.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::report::GuardReport;
use crate::authz::{Authority, DeviceId, PrincipalId, Refusal, Regression, Snapshot, UnixMillis};
use crate::config::{Config, OnRegression, Regressions};
use crate::telemetry::Cause;

/// See the module.
pub(super) struct Probation {
    report: GuardReport,
    limits: Regressions,
    on_regression: OnRegression,
    time: Duration,
    /// Newest regression of each pair whose refusal says that a right is gone.
    rights: Pairs,
    window: Window,
    /// Regressions so far.
    total: u64,
}

/// Evidence against what is in force.
#[derive(Debug)]
pub(super) struct Evidence {
    pub figures: String,
    pub examples: Vec<String>,
    /// What is lost are locations, and not rights.
    pub is_of_locations: bool,
}

/// Regressions, one for each pair of principal and device.
#[derive(Default)]
struct Pairs {
    pairs: HashMap<(PrincipalId, DeviceId), (Regression, Instant)>,
}

/// The result of recording a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PairRecord {
    New,
    Known,
    NoRoom,
}

/// Decisions and regressions of the last seconds.
#[derive(Default)]
struct Window {
    /// Number of decisions at each poll.
    decided: VecDeque<(Instant, u64)>,
    regressions: VecDeque<(Instant, PrincipalId)>,
}

impl Probation {
    pub(super) fn new(config: &Config, report: GuardReport) -> Self {
        let guard = &config.authz.guard;
        Self {
            report,
            limits: guard.max_regressions,
            on_regression: guard.on_regression,
            time: guard.probation,
            rights: Pairs::default(),
            window: Window::default(),
            total: 0,
        }
    }

    pub(super) fn reconfigure(&mut self, config: &Config) {
        let guard = &config.authz.guard;
        (self.limits, self.on_regression, self.time) =
            (guard.max_regressions, guard.on_regression, guard.probation);
    }

    pub(super) fn on_regression(&self) -> OnRegression {
        self.on_regression
    }

    /// Fetches what the engines report, and says whether it is too much. `losses` is how many rows were taken away
    /// within the window.
    pub(super) fn poll(
        &mut self,
        authority: &Authority,
        in_force: &Snapshot,
        losses: usize,
        clock: UnixMillis,
    ) -> Option<Evidence> {
        let now = Instant::now();
        let mut decided = 0;
        for decision_log in authority.decision_logs() {
            decided += decision_log.decided();
            decision_log.drain_allowed(drop);
            decision_log.drain_regressions(|regression| self.record(regression, in_force, now));
        }
        self.window.turn(now, decided);
        self.rights.forget_older_than(now, self.time);
        if self.time.is_zero() || losses == 0 {
            return None;
        }
        self.too_many(losses)?;
        self.forget_mended(authority, clock);
        self.too_many(losses)
    }

    /// Forgets the refusals of what is allowed again: a mend speaks for all that it gave back, and they are no evidence
    /// against what is left.
    fn forget_mended(&mut self, authority: &Authority, clock: UnixMillis) {
        let view = authority.pin();
        self.rights.pairs.retain(|_, (regression, _)| view.right(&regression.query, clock).is_none());
        let Self { rights, window, .. } = self;
        let refused = rights.principals();
        window.regressions.retain(|(_, principal)| refused.contains(principal));
    }

    /// What is in force is another's word: by an undoing or by a person.
    pub(super) fn begin_anew(&mut self) {
        self.rights = Pairs::default();
        self.window = Window::default();
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn record(&mut self, regression: Regression, in_force: &Snapshot, now: Instant) {
        // A device that is gone or offline is no right that was lost: its row says so itself, twice over.
        let is_gone =
            regression.refusal == Refusal::DeviceUnknown && in_force.device(regression.device).is_none();
        if is_gone || regression.refusal.is_of_location() {
            return;
        }
        self.total += 1;
        self.window.record(regression.principal, now);
        if self.rights.record(regression, now) == PairRecord::New {
            self.report.regressed(&regression);
        }
    }

    fn too_many(&self, losses: usize) -> Option<Evidence> {
        let limits = &self.limits;
        let subjects = self.rights.principals().len();
        if self.rights.pairs.len() >= limits.pairs && subjects >= limits.principals {
            let figures = format!(
                "{} pairs of principal and device, of {subjects} principals, are refused what the baseline allows; \
                 authz.guard.max_regressions is {} pairs of {} principals",
                self.rights.pairs.len(),
                limits.pairs,
                limits.principals
            );
            return Some(self.rights.evidence(figures));
        }
        let (regressions, decided) = (self.window.regressions.len(), self.window.decisions());
        let share = regressions as f64 / decided.max(1) as f64;
        let is_of_many = self.window.principals() >= limits.principals && share > limits.share;
        // One row that ended refuses one subject, who may be the whole traffic: that is no slip.
        let is_of_one = share > MOST_OF_TRAFFIC && losses >= SINGLE_SUBJECT_LOSSES;
        if regressions < limits.decisions || !(is_of_many || is_of_one) {
            return None;
        }
        let figures = format!(
            "{regressions} of {decided} decisions within {} s refuse what the baseline allows; \
             authz.guard.max_regressions is {} %",
            WINDOW.as_secs(),
            limits.share * 100.0
        );
        Some(self.rights.evidence(figures))
    }
}

impl Pairs {
    fn record(&mut self, regression: Regression, now: Instant) -> PairRecord {
        let pair = (regression.principal, regression.device);
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&pair) {
            return PairRecord::NoRoom;
        }
        match self.pairs.insert(pair, (regression, now)) {
            Some(_) => PairRecord::Known,
            None => PairRecord::New,
        }
    }

    fn forget_older_than(&mut self, now: Instant, age: Duration) {
        self.pairs.retain(|_, (_, at)| now - *at <= age);
    }

    fn principals(&self) -> HashSet<PrincipalId> {
        self.pairs.keys().map(|(principal, _)| *principal).collect()
    }

    fn evidence(&self, figures: String) -> Evidence {
        let example = |regression: &Regression| {
            let Regression { principal, device, refusal, .. } = regression;
            format!("principal {} on device {} ({})", principal.0, device.0, Cause::from(*refusal))
        };
        let examples = self.pairs.values().take(EXAMPLES_MAX).map(|(regression, _)| example(regression));
        Evidence { figures, examples: examples.collect(), is_of_locations: false }
    }
}

impl Window {
    fn turn(&mut self, now: Instant, decided: u64) {
        self.decided.push_back((now, decided));
        while self.decided.len() > 1 && now - self.decided[0].0 > WINDOW {
            self.decided.pop_front();
        }
        while self.regressions.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.regressions.pop_front();
        }
    }

    fn record(&mut self, principal: PrincipalId, now: Instant) {
        if self.regressions.len() < WINDOW_REGRESSIONS_MAX {
            self.regressions.push_back((now, principal));
        }
    }

    fn decisions(&self) -> u64 {
        let ends = self.decided.front().zip(self.decided.back());
        ends.map_or(0, |((_, first), (_, last))| last.saturating_sub(*first))
    }

    fn principals(&self) -> usize {
        self.regressions.iter().map(|(_, principal)| principal).collect::<HashSet<_>>().len()
    }
}

/// Over which the share of regressions is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// Regressions that are counted within the window. Far more than it takes.
const WINDOW_REGRESSIONS_MAX: usize = 100_000;

/// Pairs that are remembered.
const PAIRS_MAX: usize = 1_000;

/// Refused pairs that a report names.
const EXAMPLES_MAX: usize = 5;

/// Share of all decisions from which one subject's refusals are evidence.
const MOST_OF_TRAFFIC: f64 = 0.5;

/// Rows that must have been taken away for that.
const SINGLE_SUBJECT_LOSSES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Query;

    #[test]
    fn a_reload_replaces_the_times_and_bounds() {
        let mut config = Config::default();
        let report = GuardReport::new(crate::telemetry::AuditSender::disabled());
        let mut probation = Probation::new(&config, report);
        config.authz.guard.probation = Duration::from_secs(7);
        config.authz.guard.on_regression = OnRegression::Alarm;
        config.authz.guard.max_regressions.pairs = 7;
        probation.reconfigure(&config);
        assert_eq!(probation.time, Duration::from_secs(7));
        assert_eq!(probation.on_regression(), OnRegression::Alarm);
        assert_eq!(probation.limits, config.authz.guard.max_regressions);
    }

    #[test]
    fn a_million_pairs_and_refusals_take_no_more_room_than_their_bounds() {
        let (mut pairs, mut window, now) = (Pairs::default(), Window::default(), Instant::now());
        for number in 0..1_000_000 {
            let (principal, device) = (PrincipalId(number), DeviceId(number));
            let query = Query { subject: None, device: None, port: 22 };
            let refusal = Refusal::CredentialUnknown;
            pairs.record(Regression { query, refusal, principal, device, address: None }, now);
            window.record(principal, now);
        }
        assert_eq!((pairs.pairs.len(), window.regressions.len()), (PAIRS_MAX, WINDOW_REGRESSIONS_MAX));
        window.turn(now + 2 * WINDOW, 0);
        assert!(window.regressions.is_empty());
    }
}
