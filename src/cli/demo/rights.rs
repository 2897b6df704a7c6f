//! Fills the store of the demo, with the functions that the store commands use.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::DemoError;
use crate::authz::{CredentialId, DeviceUuid, PortRange, UnixMillis};
use crate::store::admin::{AdminError, GrantTarget, NewDevice};
use crate::store::sqlite;

/// Rights in the store that the steps need.
pub(super) struct DemoRights {
    /// Number of rows of each kind.
    pub summary: String,
    /// Token that a person may use.
    pub token: String,
    pub revoked_token: String,
    pub expired_token: String,
    /// Tokens that a step revokes.
    pub visitors: Vec<Visitor>,
    pub web: DeviceUuid,
    pub echo: DeviceUuid,
    /// Has an address like `echo`, but no grant.
    pub private: DeviceUuid,
    pub offline: DeviceUuid,
    pub outside: DeviceUuid,
    pub unreachable: DeviceUuid,
    /// Leads to this machine's own sshd.
    pub ssh: DeviceUuid,
}

pub(super) struct Visitor {
    pub token: String,
    pub credential: CredentialId,
}

/// Addresses of the devices that listen.
pub(super) struct Addresses {
    pub web: IpAddr,
    pub echo: IpAddr,
}

impl DemoRights {
    /// Creates the store at `path` and fills it.
    pub fn write(path: &Path, addresses: &Addresses) -> Result<Self, DemoError> {
        sqlite::init(path)?;
        let mut admin = sqlite::open(path)?;
        admin.add_principal(PERSON)?;
        admin.add_principal(VISITOR)?;

        let mut add = |device: NewDevice| admin.add_device(&device).map(|_| device.uuid);
        let web = add(device("web", addresses.web, Some(FLEET))?)?;
        let echo = add(device("echo", addresses.echo, Some(FLEET))?)?;
        let private = add(device("private", PRIVATE, None)?)?;
        let offline = NewDevice { online: false, ..device("offline", addresses.echo, Some(FLEET))? };
        let offline = add(offline)?;
        let outside = add(device("outside", OUTSIDE, Some(FLEET))?)?;
        let unreachable = add(device("unreachable", UNREACHABLE, Some(FLEET))?)?;
        let ssh = add(device("ssh", IpAddr::V4(Ipv4Addr::LOCALHOST), None)?)?;

        let fleet = GrantTarget::Fleet(FLEET.to_owned());
        admin.add_grant(PERSON, &fleet, user_ports(), None)?;
        let ssh_port = PortRange::new(SSH_PORT, SSH_PORT).expect("22 is a port");
        admin.add_grant(PERSON, &GrantTarget::Device(ssh), ssh_port, None)?;
        admin.add_grant(VISITOR, &GrantTarget::Device(echo), user_ports(), None)?;

        let token = admin.issue_token(PERSON, Some("demo"), None)?.token;
        let revoked = admin.issue_token(PERSON, Some("revoked"), None)?;
        admin.revoke_credential(&revoked.credential.to_string())?;
        let a_second_ago = UnixMillis(UnixMillis::now().0 - 1000);
        let expired_token = admin.issue_token(PERSON, Some("expired"), Some(a_second_ago))?.token;
        let visitors = (0..VISITORS)
            .map(|_| {
                let issued = admin.issue_token(VISITOR, None, None)?;
                Ok(Visitor { token: issued.token, credential: issued.credential })
            })
            .collect::<Result<_, DemoError>>()?;
        let summary = format!(
            "{} principals, {} tokens, {} grants, {} devices",
            admin.principals()?.len(),
            admin.credentials()?.len(),
            admin.grants()?.len(),
            admin.devices()?.len()
        );
        Ok(Self {
            summary,
            token,
            revoked_token: revoked.token,
            expired_token,
            visitors,
            web,
            echo,
            private,
            offline,
            outside,
            unreachable,
            ssh,
        })
    }
}

/// A new device that is online.
pub(super) fn device(name: &str, address: IpAddr, fleet: Option<&str>) -> Result<NewDevice, DemoError> {
    Ok(NewDevice {
        uuid: new_uuid()?,
        name: Some(name.to_owned()),
        fleet: fleet.map(str::to_owned),
        address: Some(address),
        node: None,
        online: true,
    })
}

/// A new random uuid.
pub(super) fn new_uuid() -> Result<DeviceUuid, DemoError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(AdminError::Random)?;
    Ok(DeviceUuid::parse(&hex::encode(bytes)).expect("16 bytes are 32 hex digits"))
}

/// Ports that a demo device may use, without those that the system reserves.
pub(super) fn user_ports() -> PortRange {
    PortRange::new(1024, u16::MAX).expect("1024 is below 65535")
}

/// Port of OpenSSH, which [`user_ports`] does not include.
pub(super) const SSH_PORT: u16 = 22;

pub(super) const PERSON: &str = "you";
const VISITOR: &str = "visitor";
const FLEET: &str = "demo";

/// Number of revocations to measure.
const VISITORS: usize = 5;

/// Each device that is online has an address of its own, or nobody could tell whose it is.
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// Address that RFC 5737 reserves for documentation. The demo's `vpn.allow` is loopback.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

/// Broadcast address of loopback, to which TCP has no route.
const UNREACHABLE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255));
