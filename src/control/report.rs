//! Reports what the guard does: as text in the log, as events in the audit log.

use std::time::Duration;

use super::api::{HoldStatus, RolledBack, Rule};
use crate::authz::{Generation, Regression};
use crate::store::Quarantined;
use crate::telemetry::{
    Alarm, AuditEvent, AuditSender, By, HeldGroup, HoldChange, HoldEnd, QuarantinedRow, QuarantinedRows,
    RegressionSeen, Rollback,
};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct GuardReport {
    audit: AuditSender,
}

impl GuardReport {
    pub(super) fn new(audit: AuditSender) -> Self {
        Self { audit }
    }

    pub(super) fn group_is_held(&self, hold: &HoldStatus, in_force: Option<Generation>) {
        tracing::warn!("the guard holds {hold}; everything else takes effect");
        self.audit.emit(AuditEvent::HoldBegin(held_group(hold, in_force)));
    }

    pub(super) fn group_has_changed(
        &self,
        hold: &HoldStatus,
        rows_before: usize,
        held: Duration,
        in_force: Option<Generation>,
    ) {
        tracing::warn!("the guard holds {hold}; it was {rows_before} rows before");
        let now = held_group(hold, in_force);
        self.audit.emit(AuditEvent::HoldChange(HoldChange { now, rows_before, held_s: held.as_secs() }));
    }

    /// Reports the end of the hold of `subject`, which had `rows` rows last.
    pub(super) fn group_is_free(
        &self,
        subject: &str,
        rule: Rule,
        rows: usize,
        held: Duration,
        by: By,
        in_force: Option<Generation>,
    ) {
        let (rule, held_s, held) = (rule.name(), held.as_secs(), subject.to_owned());
        tracing::info!("the guard holds {subject} by rule {rule} no more, after {held_s} s");
        self.audit.emit(AuditEvent::HoldEnd(HoldEnd { rule, held, rows, held_s, by, generation: in_force }));
    }

    /// The guard has undone what clients were refused for.
    pub(super) fn rolled_back_by_guard(&self, figures: &str, examples: &[String], undone: RolledBack) {
        tracing::error!(
            "undid {} rows: {figures}; such as {}",
            undone.rows,
            examples.iter().take(EXAMPLES_MAX).cloned().collect::<Vec<_>>().join(", ")
        );
        self.rolled_back(By::Guard, Rule::Probation, figures.to_owned(), examples.to_vec(), undone);
    }

    pub(super) fn rolled_back_by_operator(&self, undone: RolledBack) {
        let figures =
            format!("an operator has gone back to generation {}; {} rows", undone.to.0, undone.rows);
        tracing::warn!("{figures}");
        self.rolled_back(By::Operator, Rule::Operator, figures, Vec::new(), undone);
    }

    fn rolled_back(&self, by: By, rule: Rule, figures: String, examples: Vec<String>, undone: RolledBack) {
        let RolledBack { from, to, in_force, .. } = undone;
        let (rule, generation) = (rule.name(), Some(in_force));
        self.audit.emit(AuditEvent::Rollback(Rollback { by, rule, figures, examples, from, to, generation }));
    }

    pub(super) fn may_be_wrong(&self, figures: &str, examples: &[String], in_force: Option<Generation>) {
        tracing::error!("what is in force may be wrong: {figures}");
        self.audit.emit(AuditEvent::RegressionAlarm(Alarm {
            rule: Rule::Probation.name(),
            figures: figures.to_owned(),
            examples: examples.to_vec(),
            generation: in_force,
        }));
    }

    pub(super) fn regressed(&self, regression: &Regression) {
        let Regression { principal, device, refusal, .. } = *regression;
        let cause = refusal.into();
        self.audit.emit(AuditEvent::Regression(RegressionSeen { principal, device, cause }));
    }

    /// These rows have turned bad.
    pub(super) fn quarantined<'a>(&self, mut rows: impl Iterator<Item = &'a Quarantined>) {
        for Quarantined { key, reason } in rows.by_ref().take(ROWS_LOGGED_MAX) {
            tracing::warn!("quarantined {key}: {reason}; its last good version, if any, stays in force");
            let row = QuarantinedRow { row: key.to_string(), reason: reason.clone() };
            self.audit.emit(AuditEvent::Quarantine(row));
        }
        let rows = rows.count();
        if rows > 0 {
            tracing::warn!("quarantined {rows} more rows");
            self.audit.emit(AuditEvent::MoreQuarantined(QuarantinedRows { rows }));
        }
    }
}

fn held_group(hold: &HoldStatus, generation: Option<Generation>) -> HeldGroup {
    let HoldStatus { rule, rows, figures, examples, .. } = hold.clone();
    HeldGroup { rule: rule.name(), held: hold.subject(), rows, figures, examples, generation }
}

/// Rows of one read that get a line each, so that a bad million does not fill the disk.
const ROWS_LOGGED_MAX: usize = 10;

/// Refused pairs that a rollback names.
const EXAMPLES_MAX: usize = 5;
