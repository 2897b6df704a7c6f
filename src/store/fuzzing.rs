//! Ways into the private decoders of rows, for the targets in `fuzz/`.

use std::net::IpAddr;

use super::decode;
use super::value::{StoreRow, Value};
use crate::authz::UnixMillis;

pub use super::presence::fuzzing as presence;

/// A value of a row, as a driver of either store may give it.
#[derive(Clone, Debug)]
pub enum DriverValue {
    Null,
    Integer(i64),
    Real(f64),
    Boolean(bool),
    Text(Vec<u8>),
    Bytes(Vec<u8>),
    Time(i64),
    Address(IpAddr, Option<u8>),
    Other(String),
}

/// The relation that a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    Credential,
    Grant,
    Device,
    Ended,
}

/// Decodes a row. Returns the checked value's text, or the reason for which the row is bad.
pub fn decode_row(kind: RowKind, row: &[DriverValue]) -> Result<String, String> {
    let row = DriverRow(row);
    let reason = |bad: decode::BadRow| bad.quarantined.reason;
    match kind {
        RowKind::Credential => decode::credential(&row).map(|row| format!("{row:?}")).map_err(reason),
        RowKind::Grant => decode::grant(&row).map(|row| format!("{row:?}")).map_err(reason),
        RowKind::Device => decode::device(&row).map(|row| format!("{row:?}")).map_err(reason),
        RowKind::Ended => {
            decode::ended(&row).map(|entry| format!("{entry:?}")).map_err(|quarantined| quarantined.reason)
        }
    }
}

struct DriverRow<'a>(&'a [DriverValue]);

impl StoreRow for DriverRow<'_> {
    fn value(&self, index: usize) -> Option<Value<'_>> {
        Some(match self.0.get(index)? {
            DriverValue::Null => Value::Null,
            DriverValue::Integer(integer) => Value::Integer(*integer),
            DriverValue::Real(real) => Value::Real(*real),
            DriverValue::Boolean(boolean) => Value::Boolean(*boolean),
            DriverValue::Text(text) => Value::Text(text),
            DriverValue::Bytes(bytes) => Value::Bytes(bytes),
            DriverValue::Time(time) => Value::Time(UnixMillis(*time)),
            DriverValue::Address(address, prefix) => Value::Address(*address, *prefix),
            DriverValue::Other(kind) => Value::Other(kind),
        })
    }
}
