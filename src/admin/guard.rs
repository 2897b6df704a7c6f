//! The part of `/metrics` about the guard.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::openmetrics::{counter, gauge};
use crate::authz::UnixMillis;
use crate::control::ControlStatus;
use crate::control::api::{Group, HoldStatus, RelationStatus, Rule};
use crate::store::Relation;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RuleLabel {
    rule: &'static str,
}

/// Labels of something that is held. `all` stands for every relation, or for every kind of change.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct HoldLabels {
    rule: &'static str,
    relation: &'static str,
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GroupLabels {
    relation: &'static str,
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RelationLabel {
    relation: &'static str,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, status: &ControlStatus) -> Result<(), fmt::Error> {
    encode_holds(encoder, status)?;
    encode_budgets(encoder, status)?;
    encode_relations(encoder, status)?;
    let help = "Mass changes that an operator has announced.";
    gauge(encoder, "guard_expectations", help, status.expectations.len() as i64)?;
    let help = "Devices that are not dialled because it cannot be decided whose their address is.";
    gauge(encoder, "guard_disputed_devices", help, status.disputed_devices as i64)?;
    let help = "1 while the state on disk is older than what is in force, because it cannot be written.";
    gauge(encoder, "guard_state_unsaved", help, i64::from(status.state_unsaved.is_some()))?;
    let help = "Rows that were absent from one read, and stay in force until a second read confirms it.";
    gauge(encoder, "guard_absences_waiting", help, status.absences_waiting as i64)?;
    let help = "1 while refusals are compared with the decisions of the previous generation.";
    gauge(encoder, "guard_on_probation", help, i64::from(status.on_probation))?;
    let help = "Refusals that the previous generation would not have given.";
    counter(encoder, "guard_regressions", help, status.regressions)?;
    let help = "Times that the node went back to an earlier generation.";
    counter(encoder, "guard_rollbacks", help, status.rollbacks)?;
    let help = "Rows that ended because two reads did not have them.";
    counter(encoder, "guard_absences_honoured", help, status.absences_honoured)
}

/// A rule that holds nothing has one sample, 0; one that holds has a sample for each group.
fn encode_holds(encoder: &mut DescriptorEncoder, status: &ControlStatus) -> Result<(), fmt::Error> {
    let mut held: BTreeMap<HoldLabels, usize> = BTreeMap::new();
    for hold in &status.held {
        *held.entry(HoldLabels::of(hold)).or_default() += hold.rows;
    }
    let idle = Rule::ALL.into_iter().filter(|rule| status.held.iter().all(|hold| hold.rule != *rule));
    let idle = idle.map(|rule| HoldLabels { rule: rule.name(), relation: ALL, kind: ALL.to_owned() });
    let samples: Vec<(HoldLabels, bool, usize)> = held
        .into_iter()
        .map(|(labels, rows)| (labels, true, rows))
        .chain(idle.map(|labels| (labels, false, 0)))
        .collect();
    let help = "1 while the guard holds this group of changes, by the rule that holds it.";
    let mut family = encoder.encode_descriptor("guard_held", help, None, MetricType::Gauge)?;
    for (labels, is_held, _) in &samples {
        ConstGauge::new(i64::from(*is_held)).encode(family.encode_family(labels)?)?;
    }
    let help = "Rows that the guard holds.";
    let mut family = encoder.encode_descriptor("guard_held_rows", help, None, MetricType::Gauge)?;
    for (labels, _, rows) in &samples {
        ConstGauge::new(*rows as i64).encode(family.encode_family(labels)?)?;
    }
    let help = "Holds so far, by rule.";
    let mut family = encoder.encode_descriptor("guard_holds", help, None, MetricType::Counter)?;
    for (rule, holds) in Rule::ALL.into_iter().zip(status.hold_counts) {
        ConstCounter::new(holds).encode(family.encode_family(&RuleLabel { rule: rule.name() })?)?;
    }
    Ok(())
}

fn encode_budgets(encoder: &mut DescriptorEncoder, status: &ControlStatus) -> Result<(), fmt::Error> {
    let help = "Rows that changed within the window or are held, by group.";
    let mut family = encoder.encode_descriptor("guard_budget_used_rows", help, None, MetricType::Gauge)?;
    for budget in &status.budgets {
        ConstGauge::new(budget.used as i64).encode(family.encode_family(&GroupLabels::of(budget.group))?)?;
    }
    let help = "Rows that may change within the window, by group.";
    let mut family = encoder.encode_descriptor("guard_budget_rows", help, None, MetricType::Gauge)?;
    for budget in &status.budgets {
        ConstGauge::new(budget.rows as i64).encode(family.encode_family(&GroupLabels::of(budget.group))?)?;
    }
    Ok(())
}

fn encode_relations(encoder: &mut DescriptorEncoder, status: &ControlStatus) -> Result<(), fmt::Error> {
    let now = UnixMillis::now();
    let named = |status: &RelationStatus| Some(RelationLabel { relation: known_name(&status.relation)? });
    let help = "Time since the relation was last read; absent before the first read.";
    let mut family =
        encoder.encode_descriptor("store_relation_read_age_seconds", help, None, MetricType::Gauge)?;
    for relation in &status.relations {
        if let (Some(label), Some(read_at)) = (named(relation), relation.read_at) {
            let age_ms = now.0.saturating_sub(read_at.0).max(0);
            ConstGauge::new(age_ms as f64 / 1000.0).encode(family.encode_family(&label)?)?;
        }
    }
    let help = "Reads of the relation that failed.";
    let mut family = encoder.encode_descriptor("store_relation_errors", help, None, MetricType::Counter)?;
    for relation in &status.relations {
        if let Some(label) = named(relation) {
            ConstCounter::new(relation.errors).encode(family.encode_family(&label)?)?;
        }
    }
    Ok(())
}

impl HoldLabels {
    fn of(hold: &HoldStatus) -> Self {
        let named = hold.relation.as_deref().and_then(known_name);
        let (relation, kind) = match hold.group.map(GroupLabels::of) {
            Some(GroupLabels { relation, kind }) => (relation, kind),
            None => (named.unwrap_or(ALL), ALL.to_owned()),
        };
        Self { rule: hold.rule.name(), relation, kind }
    }
}

impl GroupLabels {
    /// The kind of an explicit group reads as in its name, such as `ended.explicit`.
    fn of(group: Group) -> Self {
        let relation = group.relation.name();
        let name = group.to_string();
        let kind = name.split_once('.').map_or(name.as_str(), |(_, kind)| kind);
        Self { relation, kind: kind.to_owned() }
    }
}

/// A name for a label, so that there are three at most.
fn known_name(relation: &str) -> Option<&'static str> {
    Relation::named(relation).map(Relation::name)
}

const ALL: &str = "all";

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text::encode as encode_text;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::control::api::BudgetUse;

    #[derive(Debug)]
    struct Collected(ControlStatus);

    impl Collector for Collected {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
            encode(&mut encoder, &self.0)
        }
    }

    fn text(status: ControlStatus) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collected(status)));
        let mut text = String::new();
        encode_text(&mut text, &registry).unwrap();
        text
    }

    fn held(rule: Rule, group: Option<&str>, relation: Option<&str>, rows: usize) -> HoldStatus {
        HoldStatus {
            rule,
            group: group.map(|name| name.parse().unwrap()),
            relation: relation.map(str::to_owned),
            rows,
            figures: String::new(),
            examples: vec!["grants 7".to_owned()],
            since: UnixMillis(0),
            advice: String::new(),
        }
    }

    #[test]
    fn each_held_group_has_a_sample_and_each_other_rule_one() {
        let text = text(ControlStatus {
            held: vec![
                held(Rule::Budget, Some("grants.absent"), None, 30),
                held(Rule::Budget, Some("credentials.ended.explicit"), None, 4),
                held(Rule::Contract, None, Some("devices"), 0),
                held(Rule::Position, None, None, 0),
            ],
            ..ControlStatus::default()
        });
        for sample in [
            "guard_held{rule=\"budget\",relation=\"grants\",kind=\"absent\"} 1",
            "guard_held{rule=\"budget\",relation=\"credentials\",kind=\"ended.explicit\"} 1",
            "guard_held{rule=\"contract\",relation=\"devices\",kind=\"all\"} 1",
            "guard_held{rule=\"position\",relation=\"all\",kind=\"all\"} 1",
            "guard_held{rule=\"canaries\",relation=\"all\",kind=\"all\"} 0",
            "guard_held_rows{rule=\"budget\",relation=\"grants\",kind=\"absent\"} 30",
        ] {
            assert!(text.contains(&format!("{sample}\n")), "no {sample} in\n{text}");
        }
        let samples = text.lines().filter(|line| line.starts_with("guard_held{")).count();
        assert_eq!(
            samples,
            Rule::ALL.len() + 1,
            "two groups by one rule, and one sample for each other rule"
        );
        assert!(!text.contains("grants 7"), "examples name rows");
    }

    #[test]
    fn a_group_that_is_held_twice_is_one_sample() {
        let twice = || held(Rule::Address, Some("devices.moved"), None, 2);
        let text = text(ControlStatus { held: vec![twice(), twice()], ..ControlStatus::default() });
        let rows = "guard_held_rows{rule=\"address\",relation=\"devices\",kind=\"moved\"} 4\n";
        assert!(text.contains(rows), "{text}");
    }

    #[test]
    fn budgets_and_relations_have_samples_of_their_own() {
        let group: Group = "devices.moved".parse().unwrap();
        let relation = |name: &str, errors| RelationStatus {
            relation: name.to_owned(),
            read_at: Some(UnixMillis(0)),
            errors,
            ..RelationStatus::default()
        };
        let text = text(ControlStatus {
            budgets: vec![BudgetUse { group, used: 3, rows: 14 }],
            relations: vec![relation("grants", 2), relation("strange", 1)],
            disputed_devices: 5,
            state_unsaved: Some("the disk is full".to_owned()),
            ..ControlStatus::default()
        });
        for sample in [
            "guard_budget_used_rows{relation=\"devices\",kind=\"moved\"} 3\n",
            "guard_budget_rows{relation=\"devices\",kind=\"moved\"} 14\n",
            "store_relation_errors_total{relation=\"grants\"} 2\n",
            "store_relation_read_age_seconds{relation=\"grants\"} ",
            "guard_disputed_devices 5\n",
            "guard_state_unsaved 1\n",
        ] {
            assert!(text.contains(sample), "no {sample} in\n{text}");
        }
        assert!(!text.contains("strange"), "labels are bounded");
    }
}
