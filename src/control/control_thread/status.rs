//! What others see of the control thread.

use super::ControlThread;
use crate::authz::Snapshot;
use crate::control::api::{BudgetUse, RelationStatus};
use crate::store::Relation;

impl ControlThread {
    pub(super) fn update_status(&self) {
        let guard = self.guard.status();
        let holds = self.all_holds();
        let relations = Relation::ALL.into_iter().map(|relation| {
            let (rows, read_at) = self.guard.relation_read(relation);
            let (error, errors) = self.store.relation_error(relation);
            RelationStatus { relation: relation.name().to_owned(), rows, read_at, error, errors }
        });
        let relations: Vec<RelationStatus> = relations.collect();
        let budgets = guard.used.iter().map(|(group, used, rows)| BudgetUse {
            group: *group,
            used: *used,
            rows: *rows,
        });
        let budgets: Vec<BudgetUse> = budgets.collect();
        let mut warnings = self.store.warnings();
        self.layer.add_warnings(&mut warnings);
        let expectations = self.guard.expectations().to_vec();
        self.status.update(|status| {
            status.generation = self.guard.generation();
            status.rows = self.guard.in_force().map(|rows| Snapshot::row_counts(rows)).unwrap_or_default();
            if let Some(confirmed_at) = self.store.confirmed_at() {
                status.confirmed_at = confirmed_at;
            }
            status.last_error = self.store.last_error();
            status.store_errors = self.store.errors();
            status.quarantined = guard.undecodable;
            status.held = holds;
            status.hold_counts = guard.counts.holds;
            status.expectations = expectations;
            status.relations = relations;
            status.budgets = budgets;
            status.disputed_devices = self.guard.disputed();
            status.state_unsaved = self.publisher.trouble();
            status.absences_waiting = guard.absences_waiting;
            status.absences_honoured = guard.counts.absences_honoured;
            status.on_probation = self.guard.losses(false) + self.guard.losses(true) > 0;
            status.regressions = self.probation.total();
            status.rollbacks = guard.counts.rollbacks;
            status.reads_of_everything = self.guard.whole_reads();
            status.lacks_addresses = self.layer.lacks_addresses();
            status.warnings = warnings;
        });
    }
}
