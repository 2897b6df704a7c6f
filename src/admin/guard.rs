//! The part of `/metrics` about the guard.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::openmetrics::{counter, gauge};
use crate::control::{ControlStatus, Rule};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RuleLabel {
    rule: &'static str,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, status: &ControlStatus) -> Result<(), fmt::Error> {
    let held_by = status.hold.as_ref().map(|held| held.hold.rule);
    let help = "1 while the guard keeps the last good snapshot in force, by the rule that holds.";
    let mut family = encoder.encode_descriptor("guard_held", help, None, MetricType::Gauge)?;
    for rule in Rule::ALL {
        let metric = ConstGauge::new(i64::from(held_by == Some(rule)));
        metric.encode(family.encode_family(&RuleLabel { rule: rule.name() })?)?;
    }
    let help = "Holds so far, by rule.";
    let mut family = encoder.encode_descriptor("guard_holds", help, None, MetricType::Counter)?;
    for (rule, holds) in Rule::ALL.into_iter().zip(status.holds) {
        let metric = ConstCounter::new(holds);
        metric.encode(family.encode_family(&RuleLabel { rule: rule.name() })?)?;
    }
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
