//! What the guard asks of a snapshot, beside decisions: rows by their other names, rights with no regard to
//! where a device is, and where a device is with no regard to rights.

use std::net::IpAddr;

use super::relations::Between;
use super::{Credential, CredentialId, Device, DeviceUuid, PrincipalId, Revocations, Snapshot, UnixMillis};

impl Snapshot {
    pub fn device_named(&self, uuid: DeviceUuid) -> Option<Device> {
        self.devices.named(uuid)
    }

    pub fn credential_called(&self, id: CredentialId) -> Option<Credential> {
        self.credentials.called(id)
    }

    /// Whether a live grant of `principal` opens `port` of the device, wherever that is.
    pub fn grants_access(
        &self,
        principal: PrincipalId,
        device: DeviceUuid,
        port: u16,
        revocations: &Revocations,
        now: UnixMillis,
    ) -> bool {
        let Some(device) = self.device_named(device) else { return false };
        let mut has_access = false;
        let between = Between { principal, device: device.id, fleet: device.fleet };
        self.grants.seek(between).visit(|grant| {
            has_access |= grant.ports.contains(port)
                && !grant.revoked
                && !revocations.grant(grant.id)
                && grant.expires_at.is_none_or(|end| end > now);
        });
        has_access && !revocations.principal(principal)
    }
}

impl Device {
    /// Where `node` (any, where it is `None`) can dial the device now.
    pub fn location(&self, node: Option<&str>) -> Option<IpAddr> {
        let is_ours = node.is_none() || self.node.is_none() || self.node.as_deref() == node;
        self.address.filter(|_| self.online && is_ours)
    }
}
