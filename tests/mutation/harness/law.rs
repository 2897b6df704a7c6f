//! The guard's law as its documents have it, written anew: the kind of a change, and the rows that may change so.

use sluicegate::authz::{Credential, Device, Grant, Scope, UnixMillis};
use sluicegate::control::api::ChangeKind;

use super::rights::{RightsRow, RowChange};

/// The kinds of a change. Empty where it changes nothing that decides.
pub fn kinds(change: &RowChange, now: UnixMillis) -> Vec<ChangeKind> {
    let is_live = |row: &&RightsRow| !row.has_ended(now);
    let (before, after) = (change.before.as_ref().filter(is_live), change.after.as_ref().filter(is_live));
    match (before, after) {
        _ if change.is_unusable => vec![ChangeKind::Undecodable],
        (None, None) => Vec::new(),
        (None, Some(_)) if change.before.is_some() => vec![ChangeKind::Widened],
        (None, Some(_)) => vec![ChangeKind::Gained],
        (Some(_), None) if change.after.is_some() => vec![ChangeKind::Ended],
        (Some(_), None) => vec![ChangeKind::Absent],
        (Some(RightsRow::Credential(before)), Some(RightsRow::Credential(after))) => {
            of_credentials(before, after)
        }
        (Some(RightsRow::Grant(before)), Some(RightsRow::Grant(after))) => of_grants(before, after),
        (Some(RightsRow::Device(before)), Some(RightsRow::Device(after))) => of_devices(before, after),
        _ => unreachable!("a key names rows of one relation"),
    }
}

/// Rows of a relation that may change in a way within the window, of `live` rows.
pub fn budget(kind: ChangeKind, live: usize) -> usize {
    let root = (live as f64).sqrt();
    let ends = (((root / 2.0).ceil() as usize).max(3)).min(live.saturating_sub(1) / 2).max(1);
    let gains = ((root.ceil() as usize).max(3)).min((live / 2).max(3));
    match kind {
        ChangeKind::Ended | ChangeKind::Absent | ChangeKind::Narrowed | ChangeKind::Reassigned => ends,
        ChangeKind::Gained | ChangeKind::Widened => gains,
        ChangeKind::Moved | ChangeKind::Unlocated => (2 * root.ceil() as usize).max(3),
        // The last good version stays, however few there are.
        ChangeKind::Undecodable | ChangeKind::Revived => 0,
    }
}

/// Rows that may end at once by the store's own word, of `live` rows.
pub fn explicit_budget(live: usize) -> usize {
    (live / 10).max(20)
}

fn of_credentials(before: &Credential, after: &Credential) -> Vec<ChangeKind> {
    if before.principal != after.principal {
        return vec![ChangeKind::Reassigned];
    }
    by_order(before.expires_at.cmp_as_end(after.expires_at))
}

fn of_grants(before: &Grant, after: &Grant) -> Vec<ChangeKind> {
    if before.principal != after.principal {
        // Another right under the same number.
        return vec![ChangeKind::Reassigned, ChangeKind::Absent, ChangeKind::Gained];
    }
    let mut kinds = match (before.scope, after.scope) {
        (before, after) if before == after => Vec::new(),
        (_, Scope::Any) => {
            vec![ChangeKind::Widened, ChangeKind::Reassigned, ChangeKind::Absent, ChangeKind::Gained]
        }
        (Scope::Any, _) => {
            vec![ChangeKind::Narrowed, ChangeKind::Reassigned, ChangeKind::Absent, ChangeKind::Gained]
        }
        _ => vec![ChangeKind::Reassigned, ChangeKind::Absent, ChangeKind::Gained],
    };
    let (before_ports, after_ports) = (before.ports, after.ports);
    if after_ports.min() < before_ports.min() || after_ports.max() > before_ports.max() {
        kinds.push(ChangeKind::Widened);
    }
    if after_ports.min() > before_ports.min() || after_ports.max() < before_ports.max() {
        kinds.push(ChangeKind::Narrowed);
    }
    kinds.extend(by_order(before.expires_at.cmp_as_end(after.expires_at)));
    kinds
}

fn of_devices(before: &Device, after: &Device) -> Vec<ChangeKind> {
    if before.uuid != after.uuid || before.fleet != after.fleet {
        return vec![ChangeKind::Reassigned];
    }
    let location = |device: &Device| device.address.filter(|_| device.online);
    match (location(before), location(after)) {
        (Some(_), None) => vec![ChangeKind::Unlocated],
        _ if before == after => Vec::new(),
        _ => vec![ChangeKind::Moved],
    }
}

fn by_order(order: std::cmp::Ordering) -> Vec<ChangeKind> {
    match order {
        std::cmp::Ordering::Less => vec![ChangeKind::Widened],
        std::cmp::Ordering::Equal => Vec::new(),
        std::cmp::Ordering::Greater => vec![ChangeKind::Narrowed],
    }
}

/// Orders ends of rights, of which none is the latest.
trait End {
    fn cmp_as_end(self, other: Self) -> std::cmp::Ordering;
}

impl End for Option<UnixMillis> {
    fn cmp_as_end(self, other: Self) -> std::cmp::Ordering {
        let end = |time: Self| time.map_or(i64::MAX, |time| time.0);
        end(self).cmp(&end(other))
    }
}
