//! Decodes rows of the three relations into checked values, for every kind of store.
//!
//! Decoding is strict. A value that is not exactly as the contract says is never guessed: its row is reported with its key
//! and a reason.

use super::changed_key::{ChangedKey, EndedEntry};
use super::value::{ColumnValue, Reason, StoreRow, shortened};
use super::{Quarantined, Relation, RowKey};
use crate::authz::{Credential, Device, DeviceId, FleetId, Grant, GrantId, PortRange, PrincipalId, Scope};

/// A row that does not decode.
pub(super) struct BadRow {
    pub(super) quarantined: Quarantined,
    /// True if the row says that it is revoked. That counts in spite of its fault.
    pub(super) revoked: bool,
}

impl BadRow {
    /// The key of the right, if the row says that it is revoked.
    pub(super) fn ended_key(&self) -> Option<RowKey> {
        match &self.quarantined.key {
            key @ (RowKey::Credential(_) | RowKey::Grant(_)) if self.revoked => Some(key.clone()),
            _ => None,
        }
    }
}

/// Decodes a row with the columns `key_sha256, principal, expires_at, revoked`.
pub(super) fn credential(row: &impl StoreRow) -> Result<Credential, BadRow> {
    let revoked = ColumnValue::of(row, 3, "revoked").boolean();
    let column = ColumnValue::secret(row, 0, "key_sha256");
    let key = column.sha256().map_err(|reason| bad_key(Relation::Credentials, &column, reason))?;
    let decode = || {
        Ok(Credential {
            key,
            principal: PrincipalId(ColumnValue::of(row, 1, "principal").integer()?),
            expires_at: ColumnValue::of(row, 2, "expires_at").nullable(ColumnValue::time)?,
            revoked: revoked.clone()?,
        })
    };
    decode().map_err(|reason| bad(RowKey::Credential(key), reason, &revoked))
}

/// Decodes a row with the columns `grant_id, principal, scope, target, port_min, port_max, expires_at, revoked`.
pub(super) fn grant(row: &impl StoreRow) -> Result<Grant, BadRow> {
    let revoked = ColumnValue::of(row, 7, "revoked").boolean();
    let column = ColumnValue::of(row, 0, "grant_id");
    let id = column.integer().map(GrantId).map_err(|reason| bad_key(Relation::Grants, &column, reason))?;
    let decode = || {
        let target = ColumnValue::of(row, 3, "target").nullable(ColumnValue::integer)?;
        let ports =
            (ColumnValue::of(row, 4, "port_min").port()?, ColumnValue::of(row, 5, "port_max").port()?);
        Ok(Grant {
            id,
            principal: PrincipalId(ColumnValue::of(row, 1, "principal").integer()?),
            scope: scope(ColumnValue::of(row, 2, "scope").text()?, target)?,
            ports: PortRange::new(ports.0, ports.1)
                .ok_or_else(|| format!("ports {}-{} are no range", ports.0, ports.1))?,
            expires_at: ColumnValue::of(row, 6, "expires_at").nullable(ColumnValue::time)?,
            revoked: revoked.clone()?,
        })
    };
    decode().map_err(|reason| bad(RowKey::Grant(id), reason, &revoked))
}

/// Decodes a row with the columns `device, uuid, fleet, address, node, online`.
pub(super) fn device(row: &impl StoreRow) -> Result<Device, BadRow> {
    let column = ColumnValue::of(row, 0, "device");
    let id = column.integer().map(DeviceId).map_err(|reason| bad_key(Relation::Devices, &column, reason))?;
    let decode = || {
        Ok(Device {
            id,
            uuid: ColumnValue::of(row, 1, "uuid").uuid()?,
            fleet: ColumnValue::of(row, 2, "fleet").nullable(ColumnValue::integer)?.map(FleetId),
            address: ColumnValue::of(row, 3, "address").nullable(ColumnValue::address)?,
            node: ColumnValue::of(row, 4, "node").nullable(ColumnValue::name)?,
            online: ColumnValue::of(row, 5, "online").boolean()?,
            disputed: false,
        })
    };
    decode().map_err(|reason| bad(RowKey::Device(id), reason, &Ok(false)))
}

/// Decodes a row with the columns `relation, id, ended_at`.
pub(super) fn ended(row: &impl StoreRow) -> Result<EndedEntry, Quarantined> {
    let relation = ColumnValue::of(row, 0, "relation")
        .text()
        .map_err(|reason| bad_end(Relation::Credentials, reason))?;
    let (kind, key) = match relation {
        "principals" => {
            let id = ColumnValue::of(row, 1, "id").number();
            (Relation::Credentials, id.map(|id| ChangedKey::Principal(PrincipalId(id))))
        }
        "credentials" => {
            let key = ColumnValue::secret(row, 1, "id").sha256_or_hex();
            (Relation::Credentials, key.map(ChangedKey::Credential))
        }
        "grants" => {
            let id = ColumnValue::of(row, 1, "id").number();
            (Relation::Grants, id.map(|id| ChangedKey::Grant(GrantId(id))))
        }
        "devices" => {
            let id = ColumnValue::of(row, 1, "id").number();
            (Relation::Devices, id.map(|id| ChangedKey::Device(DeviceId(id))))
        }
        other => {
            let reason = format!(
                "relation `{}` is none of principals, credentials, grants, devices",
                shortened(other)
            );
            return Err(bad_end(Relation::Credentials, reason));
        }
    };
    let key = key.map_err(|reason| bad_end(kind, reason))?;
    let ended_at = ColumnValue::of(row, 2, "ended_at").time().map_err(|reason| bad_end(kind, reason))?;
    Ok(EndedEntry { key, ended_at })
}

fn bad_end(relation: Relation, reason: Reason) -> Quarantined {
    Quarantined { key: RowKey::Unreadable { relation, key: "in relation ended".to_owned() }, reason }
}

fn scope(scope: &str, target: Option<i64>) -> Result<Scope, Reason> {
    match (scope, target) {
        ("any", None) => Ok(Scope::Any),
        ("fleet", Some(id)) => Ok(Scope::Fleet(FleetId(id))),
        ("device", Some(id)) => Ok(Scope::Device(DeviceId(id))),
        ("any", Some(id)) => Err(format!("scope `any` has the target {id}")),
        ("fleet" | "device", None) => Err(format!("scope `{scope}` has no target")),
        _ => Err(format!("scope `{}` is none of any, fleet, device", shortened(scope))),
    }
}

fn bad(key: RowKey, reason: Reason, revoked: &Result<bool, Reason>) -> BadRow {
    BadRow { quarantined: Quarantined { key, reason }, revoked: matches!(revoked, Ok(true)) }
}

fn bad_key(relation: Relation, column: &ColumnValue<'_>, reason: Reason) -> BadRow {
    let key = RowKey::Unreadable { relation, key: column.shown() };
    BadRow { quarantined: Quarantined { key, reason }, revoked: false }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, Row};

    use super::*;
    use crate::authz::{DeviceUuid, KeyHash, UnixMillis};

    const KEY: &str = "x'0101010101010101010101010101010101010101010101010101010101010101'";
    const UUID: &str = "'00112233445566778899aabbccddeeff'";

    /// Decodes the row that `values` make.
    fn decoded<T>(values: &str, decode: fn(&Row<'_>) -> Result<T, BadRow>) -> Result<T, BadRow> {
        let connection = Connection::open_in_memory().unwrap();
        connection.query_row(&format!("SELECT {values}"), [], |row| Ok(decode(row))).unwrap()
    }

    fn reason<T>(values: &str, decode: fn(&Row<'_>) -> Result<T, BadRow>) -> String {
        match decoded(values, decode) {
            Ok(_) => panic!("{values} decoded"),
            Err(bad) => format!("{}: {}", bad.quarantined.key, bad.quarantined.reason),
        }
    }

    #[test]
    fn rows_as_the_contract_says_decode() {
        let credential = decoded(&format!("{KEY}, 7, 1000, 0"), |row| credential(row)).ok();
        let (key, principal) = (KeyHash::from_bytes([1; 32]), PrincipalId(7));
        let expires_at = Some(UnixMillis(1000));
        assert_eq!(credential, Some(Credential { key, principal, expires_at, revoked: false }));

        let grant = decoded("3, 7, 'fleet', 9, 22, 80, NULL, 1", |row| grant(row)).ok();
        let (id, scope) = (GrantId(3), Scope::Fleet(FleetId(9)));
        let ports = PortRange::new(22, 80).unwrap();
        assert_eq!(grant, Some(Grant { id, principal, scope, ports, expires_at: None, revoked: true }));

        let device = decoded(&format!("5, {UUID}, NULL, '10.1.2.3', 'vpn-1', 1"), |row| device(row)).ok();
        let expected = Device {
            id: DeviceId(5),
            uuid: DeviceUuid::parse(UUID.trim_matches('\'')).unwrap(),
            fleet: None,
            address: Some("10.1.2.3".parse().unwrap()),
            node: Some("vpn-1".into()),
            online: true,
            disputed: false,
        };
        assert_eq!(device, Some(expected));
    }

    #[test]
    fn each_wrong_value_of_a_credential_is_named() {
        for (values, expected) in [
            (format!("{KEY}, 'x', NULL, 0"), "principal is `x`, which is no integer"),
            (format!("{KEY}, 1, 'soon', 0"), "expires_at is `soon`, which is no time"),
            (format!("{KEY}, 1, 1.5, 0"), "expires_at is 1.5, which is no time"),
            (format!("{KEY}, 1, NULL, 2"), "revoked is 2, which is no boolean"),
            (format!("{KEY}, 1, NULL, NULL"), "revoked is null, which is no boolean"),
            (format!("{KEY}, NULL, NULL, 0"), "principal is null, which is no integer"),
            (format!("{KEY}, 1, NULL"), "revoked is absent"),
            ("x'0102', 1, NULL, 0".to_owned(), "credentials 2 bytes: key_sha256 is 2 bytes, which is no SHA"),
            (
                "'secret', 1, NULL, 0".to_owned(),
                "credentials a text of 6 bytes: key_sha256 is a text of 6 bytes",
            ),
        ] {
            let reason = reason(&values, |row| credential(row));
            assert!(reason.contains(expected), "{values}: {reason}");
        }
    }

    #[test]
    fn each_wrong_value_of_a_grant_is_named() {
        for (values, expected) in [
            ("'a', 1, 'any', NULL, 1, 2, NULL, 0", "grants `a`: grant_id is `a`"),
            ("1, 1, 'any', 5, 1, 2, NULL, 0", "grants 1: scope `any` has the target 5"),
            ("1, 1, 'fleet', NULL, 1, 2, NULL, 0", "scope `fleet` has no target"),
            ("1, 1, 'planet', 5, 1, 2, NULL, 0", "scope `planet` is none of"),
            ("1, 1, 'any', NULL, 0, 2, NULL, 0", "ports 0-2 are no range"),
            ("1, 1, 'any', NULL, 9, 2, NULL, 0", "ports 9-2 are no range"),
            ("1, 1, 'any', NULL, 1, 65536, NULL, 0", "port_max is 65536, which is no port"),
            ("1, 1, CAST(x'ff' AS TEXT), NULL, 1, 2, NULL, 0", "which is no UTF-8"),
        ] {
            let reason = reason(values, |row| grant(row));
            assert!(reason.contains(expected), "{values}: {reason}");
        }
    }

    #[test]
    fn each_wrong_value_of_a_device_is_named() {
        for (values, expected) in [
            ("1, 'zz', NULL, NULL, NULL, 1".to_owned(), "devices 1: uuid is `zz`"),
            (format!("1, {UUID}, 'red', NULL, NULL, 1"), "fleet is `red`"),
            (format!("1, {UUID}, NULL, '300.1.2.3', NULL, 1"), "address is `300.1.2.3`, which is no IP"),
            (format!("1, {UUID}, NULL, 'a' || char(10) || 'b', NULL, 1"), "address is `a\\nb`"),
            (format!("1, {UUID}, NULL, NULL, '', 1"), "node is ``, which is no name"),
            (format!("1, {UUID}, NULL, NULL, NULL, 'yes'"), "online is `yes`, which is no boolean"),
        ] {
            let reason = reason(&values, |row| device(row));
            assert!(reason.contains(expected), "{values}: {reason}");
        }
    }

    #[test]
    fn an_end_names_its_row_in_each_form_of_a_key() {
        let entry = |key| Some(EndedEntry { key, ended_at: UnixMillis(9) });
        let key = ChangedKey::Credential(KeyHash::from_bytes([1; 32]));
        let hex = format!("'{}'", "01".repeat(32));
        for (values, expected) in [
            (format!("'credentials', {KEY}, 9"), key),
            (format!("'credentials', {hex}, 9"), key),
            ("'grants', 5, 9".to_owned(), ChangedKey::Grant(GrantId(5))),
            ("'devices', '-5', 9".to_owned(), ChangedKey::Device(DeviceId(-5))),
            ("'principals', '5', 9".to_owned(), ChangedKey::Principal(PrincipalId(5))),
        ] {
            let decoded = decoded_end(&values);
            assert_eq!(decoded.as_ref().ok().copied(), entry(expected), "{values}: {decoded:?}");
        }
        for (values, expected) in [
            ("'rights', 5, 9", "relation `rights` is none of"),
            ("'grants', 'x', 9", "id is `x`, which is no integer"),
            ("'grants', 1.5, 9", "id is 1.5, which is no integer"),
            ("'credentials', 'secret', 9", "id is a text of 6 bytes, which is no SHA-256"),
            ("'grants', 5, NULL", "ended_at is null, which is no time"),
        ] {
            let reason = decoded_end(values).unwrap_err().reason;
            assert!(reason.contains(expected), "{values}: {reason}");
        }
    }

    fn decoded_end(values: &str) -> Result<EndedEntry, Quarantined> {
        let connection = Connection::open_in_memory().unwrap();
        connection.query_row(&format!("SELECT {values}"), [], |row| Ok(ended(row))).unwrap()
    }

    #[test]
    fn a_bad_row_that_is_revoked_still_ends_its_right() {
        let end = |bad: Result<_, BadRow>| bad.err().and_then(|bad| bad.ended_key());
        let key = KeyHash::from_bytes([1; 32]);
        let bad_credential = decoded(&format!("{KEY}, 'x', NULL, 1"), |row| credential(row).map(drop));
        assert_eq!(end(bad_credential), Some(RowKey::Credential(key)));
        let bad_grant = decoded("4, 1, 'planet', NULL, 1, 2, NULL, 1", |row| grant(row).map(drop));
        assert_eq!(end(bad_grant), Some(RowKey::Grant(GrantId(4))));
        let live = decoded("4, 1, 'planet', NULL, 1, 2, NULL, 0", |row| grant(row).map(drop));
        assert_eq!(end(live), None);
    }
}
