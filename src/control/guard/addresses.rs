//! Rule `addresses`: devices lie in the networks that the relay may dial.
//!
//! Engines dial nothing else in any case. Many devices that leave those networks at once are no devices
//! that moved.

use std::net::IpAddr;

use super::{Candidate, Changed, Hold, Rule, exceeds};
use crate::authz::Device;
use crate::config::{Allowance, Vpn};
use crate::store::RowKey;

pub(super) fn check(candidate: &Candidate<'_>, allowed: Allowance, vpn: &Vpn) -> Result<(), Hold> {
    let is_outside = |address: Option<IpAddr>| address.is_some_and(|address| !vpn.allows(address));
    let turned = |row: &&Changed<Device>| {
        let address = |device: &Option<Device>| device.as_ref().and_then(|device| device.address);
        is_outside(address(&row.after)) && !is_outside(address(&row.before))
    };
    let outside: Vec<&Device> =
        candidate.difference.devices.iter().filter(turned).filter_map(|row| row.after.as_ref()).collect();
    let total = candidate.live.devices;
    if !exceeds(outside.len(), total, allowed) {
        return Ok(());
    }
    let figures = format!(
        "{} of {total} devices turn to addresses outside vpn.allow; authz.guard.max_outside is {} rows or {} %",
        outside.len(),
        allowed.rows,
        allowed.share * 100.0
    );
    let examples = outside.iter().filter_map(|device| {
        let address = device.address?;
        Some(format!("{} at {address}", RowKey::Device(device.id)))
    });
    Err(Hold::new(Rule::Addresses, outside.len(), figures, examples))
}
