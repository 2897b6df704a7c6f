//! `sluicegate grant`: manages grants.

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, StoreContext, rfc3339};
use super::values::{parse_expiry, parse_ports, parse_uuid, show_ports, state};
use crate::authz::{DeviceUuid, GrantId, PortRange, UnixMillis};
use crate::store::admin::{Admin, AdminError, GrantTarget, Revoked};

#[derive(Debug, Subcommand)]
pub enum GrantCommand {
    /// Let a principal reach devices.
    Add(AddGrant),
    /// List all grants.
    List,
    /// Revoke a grant permanently; its tunnels end.
    Revoke {
        /// Number of the grant, from `grant list`.
        id: i64,
    },
}

#[derive(Debug, Args)]
pub struct AddGrant {
    /// Name of the principal, as in `principal list`.
    principal: String,
    #[command(flatten)]
    target: GrantedDevices,
    /// Port, range of ports such as 80-90, or `any`.
    #[arg(long, value_parser = parse_ports, default_value = "any")]
    ports: PortRange,
    /// Expiry of the grant: a duration such as 30d, or an RFC 3339 time. Without it, the grant does not expire.
    #[arg(long, value_parser = parse_expiry, value_name = "WHEN")]
    expires: Option<UnixMillis>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct GrantedDevices {
    /// All devices, including future ones.
    #[arg(long)]
    any: bool,
    /// All devices of this fleet, including future ones.
    #[arg(long, value_name = "NAME")]
    fleet: Option<String>,
    /// This device alone.
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    device: Option<DeviceUuid>,
}

pub fn run(command: GrantCommand, context: &StoreContext) -> Result<(), CommandError> {
    context.answer(|admin| answer(command, admin))
}

fn answer(command: GrantCommand, admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    match command {
        GrantCommand::Add(AddGrant { principal, target, ports, expires }) => {
            let id = admin.add_grant(&principal, &target.into(), ports, expires)?;
            Ok(CommandAnswer::done(
                format!("added grant {} to {principal}", id.0),
                json!({ "id": id, "principal": principal, "outcome": "added" }),
            ))
        }
        GrantCommand::List => list(admin),
        GrantCommand::Revoke { id } => {
            let (text, outcome) = match admin.revoke_grant(GrantId(id))? {
                Revoked::Now => (format!("revoked grant {id}"), "revoked"),
                Revoked::Before(at) => (format!("grant {id} was revoked at {}", rfc3339(at)), "was-revoked"),
            };
            Ok(CommandAnswer::done(text, json!({ "id": id, "outcome": outcome })))
        }
    }
}

fn list(admin: &mut Admin) -> Result<CommandAnswer, AdminError> {
    let rows = admin.grants()?.into_iter().map(|row| {
        vec![
            Cell::Number(row.id.0),
            row.principal.into(),
            row.scope.into(),
            row.target.into(),
            show_ports(row.port_min, row.port_max).into(),
            state(row.revoked_at, row.expires_at),
            row.created_at.into(),
            row.expires_at.into(),
            row.revoked_at.into(),
        ]
    });
    let columns =
        &["id", "principal", "scope", "target", "ports", "state", "created_at", "expires_at", "revoked_at"];
    Ok(CommandAnswer::Table(AnswerTable { columns, rows: rows.collect() }))
}

impl From<GrantedDevices> for GrantTarget {
    fn from(target: GrantedDevices) -> Self {
        match (target.fleet, target.device) {
            (Some(name), _) => Self::Fleet(name),
            (None, Some(uuid)) => Self::Device(uuid),
            // The group allows nothing else but `--any`.
            (None, None) => Self::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::OutputFormat;
    use crate::cli::support::{TestStore, parse};
    use crate::store::admin::NewDevice;

    const UUID: &str = "00112233445566778899aabbccddeeff";

    /// A store with principal `alice` and a device in fleet `red`.
    fn store() -> TestStore {
        let mut store = TestStore::new();
        store.admin.add_principal("alice").unwrap();
        let uuid = DeviceUuid::parse(UUID).unwrap();
        let fleet = Some("red".to_owned());
        let device = NewDevice { uuid, name: None, fleet, address: None, node: None, online: true };
        store.admin.add_device(&device).unwrap();
        store
    }

    fn run(store: &mut TestStore, line: &str) -> Result<String, String> {
        let command = parse::<GrantCommand>(line)?;
        answer(command, &mut store.admin)
            .map(|a| a.rendered(OutputFormat::Text))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn grants_are_listed_by_the_names_that_they_were_given_with() {
        let mut store = store();
        run(&mut store, "add alice --any").unwrap();
        run(&mut store, "add alice --fleet red --ports 80-90").unwrap();
        run(&mut store, &format!("add alice --device {UUID} --ports 22 --expires 2100-01-01T00:00:00Z"))
            .unwrap();
        let seen: Vec<_> =
            store.admin.grants().unwrap().into_iter().map(|row| (row.scope, row.target)).collect();
        let expected = [("any", None), ("fleet", Some("red")), ("device", Some(UUID))];
        assert_eq!(seen, expected.map(|(scope, target)| (scope.to_owned(), target.map(str::to_owned))));
        let listed = run(&mut store, "list").unwrap();
        for column in [" any    live ", " 80-90  live ", " 22     live ", "2100-01-01T00:00:00Z"] {
            assert!(listed.contains(column), "{column} in\n{listed}");
        }
    }

    #[test]
    fn revoking_is_for_good_and_can_be_repeated() {
        let mut store = store();
        run(&mut store, "add alice --any").unwrap();
        assert_eq!(run(&mut store, "revoke 1").unwrap(), "revoked grant 1\n");
        assert!(run(&mut store, "revoke 1").unwrap().starts_with("grant 1 was revoked at 20"));
        assert!(run(&mut store, "list").unwrap().contains(" revoked "));
        let error = run(&mut store, "revoke 2").unwrap_err();
        assert_eq!(error, "no grant has the number 2; `sluicegate grant list` shows them all");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let mut store = store();
        let mut error_of = |line: &str| run(&mut store, line).unwrap_err();
        assert_eq!(error_of("add alice --fleet rad"), "no fleet is named `rad`; did you mean `red`?");
        assert!(error_of("add bob --any").contains("no principal is named `bob`"));
        assert!(error_of(&format!("add alice --device {UUID:0<62}")).contains("no device has the uuid"));
        assert!(error_of("add alice").contains("required"));
        assert!(error_of("add alice --any --fleet red").contains("cannot be used with"));
        assert!(error_of("add alice --any --ports 90-80").contains("a range such as 80-90"));
        assert!(error_of("add alice --any --expires yesterday").contains("such as 30d"));
        assert_eq!(store.admin.grants().unwrap(), []);
    }
}
