//! What a fault came to.

use std::time::Duration;

use super::case::Case;

pub struct Outcome {
    pub case: Case,
    /// Calls that failed.
    pub failed_calls: i32,
    pub end: End,
    /// Tunnels that were open and ended.
    pub tunnels_ended: usize,
    /// Status lines of requests for new tunnels while the call failed, each once.
    pub replies: Vec<String>,
    /// Lines of the log at the levels `warn` and `error`, without what differs from one run to the next.
    pub log: Vec<String>,
    /// Time from the end of the fault until everything was as before.
    pub recovered_after: Duration,
    /// Promises that are broken.
    pub broken: Vec<String>,
}

/// The process after a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    Serves,
    /// It ended by itself, with the last line that it wrote.
    Ended(String),
}
