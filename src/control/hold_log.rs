//! Logs and audits what is held: when a hold begins, when it grows or shrinks by much, and when it ends.

use std::collections::BTreeMap;
use std::time::Instant;

use super::api::{HoldStatus, Rule};
use super::report::GuardReport;
use crate::authz::Generation;
use crate::telemetry::By;

/// The holds that were logged as begun. One line and one event for each, and again when its rows have doubled or halved.
pub(super) struct HoldLog {
    report: GuardReport,
    holds: BTreeMap<HoldKey, LoggedHold>,
    is_accepted: bool,
}

/// Name of what is held, and the rule.
type HoldKey = (String, &'static str);

struct LoggedHold {
    began: Instant,
    rule: Rule,
    /// Rows when the last line was logged.
    rows: usize,
}

impl HoldLog {
    pub(super) fn new(report: GuardReport) -> Self {
        Self { report, holds: BTreeMap::new(), is_accepted: false }
    }

    /// Records that an operator accepted what is held: the holds that the next update lacks were ended by that.
    pub(super) fn record_accept(&mut self) {
        self.is_accepted = true;
    }

    /// Logs where `holds`, which is all that is held now, differs from the last call.
    pub(super) fn update(&mut self, holds: &[HoldStatus], in_force: Option<Generation>) {
        let by = if std::mem::take(&mut self.is_accepted) { By::Operator } else { By::Guard };
        let is_held = |key: &HoldKey| holds.iter().any(|hold| key_of(hold) == *key);
        let ended: Vec<HoldKey> = self.holds.keys().filter(|key| !is_held(key)).cloned().collect();
        for key in ended {
            if let Some(LoggedHold { began, rule, rows }) = self.holds.remove(&key) {
                self.report.group_is_free(&key.0, rule, rows, began.elapsed(), by, in_force);
            }
        }
        for hold in holds {
            match self.holds.get_mut(&key_of(hold)) {
                None => {
                    let HoldStatus { rule, rows, .. } = *hold;
                    self.holds.insert(key_of(hold), LoggedHold { began: Instant::now(), rule, rows });
                    self.report.group_is_held(hold, in_force);
                }
                Some(logged) if differs_by_much(logged.rows, hold.rows) => {
                    let rows_before = std::mem::replace(&mut logged.rows, hold.rows);
                    self.report.group_has_changed(hold, rows_before, logged.began.elapsed(), in_force);
                }
                Some(_) => {}
            }
        }
    }
}

fn key_of(hold: &HoldStatus) -> HoldKey {
    (hold.subject(), hold.rule.name())
}

fn differs_by_much(before: usize, now: usize) -> bool {
    let (less, more) = (before.min(now), before.max(now));
    more >= less.saturating_mul(CHANGE_FACTOR) && more > less
}

/// Factor by which the rows of a hold change before it is logged again, so that a growing hold has few lines.
const CHANGE_FACTOR: usize = 2;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::authz::UnixMillis;
    use crate::telemetry::AuditSender;

    /// A log whose events a test reads.
    fn log() -> (HoldLog, impl FnMut() -> Vec<Value>) {
        let (sender, events) = AuditSender::to_channel(100);
        let drain = move || events.try_iter().map(|event| serde_json::to_value(event).unwrap()).collect();
        (HoldLog::new(GuardReport::new(sender)), drain)
    }

    fn hold(group: &str, rows: usize) -> HoldStatus {
        HoldStatus {
            rule: Rule::Budget,
            group: Some(group.parse().unwrap()),
            relation: None,
            rows,
            figures: format!("{rows} rows"),
            examples: vec!["grants 1".to_owned()],
            since: UnixMillis(0),
            advice: String::new(),
        }
    }

    #[test]
    fn a_hold_is_told_when_it_begins_and_when_it_ends_and_not_with_every_read() {
        let (mut log, mut events) = log();
        for _ in 0..10 {
            log.update(&[hold("grants.absent", 30)], Some(Generation(7)));
        }
        let begun = events();
        assert_eq!(begun.len(), 1, "{begun:?}");
        assert_eq!(
            begun[0],
            json!({ "event": "hold-begin", "rule": "budget", "held": "grants.absent", "rows": 30,
                    "figures": "30 rows", "examples": ["grants 1"], "generation": 7 })
        );
        log.update(&[], Some(Generation(8)));
        log.update(&[], Some(Generation(8)));
        let ended = events();
        assert_eq!(ended.len(), 1, "{ended:?}");
        assert_eq!(
            ended[0],
            json!({ "event": "hold-end", "rule": "budget", "held": "grants.absent", "rows": 30, "held_s": 0,
                    "by": "guard", "generation": 8 })
        );
    }

    #[test]
    fn groups_begin_and_end_each_by_itself() {
        let (mut log, mut events) = log();
        let explicit = || hold("credentials.ended.explicit", 40);
        log.update(&[hold("grants.absent", 3), explicit()], None);
        assert_eq!(events().len(), 2);
        log.update(&[explicit()], None);
        let ended = events();
        assert_eq!((ended.len(), &ended[0]["held"]), (1, &"grants.absent".into()));
    }

    #[test]
    fn a_hold_that_grows_is_told_again_when_it_has_doubled() {
        let (mut log, mut events) = log();
        for rows in 5..=40 {
            log.update(&[hold("grants.absent", rows)], None);
        }
        let changes = events();
        let rows = |event: &Value| (event["event"].as_str().map(str::to_owned), event["rows"].as_u64());
        let told: Vec<_> = changes.iter().map(rows).collect();
        let change = |rows| (Some("hold-change".to_owned()), Some(rows));
        assert_eq!(told, [(Some("hold-begin".to_owned()), Some(5)), change(10), change(20), change(40)]);
        assert_eq!(changes[1]["rows_before"], 5);
    }

    #[test]
    fn a_hold_that_an_operator_accepted_ends_by_the_operator() {
        let (mut log, mut events) = log();
        log.update(&[hold("grants.absent", 3), hold("devices.moved", 9)], None);
        log.record_accept();
        log.update(&[hold("devices.moved", 9)], None);
        log.update(&[], None);
        let by: Vec<Value> = events().into_iter().skip(2).map(|event| event["by"].clone()).collect();
        assert_eq!(by, ["operator", "guard"]);
    }
}
