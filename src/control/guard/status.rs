//! What is held, for status, logs and metrics.

use super::pending::HeldGroup;
use super::{Guard, GuardCounts, NetworkVerdict, index};
use crate::authz::UnixMillis;
use crate::control::api::{ChangeKind, Group, HoldStatus, Rule, WordKind};
use crate::store::Relation;

/// A view of the guard for others.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct GuardStatus {
    pub(in crate::control) holds: Vec<HoldStatus>,
    /// Absences that wait for a second answer.
    pub(in crate::control) absences_waiting: usize,
    pub(in crate::control) undecodable: usize,
    pub(in crate::control) counts: GuardCounts,
    /// Rows that have changed by inference within the window, and the budget, by group.
    pub(in crate::control) used: Vec<(Group, usize, usize)>,
}

impl Guard {
    pub(in crate::control) fn status(&self) -> GuardStatus {
        let absences =
            |relation: Relation| self.relations[index(relation)].pending.count(ChangeKind::Absent, None);
        let used = Relation::ALL.into_iter().flat_map(|relation| {
            ChangeKind::ALL.into_iter().filter_map(move |kind| {
                let group = Group { relation, kind, word: WordKind::Inferred };
                let used = self.used(group);
                (used > 0).then(|| (group, used, self.budget(group)))
            })
        });
        GuardStatus {
            holds: self.holds(),
            absences_waiting: Relation::ALL.into_iter().map(absences).sum(),
            undecodable: self.relations.iter().map(|state| state.bad.len()).sum(),
            counts: self.counts,
            used: used.collect(),
        }
    }

    /// Rows of the last answer about `relation`, and the time when it came.
    pub(in crate::control) fn relation_read(&self, relation: Relation) -> (usize, Option<UnixMillis>) {
        let state = &self.relations[index(relation)];
        (state.rows, state.read_at)
    }

    fn holds(&self) -> Vec<HoldStatus> {
        let mut holds = Vec::new();
        for relation in Relation::ALL {
            holds.extend(self.relation_hold(relation));
            holds.extend(self.peers_hold(relation));
            holds.extend(self.group_holds(relation));
            holds.extend(self.undecodable(relation));
            holds.extend(self.waiting_ends(relation));
        }
        holds
    }

    fn relation_hold(&self, relation: Relation) -> Option<HoldStatus> {
        let hold = self.relations[index(relation)].relation_hold.as_ref()?;
        Some(HoldStatus {
            rule: hold.rule,
            group: None,
            relation: Some(relation.name().to_owned()),
            rows: self.relations[index(relation)].pending.charged(),
            figures: hold.figures.clone(),
            examples: hold.examples.iter().take(super::answers::EXAMPLES_MAX).cloned().collect(),
            since: hold.since,
            advice:
                "mend the query or the data; `sluicegate authz diff` lists what waits, and `accept` with its \
                     digest puts it in force"
                    .to_owned(),
        })
    }

    fn group_holds(&self, relation: Relation) -> Vec<HoldStatus> {
        let state = &self.relations[index(relation)];
        let mut holds = Vec::new();
        for group in state.pending.held() {
            let HeldGroup { kind, rule, rows, since, examples } = group;
            // Those of canaries are in the hold of the relation, those of peers in that of the first answers.
            let is_elsewhere =
                (state.relation_hold.is_some() && rule == Rule::Canaries) || rule == Rule::Peers;
            if !is_elsewhere {
                holds.push(self.group_hold(relation, kind, rule, rows, since, examples));
            }
        }
        for (kind, overflow) in &state.overflow {
            let examples = overflow.examples.clone();
            holds.push(self.group_hold(
                relation,
                *kind,
                Rule::Budget,
                overflow.rows,
                overflow.since,
                examples,
            ));
        }
        holds
    }

    fn group_hold(
        &self,
        relation: Relation,
        kind: ChangeKind,
        rule: Rule,
        rows: usize,
        since: UnixMillis,
        examples: Vec<String>,
    ) -> HoldStatus {
        let group = Group { relation, kind, word: WordKind::Inferred };
        let (name, total) = (relation.name(), self.live.rows(relation, kind));
        let (used, budget) = (self.used(group), self.budget(group));
        let window = humantime::format_duration(self.config.window);
        let what = phrase(kind);
        let figures = match rule {
            Rule::Operator => format!("{rows} {name} {what}; an operator has gone back to before that"),
            Rule::Probation => {
                format!(
                    "{rows} {name} {what}; clients were refused what the baseline allows, so this was undone"
                )
            }
            Rule::Address => format!(
                "{rows} of {total} {name} would change places with others or have an address that another one has; \
                 they are refused with device-disputed where it cannot be told"
            ),
            Rule::Location => {
                let says = match self.network_verdict(relation, kind) {
                    NetworkVerdict::Answers { figures } => figures,
                    _ => "they are asked anew whether they still answer there",
                };
                format!("{rows} of {total} {name} {what}, but {says}")
            }
            Rule::Budget if kind == ChangeKind::Revived => format!(
                "{rows} {name} that have ended read as live, and nothing that the store recorded says so"
            ),
            _ => format!(
                "{rows} of {total} {name} {what}, {used} more have within {window}; the budget is {budget}"
            ),
        };
        let advice = match rule {
            Rule::Operator | Rule::Probation => {
                "mend the query or the data, or put it in force by `sluicegate authz diff` and `accept`"
                    .to_owned()
            }
            _ => format!(
                "wrong: mend the query or the data, and it heals by itself; meant: `sluicegate authz diff`, then \
                 `accept` with its digest, or next time `sluicegate authz expect {name} {kind} {rows}` before"
            ),
        };
        HoldStatus {
            rule,
            group: Some(group),
            relation: Some(name.to_owned()),
            rows,
            figures,
            examples,
            since,
            advice,
        }
    }

    /// Rows that do not decode are kept one by one; many of them are a bad query.
    fn undecodable(&self, relation: Relation) -> Option<HoldStatus> {
        let state = &self.relations[index(relation)];
        let group = Group { relation, kind: ChangeKind::Undecodable, word: WordKind::Inferred };
        let (rows, budget) = (state.bad.len(), self.budget(group));
        if rows <= budget || !self.config.enabled {
            return None;
        }
        let name = relation.name();
        let examples = state.bad_examples.iter().map(|row| format!("{}: {}", row.key, row.reason)).collect();
        Some(HoldStatus {
            rule: Rule::Budget,
            group: Some(group),
            relation: Some(name.to_owned()),
            rows,
            figures: format!(
                "{rows} {name} do not decode; each keeps its last good version; the budget is {budget}"
            ),
            examples,
            since: state.read_at.unwrap_or_default(),
            advice: "mend the query or the rows".to_owned(),
        })
    }

    fn waiting_ends(&self, relation: Relation) -> Option<HoldStatus> {
        let of_relation = || self.waiting_words.iter().filter(move |(key, _)| key.relation() == relation);
        let rows = of_relation().count();
        let since = of_relation().map(|(_, waiting)| waiting.since).min()?;
        let group = Group { relation, kind: ChangeKind::Ended, word: WordKind::Explicit };
        let (name, budget) = (relation.name(), self.budget(group));
        Some(HoldStatus {
            rule: Rule::Budget,
            group: Some(group),
            relation: Some(name.to_owned()),
            rows,
            figures: format!(
                "the store recorded the end of {rows} {name} at once; within a minute {budget} may end"
            ),
            examples: Self::examples(of_relation().map(|(key, _)| key)),
            since,
            advice: "meant: `sluicegate authz diff`, then `accept` with its digest; a mistake: give the rights back \
                     in the store"
                .to_owned(),
        })
    }
}

/// What has become of rows, after their count and relation.
const fn phrase(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Ended => "read as ended",
        ChangeKind::Absent => "are missing",
        ChangeKind::Narrowed => "give less or end earlier",
        ChangeKind::Reassigned => "belong to others or lead elsewhere",
        ChangeKind::Gained => "are new",
        ChangeKind::Widened => "give more or last longer",
        ChangeKind::Moved => "have another address or node",
        ChangeKind::Unlocated => "have lost their location",
        ChangeKind::Undecodable => "do not decode",
        ChangeKind::Revived => "have come back",
    }
}
