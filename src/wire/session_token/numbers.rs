//! Numbers in claims.

use serde_json::Value;

/// Reads a number, or a string with its decimal digits.
pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(digits) => digits.parse().ok().filter(|number: &i64| number.to_string() == *digits),
        _ => None,
    }
}
