//! Whether a publication refuses what the generation before would have allowed, as clients notice.
//!
//! Engines report such refusals. One is a person's work; many, from several principals, are a publication
//! that should not have passed the guard. Refusals for want of a location are put to the network first:
//! devices do go offline.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::guard::{Hold, NetworkAnswer, ProbeTarget, Prober, Rule, Unlocated};
use super::report::GuardReport;
use crate::authz::{Authority, DeviceId, PrincipalId, Query, Regression, Snapshot};
use crate::config::{Config, Regressions};
use crate::telemetry::Cause;

/// See the module.
pub(super) struct Probation {
    report: GuardReport,
    limits: Regressions,
    time: Duration,
    /// Newest regression of each pair whose refusal says that a right is gone.
    rights: Pairs,
    /// Newest regression of each pair whose refusal says that the device has no location.
    locations: Pairs,
    window: Window,
    prober: Prober,
    /// Regressions so far.
    total: u64,
}

/// Evidence against the snapshot in force.
#[derive(Debug)]
pub(super) struct Evidence {
    pub hold: Hold,
    /// Queries that were refused.
    pub queries: Vec<Query>,
    pub lost: LostRight,
}

/// The kind of thing that the refused requesters lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LostRight {
    Rights,
    /// Locations of devices that this node itself could dial.
    Locations,
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
            time: guard.probation,
            rights: Pairs::default(),
            locations: Pairs::default(),
            window: Window::default(),
            prober: Prober::new(config),
            total: 0,
        }
    }

    /// Fetches what the engines report, and says whether it is too much.
    pub(super) fn poll(&mut self, authority: &Authority, in_force: &Snapshot) -> Option<Evidence> {
        let now = Instant::now();
        let mut decided = 0;
        for decision_log in authority.decision_logs() {
            decided += decision_log.decided();
            decision_log.drain_regressions(|regression| self.record(regression, now));
        }
        self.window.turn(now, decided);
        self.rights.forget_older_than(now, self.time);
        self.locations.forget_older_than(now, self.time);
        self.too_many_rights().or_else(|| self.too_many_locations(in_force))
    }

    /// Another snapshot is in force, by a rollback or by a person's word.
    pub(super) fn begin_anew(&mut self) {
        self.rights = Pairs::default();
        self.locations = Pairs::default();
        self.window = Window::default();
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn record(&mut self, regression: Regression, now: Instant) {
        self.total += 1;
        let recorded = if regression.refusal.is_of_location() {
            self.locations.record(regression, now)
        } else {
            self.window.record(regression.principal, now);
            self.rights.record(regression, now)
        };
        if recorded == PairRecord::New {
            self.report.regressed(&regression);
        }
    }

    fn too_many_rights(&self) -> Option<Evidence> {
        let limits = &self.limits;
        if self.rights.exceed(limits) {
            let figures = format!(
                "{} pairs of principal and device, of {} principals, are refused what the generation before \
                 allowed; authz.guard.max_regressions is {} pairs of {} principals",
                self.rights.pairs.len(),
                self.rights.principals(),
                limits.pairs,
                limits.principals
            );
            return Some(self.rights.evidence(figures, LostRight::Rights));
        }
        let (regressions, decided) = (self.window.regressions.len(), self.window.decisions());
        let is_too_large_a_share = regressions >= limits.decisions
            && regressions as f64 > limits.share * decided as f64
            && self.window.principals() >= limits.principals;
        is_too_large_a_share.then(|| {
            let figures = format!(
                "{regressions} of {decided} decisions within {} s refuse what the generation before allowed; \
                 authz.guard.max_regressions is {} %",
                WINDOW.as_secs(),
                limits.share * 100.0
            );
            self.rights.evidence(figures, LostRight::Rights)
        })
    }

    /// Devices that the store has lost sight of one by one. What does not answer either is offline.
    fn too_many_locations(&mut self, in_force: &Snapshot) -> Option<Evidence> {
        if !self.locations.exceed(&self.limits) {
            return None;
        }
        let unlocated = self.locations.unlocated(in_force);
        match self.prober.poll(&unlocated.devices, &unlocated.targets, |_| true) {
            NetworkAnswer::Asked => None,
            NetworkAnswer::Silent | NetworkAnswer::Unasked => {
                self.locations = Pairs::default();
                None
            }
            NetworkAnswer::Answers { answered, sampled } => {
                let figures = format!(
                    "{} pairs of principal and device, of {} principals, are refused for want of a location, \
                     but {answered} of {sampled} devices that were asked answer",
                    self.locations.pairs.len(),
                    self.locations.principals()
                );
                Some(self.locations.evidence(figures, LostRight::Locations))
            }
        }
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

    fn principals(&self) -> usize {
        self.pairs.keys().map(|(principal, _)| principal).collect::<HashSet<_>>().len()
    }

    fn exceed(&self, limits: &Regressions) -> bool {
        self.pairs.len() >= limits.pairs && self.principals() >= limits.principals
    }

    fn evidence(&self, figures: String, lost: LostRight) -> Evidence {
        let regressions = || self.pairs.values().map(|(regression, _)| regression);
        let examples = regressions().map(|regression| {
            let Regression { principal, device, refusal, .. } = regression;
            format!("principal {} on device {} ({})", principal.0, device.0, Cause::from(*refusal))
        });
        Evidence {
            hold: Hold::new(Rule::Probation, self.pairs.len(), figures, examples),
            queries: regressions().map(|regression| regression.query).collect(),
            lost,
        }
    }

    /// Returns the former addresses of the devices, without those that other devices have now.
    fn unlocated(&self, in_force: &Snapshot) -> Unlocated {
        let regressions = || self.pairs.values().map(|(regression, _)| regression);
        let devices: HashSet<DeviceId> = regressions().map(|regression| regression.device).collect();
        let taken: HashSet<_> = in_force
            .devices()
            .filter(|device| !devices.contains(&device.id))
            .filter_map(|device| device.address)
            .collect();
        let targets = regressions().filter_map(|regression| {
            Some(ProbeTarget { device: regression.device, address: regression.address? })
        });
        let targets = targets.filter(|target| !taken.contains(&target.address)).collect();
        Unlocated { total: devices.len(), devices, targets }
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
