//! Claims of this node to the devices in its VPN: what to report to the store, and what to decide by until the store
//! says so itself.
//!
//! A device that was seen to come is here at once, so that it can be reached while the store is away. It stays here until
//! the store has a later claim of another node. In all other cases the store's row counts: if the store has lost a device
//! that the VPN has, the guard has to see that.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::report_queue::{PresenceReport, ReportQueue};
use crate::authz::{Device, DeviceUuid, UnixMillis};

/// The claims of this node. There is one for each device that the VPN has here and the store has not.
pub(super) struct PresenceClaims {
    node: Box<str>,
    reports: ReportQueue,
    /// Devices that were seen to come, and whose rows were not settled since.
    came: HashSet<DeviceUuid>,
    unsettled: HashMap<DeviceUuid, PresenceClaim>,
    /// Time between two reports of what the store does not accept.
    repeat_every: Duration,
    repeat_at: Instant,
}

/// The address of a device in the VPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whereabouts {
    pub(super) address: IpAddr,
    /// Time when the device came there, if it is known.
    pub(super) since: Option<UnixMillis>,
}

/// Age of a row that is settled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RowAge {
    /// The store says this now.
    JustRead,
    /// The store said this when it was last read.
    Known,
}

/// A device that is here, and not, or not yet, according to the store.
#[derive(Clone, Copy)]
struct PresenceClaim {
    report: PresenceReport,
    /// The device was seen to come, and no other node's claim was later.
    is_new: bool,
    is_accepted: bool,
}

impl PresenceClaims {
    pub(super) fn new(node: &str, reports: ReportQueue, repeat_every: Duration) -> Self {
        Self {
            node: node.into(),
            reports,
            came: HashSet::new(),
            unsettled: HashMap::new(),
            repeat_every,
            repeat_at: Instant::now() + repeat_every,
        }
    }

    /// Records that a device has come into the VPN, or has got another address there.
    pub(super) fn record_arrival(&mut self, uuid: DeviceUuid) {
        self.came.insert(uuid);
    }

    /// Turns `device`, as the store has it, into the device that decisions are made by. `whereabouts` come from the VPN.
    /// If there are none, that counts only if `is_filled`, that is, once the VPN has given its devices.
    pub(super) fn settle(
        &mut self,
        device: &mut Device,
        whereabouts: Option<Whereabouts>,
        is_filled: bool,
        age: RowAge,
    ) {
        let is_ours = device.node.as_deref() == Some(&*self.node);
        let has_come = self.came.remove(&device.uuid);
        let Some(Whereabouts { address, since }) = whereabouts else {
            self.unsettled.remove(&device.uuid);
            if is_filled && is_ours && device.online {
                self.reports.put(device.uuid, PresenceReport::Gone);
                // The row says that it is here, and nobody knows better than the VPN itself.
                device.online = false;
            } else {
                self.reports.withdraw(&device.uuid);
            }
            return;
        };
        if is_ours && device.online && device.address == Some(address) {
            self.unsettled.remove(&device.uuid);
            self.reports.withdraw(&device.uuid);
            return;
        }
        let report = PresenceReport::Here { address, since };
        let new = PresenceClaim { report, is_new: false, is_accepted: false };
        let claim = self.unsettled.entry(device.uuid).or_insert(new);
        if has_come {
            *claim = PresenceClaim { is_new: true, ..new };
        } else if age == RowAge::JustRead && claim.is_accepted {
            claim.is_new = false;
        }
        claim.report = report;
        self.reports.put(device.uuid, report);
        if claim.is_new {
            device.node = Some(self.node.clone());
            device.online = true;
        }
    }

    /// True if the device was seen to come and no other node's claim was later, so that it is here whatever the store
    /// says.
    pub(super) fn is_new(&self, uuid: &DeviceUuid) -> bool {
        self.unsettled.get(uuid).is_some_and(|claim| claim.is_new)
    }

    /// Drops the claim to a device that the store no longer has.
    pub(super) fn forget(&mut self, uuid: &DeviceUuid) {
        self.came.remove(uuid);
        self.unsettled.remove(uuid);
        self.reports.withdraw(uuid);
    }

    /// Drops the claims to all devices that `is_known` does not know.
    pub(super) fn retain(&mut self, is_known: impl Fn(&DeviceUuid) -> bool) {
        let all = self.came.iter().chain(self.unsettled.keys());
        let gone: Vec<DeviceUuid> = all.filter(|uuid| !is_known(uuid)).copied().collect();
        gone.iter().for_each(|uuid| self.forget(uuid));
    }

    /// Applies the store's answers to reports, and returns the devices whose decisions have changed by that.
    pub(super) fn apply_answers(&mut self) -> Vec<DeviceUuid> {
        let mut changed = Vec::new();
        for (uuid, answer) in self.reports.drain_answers() {
            let Some(claim) = self.unsettled.get_mut(&uuid) else { continue };
            if claim.report != answer.report {
                // A newer report is on its way.
                continue;
            }
            claim.is_accepted = answer.is_accepted;
            if claim.is_new && !answer.is_accepted {
                claim.is_new = false;
                changed.push(uuid);
            }
        }
        changed
    }

    /// Repeats the reports that the store did not accept, at most once in `repeat_every`. The node that has the device may
    /// have died, and the device may have come here again.
    pub(super) fn repeat(&mut self, whereabouts: impl Fn(&DeviceUuid) -> Option<Whereabouts>) {
        if Instant::now() < self.repeat_at {
            return;
        }
        self.repeat_at = Instant::now() + self.repeat_every;
        for (uuid, claim) in &mut self.unsettled {
            if let Some(Whereabouts { address, since }) = whereabouts(uuid) {
                claim.report = PresenceReport::Here { address, since };
                self.reports.put(*uuid, claim.report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::DeviceId;

    /// A node's claims to one device, and the store's row of it.
    struct ClaimWorld {
        claims: PresenceClaims,
        reports: ReportQueue,
        at: Option<Whereabouts>,
        row: Device,
    }

    fn whereabouts(address: &str) -> Whereabouts {
        Whereabouts { address: address.parse().unwrap(), since: Some(UnixMillis(1_000)) }
    }

    impl ClaimWorld {
        fn new(at: Option<&str>, node: Option<&str>, online: bool) -> Self {
            let reports = ReportQueue::default();
            let row = Device {
                id: DeviceId(1),
                uuid: DeviceUuid::parse("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").unwrap(),
                fleet: None,
                address: None,
                node: node.map(Into::into),
                online,
                disputed: false,
            };
            let claims = PresenceClaims::new("here", reports.clone(), Duration::from_secs(3600));
            Self { claims, reports, at: at.map(whereabouts), row }
        }

        fn decide_by(&mut self, age: RowAge) -> (Option<&str>, bool) {
            let mut device = self.row.clone();
            self.claims.settle(&mut device, self.at, true, age);
            let node = match device.node.as_deref() {
                Some("here") => Some("here"),
                Some("there") => Some("there"),
                _ => None,
            };
            (node, device.online)
        }

        fn reported(&self) -> Option<PresenceReport> {
            self.reports.drain(1, |_, _| true).first().map(|(_, report)| *report)
        }

        fn is_answered(&mut self, is_accepted: bool) -> usize {
            let here: Vec<_> = is_accepted.then_some(self.row.uuid).into_iter().collect();
            let Whereabouts { address, since } = self.at.unwrap();
            self.reports.record_answers(&[(self.row.uuid, PresenceReport::Here { address, since })], &here);
            self.claims.apply_answers().len()
        }
    }

    fn here() -> Option<PresenceReport> {
        let Whereabouts { address, since } = whereabouts("10.8.0.2");
        Some(PresenceReport::Here { address, since })
    }

    const ELSEWHERE: [(Option<&str>, bool); 5] =
        [(None, true), (None, false), (Some("here"), false), (Some("there"), false), (Some("there"), true)];

    #[test]
    fn a_device_that_is_here_and_not_by_the_store_is_reported() {
        for (node, online) in ELSEWHERE {
            let mut world = ClaimWorld::new(Some("10.8.0.2"), node, online);
            assert_eq!(world.decide_by(RowAge::JustRead), (node, online), "and its word stands");
            assert_eq!(world.reported(), here(), "{node:?} {online}");
        }
    }

    #[test]
    fn a_device_that_was_seen_to_come_is_here_at_once_whatever_the_store_says() {
        for (node, online) in ELSEWHERE {
            let mut world = ClaimWorld::new(Some("10.8.0.2"), node, online);
            world.claims.record_arrival(world.row.uuid);
            assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true), "{node:?} {online}");
            assert_eq!(world.reported(), here(), "{node:?} {online}");
        }
    }

    #[test]
    fn what_the_store_says_already_is_not_reported_again() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("here"), true);
        world.row.address = Some("10.8.0.2".parse().unwrap());
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("here"), true));
        assert_eq!(world.reported(), None);
        world.row.address = Some("10.8.0.9".parse().unwrap());
        world.decide_by(RowAge::JustRead);
        assert_eq!(world.reported(), here(), "it has another address now");
    }

    #[test]
    fn a_device_that_has_left_is_reported_once_it_was_here_and_the_vpn_has_said_anything() {
        let mut world = ClaimWorld::new(None, Some("here"), true);
        world.decide_by(RowAge::JustRead);
        assert_eq!(world.reported(), Some(PresenceReport::Gone));
        for (node, online) in [(Some("here"), false), (Some("there"), true), (None, true)] {
            let mut world = ClaimWorld::new(None, node, online);
            world.decide_by(RowAge::JustRead);
            assert_eq!(world.reported(), None, "{node:?} {online}");
        }
        let world = &mut ClaimWorld::new(None, Some("here"), true);
        world.claims.settle(&mut world.row.clone(), None, false, RowAge::JustRead);
        assert_eq!(world.reported(), None, "the VPN has not said anything yet");
    }

    #[test]
    fn a_device_that_has_come_and_gone_before_it_was_reported_is_not_reported() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        world.claims.record_arrival(world.row.uuid);
        world.decide_by(RowAge::Known);
        world.at = None;
        assert_eq!(world.decide_by(RowAge::Known), (Some("there"), true));
        assert_eq!(world.reported(), None);
    }

    #[test]
    fn a_device_that_was_seen_to_come_is_here_until_the_store_has_somebody_who_was_later() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        world.claims.record_arrival(world.row.uuid);
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true));
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("here"), true), "what the store said before");
        assert_eq!(world.is_answered(false), 1, "to be decided anew");
        assert_eq!(world.decide_by(RowAge::Known), (Some("there"), true));
    }

    #[test]
    fn a_claim_that_was_accepted_lasts_until_the_store_has_somebody_else() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        world.claims.record_arrival(world.row.uuid);
        world.decide_by(RowAge::Known);
        assert_eq!(world.is_answered(true), 0);
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true), "the row was not read since");
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("there"), true), "it has gone there meanwhile");
    }

    #[test]
    fn an_answer_to_an_older_report_is_ignored() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        world.claims.record_arrival(world.row.uuid);
        world.decide_by(RowAge::Known);
        let before = world.at.replace(whereabouts("10.8.0.3"));
        world.claims.record_arrival(world.row.uuid);
        world.decide_by(RowAge::Known);
        let now = std::mem::replace(&mut world.at, before);
        assert_eq!(world.is_answered(false), 0);
        world.at = now;
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true));
    }

    #[test]
    fn what_is_not_accepted_is_reported_again_with_what_the_vpn_says_by_then() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        world.decide_by(RowAge::JustRead);
        assert_eq!(world.reported(), here());
        let later = Whereabouts { since: Some(UnixMillis(9_000)), ..whereabouts("10.8.0.2") };
        world.claims.repeat(|_| Some(later));
        assert_eq!(world.reported(), None, "not yet");
        world.claims.repeat_at = Instant::now();
        world.claims.repeat(|_| Some(later));
        assert_eq!(
            world.reported(),
            Some(PresenceReport::Here { address: later.address, since: later.since })
        );
        world.claims.retain(|_| false);
        world.claims.repeat_at = Instant::now();
        world.claims.repeat(|_| Some(later));
        assert_eq!(world.reported(), None, "there is no such device any more");
    }
}
