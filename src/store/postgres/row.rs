//! What a server sends, as the values that rows are decoded from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::authz::UnixMillis;
use crate::store::decode::{self, Value};

type Wrong = Box<dyn std::error::Error + Sync + Send>;

impl decode::Row for Row {
    fn value(&self, index: usize) -> Option<Value<'_>> {
        self.try_get(index).ok()
    }
}

impl<'a> FromSql<'a> for Value<'a> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Wrong> {
        Ok(match *kind {
            Type::INT8 => Self::Integer(i64::from_be_bytes(raw.try_into()?)),
            Type::INT4 => Self::Integer(i32::from_be_bytes(raw.try_into()?).into()),
            Type::BOOL => Self::Boolean(raw == [1]),
            Type::TEXT => Self::Text(raw),
            Type::BYTEA => Self::Bytes(raw),
            Type::TIMESTAMPTZ => match time(i64::from_be_bytes(raw.try_into()?)) {
                Some(time) => Self::Time(time),
                // A time that never comes is the absence of one.
                None => Self::Null,
            },
            Type::INET => address(raw).ok_or("an inet of an unknown form")?,
            // The contract was checked when the query was prepared; this is what it has no column for.
            _ => Self::Other("that the contract does not know"),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Wrong> {
        Ok(Self::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A `timestamptz`: microseconds since 2000, with the ends of the range for infinity.
fn time(microseconds: i64) -> Option<UnixMillis> {
    (microseconds != i64::MAX).then(|| UnixMillis(microseconds.div_euclid(1_000) + MILLIS_TO_2000))
}

/// `family, bits, is_cidr, bytes, address…`.
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

impl ToSql for UnixMillis {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Wrong> {
        let microseconds = self.0.saturating_sub(MILLIS_TO_2000).saturating_mul(1_000);
        out.extend_from_slice(&microseconds.to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for UnixMillis {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Wrong> {
        Ok(time(i64::from_be_bytes(raw.try_into()?)).unwrap_or(Self(i64::MAX)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

/// From 1970 to 2000, where PostgreSQL's times begin.
const MILLIS_TO_2000: i64 = 946_684_800_000;

/// PostgreSQL's own numbers, whatever the machine's are.
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
    fn an_inet_is_a_host_or_tells_its_prefix() {
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
