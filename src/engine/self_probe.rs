//! What engines know of the node as its own client: by which token it comes, and by which other node it wants to go.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::authz::{KeyHash, Subject};
use crate::telemetry::Cause;

/// One for the node, which asks one thing at a time. Engines take its locks for the sessions of its token alone.
#[derive(Default)]
pub(super) struct SelfProbe {
    key: OnceLock<KeyHash>,
    by_node: Mutex<Option<Arc<str>>>,
    refusal: Mutex<Option<String>>,
}

impl SelfProbe {
    /// Nobody holds this token; its refusals are neither counted nor audited.
    pub fn expect(&self, key: KeyHash) {
        let _there_is_one = self.key.set(key);
    }

    pub fn asks(&self, subject: Option<Subject>) -> bool {
        subject.is_some() && self.key.get().copied().map(Subject::Key) == subject
    }

    /// From now on it is not refused here, but handed to this node, to be refused there.
    pub fn go_by(&self, node: Option<Arc<str>>) {
        *self.by_node.lock() = node;
        *self.refusal.lock() = None;
    }

    /// The node that it is to be handed to, where it is it that asks.
    pub fn node(&self, subject: Option<Subject>) -> Option<Arc<str>> {
        if self.asks(subject) { self.by_node.lock().clone() } else { None }
    }

    /// The true cause, which is in no audit log, where it is it that was refused.
    pub fn note_refusal(&self, subject: Option<Subject>, cause: Cause, detail: Option<&str>) {
        if !self.asks(subject) {
            return;
        }
        let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        *self.refusal.lock() = Some(format!("{cause}{detail}"));
    }

    /// Of what was asked last.
    pub fn take_refusal(&self) -> Option<String> {
        self.refusal.lock().take()
    }
}
