//! What the node tells about itself: counters that engines keep, and audit events.

mod audit;
mod counters;
mod latency;

pub use audit::{AuditEvent, AuditLog, AuditSender, SessionEnd, SessionFacts, SessionRefusal};
pub use counters::{Counter, EngineCounters, HotCounters, SessionCounters};
pub use latency::Latency;
