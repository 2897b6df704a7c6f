//! Rows of a store, as the drivers of both kinds give them.

use sluicegate::store::fuzzing::{DriverValue, RowKind, decode_row};

use super::{KIB, Memory, Target};
use crate::input::Input;

pub const STORE_ROWS: Target = Target {
    name: "store_rows",
    run: store_rows,
    seeds,
    words: &[
        "any",
        "fleet",
        "device",
        "grants",
        "credentials",
        "10.8.0.2",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ],
    bytes_max: 2 * KIB,
    memory: Memory { fixed: 8 * KIB, per_byte: 24 },
};

fn seeds() -> Vec<Vec<u8>> {
    let integer = |value: i64| [&[1][..], &value.to_le_bytes()].concat();
    let text = |value: &str| [&[4, value.len() as u8][..], value.as_bytes()].concat();
    let null = || vec![0];
    let uuid = "a".repeat(32);
    vec![
        [vec![0], [&[5, 32][..], &[1; 32]].concat(), integer(7), integer(1000), integer(0)].concat(),
        [
            vec![1],
            integer(3),
            integer(7),
            text("fleet"),
            integer(9),
            integer(22),
            integer(80),
            null(),
            integer(1),
        ]
        .concat(),
        [vec![2], integer(5), text(&uuid), null(), text("10.1.2.3"), text("vpn-1"), integer(1)].concat(),
        [vec![3], text("grants"), text("-5"), integer(9)].concat(),
        [vec![3], text("credentials"), text(&"0a".repeat(32)), vec![6], 9_i64.to_le_bytes().to_vec()]
            .concat(),
    ]
}

fn store_rows(input: &[u8]) {
    let mut input = Input(input);
    let kind = match input.byte() % 4 {
        0 => RowKind::Credential,
        1 => RowKind::Grant,
        2 => RowKind::Device,
        _ => RowKind::Ended,
    };
    let mut row = Vec::new();
    while !input.is_empty() && row.len() < 9 {
        row.push(value(&mut input));
    }
    let decoded = decode_row(kind, &row);
    if let Err(reason) = &decoded {
        assert!(
            !reason.is_empty() && reason.len() < 1000 && !reason.chars().any(char::is_control),
            "{reason:?}"
        );
    }
    if let (RowKind::Credential, Some(DriverValue::Text(secret)), Err(reason)) = (kind, row.first(), &decoded)
    {
        let secret = String::from_utf8_lossy(secret);
        assert!(
            secret.len() < 6 || !reason.contains(&*secret),
            "a secret in the place of its hash is not shown"
        );
    }
    if decoded.is_ok() {
        let other: Vec<_> =
            row.iter().enumerate().map(|(place, value)| of_other_store(kind, place, value)).collect();
        assert_eq!(decode_row(kind, &other), decoded, "both kinds of store mean the same: {row:?} {other:?}");
        // No column is left out without a fault.
        let shorter = &row[..row.len().min(columns(kind)) - 1];
        assert!(decode_row(kind, shorter).is_err(), "{row:?}");
    }
}

/// The value as the driver of the other kind of store gives it.
fn of_other_store(kind: RowKind, place: usize, value: &DriverValue) -> DriverValue {
    let is_boolean =
        matches!((kind, place), (RowKind::Credential, 3) | (RowKind::Grant, 7) | (RowKind::Device, 5));
    let is_time =
        matches!((kind, place), (RowKind::Credential, 2) | (RowKind::Grant, 6) | (RowKind::Ended, 2));
    let is_address = matches!((kind, place), (RowKind::Device, 3));
    match value {
        DriverValue::Integer(value @ 0..=1) if is_boolean => DriverValue::Boolean(*value == 1),
        DriverValue::Boolean(value) if is_boolean => DriverValue::Integer(i64::from(*value)),
        DriverValue::Integer(ms) if is_time => DriverValue::Time(*ms),
        DriverValue::Time(ms) if is_time => DriverValue::Integer(*ms),
        DriverValue::Address(address, None) if is_address => {
            DriverValue::Text(address.to_string().into_bytes())
        }
        DriverValue::Text(text) if is_address => {
            let address = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            DriverValue::Address(address.expect("what decodes is an address"), None)
        }
        same => same.clone(),
    }
}

const fn columns(kind: RowKind) -> usize {
    match kind {
        RowKind::Credential => 4,
        RowKind::Grant => 8,
        RowKind::Device => 6,
        RowKind::Ended => 3,
    }
}

fn value(input: &mut Input<'_>) -> DriverValue {
    match input.byte() % 9 {
        0 => DriverValue::Null,
        1 => DriverValue::Integer(input.i64()),
        2 => DriverValue::Real(f64::from_le_bytes(input.array())),
        3 => DriverValue::Boolean(input.byte() % 2 == 1),
        4 => DriverValue::Text(input.short().to_vec()),
        5 => DriverValue::Bytes(input.short().to_vec()),
        6 => DriverValue::Time(input.i64()),
        7 => {
            let address = input.address();
            let prefix = Some(input.byte()).filter(|prefix| *prefix > 0 && *prefix < 32);
            DriverValue::Address(address, prefix)
        }
        _ => DriverValue::Other("oid".to_owned()),
    }
}
