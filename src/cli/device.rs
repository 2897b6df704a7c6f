//! `sluicegate device`: manages the devices of a store.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, StoreContext};
use super::values::parse_uuid;
use crate::authz::DeviceUuid;
use crate::store::admin::{Admin, AdminError, DevicePatch, NewDevice};

#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Add a device.
    Add(AddDevice),
    /// Change a device.
    Set(SetDevice),
    /// List all devices.
    List,
    /// Remove a device and revoke the grants on it alone; its tunnels end.
    Remove {
        #[arg(value_parser = parse_uuid)]
        uuid: DeviceUuid,
    },
}

#[derive(Debug, Args)]
pub struct AddDevice {
    /// UUID of the device: 32 or 62 hexadecimal digits.
    #[arg(value_parser = parse_uuid)]
    uuid: DeviceUuid,
    /// Address of the device in the VPN.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Fleet of the device; created if it does not exist.
    #[arg(long, value_name = "NAME")]
    fleet: Option<String>,
    /// Node that holds the device's VPN connection. Without it, every node can reach the device.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Name of the device, for people.
    #[arg(long)]
    name: Option<String>,
    /// The device has no VPN connection now.
    #[arg(long)]
    offline: bool,
}

#[derive(Debug, Args)]
pub struct SetDevice {
    #[arg(value_parser = parse_uuid)]
    uuid: DeviceUuid,
    #[command(flatten)]
    change: DeviceChange,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct DeviceChange {
    /// Address of the device in the VPN.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Node that holds the device's VPN connection.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The device has a VPN connection.
    #[arg(long, conflicts_with = "offline")]
    online: bool,
    /// The device has no VPN connection.
    #[arg(long)]
    offline: bool,
}

pub fn run(command: DeviceCommand, context: &StoreContext) -> Result<(), CommandError> {
    context.answer(|admin| answer(command, admin))
}

fn answer(command: DeviceCommand, admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    match command {
        DeviceCommand::Add(device) => add(device, admin),
        DeviceCommand::Set(SetDevice { uuid, change }) => {
            admin.set_device(uuid, &change.into())?;
            Ok(CommandAnswer::done(
                format!("changed device {uuid}"),
                json!({ "uuid": uuid, "outcome": "changed" }),
            ))
        }
        DeviceCommand::List => list(admin),
        DeviceCommand::Remove { uuid } => {
            let id = admin.remove_device(uuid)?;
            Ok(CommandAnswer::done(
                format!("removed device {uuid} and revoked the grants on it alone"),
                json!({ "uuid": uuid, "id": id, "outcome": "removed" }),
            ))
        }
    }
}

fn add(device: AddDevice, admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    let AddDevice { uuid, address, fleet, node, name, offline } = device;
    let id = admin.add_device(&NewDevice { uuid, name, fleet, address, node, online: !offline })?;
    let reach = match address {
        Some(address) => format!("added device {uuid} at {address}"),
        None => format!("added device {uuid}, which cannot be reached before `device set --address`"),
    };
    Ok(CommandAnswer::done(reach, json!({ "uuid": uuid, "id": id, "outcome": "added" })))
}

fn list(admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    let rows = admin.devices()?.into_iter().map(|row| {
        vec![
            row.uuid.into(),
            Cell::Number(row.id.0),
            row.name.into(),
            row.fleet.into(),
            row.address.into(),
            row.node.into(),
            Cell::Truth(row.online),
            row.created_at.into(),
        ]
    });
    let columns = &["uuid", "id", "name", "fleet", "address", "node", "online", "created_at"];
    Ok(CommandAnswer::Table(AnswerTable { columns, rows: rows.collect() }))
}

impl From<DeviceChange> for DevicePatch {
    fn from(change: DeviceChange) -> Self {
        let online = match (change.online, change.offline) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        Self { address: change.address, node: change.node, online }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::OutputFormat;
    use crate::cli::support::{TestStore, parse, refusal};

    const UUID: &str = "00112233445566778899AABBCCDDEEFF";

    fn run(store: &mut TestStore, line: &str) -> Result<String, String> {
        let command = parse::<DeviceCommand>(line)?;
        answer(command, &mut store.admin)
            .map(|a| a.rendered(OutputFormat::Text))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_device_is_listed_as_it_was_added_and_changed() {
        let mut store = TestStore::new();
        run(&mut store, &format!("add {UUID} --address 10.1.2.3 --fleet red --node vpn-1 --name gate"))
            .unwrap();
        run(&mut store, &format!("set {UUID} --offline --address fd00::7")).unwrap();
        let row = store.admin.devices().unwrap().remove(0);
        assert_eq!(row.uuid, UUID.to_lowercase());
        let texts = [row.name, row.fleet, row.address, row.node];
        assert_eq!(texts.map(Option::unwrap), ["gate", "red", "fd00::7", "vpn-1"]);
        assert!(!row.online);
        let listed = run(&mut store, "list").unwrap();
        assert!(listed.contains("gate  red    fd00::7  vpn-1  no "), "{listed}");
    }

    #[test]
    fn two_devices_of_a_fleet_share_it() {
        let mut store = TestStore::new();
        run(&mut store, &format!("add {:032x} --fleet red", 1)).unwrap();
        run(&mut store, &format!("add {:062x} --fleet red", 1)).unwrap();
        let fleets = store.admin.devices().unwrap().into_iter().map(|row| row.fleet);
        assert_eq!(fleets.collect::<Vec<_>>(), [Some("red".to_owned()), Some("red".to_owned())]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let mut store = TestStore::new();
        run(&mut store, &format!("add {UUID}")).unwrap();
        let mut told = |line: &str| run(&mut store, line).unwrap_err();
        assert!(told(&format!("add {UUID}")).contains("exists; `sluicegate device set` changes it"));
        let other = UUID.replace('F', "E");
        assert!(
            told(&format!("remove {other}")).contains(&format!("did you mean `{}`?", UUID.to_lowercase()))
        );
        assert!(told("add 0011").contains("32 or 62 hexadecimal digits, this has 4 characters"));
        assert!(told(&format!("add {UUID} --address 300.1.2.3")).contains("invalid value '300.1.2.3'"));
        assert!(told(&format!("set {UUID}")).contains("required"));
        assert!(told(&format!("set {UUID} --online --offline")).contains("cannot be used with"));
    }

    #[test]
    fn removing_a_device_revokes_what_was_granted_on_it() {
        let mut store = TestStore::new();
        run(&mut store, &format!("add {UUID}")).unwrap();
        store.admin.add_principal("alice").unwrap();
        let uuid = DeviceUuid::parse(UUID).unwrap();
        let target = crate::store::admin::GrantTarget::Device(uuid);
        store.admin.add_grant("alice", &target, crate::authz::PortRange::ANY, None).unwrap();
        run(&mut store, &format!("remove {UUID}")).unwrap();
        assert!(store.admin.grants().unwrap()[0].revoked_at.is_some());
        assert!(refusal(store.admin.remove_device(uuid)).contains("`sluicegate device list` shows all"));
    }
}
