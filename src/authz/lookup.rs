//! What the guard asks of a snapshot, beside decisions: rows by their other names, rights with no regard to
//! where a device is, and where a device is with no regard to rights.

use std::net::IpAddr;
use std::ops::ControlFlow;

use super::relations::Between;
use super::{
    Credential, CredentialId, Decision, DecisionContext, Device, DeviceId, DeviceUuid, GrantId, PrincipalId,
    Query, Refusal, Revocations, Snapshot, UnixMillis,
};

/// The rows that a permission rests on, by this node or by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permitted {
    pub principal: PrincipalId,
    pub device: DeviceId,
    pub grant: GrantId,
    /// `None` where another node holds the device.
    pub address: Option<IpAddr>,
}

impl Snapshot {
    /// Returns the rows that permit `query`; `None` where it leads to no tunnel, by this node or by another one.
    pub fn permitted(&self, query: &Query, context: DecisionContext<'_>) -> Option<Permitted> {
        match self.decide(query, context) {
            Decision::Allow(route) => Some(Permitted {
                principal: route.principal,
                device: route.device,
                grant: route.grant,
                address: Some(route.address),
            }),
            Decision::Refuse(Refusal::DeviceElsewhere) => {
                let right = self.decide_elsewhere(query, context).ok()?.right;
                Some(Permitted {
                    principal: right.principal,
                    device: right.device,
                    grant: right.grant,
                    address: None,
                })
            }
            Decision::Refuse(_) | Decision::Undecided(_) => None,
        }
    }

    /// Number of devices that are online at `node`, by their rows.
    pub fn held_by(&self, node: &str) -> usize {
        self.devices.count(|device| device.online && device.node == Some(node))
    }

    /// Number of them that have an address, which `node` needs to dial them.
    pub fn reached_by(&self, node: &str) -> usize {
        self.devices.count(|device| device.online && device.node == Some(node) && device.address.is_some())
    }

    pub fn device_named(&self, uuid: DeviceUuid) -> Option<Device> {
        self.devices.named(uuid)
    }

    pub fn credential_called(&self, id: CredentialId) -> Option<Credential> {
        self.credentials.called(id)
    }

    /// Returns whether a live grant of `principal` opens `port` of the device, wherever it is.
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
        self.grants.seek(between).visit(now, |grant| {
            has_access |= grant.ports.contains(port) && !grant.has_ended(now) && !revocations.grant(&grant);
            if has_access { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        has_access && !revocations.principal(principal)
    }
}

impl Device {
    /// Returns the address where `node` (any node, where it is `None`) can dial the device now.
    pub fn location(&self, node: Option<&str>) -> Option<IpAddr> {
        let is_ours = node.is_none() || self.node.is_none() || self.node.as_deref() == node;
        self.address.filter(|_| self.online && is_ours && !self.disputed)
    }

    /// The node that it is online at, where its row names one.
    pub fn holder(&self) -> Option<&str> {
        self.node.as_deref().filter(|_| self.online)
    }

    /// Returns whether some node can reach the device now: `node` itself, or another one, whose address of it `node`
    /// need not know.
    pub fn is_located(&self, node: Option<&str>) -> bool {
        let is_elsewhere = node.is_some() && self.node.is_some() && self.node.as_deref() != node;
        self.location(node).is_some() || (self.online && is_elsewhere && !self.disputed)
    }
}
