//! A request for a hand-over and its outcome, between the admin side and the thread that runs the node.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A request for a hand-over, with the sender of its outcome.
#[derive(Debug)]
pub struct UpgradeTicket {
    answer: oneshot::Sender<Result<UpgradeOutcome, String>>,
}

/// A request that waits for its outcome.
pub struct UpgradeRequest {
    answered: oneshot::Receiver<Result<UpgradeOutcome, String>>,
}

/// The end of a hand-over that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeOutcome {
    /// The process that has taken over.
    pub pid: u32,
    pub version: String,
    /// The process before.
    pub old_pid: u32,
    /// Tunnels that moved.
    pub moved: u64,
    /// Sessions that stayed with the old process.
    pub stayed: u64,
    /// Why sessions stayed that could have moved, where there is a reason.
    pub remark: Option<String>,
}

impl UpgradeTicket {
    pub fn new() -> (Self, UpgradeRequest) {
        let (answer, answered) = oneshot::channel();
        (Self { answer }, UpgradeRequest { answered })
    }

    pub fn answer(self, outcome: Result<UpgradeOutcome, String>) {
        // Ignore requesters that gave up.
        let _has_given_up = self.answer.send(outcome);
    }
}

impl UpgradeRequest {
    pub async fn outcome(self) -> Result<UpgradeOutcome, String> {
        self.answered.await.unwrap_or_else(|_| Err("the relay stops, and does not hand over".to_owned()))
    }
}
