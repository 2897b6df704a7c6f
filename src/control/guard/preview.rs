//! What the guard would say of a store, for an operator who has not started a relay on it.

use super::budget::budget;
use super::canaries::Canaries;
use super::{LiveRows, relevant_kinds};
use crate::authz::{Credential, Device, Generation, Grant, Revocations, Snapshot, UnixMillis};
use crate::config::Config;
use crate::control::api::{BudgetUse, ChangeKind, Group, WordKind};
use crate::store::Relation;

/// The canaries' answers and the budgets at the store's present size.
#[derive(Debug)]
pub struct GuardPreview {
    /// Number of canaries that were asked.
    pub canaries: usize,
    /// Canaries that the store's rows answer wrongly, each in one sentence.
    pub wrong_canaries: Vec<String>,
    /// The budget of each group, of which nothing is used.
    pub budgets: Vec<BudgetUse>,
}

impl GuardPreview {
    /// Puts the canaries of `config` to these rows, and counts the budgets.
    pub fn of(
        config: &Config,
        credentials: Vec<Credential>,
        grants: Vec<Grant>,
        devices: Vec<Device>,
    ) -> Self {
        let (guard, now) = (&config.authz.guard, UnixMillis::now());
        let rows = Snapshot::build(Generation(0), credentials, grants, devices);
        let canaries = Canaries::new(guard, config.vpn.node.as_deref());
        let wrong = canaries.check(&rows, &Revocations::default(), now).err();
        let live = LiveRows::of(&rows, now);
        let budgets = groups().map(|group| {
            let rows = budget(group, live.rows(group.relation, group.kind), &guard.budgets);
            BudgetUse { group, used: 0, rows }
        });
        Self {
            canaries: canaries.len(),
            wrong_canaries: wrong.map(|wrong| wrong.wrong).unwrap_or_default(),
            budgets: budgets.collect(),
        }
    }
}

/// The groups that have a budget, by relation.
fn groups() -> impl Iterator<Item = Group> {
    Relation::ALL.into_iter().flat_map(|relation| {
        let inferred = relevant_kinds(relation).iter().map(move |&kind| Group {
            relation,
            kind,
            word: WordKind::Inferred,
        });
        let explicit = Group { relation, kind: ChangeKind::Ended, word: WordKind::Explicit };
        inferred.chain([explicit])
    })
}
