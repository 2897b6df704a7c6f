//! Questions whose answers the operator knows.

use std::fmt;

use super::row::{AnyRow, is_located};
use crate::authz::{CredentialId, DeviceUuid, PrincipalId, Revocations, Snapshot, UnixMillis};
use crate::config::{self, CanaryHolder, CanaryUuid};

/// Configured questions, in the words of authorization.
#[derive(Default)]
pub(super) struct Canaries {
    must_allow: Vec<Question>,
    must_refuse: Vec<Question>,
    must_locate: Vec<DeviceUuid>,
    /// This node's name, where it has one.
    node: Option<String>,
}

/// Canaries that a snapshot answers wrongly; never none.
#[derive(Debug)]
pub(super) struct WrongAnswers {
    pub(super) wrong: Vec<String>,
    all: usize,
}

struct Question {
    who: Who,
    device: DeviceUuid,
    port: u16,
}

enum Who {
    Principal(PrincipalId),
    Credential(CredentialId),
}

impl Canaries {
    pub(super) fn new(config: &config::GuardConfig, node: Option<&str>) -> Self {
        let questions = |canaries: &[config::Canary]| canaries.iter().filter_map(Question::new).collect();
        Self {
            must_allow: questions(&config.must_allow),
            must_refuse: questions(&config.must_refuse),
            must_locate: config.must_locate.iter().filter_map(uuid).collect(),
            node: node.map(str::to_owned),
        }
    }

    /// Number of questions.
    pub(super) fn len(&self) -> usize {
        self.must_allow.len() + self.must_refuse.len() + self.must_locate.len()
    }

    pub(super) fn check(
        &self,
        snapshot: &Snapshot,
        revocations: &Revocations,
        now: UnixMillis,
    ) -> Result<(), WrongAnswers> {
        if self.len() == 0 {
            return Ok(());
        }
        let is_permitted = |question: &&Question| question.is_permitted(snapshot, revocations, now);
        let refused = self.must_allow.iter().filter(|question| !is_permitted(question));
        let allowed = self.must_refuse.iter().filter(is_permitted);
        let unlocated = self.must_locate.iter().filter(|uuid| {
            let device = snapshot.device_named(**uuid);
            !device.is_some_and(|device| device.is_located(self.node.as_deref()) && is_located(&device))
        });
        let wrong: Vec<String> = refused
            .map(|question| format!("{question} must be allowed and is refused"))
            .chain(allowed.map(|question| format!("{question} must be refused and is allowed")))
            .chain(unlocated.map(|uuid| format!("{uuid} must have a location and has none")))
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(WrongAnswers { wrong, all: self.len() }) }
    }
}

impl WrongAnswers {
    pub(super) fn figures(&self) -> String {
        format!("{} of {} canaries would be answered wrongly", self.wrong.len(), self.all)
    }
}

impl Question {
    /// `None` for no uuid, which no configuration that was read can hold.
    fn new(canary: &config::Canary) -> Option<Self> {
        let who = match canary.who {
            CanaryHolder::Principal(id) => Who::Principal(PrincipalId(id)),
            CanaryHolder::Credential(id) => Who::Credential(CredentialId::from_bytes(id)),
        };
        Some(Self { who, device: uuid(&canary.device)?, port: canary.port })
    }

    fn is_permitted(&self, snapshot: &Snapshot, revocations: &Revocations, now: UnixMillis) -> bool {
        let principal = match self.who {
            Who::Principal(id) => Some(id),
            Who::Credential(id) => snapshot
                .credential_called(id)
                .filter(|row| AnyRow::Credential(*row).is_live(now) && !revocations.credential(&row.key))
                .map(|row| row.principal),
        };
        principal.is_some_and(|id| snapshot.grants_access(id, self.device, self.port, revocations, now))
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Who::Principal(id) => write!(f, "principal:{} ", id.0)?,
            Who::Credential(id) => write!(f, "credential:{id} ")?,
        }
        write!(f, "{}:{}", self.device, self.port)
    }
}

fn uuid(text: &CanaryUuid) -> Option<DeviceUuid> {
    DeviceUuid::parse(&text.0)
}
