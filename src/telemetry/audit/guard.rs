//! Audit events of the guard: holds, rollbacks, and rows of the store that are wrong.

use std::fmt;

use serde::Serialize;

use crate::authz::{DeviceId, Generation, PrincipalId};
use crate::telemetry::Cause;

/// A problem that a rule of the guard found.
#[derive(Clone, Debug, Serialize)]
pub struct Alarm {
    pub rule: &'static str,
    /// The count, and its limit.
    pub figures: String,
    /// Names of some of the rows.
    pub examples: Vec<String>,
    /// Generation in force, which stays in force.
    pub generation: Option<Generation>,
}

/// A group of changes, a relation, or everything, that the guard holds.
#[derive(Clone, Debug, Serialize)]
pub struct HeldGroup {
    pub rule: &'static str,
    /// Name of what is held, such as `grants.absent`.
    pub held: String,
    pub rows: usize,
    /// The count, and its limit.
    pub figures: String,
    /// Names of some of the rows.
    pub examples: Vec<String>,
    /// Generation in force.
    pub generation: Option<Generation>,
}

/// A hold has many more rows than before, or many fewer.
#[derive(Clone, Debug, Serialize)]
pub struct HoldChange {
    #[serde(flatten)]
    pub now: HeldGroup,
    pub rows_before: usize,
    pub held_s: u64,
}

/// The end of a hold: the rows are in force, or what the store says has changed.
#[derive(Clone, Debug, Serialize)]
pub struct HoldEnd {
    pub rule: &'static str,
    pub held: String,
    /// Rows that were held last.
    pub rows: usize,
    pub held_s: u64,
    pub by: By,
    /// Generation in force now.
    pub generation: Option<Generation>,
}

/// A rollback to an earlier generation.
#[derive(Clone, Debug, Serialize)]
pub struct Rollback {
    pub by: By,
    pub rule: &'static str,
    pub figures: String,
    pub examples: Vec<String>,
    /// Generation that was taken out of force.
    pub from: Generation,
    /// Generation whose rows are in force again.
    pub to: Generation,
    /// Number under which these rows are in force now.
    pub generation: Option<Generation>,
}

/// The party that caused an action.
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

impl fmt::Display for HeldGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guard holds {} by rule {}: {}", self.held, self.rule, self.figures)
    }
}

impl fmt::Display for HoldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (it was {} rows before)", self.now, self.rows_before)
    }
}

impl fmt::Display for HoldEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, held, held_s, .. } = self;
        write!(f, "the guard holds {held} by rule {rule} no more, after {held_s} s")
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
