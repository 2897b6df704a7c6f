//! Figures as people read them.

use std::time::Duration;

use indicatif::HumanBytes;

pub fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Bytes per second.
pub fn rate(per_second: Option<u64>) -> String {
    per_second.map_or_else(|| "-".to_owned(), |count| format!("{}/s", HumanBytes(count)))
}

/// How long before `now` something was, both in milliseconds, to the second.
pub fn ago(now_ms: i64, at_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(at_ms).max(0) as u64 / 1000;
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
        assert_eq!((ago(65_400, 400), ago(0, 5)), ("1m 5s".into(), "0s".into()));
        assert_eq!([micros(999), micros(1_500), micros(2_340_000)], ["999 µs", "1.5 ms", "2.3 s"]);
    }
}
