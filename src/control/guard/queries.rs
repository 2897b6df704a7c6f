//! Other queries beside those that run: what they would change, and whether the groups let them.
//!
//! Both were put to the same moment of the store, so that whatever differs is the queries' doing.

use std::collections::{BTreeMap, HashSet};

use super::commands::HeldRow;
use super::comparison::differences;
use super::row::{AnyRow, classify, row_of};
use super::{Guard, LiveRows, index};
use crate::authz::{Generation, Snapshot, UnixMillis};
use crate::control::api::{ChangeKind, Group, HoldStatus, Rule, WordKind};
use crate::store::{Comparison, Relation, RowKey};

/// What changed queries would do.
pub(in crate::control) struct QueriesVerdict {
    pub(in crate::control) rows: Vec<HeldRow>,
    /// Reasons to refuse them; none where they may run.
    pub(in crate::control) refused: Vec<HoldStatus>,
}

impl Guard {
    pub(in crate::control) fn judge_queries(
        &self,
        comparison: Comparison,
        now: UnixMillis,
    ) -> QueriesVerdict {
        let Comparison { running, candidate } = comparison;
        let bad: HashSet<RowKey> = candidate.quarantined.iter().map(|row| row.key.clone()).collect();
        let build = |rows: crate::store::Rows| {
            Snapshot::build(Generation(0), rows.credentials, rows.grants, rows.devices)
        };
        let (before, after) = (build(running), build(candidate));
        let live = LiveRows::of(&before, now);
        let (mut rows, mut refused) = (Vec::new(), Vec::new());
        for relation in Relation::ALL {
            let mut groups: BTreeMap<ChangeKind, (usize, Vec<RowKey>)> = BTreeMap::new();
            differences(relation, &before, &after, |key, was, is| {
                let kind = if bad.contains(&key) {
                    Some(ChangeKind::Undecodable)
                } else if self.is_mend(&key, is.as_ref()) {
                    None
                } else if revives(was.as_ref(), is.as_ref(), now) || self.is_entombed(&key, is.as_ref(), now)
                {
                    Some(ChangeKind::Revived)
                } else {
                    classify(was.as_ref(), is.as_ref(), now)
                };
                let group = kind.map(|kind| Group { relation, kind, word: WordKind::Inferred });
                if let Some(kind) = kind {
                    let (count, examples) = groups.entry(kind).or_default();
                    *count += 1;
                    if examples.len() < super::answers::EXAMPLES_MAX {
                        examples.push(key.clone());
                    }
                }
                if rows.len() < super::pending::PENDING_ROWS_MAX {
                    rows.push(HeldRow { key, group, before: was, after: is, is_held: false });
                }
            });
            for (kind, (count, examples)) in groups {
                let group = Group { relation, kind, word: WordKind::Inferred };
                let total = live.rows(relation, kind);
                let budget = super::budget::budget(group, total, &self.config.budgets);
                if count > budget + self.expected(relation, kind) {
                    refused.push(refusal(group, count, total, budget, &examples, now));
                }
            }
            refused.extend(self.out_of_bounds(relation, &after, now));
        }
        if let Err(wrong) = self.canaries.check(&after, &self.revocations, now) {
            refused.push(HoldStatus {
                rule: Rule::Canaries,
                group: None,
                relation: None,
                rows: wrong.wrong.len(),
                figures: wrong.figures(),
                examples: wrong.wrong,
                since: now,
                advice: ADVICE.to_owned(),
            });
        }
        if !self.config.enabled {
            refused.clear();
        }
        QueriesVerdict { rows, refused }
    }

    /// Returns whether the row is as it is in force, or was before a query changed it: that is never refused.
    fn is_mend(&self, key: &RowKey, after: Option<&AnyRow>) -> bool {
        let in_force = self.in_force.as_deref().and_then(|in_force| row_of(in_force, key));
        let baseline = self.ledger.baseline(key).and_then(Option::as_ref);
        in_force.as_ref() == after || self.ledger.baseline(key).is_some() && baseline == after
    }

    fn is_entombed(&self, key: &RowKey, after: Option<&AnyRow>, now: UnixMillis) -> bool {
        after.is_some_and(|row| row.is_live(now) && self.tombstones.covers(key, row))
    }

    fn out_of_bounds(&self, relation: Relation, after: &Snapshot, now: UnixMillis) -> Option<HoldStatus> {
        let bounds = &self.config.bounds;
        let bound = [bounds.credentials, bounds.grants, bounds.devices][index(relation)];
        let counts = after.row_counts();
        let rows = [counts.credentials, counts.grants, counts.devices][index(relation)];
        let is_within = bound.min.is_none_or(|min| rows >= min) && bound.max.is_none_or(|max| rows <= max);
        (!is_within).then(|| HoldStatus {
            rule: Rule::Bounds,
            group: None,
            relation: Some(relation.name().to_owned()),
            rows,
            figures: format!("{} would have {rows} rows, outside authz.guard.bounds", relation.name()),
            examples: Vec::new(),
            since: now,
            advice: ADVICE.to_owned(),
        })
    }
}

/// What is revoked comes back by no query.
fn revives(before: Option<&AnyRow>, after: Option<&AnyRow>, now: UnixMillis) -> bool {
    let was_revoked = match before {
        Some(AnyRow::Credential(row)) => row.revoked,
        Some(AnyRow::Grant(row)) => row.revoked,
        _ => false,
    };
    was_revoked && after.is_some_and(|row| row.is_live(now))
}

fn refusal(
    group: Group,
    rows: usize,
    total: usize,
    budget: usize,
    examples: &[RowKey],
    now: UnixMillis,
) -> HoldStatus {
    HoldStatus {
        rule: Rule::Budget,
        group: Some(group),
        relation: Some(group.relation.name().to_owned()),
        rows,
        figures: format!("{rows} of {total} rows would change by the query; the budget is {budget}"),
        examples: Guard::examples(examples.iter()),
        since: now,
        advice: ADVICE.to_owned(),
    }
}

const ADVICE: &str = "mend the query; if the change is meant, announce it with `sluicegate authz expect`, or restart the \
                      relay with the query and accept what it holds";
