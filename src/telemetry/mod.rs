//! What the node tells about itself: counters that engines keep, and audit events.

mod audit;
mod counters;

pub use audit::{AuditEvent, AuditLog, AuditSender, SessionEnd, SessionFacts, SessionRefusal};
pub use counters::{Counter, EngineCounters, HotCounters, SessionCounters};
