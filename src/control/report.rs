//! Reports what the guard does: as text in the log, as events in the audit log.

use std::time::Duration;

use super::api::{self, HoldStatus};
use super::guard::Hold;
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

    pub(super) fn hold_begins(&self, hold: &Hold, in_force: Option<Generation>) {
        tracing::warn!("the guard holds by {hold}; the last good snapshot stays in force");
        self.audit.emit(AuditEvent::HoldBegin(whole(hold, in_force)));
    }

    /// Reports that `hold` replaces `before`, which lasted for `held`.
    pub(super) fn hold_changes(
        &self,
        before: &Hold,
        held: Duration,
        hold: &Hold,
        in_force: Option<Generation>,
    ) {
        tracing::warn!("the guard holds by {hold}; the last good snapshot stays in force");
        let (now, rows_before) = (whole(hold, in_force), before.extent);
        self.audit.emit(AuditEvent::HoldChange(HoldChange { now, rows_before, held_s: held.as_secs() }));
    }

    pub(super) fn hold_ends(&self, hold: &Hold, held: Duration, by: By, in_force: Option<Generation>) {
        let (rule, held_s) = (hold.rule.name(), held.as_secs());
        tracing::info!("the guard holds no more; rule {rule} held for {held_s} s");
        let HeldGroup { held, rows, .. } = whole(hold, None);
        self.audit.emit(AuditEvent::HoldEnd(HoldEnd { rule, held, rows, held_s, by, generation: in_force }));
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
        rule: api::Rule,
        rows: usize,
        held: Duration,
        by: By,
        in_force: Option<Generation>,
    ) {
        let (rule, held_s, held) = (rule.name(), held.as_secs(), subject.to_owned());
        tracing::info!("the guard holds {subject} by rule {rule} no more, after {held_s} s");
        self.audit.emit(AuditEvent::HoldEnd(HoldEnd { rule, held, rows, held_s, by, generation: in_force }));
    }

    pub(super) fn rolls_back(&self, hold: &Hold, to: Generation) {
        tracing::error!("going back to generation {}, before which {hold}", to.0);
    }

    pub(super) fn rolled_back(&self, by: By, hold: &Hold, change: Return) {
        let Return { from, to, in_force } = change;
        let Alarm { rule, figures, examples, generation } = alarm(hold, in_force);
        self.audit.emit(AuditEvent::Rollback(Rollback { by, rule, figures, examples, from, to, generation }));
    }

    pub(super) fn may_be_wrong(&self, hold: &Hold, in_force: Option<Generation>) {
        tracing::error!("what is in force may be wrong, by {hold}");
        self.audit.emit(AuditEvent::RegressionAlarm(alarm(hold, in_force)));
    }

    pub(super) fn regressed(&self, regression: &Regression) {
        let Regression { principal, device, refusal, .. } = *regression;
        let cause = refusal.into();
        self.audit.emit(AuditEvent::Regression(RegressionSeen { principal, device, cause }));
    }

    /// These rows have turned bad.
    pub(super) fn quarantined<'a>(&self, mut rows: impl Iterator<Item = &'a Quarantined>) {
        for Quarantined { key, reason } in rows.by_ref().take(TOLD_MAX) {
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

/// The generations of a rollback.
pub(super) struct Return {
    pub from: Generation,
    pub to: Generation,
    /// The number under which `to` is in force again.
    pub in_force: Option<Generation>,
}

fn held_group(hold: &HoldStatus, generation: Option<Generation>) -> HeldGroup {
    let HoldStatus { rule, rows, figures, examples, .. } = hold.clone();
    HeldGroup { rule: rule.name(), held: hold.subject(), rows, figures, examples, generation }
}

fn whole(hold: &Hold, generation: Option<Generation>) -> HeldGroup {
    let Hold { rule, figures, examples, extent } = hold.clone();
    HeldGroup {
        rule: rule.name(),
        held: "everything".to_owned(),
        rows: extent,
        figures,
        examples,
        generation,
    }
}

fn alarm(hold: &Hold, generation: Option<Generation>) -> Alarm {
    let Hold { rule, figures, examples, .. } = hold.clone();
    Alarm { rule: rule.name(), figures, examples, generation }
}

/// Rows of one read that get a line each, so that a bad million does not fill the disk.
const TOLD_MAX: usize = 10;
