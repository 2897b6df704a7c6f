//! The self probe as engine threads see it: the node as a client of its own listener, known by its token.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::authz::{KeyHash, Subject};
use crate::telemetry::Cause;

/// The state of the self probe. The node makes one request at a time. Engine threads take the locks only for
/// sessions with the probe's token.
#[derive(Default)]
pub(super) struct SelfProbe {
    key: OnceLock<KeyHash>,
    by_node: Mutex<Option<Arc<str>>>,
    refusal: Mutex<Option<String>>,
}

impl SelfProbe {
    /// Sets the probe's token, which no principal holds. Refusals of it are neither counted nor audited.
    pub fn expect(&self, key: KeyHash) {
        let _there_is_one = self.key.set(key);
    }

    pub fn asks(&self, subject: Option<Subject>) -> bool {
        subject.is_some() && self.key.get().copied().map(Subject::Key) == subject
    }

    /// Sets the peer that forwards the probe's requests: from now on this node sends them to `node`, which refuses
    /// them. `None` refuses them here.
    pub fn forward_through(&self, node: Option<Arc<str>>) {
        *self.by_node.lock() = node;
        *self.refusal.lock() = None;
    }

    /// The peer for a request of the probe; `None` for any other subject, and where no peer is set.
    pub fn node(&self, subject: Option<Subject>) -> Option<Arc<str>> {
        if self.asks(subject) { self.by_node.lock().clone() } else { None }
    }

    /// Records the true cause of the probe's refusal, which no audit log has. Ignores other subjects.
    pub fn note_refusal(&self, subject: Option<Subject>, cause: Cause, detail: Option<&str>) {
        if !self.asks(subject) {
            return;
        }
        let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        *self.refusal.lock() = Some(format!("{cause}{detail}"));
    }

    /// Takes the cause of the last refusal.
    pub fn take_refusal(&self) -> Option<String> {
        self.refusal.lock().take()
    }
}
