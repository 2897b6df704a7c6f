//! `/sessions`: the sessions of a node.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId, UnixMillis};

/// Number of a session. JSON has it as text: JavaScript's numbers are too small for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// One session. A field is `None` as long as the relay does not know it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionInfo {
    pub id: SessionId,
    pub client: Option<SocketAddr>,
    pub principal: Option<PrincipalId>,
    /// The name of the principal, where the store gives it.
    pub principal_name: Option<String>,
    pub credential: Option<CredentialId>,
    pub grant: Option<GrantId>,
    pub device: Option<DeviceId>,
    pub uuid: Option<DeviceUuid>,
    pub port: Option<u16>,
    /// The snapshot that allowed it.
    pub generation: Option<Generation>,
    /// A word such as `open`.
    pub state: Cow<'static, str>,
    /// Time of the accept.
    pub since: UnixMillis,
    /// Time from accept to reply.
    pub handshake_us: Option<u64>,
    /// Bytes from client to device.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// The way that bytes take, such as `splice`.
    pub path_up: Option<Cow<'static, str>>,
    pub path_down: Option<Cow<'static, str>>,
    /// Bytes per second since the previous list. `None` where that list is old, or did not have the session.
    pub rate_up: Option<u64>,
    pub rate_down: Option<u64>,
}

/// All sessions of one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionListing {
    pub sessions: Vec<SessionInfo>,
    /// Number of sessions that began while the list was made, and found no room on it.
    pub left_out: usize,
}

/// The answer to a request that ended a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndedSession {
    /// The id as the request gave it.
    pub ended: String,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}
