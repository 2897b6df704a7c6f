//! What is told of the guard: what it holds, takes back, and finds wrong with what the store says.

use std::fmt;

use serde::Serialize;

use crate::authz::{DeviceId, Generation, PrincipalId};
use crate::telemetry::Cause;

/// What was found wrong, by which rule.
#[derive(Clone, Debug, Serialize)]
pub struct Alarm {
    pub rule: &'static str,
    /// What was counted, and what may be.
    pub figures: String,
    /// Some of the rows that it is about.
    pub examples: Vec<String>,
    /// In force, and staying so.
    pub generation: Option<Generation>,
}

/// What is held is held by another rule from now on.
#[derive(Clone, Debug, Serialize)]
pub struct HoldChange {
    #[serde(flatten)]
    pub now: Alarm,
    pub rule_before: &'static str,
    pub held_s: u64,
}

/// What the store says is in force again.
#[derive(Clone, Debug, Serialize)]
pub struct HoldEnd {
    pub rule: &'static str,
    pub held_s: u64,
    pub by: By,
    /// What was published, or was the same as in force.
    pub generation: Option<Generation>,
}

/// A generation before is in force again.
#[derive(Clone, Debug, Serialize)]
pub struct Rollback {
    pub by: By,
    pub rule: &'static str,
    pub figures: String,
    pub examples: Vec<String>,
    /// Taken out of force.
    pub from: Generation,
    /// Whose rows are in force again.
    pub to: Generation,
    /// The number under which they are.
    pub generation: Option<Generation>,
}

/// Who had something done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    Guard,
    Operator,
}

/// A principal was refused a device that the generation before would have allowed, and no revocation says why.
#[derive(Clone, Debug, Serialize)]
pub struct RegressionSeen {
    pub principal: PrincipalId,
    pub device: DeviceId,
    pub cause: Cause,
}

/// A row that does not decode.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantinedRow {
    /// Relation and key.
    pub row: String,
    pub reason: String,
}

/// Rows that do not decode either.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantinedRows {
    pub rows: usize,
}

impl fmt::Display for HoldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Alarm { rule, figures, .. } = &self.now;
        write!(f, "the guard holds by {rule} now, no longer by {}: {figures}", self.rule_before)
    }
}

impl fmt::Display for HoldEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guard holds no more; rule {} held for {} s", self.rule, self.held_s)
    }
}

impl fmt::Display for Rollback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gone back to generation {}, by {}: {}", self.to.0, self.rule, self.figures)
    }
}

impl fmt::Display for RegressionSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { principal, device, cause } = self;
        write!(
            f,
            "principal {} is refused device {} ({cause}), which the generation before allowed",
            principal.0, device.0
        )
    }
}
