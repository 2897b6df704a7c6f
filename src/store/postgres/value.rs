//! Conversion between PostgreSQL's values and those of stores.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::authz::UnixMillis;
use crate::store::sql::SqlParam;
use crate::store::value::{StoreRow, Value};

type ConversionError = Box<dyn std::error::Error + Sync + Send>;

impl StoreRow for Row {
    fn value(&self, index: usize) -> Option<Value<'_>> {
        self.try_get(index).ok()
    }
}

impl<'a> FromSql<'a> for Value<'a> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, ConversionError> {
        Ok(match *kind {
            Type::INT8 => Self::Integer(i64::from_be_bytes(raw.try_into()?)),
            Type::INT4 => Self::Integer(i32::from_be_bytes(raw.try_into()?).into()),
            Type::BOOL => Self::Boolean(raw == [1]),
            Type::TEXT => Self::Text(raw),
            Type::BYTEA => Self::Bytes(raw),
            Type::TIMESTAMPTZ => match time(i64::from_be_bytes(raw.try_into()?)) {
                Some(time) => Self::Time(time),
                // `infinity` never comes, and counts as no time.
                None => Self::Null,
            },
            Type::INET => address(raw).ok_or("an inet of an unknown form")?,
            // The contract was checked when the query was prepared, and has no column for this.
            _ => Self::Other("that the contract does not know"),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, ConversionError> {
        Ok(Self::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Decodes a `timestamptz`: microseconds since 2000, with the ends of the range for infinity.
fn time(microseconds: i64) -> Option<UnixMillis> {
    (microseconds != i64::MAX).then(|| UnixMillis(microseconds.div_euclid(1_000) + MILLIS_TO_2000))
}

/// Decodes an `inet`: `family, bits, is_cidr, bytes, address…`.
fn address(raw: &[u8]) -> Option<Value<'_>> {
    let (header, bytes) = raw.split_at_checked(4)?;
    let address: IpAddr = match header[0] {
        INET_FAMILY_V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        INET_FAMILY_V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    let prefix = header[1];
    let is_host = usize::from(prefix) == bytes.len() * 8;
    Some(Value::Address(address, (!is_host).then_some(prefix)))
}

impl ToSql for SqlParam<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, ConversionError> {
        match *self {
            Self::Null => Ok(IsNull::Yes),
            Self::Integer(integer) if *kind == Type::INT4 => i32::try_from(integer)?.to_sql(kind, out),
            Self::Integer(integer) => integer.to_sql_checked(kind, out),
            Self::Boolean(boolean) => boolean.to_sql_checked(kind, out),
            Self::Text(text) => text.to_sql_checked(kind, out),
            Self::Bytes(bytes) => bytes.to_sql_checked(kind, out),
            Self::Time(time) => time.to_sql_checked(kind, out),
            Self::Address(address) => address.to_sql_checked(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl ToSql for UnixMillis {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, ConversionError> {
        let microseconds = self.0.saturating_sub(MILLIS_TO_2000).saturating_mul(1_000);
        out.extend_from_slice(&microseconds.to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

/// Milliseconds from 1970 to 2000, where PostgreSQL's times begin.
const MILLIS_TO_2000: i64 = 946_684_800_000;

/// PostgreSQL's own numbers. Those of the operating system may differ.
const INET_FAMILY_V4: u8 = 2;
const INET_FAMILY_V6: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_2000_and_without_end_are_read() {
        assert_eq!(time(0), Some(UnixMillis(MILLIS_TO_2000)));
        assert_eq!(time(1_999), Some(UnixMillis(MILLIS_TO_2000 + 1)));
        assert_eq!(time(-1), Some(UnixMillis(MILLIS_TO_2000 - 1)));
        assert_eq!(time(i64::MAX), None);
    }

    #[test]
    fn an_inet_is_a_host_or_has_a_prefix() {
        let is_host = |raw: &[u8]| match address(raw) {
            Some(Value::Address(address, prefix)) => (address.to_string(), prefix),
            _ => panic!("{raw:?} is no address"),
        };
        assert_eq!(is_host(&[2, 32, 0, 4, 10, 1, 2, 3]), ("10.1.2.3".to_owned(), None));
        assert_eq!(is_host(&[2, 8, 1, 4, 10, 0, 0, 0]), ("10.0.0.0".to_owned(), Some(8)));
        let mut raw = vec![3, 128, 0, 16];
        raw.extend([0; 15]);
        raw.push(1);
        assert_eq!(is_host(&raw), ("::1".to_owned(), None));
        for raw in [&[2, 32, 0][..], &[2, 32, 0, 4, 1, 2, 3], &[9, 32, 0, 4, 1, 2, 3, 4]] {
            assert!(address(raw).is_none(), "{raw:?}");
        }
    }
}
