//! Audit events, one for each tunnel that ended, each refusal and each operator's command, and the way to tell
//! them.
//!
//! Engines put events into a bounded queue and never wait. What finds the queue full is counted by the
//! sender.

use std::net::SocketAddr;

use crossbeam::channel::Sender;
use serde::Serialize;

use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId};

/// Who and what a session was about, as far as it got.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionFacts {
    pub session: u64,
    pub client: Option<SocketAddr>,
    pub principal: Option<PrincipalId>,
    pub credential: Option<CredentialId>,
    pub grant: Option<GrantId>,
    pub device: Option<DeviceId>,
    pub uuid: Option<DeviceUuid>,
    pub port: Option<u16>,
    /// The snapshot that decided.
    pub generation: Option<Generation>,
}

/// A tunnel that was open has ended.
#[derive(Clone, Debug, Serialize)]
pub struct SessionEnd {
    #[serde(flatten)]
    pub facts: SessionFacts,
    pub cause: &'static str,
    /// Client to device.
    pub bytes_up: u64,
    /// Device to client.
    pub bytes_down: u64,
    /// From accept to the reply.
    pub handshake_us: u64,
    /// From accept to close.
    pub duration_ms: u64,
}

/// A session that never became a tunnel.
#[derive(Clone, Debug, Serialize)]
pub struct SessionRefusal {
    #[serde(flatten)]
    pub facts: SessionFacts,
    /// Absent where the client was gone before it could be told anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub slug: Option<&'static str>,
    /// The true cause, which the reply may hide.
    pub cause: &'static str,
    /// The operating system's word for it, where it said one.
    pub detail: Option<String>,
}

/// Something that a person had the node do, or tried to.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorCommand {
    pub command: &'static str,
    /// Of the process that asked, as far as the kernel tells.
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    /// Where they asked from, where that was not the local socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// `done` or `refused`.
    pub outcome: &'static str,
    pub detail: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum AuditEvent {
    SessionEnd(SessionEnd),
    Refusal(SessionRefusal),
    OperatorCommand(OperatorCommand),
}

/// The engines' end of the queue.
#[derive(Clone)]
pub struct AuditSender {
    queue: Option<Sender<AuditEvent>>,
}

impl AuditSender {
    /// A sender into nowhere, for a node without an audit log.
    pub fn disabled() -> Self {
        Self { queue: None }
    }

    pub(super) fn into_queue(queue: Sender<AuditEvent>) -> Self {
        Self { queue: Some(queue) }
    }

    /// Whether the event was taken, or nobody wants it; `false` where the queue was full.
    #[must_use]
    pub fn send(&self, event: AuditEvent) -> bool {
        match &self.queue {
            Some(queue) => queue.try_send(event).is_ok(),
            None => true,
        }
    }
}
