//! Parses and formats values that several commands share.

use std::time::Duration;

use jiff::Timestamp;

use super::output::Cell;
use crate::authz::{DeviceUuid, PortRange, UnixMillis};

/// Parses an expiry: a duration from now such as `30d`, or an RFC 3339 time. It must be in the future.
pub(super) fn parse_expiry(text: &str) -> Result<UnixMillis, String> {
    let now = UnixMillis::now();
    let at = match humantime::parse_duration(text) {
        Ok(span) => after(now, span).ok_or("that is further in the future than any clock reaches")?,
        Err(_) => {
            let parsed = text.parse::<Timestamp>();
            let timestamp =
                parsed.map_err(|_| "use a duration such as 30d, or a time such as 2030-01-31T12:00:00Z")?;
            UnixMillis(timestamp.as_millisecond())
        }
    };
    if at > now { Ok(at) } else { Err("that is in the past; it would never be valid".to_owned()) }
}

fn after(now: UnixMillis, span: Duration) -> Option<UnixMillis> {
    let at = UnixMillis(now.0.checked_add(i64::try_from(span.as_millis()).ok()?)?);
    Timestamp::from_millisecond(at.0).is_ok().then_some(at)
}

/// Parses `22`, `80-90` or `any`.
pub(super) fn parse_ports(text: &str) -> Result<PortRange, String> {
    if text == "any" {
        return Ok(PortRange::ANY);
    }
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    match (min.parse(), max.parse()) {
        (Ok(min), Ok(max)) => PortRange::new(min, max),
        _ => None,
    }
    .ok_or_else(|| "use a port from 1 to 65535, a range such as 80-90, or `any`".to_owned())
}

pub(super) fn parse_uuid(text: &str) -> Result<DeviceUuid, String> {
    DeviceUuid::parse(text).ok_or_else(|| {
        format!(
            "a device's uuid has 32 or 62 hexadecimal digits, this has {} characters",
            text.chars().count()
        )
    })
}

/// Formats ports as [`parse_ports`] reads them.
pub(super) fn show_ports(min: u16, max: u16) -> String {
    if PortRange::new(min, max) == Some(PortRange::ANY) {
        "any".to_owned()
    } else if min == max {
        min.to_string()
    } else {
        format!("{min}-{max}")
    }
}

/// State of a token or a grant, in one word.
pub(super) fn state(revoked_at: Option<UnixMillis>, expires_at: Option<UnixMillis>) -> Cell {
    let state = if revoked_at.is_some() {
        "revoked"
    } else if expires_at.is_some_and(|at| at <= UnixMillis::now()) {
        "expired"
    } else {
        "live"
    };
    Cell::Text(state.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_span_or_a_time_in_the_future() {
        let day = 24 * 3_600_000;
        let now = UnixMillis::now().0;
        assert!((now + 30 * day..now + 31 * day).contains(&parse_expiry("30d").unwrap().0));
        assert_eq!(parse_expiry("2100-01-01T00:00:00Z"), Ok(UnixMillis(4_102_444_800_000)));
        assert!(parse_expiry("2020-01-01T00:00:00Z").unwrap_err().contains("in the past"));
        assert!(parse_expiry("0s").unwrap_err().contains("in the past"));
        assert!(parse_expiry("next week").unwrap_err().contains("such as 30d"));
        assert!(parse_expiry("99999999y").unwrap_err().contains("further in the future"));
    }

    #[test]
    fn ports_are_one_a_range_or_any() {
        assert_eq!(parse_ports("22"), Ok(PortRange::new(22, 22).unwrap()));
        assert_eq!(parse_ports("80-90"), Ok(PortRange::new(80, 90).unwrap()));
        assert_eq!(parse_ports("any"), Ok(PortRange::ANY));
        for bad in ["0", "90-80", "65536", "", "-", "1-2-3", "ssh"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
        assert_eq!([(1, 65535), (22, 22), (80, 90)].map(|(a, b)| show_ports(a, b)), ["any", "22", "80-90"]);
    }
}
