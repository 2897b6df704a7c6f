//! Explains a refusal by the relay.

use std::fmt;

use super::names::TunnelTarget;
use crate::wire::Reply;

/// A refusal by the relay, with a text that helps a person.
#[derive(Debug)]
pub struct TunnelRefusal {
    target: TunnelTarget,
    status: u16,
    reason: String,
    /// `None` for a reply that sluicegate does not send.
    reply: Option<Reply>,
}

impl TunnelRefusal {
    /// Finds the reply that `slug` names. Without a slug, finds it by status and reason.
    pub(super) fn new(target: &TunnelTarget, status: u16, reason: String, slug: Option<&str>) -> Self {
        let mut all = Reply::ALL.into_iter();
        let reply = match slug {
            Some(slug) => all.find(|reply| reply.slug() == Some(slug)),
            None => all.find(|reply| reply.status() == status && reply.reason() == reason),
        };
        Self { target: target.clone(), status, reason, reply }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    #[cfg(test)]
    pub(super) fn reply(&self) -> Option<Reply> {
        self.reply
    }
}

impl fmt::Display for TunnelRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, status, reason, reply } = self;
        let TunnelTarget { host, port } = target;
        write!(f, "{target}: {status} {reason}: ")?;
        let Some(reply) = reply else {
            return f.write_str(
                "this reply is not from sluicegate; check --relay, and whether there is a proxy in between",
            );
        };
        match reply {
            Reply::Established => f.write_str("the tunnel is open"),
            Reply::Malformed | Reply::Method => {
                f.write_str("the relay did not understand our request; check that both have the same version, and \
                 whether the port needs TLS (--tls, and no --plain)")
            }
            Reply::NotPermitted => write!(
                f,
                "there is no such device, or the token may not reach its port {port}; check the uuid, or ask the \
                 relay's operator for a grant (`sluicegate grant add`)"
            ),
            Reply::Credentials => f.write_str(
                "the token is unknown, expired or revoked; ask the relay's operator for a new one (`sluicegate \
                 token issue`)",
            ),
            Reply::HeadTimeout => f.write_str("our request did not arrive in time; check the network and try again"),
            Reply::Limit => f.write_str(
                "too many sessions are open: of the owner of this token, to this device or on this relay; close some, or \
                 try again later",
            ),
            Reply::HeadTooLarge => f.write_str("our request is too long; check the token"),
            Reply::DeviceAddress => f.write_str(
                "the device's address lies outside the relay's `vpn.allow`; the relay's operator must correct one \
                 of the two",
            ),
            Reply::DevicePortClosed => {
                write!(f, "nothing listens on port {port} of the device; start the service there, or use its port")
            }
            Reply::DeviceUnreachable => {
                f.write_str("the relay has no route to the device; check the VPN on both ends, then try again")
            }
            Reply::DeviceOffline => write!(f, "{host} has no VPN connection; power it up or wait until it is back"),
            Reply::DeviceDisputed => write!(
                f,
                "the relay cannot tell whether the address that it has for {host} is still this device's; try again \
                 soon, and if it goes on, ask its operator (`sluicegate authz status`)"
            ),
            Reply::Undecided => f.write_str(
                "the relay cannot decide at the moment whether this is permitted; try again soon, and if it \
                 goes on, ask its operator",
            ),
            Reply::Draining => f.write_str("the relay is being shut down; try again soon, or use another relay"),
            Reply::DeviceTimeout => write!(
                f,
                "the device does not answer on port {port}; check that it is up and that no firewall drops the port"
            ),
            Reply::Loop => f.write_str("the relays forward this request to each other in a circle; ask their operator"),
        }
    }
}
