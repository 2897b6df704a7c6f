//! Audit events of use: what one principal, credential and device moved in one interval.

use std::fmt;

use serde::Serialize;

use crate::authz::{CredentialId, DeviceId, DeviceUuid, PrincipalId, UnixMillis};
use crate::telemetry::{UsageRow, UsageSums};

/// The use of one interval by one principal with one credential of one device; or by all others together, where these
/// are `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    pub from: String,
    pub to: String,
    pub principal: Option<PrincipalId>,
    pub credential: Option<CredentialId>,
    pub device: Option<DeviceId>,
    pub uuid: Option<DeviceUuid>,
    #[serde(flatten)]
    pub sums: UsageSums,
}

impl Usage {
    /// The event of `row`; of everybody beyond the bound on keys, where there is none.
    pub fn new(from: UnixMillis, to: UnixMillis, row: Option<&UsageRow>, sums: UsageSums) -> Self {
        Self {
            from: rfc3339(from),
            to: rfc3339(to),
            principal: row.map(|row| row.key.principal),
            credential: row.and_then(|row| row.key.credential),
            device: row.map(|row| row.key.device),
            uuid: row.and_then(|row| row.uuid),
            sums,
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UsageSums { bytes_up, bytes_down, opened, open, .. } = self.sums;
        match (self.principal, self.device) {
            (Some(principal), Some(device)) => write!(f, "principal {} to device {}", principal.0, device.0)?,
            _ => f.write_str("all others")?,
        }
        write!(f, ": {bytes_up} bytes up and {bytes_down} down, {opened} tunnels opened, {open} open")
    }
}

fn rfc3339(at: UnixMillis) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(|_| format!("{} ms", at.0), |time| time.to_string())
}
