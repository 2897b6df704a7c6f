//! What a node reports about itself: counters of the engine threads, causes, and audit events.

mod audit;
mod audit_log;
mod cause;
mod counters;
mod label_counts;
mod latency;
mod log_on_change;
mod slowest;
mod usage;

pub use audit::{
    Alarm, AuditEvent, AuditSender, By, HeldGroup, HoldChange, HoldEnd, MoreRefusals, OperatorCommand, Proof,
    QuarantinedRow, QuarantinedRows, RegressionSeen, Rollback, SessionEnd, SessionFacts, SessionRefusal,
    Usage,
};
pub use audit_log::{AuditChange, AuditError, AuditLog, AuditReopener, LostEvents};
pub use cause::Cause;
pub use counters::{Counter, EngineCounters, HotCounters, ListenerCounters, SessionCounters};
pub use label_counts::{CountLabel, LabelCounts, RefusalLabel, TlsHandshakeOutcome, TlsRecordsBy};
pub use latency::Latency;
pub use log_on_change::LogOnChange;
pub use slowest::{RequestTiming, SLOWEST_KEPT, SlowestRequests};
pub use usage::{USAGE_KEYS_MAX, UsageKey, UsageRow, UsageSums, UsageTable};
