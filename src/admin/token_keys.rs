//! The sets of keys that verify session tokens, as `/metrics` and the conditions have them.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::authz::UnixMillis;
use crate::engine::EngineHandle;
use crate::wire::KeySetState;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeySetLabel {
    state: &'static str,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    let help =
        "Sets of keys of session tokens: fresh, kept (the last read failed), missing (none was read ever).";
    let mut family = encoder.encode_descriptor("token_key_sets", help, None, MetricType::Gauge)?;
    let states: Vec<_> = engine.key_sets().all().iter().map(|set| state(&set.state())).collect();
    for state in STATES {
        let count = states.iter().filter(|each| **each == state).count() as i64;
        ConstGauge::new(count).encode(family.encode_family(&KeySetLabel { state })?)?;
    }
    Ok(())
}

/// The keys that are in force although the last read of their set failed.
pub(super) fn in_force(state: &KeySetState, now: UnixMillis) -> String {
    match state.read_at_ms {
        _ if state.keys == 0 => "there are none, and clients with such tokens get 503".to_owned(),
        Some(read_at_ms) => {
            let age = Duration::from_secs(now.0.saturating_sub(read_at_ms).max(0).unsigned_abs() / 1000);
            format!("those of {} ago are in force", humantime::format_duration(age))
        }
        None => "those of the last reload are in force".to_owned(),
    }
}

fn state(state: &KeySetState) -> &'static str {
    match state {
        KeySetState { error: None, .. } => STATES[0],
        KeySetState { keys: 1.., .. } => STATES[1],
        KeySetState { keys: 0, .. } => STATES[2],
    }
}

/// The states by their severity.
const STATES: [&str; 3] = ["fresh", "kept", "missing"];
