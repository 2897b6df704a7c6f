//! Formats figures for people.

use std::time::Duration;

use indicatif::HumanBytes;

use crate::authz::UnixMillis;

pub fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Formats bytes per second; `-` for an unknown rate.
pub fn rate(per_second: Option<u64>) -> String {
    per_second.map_or_else(|| "-".to_owned(), |count| format!("{}/s", HumanBytes(count)))
}

/// Formats the time from `at` to `now`, to the second.
pub fn ago(now: UnixMillis, at: UnixMillis) -> String {
    let seconds = now.0.saturating_sub(at.0).max(0) as u64 / 1000;
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_their_unit() {
        assert_eq!(
            (bytes(1536), rate(Some(10)), rate(None)),
            ("1.50 KiB".into(), "10 B/s".into(), "-".into())
        );
        assert_eq!(
            (ago(UnixMillis(65_400), UnixMillis(400)), ago(UnixMillis(0), UnixMillis(5))),
            ("1m 5s".into(), "0s".into())
        );
        assert_eq!([micros(999), micros(1_500), micros(2_340_000)], ["999 µs", "1.5 ms", "2.3 s"]);
    }
}
