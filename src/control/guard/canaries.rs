//! Rule `canaries`: questions whose answers the operator knows are answered so.

use std::fmt;

use super::{Candidate, Hold, Rule, is_live_credential};
use crate::authz::{CredentialId, DeviceUuid, PrincipalId};
use crate::config::{self, CanaryHolder, CanaryUuid};

/// Configured questions, in the words of authorization.
#[derive(Default)]
pub(in crate::control) struct Canaries {
    must_allow: Vec<Question>,
    must_refuse: Vec<Question>,
    must_locate: Vec<DeviceUuid>,
    /// This node's name, where it has one.
    node: Option<String>,
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

    pub(super) fn check(&self, candidate: &Candidate<'_>) -> Result<(), Hold> {
        let refused = self.must_allow.iter().filter(|question| !question.is_permitted(candidate));
        let allowed = self.must_refuse.iter().filter(|question| question.is_permitted(candidate));
        let unlocated = self.must_locate.iter().filter(|uuid| {
            let device = candidate.store.device_named(**uuid);
            !device.is_some_and(|device| device.is_located(self.node.as_deref()))
        });
        let wrong: Vec<String> = refused
            .map(|question| format!("{question} must be allowed and is refused"))
            .chain(allowed.map(|question| format!("{question} must be refused and is allowed")))
            .chain(unlocated.map(|uuid| format!("{uuid} must have a location and has none")))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let all = self.must_allow.len() + self.must_refuse.len() + self.must_locate.len();
        let figures = format!("{} of {all} canaries are answered wrongly", wrong.len());
        Err(Hold::new(Rule::Canaries, wrong.len(), figures, wrong))
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

    fn is_permitted(&self, candidate: &Candidate<'_>) -> bool {
        let (store, revocations, now) = (candidate.store, candidate.revocations, candidate.now);
        let principal = match self.who {
            Who::Principal(id) => Some(id),
            Who::Credential(id) => store
                .credential_called(id)
                .filter(|row| is_live_credential(row, revocations, now))
                .map(|row| row.principal),
        };
        principal.is_some_and(|id| store.grants_access(id, self.device, self.port, revocations, now))
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
