//! Decodes rows of the three relations into checked values, for every kind of store.
//!
//! Decoding is strict. A value that is not exactly as the contract says is never guessed: its row is reported with its key
//! and a reason.

use std::net::IpAddr;

use super::{Quarantined, Relation, RowKey};
use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope, UnixMillis,
};

/// A row as a store's driver gives it.
pub(super) trait StoreRow {
    /// The value of the column at `index`, from 0. `None` if the row has no such column.
    fn value(&self, index: usize) -> Option<Value<'_>>;
}

/// One value of a row, of any type that stores have.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Boolean(bool),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Time(UnixMillis),
    /// An address, and its prefix in bits if that is shorter than the address.
    Address(IpAddr, Option<u8>),
    /// A value of a type that no column of the contract has.
    Other(&'a str),
}

/// A row that does not decode.
pub(super) struct BadRow {
    pub(super) quarantined: Quarantined,
    /// True if the row says that it is revoked. That counts in spite of its fault.
    pub(super) revoked: bool,
}

impl BadRow {
    /// The end of the right, if the row says that it is revoked.
    pub(super) fn end(&self) -> Option<Change> {
        match self.quarantined.key {
            RowKey::Credential(key) if self.revoked => Some(Change::CredentialGone(key)),
            RowKey::Grant(id) if self.revoked => Some(Change::GrantGone(id)),
            _ => None,
        }
    }
}

/// Decodes a row with the columns `key_sha256, principal, expires_at, revoked`.
pub(super) fn credential(row: &impl StoreRow) -> Result<Credential, BadRow> {
    let revoked = ColumnValue::of(row, 3, "revoked").boolean();
    let column = ColumnValue::secret(row, 0, "key_sha256");
    let key = column.sha256().map_err(|reason| column.bad_key(Relation::Credentials, reason))?;
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
    let id = column.integer().map(GrantId).map_err(|reason| column.bad_key(Relation::Grants, reason))?;
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
    let id = column.integer().map(DeviceId).map_err(|reason| column.bad_key(Relation::Devices, reason))?;
    let decode = || {
        Ok(Device {
            id,
            uuid: ColumnValue::of(row, 1, "uuid").uuid()?,
            fleet: ColumnValue::of(row, 2, "fleet").nullable(ColumnValue::integer)?.map(FleetId),
            address: ColumnValue::of(row, 3, "address").nullable(ColumnValue::address)?,
            node: ColumnValue::of(row, 4, "node").nullable(ColumnValue::name)?,
            online: ColumnValue::of(row, 5, "online").boolean()?,
        })
    };
    decode().map_err(|reason| bad(RowKey::Device(id), reason, &Ok(false)))
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

/// Reason why a value is bad. It goes into a log line.
pub(super) type Reason = String;

/// The value of one column, with the column's name for errors.
pub(super) struct ColumnValue<'a> {
    name: &'static str,
    /// `None` if the row has no such column.
    value: Option<Value<'a>>,
    shown: ShownPart,
}

/// Part of a bad text that a log line may show.
enum ShownPart {
    Text,
    /// The length alone. The text may be a secret that a wrong query gives instead of its hash.
    Size,
}

impl<'a> ColumnValue<'a> {
    /// Makes the value at `index`, from 0, of a column that is called `name`.
    pub(super) fn of(row: &'a (impl StoreRow + ?Sized), index: usize, name: &'static str) -> Self {
        Self { name, value: row.value(index), shown: ShownPart::Text }
    }

    /// Makes the value of a column whose text no log line may show.
    pub(super) fn secret(row: &'a (impl StoreRow + ?Sized), index: usize, name: &'static str) -> Self {
        Self { shown: ShownPart::Size, ..Self::of(row, index, name) }
    }

    pub(super) fn nullable<T>(
        &self,
        decode: impl FnOnce(&Self) -> Result<T, Reason>,
    ) -> Result<Option<T>, Reason> {
        match self.value {
            Some(Value::Null) => Ok(None),
            _ => decode(self).map(Some),
        }
    }

    pub(super) fn integer(&self) -> Result<i64, Reason> {
        match self.value {
            Some(Value::Integer(integer)) => Ok(integer),
            _ => Err(self.is_no("integer")),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, Reason> {
        match self.value {
            Some(Value::Boolean(boolean)) => Ok(boolean),
            // SQLite has no truth values of its own.
            Some(Value::Integer(0)) => Ok(false),
            Some(Value::Integer(1)) => Ok(true),
            _ => Err(self.is_no("boolean (0 or 1)")),
        }
    }

    pub(super) fn time(&self) -> Result<UnixMillis, Reason> {
        match self.value {
            Some(Value::Time(time)) => Ok(time),
            // SQLite has no times of its own.
            Some(Value::Integer(unix_millis)) => Ok(UnixMillis(unix_millis)),
            _ => Err(self.is_no("time")),
        }
    }

    pub(super) fn text(&self) -> Result<&'a str, Reason> {
        match self.value {
            Some(Value::Text(bytes)) => std::str::from_utf8(bytes).map_err(|_| self.is_no("UTF-8")),
            _ => Err(self.is_no("text")),
        }
    }

    pub(super) fn nullable_text(&self) -> Result<Option<String>, Reason> {
        Ok(self.nullable(Self::text)?.map(str::to_owned))
    }

    pub(super) fn port(&self) -> Result<u16, Reason> {
        u16::try_from(self.integer()?).map_err(|_| self.is_no("port"))
    }

    fn name(&self) -> Result<Box<str>, Reason> {
        match self.text()? {
            "" => Err(self.is_no("name")),
            name => Ok(name.into()),
        }
    }

    fn uuid(&self) -> Result<DeviceUuid, Reason> {
        DeviceUuid::parse(self.text()?).ok_or_else(|| self.is_no("uuid of 32 or 62 hex digits"))
    }

    fn address(&self) -> Result<IpAddr, Reason> {
        match self.value {
            Some(Value::Address(address, None)) => Ok(address),
            Some(Value::Address(..)) => Err(self.is_no("IP address")),
            _ => self.text()?.parse().map_err(|_| self.is_no("IP address")),
        }
    }

    /// An address as text, without a prefix. The schema allows none.
    pub(super) fn host(&self) -> Result<String, Reason> {
        match self.value {
            Some(Value::Address(address, _)) => Ok(address.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    pub(super) fn sha256(&self) -> Result<KeyHash, Reason> {
        match self.value {
            Some(Value::Bytes(bytes)) => {
                bytes.try_into().map(KeyHash::from_bytes).map_err(|_| self.is_no("SHA-256 (32 bytes)"))
            }
            _ => Err(self.is_no("SHA-256 (32 bytes)")),
        }
    }

    fn is_no(&self, wanted: &str) -> Reason {
        format!("{} is {}, which is no {wanted}", self.name, self.shown())
    }

    fn bad_key(&self, relation: Relation, reason: Reason) -> BadRow {
        let key = RowKey::Unreadable { relation, key: self.shown() };
        BadRow { quarantined: Quarantined { key, reason }, revoked: false }
    }

    /// The value as far as a log line may show it. A blob may be a key, so its length alone is shown.
    fn shown(&self) -> String {
        match self.value {
            None => "absent".to_owned(),
            Some(Value::Null) => "null".to_owned(),
            Some(Value::Integer(integer)) => integer.to_string(),
            Some(Value::Real(real)) => real.to_string(),
            Some(Value::Text(text)) if matches!(self.shown, ShownPart::Size) => {
                format!("a text of {} bytes", text.len())
            }
            Some(Value::Text(text)) => format!("`{}`", shortened(&String::from_utf8_lossy(text))),
            Some(Value::Boolean(boolean)) => boolean.to_string(),
            Some(Value::Bytes(bytes)) => format!("{} bytes", bytes.len()),
            Some(Value::Time(time)) => format!("{} ms after 1970", time.0),
            Some(Value::Address(address, None)) => address.to_string(),
            Some(Value::Address(address, Some(prefix))) => format!("{address}/{prefix}"),
            Some(Value::Other(kind)) => format!("a value of type {kind}"),
        }
    }
}

/// Cuts a text to [`SHOWN_CHARS_MAX`] characters, and escapes those that would break a line.
fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters of a bad value that a log line shows.
const SHOWN_CHARS_MAX: usize = 70;

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, Row};

    use super::*;

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
    fn a_bad_row_that_is_revoked_still_ends_its_right() {
        let end = |bad: Result<_, BadRow>| bad.err().and_then(|bad| bad.end());
        let key = KeyHash::from_bytes([1; 32]);
        let bad_credential = decoded(&format!("{KEY}, 'x', NULL, 1"), |row| credential(row).map(drop));
        assert_eq!(end(bad_credential), Some(Change::CredentialGone(key)));
        let bad_grant = decoded("4, 1, 'planet', NULL, 1, 2, NULL, 1", |row| grant(row).map(drop));
        assert_eq!(end(bad_grant), Some(Change::GrantGone(GrantId(4))));
        let live = decoded("4, 1, 'planet', NULL, 1, 2, NULL, 0", |row| grant(row).map(drop));
        assert_eq!(end(live), None);
    }
}
