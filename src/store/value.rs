//! Values of rows, and their conversion to checked types, for every kind of store.

use std::net::IpAddr;

use crate::authz::{DeviceUuid, KeyHash, UnixMillis};

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

    pub(super) fn name(&self) -> Result<Box<str>, Reason> {
        match self.text()? {
            "" => Err(self.is_no("name")),
            name => Ok(name.into()),
        }
    }

    pub(super) fn uuid(&self) -> Result<DeviceUuid, Reason> {
        DeviceUuid::parse(self.text()?).ok_or_else(|| self.is_no("uuid of 32 or 62 hex digits"))
    }

    pub(super) fn address(&self) -> Result<IpAddr, Reason> {
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

    /// A SHA-256 as bytes, or as a text of 64 hex digits.
    pub(super) fn sha256_or_hex(&self) -> Result<KeyHash, Reason> {
        match self.value {
            Some(Value::Text(text)) => {
                hex_bytes(text).map(KeyHash::from_bytes).ok_or_else(|| self.is_no("SHA-256 (32 bytes)"))
            }
            _ => self.sha256(),
        }
    }

    /// An integer as such, or as a text of digits.
    pub(super) fn number(&self) -> Result<i64, Reason> {
        match self.value {
            Some(Value::Text(_)) => self.text()?.parse().map_err(|_| self.is_no("integer")),
            _ => self.integer(),
        }
    }

    fn is_no(&self, wanted: &str) -> Reason {
        format!("{} is {}, which is no {wanted}", self.name, self.shown())
    }

    /// The value as far as a log line may show it. A blob may be a key, so its length alone is shown.
    pub(super) fn shown(&self) -> String {
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

/// The bytes that 64 hex digits name.
fn hex_bytes(text: &[u8]) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        text.iter().map(|&byte| char::from(byte).to_digit(16).map(|digit| digit as u8)).collect();
    let bytes: Vec<u8> = digits?.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (text.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

/// Cuts a text to [`SHOWN_CHARS_MAX`] characters, and escapes those that would break a line.
pub(super) fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters of a bad value that a log line shows.
const SHOWN_CHARS_MAX: usize = 70;
