//! What stands between a read of the store and its publication.
//!
//! One file per rule; each checks the candidate and either lets it pass or says why not. Between two reads the guard
//! keeps only the waiver of an operator's `authz accept`. It publishes nothing: `admission` decides what is held,
//! honoured or published.

mod addresses;
mod bounds;
mod canaries;
mod contract;
mod decode;
mod difference;
mod location;
mod loss;
mod network_answer;
mod peers;
mod probe;
mod references;
mod replay;
#[cfg(test)]
mod tests;
mod unique;
mod whose_address;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::authz::{Revocations, RowCounts, Snapshot, UnixMillis};
use crate::config::{self, Allowance, Config};
use crate::store::{Quarantined, Relation};

use canaries::Canaries;
pub(super) use contract::broken_contract;
pub(super) use difference::{Changed, Difference, Touched, is_live_credential, is_live_grant};
pub(super) use location::Unlocated;
pub(super) use loss::{Since, revokes_everything};
pub(super) use network_answer::NetworkAnswer;
pub(super) use peers::{DisplacedDevices, PeerAnswer, PeerPolls};
pub(super) use probe::{ProbeTarget, Prober};
pub(super) use replay::Replay;
pub(super) use unique::Duplicates;

/// The rules that a candidate can fail, in the order of the checks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The store answers as the contract says.
    Contract,
    /// Rows decode.
    Decode,
    /// No key is there twice.
    Unique,
    /// Each relation has about as many rows as it should.
    Bounds,
    /// Questions with known answers are answered so.
    Canaries,
    /// Nothing vanishes without a revocation.
    Loss,
    /// Grants name principals and targets that are there.
    References,
    /// Devices lie in the networks that may be dialled.
    Addresses,
    /// Devices that the store loses sight of are really gone.
    Location,
    /// Recently allowed requests stay allowed.
    Replay,
    /// A publication does not refuse what the generation before allowed.
    Probation,
    /// An operator has gone back to the generation before.
    Operator,
    /// A changed query brings nothing back that is revoked.
    Revival,
}

/// The guard's verdict on a candidate.
#[derive(Debug)]
pub(super) enum Verdict {
    Publish,
    /// The network, or another node, was asked and has not answered yet.
    Wait,
    Hold(Hold),
}

/// Reason why the last good snapshot stays in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hold {
    pub rule: Rule,
    /// The count, and its limit.
    pub figures: String,
    /// Names of some of the rows, as in listings.
    pub examples: Vec<String>,
    /// Size of the problem, to compare with another hold by the same rule.
    #[serde(skip)]
    pub extent: usize,
}

/// A candidate for publication, beside the snapshot in force.
pub(super) struct Candidate<'a> {
    /// The store's answer, with the last good versions of quarantined rows.
    pub store: &'a Snapshot,
    /// Difference from the snapshot in force; empty while there is none.
    pub difference: &'a Difference,
    /// Rows in force that are not revoked.
    pub live: RowCounts,
    /// All known revocations, with those of this read.
    pub revocations: &'a Revocations,
    pub duplicates: &'a Duplicates,
    /// Rows that do not decode, and some of them.
    pub bad_rows: usize,
    pub bad_examples: &'a [Quarantined],
    /// Scope of the read: all rows, or those that the outbox named.
    pub read: ReadScope,
    /// The network's answer about devices without a location, where those are too many.
    pub unlocated: Option<(&'a Unlocated, NetworkAnswer)>,
    /// The peers' answer about devices that they hold no more, where those are too many.
    pub displaced: PeerAnswer,
    pub now: UnixMillis,
}

/// The scope of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReadScope {
    /// Every row. A row that a query does not return counts as absent.
    Everything,
    /// The rows that the outbox named. It names absent rows, too.
    Changes,
}

/// The rules, as they are configured.
pub(super) struct Guard {
    /// Waiver of an operator, as long as the problem gets no worse and is not mended.
    waiver: Option<Waiver>,
    config: config::GuardConfig,
    vpn: config::Vpn,
    canaries: Canaries,
}

/// A rule that may fail as badly as it did.
struct Waiver {
    rule: Rule,
    extent: usize,
    used: bool,
}

impl Guard {
    pub(super) fn new(config: &Config) -> Self {
        let guard = config.authz.guard.clone();
        let canaries = Canaries::new(&guard, config.vpn.node.as_deref());
        Self { waiver: None, canaries, vpn: config.vpn.clone(), config: guard }
    }

    /// Rows of a relation that may vanish.
    pub(super) fn max_loss(&self) -> Allowance {
        self.config.max_loss
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.config.enabled
    }

    /// Devices that the network is to be asked about before [`Guard::judge`].
    pub(super) fn unlocated(&self, difference: &Difference, in_force: &Snapshot) -> Option<Unlocated> {
        Unlocated::among(difference, in_force, &self.config, self.vpn.node.as_deref())
    }

    /// Devices that other nodes are to be asked about before [`Guard::judge`].
    pub(super) fn displaced(
        &self,
        difference: &Difference,
        in_force: &Snapshot,
        candidate: &Snapshot,
    ) -> Vec<DisplacedDevices> {
        DisplacedDevices::among(difference, in_force, candidate, &self.config, &self.vpn)
    }

    /// A person accepts what `hold` is about, and what will be held for the same.
    pub(super) fn waive(&mut self, hold: &Hold) {
        self.waiver = Some(Waiver { rule: hold.rule, extent: hold.extent, used: false });
    }

    /// Asks rule after rule; the first that the candidate fails decides. `replay` is `None` while nothing is
    /// in force.
    pub(super) fn judge(&mut self, candidate: &Candidate<'_>, replay: Option<Replay<'_>>) -> Verdict {
        if let Err(hold) = self.check(candidate) {
            return Verdict::Hold(hold);
        }
        if let Some((unlocated, network)) = candidate.unlocated
            && let verdict @ (Verdict::Wait | Verdict::Hold(_)) = unlocated.verdict(network)
        {
            return verdict;
        }
        match &candidate.displaced {
            PeerAnswer::Agrees => {}
            PeerAnswer::Awaited => return Verdict::Wait,
            PeerAnswer::Contradicts(hold) => return Verdict::Hold(hold.clone()),
        }
        match replay.map(|replay| replay::check(candidate, replay, self.config.max_replay_failures)) {
            Some(Err(hold)) => Verdict::Hold(hold),
            Some(Ok(())) | None => Verdict::Publish,
        }
    }

    /// Judges a candidate that is not to be published, without any waiver. The caller judges its locations
    /// itself.
    pub(super) fn judge_once(&self, candidate: &Candidate<'_>, replay: Replay<'_>) -> Result<(), Hold> {
        self.check_rows(candidate).into_iter().collect::<Result<(), Hold>>()?;
        self.check_changes(candidate)?;
        replay::check(candidate, replay, self.config.max_replay_failures)
    }

    fn check(&mut self, candidate: &Candidate<'_>) -> Result<(), Hold> {
        self.check_rows(candidate).into_iter().try_for_each(|outcome| self.pass(outcome))?;
        // One that nothing needs any more is over.
        self.waiver =
            self.waiver.take().filter(|waiver| waiver.used).map(|waiver| Waiver { used: false, ..waiver });
        self.check_changes(candidate)
    }

    fn check_rows(&self, candidate: &Candidate<'_>) -> [Result<(), Hold>; 4] {
        [
            decode::check(candidate, self.config.max_bad_rows),
            unique::check(candidate),
            bounds::check(candidate, &self.config.bounds),
            self.canaries.check(candidate),
        ]
    }

    fn check_changes(&self, candidate: &Candidate<'_>) -> Result<(), Hold> {
        loss::check(candidate, self.config.max_loss)?;
        references::check(candidate, self.config.max_dangling)?;
        addresses::check(candidate, self.config.max_outside, &self.vpn)
    }

    /// Lets the outcome of a rule about rows pass where the waiver covers it. A rule about changes needs none: once a
    /// change was accepted and published, it is no change any more.
    fn pass(&mut self, outcome: Result<(), Hold>) -> Result<(), Hold> {
        match (outcome, &mut self.waiver) {
            (Err(hold), Some(waiver)) if waiver.rule == hold.rule && hold.extent <= waiver.extent => {
                waiver.used = true;
                Ok(())
            }
            (outcome, _) => outcome,
        }
    }
}

impl Rule {
    pub const ALL: [Self; 13] = [
        Self::Contract,
        Self::Decode,
        Self::Unique,
        Self::Bounds,
        Self::Canaries,
        Self::Loss,
        Self::References,
        Self::Addresses,
        Self::Location,
        Self::Replay,
        Self::Probation,
        Self::Operator,
        Self::Revival,
    ];

    /// The name of the rule in metrics, logs and commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contract => "contract",
            Self::Decode => "decode",
            Self::Unique => "unique",
            Self::Bounds => "bounds",
            Self::Canaries => "canaries",
            Self::Loss => "loss",
            Self::References => "references",
            Self::Addresses => "addresses",
            Self::Location => "location",
            Self::Replay => "replay",
            Self::Probation => "probation",
            Self::Operator => "operator",
            Self::Revival => "revival",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Hold {
    /// `examples` may be longer than what is kept of it.
    pub(super) fn new(
        rule: Rule,
        extent: usize,
        figures: String,
        examples: impl IntoIterator<Item = impl ToString>,
    ) -> Self {
        let examples = examples.into_iter().take(EXAMPLES_MAX).map(|example| example.to_string()).collect();
        Self { rule, figures, examples, extent }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}: {}", self.rule, self.figures)?;
        if self.examples.is_empty() {
            return Ok(());
        }
        write!(f, "; such as {}", self.examples.join(", "))
    }
}

/// Each relation with its part of `counts`.
fn by_relation(counts: RowCounts) -> [(Relation, usize); 3] {
    [
        (Relation::Credentials, counts.credentials),
        (Relation::Grants, counts.grants),
        (Relation::Devices, counts.devices),
    ]
}

/// Returns whether `count` of `total` rows exceed the allowance, or are half of the rows or more. One or two rows
/// never do: a person may change them by hand.
fn exceeds(count: usize, total: usize, allowed: Allowance) -> bool {
    allowed.is_exceeded_by(count, total) || (count > PERSONS_WORK_ROWS && count * 2 >= total)
}

/// Rows that one may change by hand in the time of a read.
const PERSONS_WORK_ROWS: usize = 2;

/// Rows that a hold names. Enough to see what they have in common.
const EXAMPLES_MAX: usize = 5;
