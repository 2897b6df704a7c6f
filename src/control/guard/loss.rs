//! Rule `loss`: nothing vanishes without a revocation.
//!
//! An absence is not a revocation. A few are honoured once a second read confirms them, which `absences`
//! sees to; more than that is no deletion, but an answer that is wrong.

use super::{Candidate, Hold, ReadScope, Rule, exceeds, is_live_credential, is_live_grant};
use crate::authz::{Revocations, Snapshot, UnixMillis};
use crate::config::Allowance;
use crate::store::{Relation, RowKey, Rows};

pub(super) fn check(candidate: &Candidate<'_>, allowed: Allowance) -> Result<(), Hold> {
    let Candidate { difference, revocations, live, now, .. } = candidate;
    let credentials = difference.lost_credentials(revocations, *now).map(|row| RowKey::Credential(row.key));
    RowLoss::new(Relation::Credentials, live.credentials, credentials).check(candidate, allowed)?;
    let grants = difference.lost_grants(revocations, *now).map(|row| RowKey::Grant(row.id));
    RowLoss::new(Relation::Grants, live.grants, grants).check(candidate, allowed)?;
    let devices = difference.lost_devices().map(|row| RowKey::Device(row.id));
    RowLoss::new(Relation::Devices, live.devices, devices).check(candidate, allowed)
}

/// The loss of one relation.
struct RowLoss {
    relation: Relation,
    rows: Vec<RowKey>,
    /// Rows that were there.
    total: usize,
}

impl RowLoss {
    fn new(relation: Relation, total: usize, rows: impl Iterator<Item = RowKey>) -> Self {
        Self { relation, rows: rows.collect(), total }
    }

    fn check(self, candidate: &Candidate<'_>, allowed: Allowance) -> Result<(), Hold> {
        let lost = self.rows.len();
        let is_most = lost * 2 > self.total && !self.is_one_removal(candidate.read);
        if lost == 0 || !(is_most || exceeds(lost, self.total, allowed)) {
            return Ok(());
        }
        let name = self.relation.name();
        let figures = format!(
            "{lost} of {} {name} have vanished with no revocation; authz.guard.max_loss is {} rows or {} %, \
             and always less than half",
            self.total,
            allowed.rows,
            allowed.share * 100.0
        );
        Err(Hold::new(Rule::Loss, lost, figures, self.rows))
    }

    /// `device remove` deletes one row, which the outbox names: the only one that any command deletes,
    /// and it may be the last. The outbox names no row because a query went wrong.
    fn is_one_removal(&self, read: ReadScope) -> bool {
        read == ReadScope::Changes && self.relation == Relation::Devices && self.rows.len() == 1
    }
}

/// Says so where a full read revokes every right of one kind that was live, with no word of it before.
///
/// Revocations are applied at once and for ever, whatever the guard says of the rest. This one thing they
/// are not trusted with: an answer by which nobody holds anything any more, as an inverted flag gives it.
/// One right alone may always be revoked, and what happened while the node was down is believed, unless
/// the answer takes back what was revoked before. Where the queries are others than those by which the
/// rights were read, they may revoke no more than may be lost (`allowed`).
pub(in crate::control) fn revokes_everything(
    rows: &Rows,
    in_force: &Snapshot,
    revocations: &Revocations,
    since: Since,
    allowed: Allowance,
    now: UnixMillis,
) -> Option<(Relation, Hold)> {
    let credentials = Tally::of(
        since,
        rows.credentials.iter().map(|row| {
            let known = in_force.credential(&row.key);
            let was_live = known.is_some_and(|known| is_live_credential(&known, revocations, now));
            (row.revoked, was_live, revocations.credential(&row.key))
        }),
    );
    let grants = Tally::of(
        since,
        rows.grants.iter().map(|row| {
            let known = in_force.grant(row.id);
            let was_live = known.is_some_and(|known| is_live_grant(&known, revocations, now));
            (row.revoked, was_live, revocations.grant(row))
        }),
    );
    let (relation, tally) = [(Relation::Credentials, credentials), (Relation::Grants, grants)]
        .into_iter()
        .find(|(_, tally)| tally.is_doubtful(since, allowed))?;
    let (name, revoked) = (relation.name(), tally.newly_revoked);
    let what = match since {
        Since::OtherQueries => {
            let live = revoked + tally.live_as_before;
            format!("{revoked} of {live} live rows of {name} read as revoked by queries that have changed")
        }
        Since::Start | Since::Read => format!("every live row of {name} reads as revoked at once"),
    };
    let figures = format!("{what}; `sluicegate authz accept` revokes them if that is meant");
    Some((relation, Hold::new(Rule::Loss, usize::MAX, figures, NO_EXAMPLES)))
}

/// The event before a full read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) enum Since {
    /// A time in which the node did not read.
    Start,
    /// Another read, a moment ago.
    Read,
    /// A read by other queries, before the node was started; nothing of these was published yet.
    OtherQueries,
}

/// The comparison of one relation's rows with the known ones. It stops as soon as the result is clear.
#[derive(Default)]
struct Tally {
    live_as_before: usize,
    newly_revoked: usize,
    taken_back: bool,
}

impl Tally {
    /// Compares rows, given as: is revoked, was live, was revoked before.
    fn of(since: Since, rows: impl Iterator<Item = (bool, bool, bool)>) -> Self {
        let mut tally = Self::default();
        for (is_revoked, was_live, was_revoked) in rows {
            tally.newly_revoked += usize::from(is_revoked && was_live);
            tally.taken_back |= !is_revoked && was_revoked;
            tally.live_as_before += usize::from(!is_revoked && was_live);
            // About always with the first row or two.
            if tally.live_as_before > 0 && since != Since::OtherQueries {
                break;
            }
        }
        tally
    }

    fn is_doubtful(&self, since: Since, allowed: Allowance) -> bool {
        let is_everything = self.live_as_before == 0 && self.newly_revoked > 1;
        match since {
            Since::Start => is_everything && self.taken_back,
            Since::Read => is_everything,
            Since::OtherQueries => {
                let live = self.newly_revoked + self.live_as_before;
                is_everything || exceeds(self.newly_revoked, live, allowed)
            }
        }
    }
}

const NO_EXAMPLES: [&str; 0] = [];
