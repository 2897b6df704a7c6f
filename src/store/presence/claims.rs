//! Which devices this node's VPN holds, beside what the store says of them: what the store is to be told, and what is
//! decided by until it says so itself.
//!
//! A device that was seen to come is here at once, so that it is reached also while the store is away, and until the store
//! has somebody who was later. Otherwise the store's word stands: what it has lost, though the VPN has it, is for the guard
//! to see.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::authz::{Device, DeviceUuid, UnixMillis};
use crate::store::{Report, Reports};

/// See the module. Holds something of the devices alone that the VPN has here and the store has not.
pub(super) struct PresenceClaims {
    node: Box<str>,
    reports: Reports,
    /// Seen to come, and not looked at since.
    came: HashSet<DeviceUuid>,
    unsettled: HashMap<DeviceUuid, Claim>,
    /// Between two reports of what the store does not take.
    repeat_every: Duration,
    repeat_at: Instant,
}

/// Where the VPN has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whereabouts {
    pub(super) address: IpAddr,
    /// `None` where that is not known.
    pub(super) since: Option<UnixMillis>,
}

/// That a row is what the store says now, or what it said before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    JustRead,
    Known,
}

/// A device that is here, and not, or not yet, by the store.
#[derive(Clone, Copy)]
struct Claim {
    report: Report,
    /// It was seen to come, and nobody was later.
    is_news: bool,
    is_taken: bool,
}

impl PresenceClaims {
    pub(super) fn new(node: &str, reports: Reports, repeat_every: Duration) -> Self {
        Self {
            node: node.into(),
            reports,
            came: HashSet::new(),
            unsettled: HashMap::new(),
            repeat_every,
            repeat_at: Instant::now() + repeat_every,
        }
    }

    /// A device has come into the VPN, or has got another address there.
    pub(super) fn note_arrival(&mut self, uuid: DeviceUuid) {
        self.came.insert(uuid);
    }

    /// Takes `device` as the store has it, and makes of it what is to be decided by. `whereabouts` are what the VPN
    /// says; where that is nothing, `is_told` says whether it means anything.
    pub(super) fn settle(
        &mut self,
        device: &mut Device,
        whereabouts: Option<Whereabouts>,
        is_told: bool,
        row: Row,
    ) {
        let is_ours = device.node.as_deref() == Some(&*self.node);
        let has_come = self.came.remove(&device.uuid);
        let Some(Whereabouts { address, since }) = whereabouts else {
            self.unsettled.remove(&device.uuid);
            if is_told && is_ours && device.online {
                self.reports.put(device.uuid, Report::Gone);
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
        let report = Report::Here { address, since };
        let new = Claim { report, is_news: false, is_taken: false };
        let claim = self.unsettled.entry(device.uuid).or_insert(new);
        if has_come {
            *claim = Claim { is_news: true, ..new };
        } else if row == Row::JustRead && claim.is_taken {
            claim.is_news = false;
        }
        claim.report = report;
        self.reports.put(device.uuid, report);
        if claim.is_news {
            device.node = Some(self.node.clone());
            device.online = true;
        }
    }

    /// The store has no such device any more.
    pub(super) fn forget(&mut self, uuid: &DeviceUuid) {
        self.came.remove(uuid);
        self.unsettled.remove(uuid);
        self.reports.withdraw(uuid);
    }

    /// As [`forget`](Self::forget), of each that `is_known` does not know.
    pub(super) fn retain(&mut self, is_known: impl Fn(&DeviceUuid) -> bool) {
        let all = self.came.iter().chain(self.unsettled.keys());
        let gone: Vec<DeviceUuid> = all.filter(|uuid| !is_known(uuid)).copied().collect();
        gone.iter().for_each(|uuid| self.forget(uuid));
    }

    /// Takes what the store has made of reports, and says for whom something else is to be decided by now.
    pub(super) fn take_answers(&mut self) -> Vec<DeviceUuid> {
        let mut changed = Vec::new();
        for (uuid, answer) in self.reports.answers() {
            let Some(claim) = self.unsettled.get_mut(&uuid) else { continue };
            if claim.report != answer.report {
                // There is something newer on its way.
                continue;
            }
            claim.is_taken = answer.is_taken;
            if claim.is_news && !answer.is_taken {
                claim.is_news = false;
                changed.push(uuid);
            }
        }
        changed
    }

    /// Tells the store again, now and then, what it did not take: whoever holds the device may have died, and the
    /// device may have come here anew.
    pub(super) fn repeat(&mut self, whereabouts: impl Fn(&DeviceUuid) -> Option<Whereabouts>) {
        if Instant::now() < self.repeat_at {
            return;
        }
        self.repeat_at = Instant::now() + self.repeat_every;
        for (uuid, claim) in &mut self.unsettled {
            if let Some(Whereabouts { address, since }) = whereabouts(uuid) {
                claim.report = Report::Here { address, since };
                self.reports.put(*uuid, claim.report);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::DeviceId;

    /// What was decided by last, and what the store is told.
    struct World {
        holdings: PresenceClaims,
        reports: Reports,
        at: Option<Whereabouts>,
        row: Device,
    }

    fn whereabouts(address: &str) -> Whereabouts {
        Whereabouts { address: address.parse().unwrap(), since: Some(UnixMillis(1_000)) }
    }

    impl World {
        fn new(at: Option<&str>, node: Option<&str>, online: bool) -> Self {
            let reports = Reports::default();
            let row = Device {
                id: DeviceId(1),
                uuid: DeviceUuid::parse("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").unwrap(),
                fleet: None,
                address: None,
                node: node.map(Into::into),
                online,
            };
            let holdings = PresenceClaims::new("here", reports.clone(), Duration::from_secs(3600));
            Self { holdings, reports, at: at.map(whereabouts), row }
        }

        fn decide_by(&mut self, row: Row) -> (Option<&str>, bool) {
            let mut device = self.row.clone();
            self.holdings.settle(&mut device, self.at, true, row);
            let node = match device.node.as_deref() {
                Some("here") => Some("here"),
                Some("there") => Some("there"),
                _ => None,
            };
            (node, device.online)
        }

        fn reported(&self) -> Option<Report> {
            self.reports.take(1, |_, _| true).first().map(|(_, report)| *report)
        }

        fn is_answered(&mut self, is_taken: bool) -> usize {
            let here: Vec<_> = is_taken.then_some(self.row.uuid).into_iter().collect();
            let Whereabouts { address, since } = self.at.unwrap();
            self.reports.answer(&[(self.row.uuid, Report::Here { address, since })], &here);
            self.holdings.take_answers().len()
        }
    }

    fn here() -> Option<Report> {
        let Whereabouts { address, since } = whereabouts("10.8.0.2");
        Some(Report::Here { address, since })
    }

    const ELSEWHERE: [(Option<&str>, bool); 5] =
        [(None, true), (None, false), (Some("here"), false), (Some("there"), false), (Some("there"), true)];

    #[test]
    fn a_device_that_is_here_and_not_by_the_store_is_told_to_it() {
        for (node, online) in ELSEWHERE {
            let mut world = World::new(Some("10.8.0.2"), node, online);
            assert_eq!(world.decide_by(Row::JustRead), (node, online), "and its word stands");
            assert_eq!(world.reported(), here(), "{node:?} {online}");
        }
    }

    #[test]
    fn a_device_that_was_seen_to_come_is_here_at_once_whatever_the_store_says() {
        for (node, online) in ELSEWHERE {
            let mut world = World::new(Some("10.8.0.2"), node, online);
            world.holdings.note_arrival(world.row.uuid);
            assert_eq!(world.decide_by(Row::Known), (Some("here"), true), "{node:?} {online}");
            assert_eq!(world.reported(), here(), "{node:?} {online}");
        }
    }

    #[test]
    fn what_the_store_says_already_is_not_told_again() {
        let mut world = World::new(Some("10.8.0.2"), Some("here"), true);
        world.row.address = Some("10.8.0.2".parse().unwrap());
        assert_eq!(world.decide_by(Row::JustRead), (Some("here"), true));
        assert_eq!(world.reported(), None);
        world.row.address = Some("10.8.0.9".parse().unwrap());
        world.decide_by(Row::JustRead);
        assert_eq!(world.reported(), here(), "it has another address now");
    }

    #[test]
    fn a_device_that_has_left_is_told_once_it_was_here_and_the_vpn_has_said_anything() {
        let mut world = World::new(None, Some("here"), true);
        world.decide_by(Row::JustRead);
        assert_eq!(world.reported(), Some(Report::Gone));
        for (node, online) in [(Some("here"), false), (Some("there"), true), (None, true)] {
            let mut world = World::new(None, node, online);
            world.decide_by(Row::JustRead);
            assert_eq!(world.reported(), None, "{node:?} {online}");
        }
        let world = &mut World::new(None, Some("here"), true);
        world.holdings.settle(&mut world.row.clone(), None, false, Row::JustRead);
        assert_eq!(world.reported(), None, "the VPN has not said anything yet");
    }

    #[test]
    fn a_device_that_has_come_and_gone_before_the_store_was_told_is_not_told() {
        let mut world = World::new(Some("10.8.0.2"), Some("there"), true);
        world.holdings.note_arrival(world.row.uuid);
        world.decide_by(Row::Known);
        world.at = None;
        assert_eq!(world.decide_by(Row::Known), (Some("there"), true));
        assert_eq!(world.reported(), None);
    }

    #[test]
    fn a_device_that_was_seen_to_come_is_here_until_the_store_has_somebody_who_was_later() {
        let mut world = World::new(Some("10.8.0.2"), Some("there"), true);
        world.holdings.note_arrival(world.row.uuid);
        assert_eq!(world.decide_by(Row::Known), (Some("here"), true));
        assert_eq!(world.decide_by(Row::JustRead), (Some("here"), true), "what the store said before");
        assert_eq!(world.is_answered(false), 1, "to be decided anew");
        assert_eq!(world.decide_by(Row::Known), (Some("there"), true));
    }

    #[test]
    fn a_claim_that_was_taken_lasts_until_the_store_has_somebody_else() {
        let mut world = World::new(Some("10.8.0.2"), Some("there"), true);
        world.holdings.note_arrival(world.row.uuid);
        world.decide_by(Row::Known);
        assert_eq!(world.is_answered(true), 0);
        assert_eq!(world.decide_by(Row::Known), (Some("here"), true), "the row was not read since");
        assert_eq!(world.decide_by(Row::JustRead), (Some("there"), true), "it has gone there meanwhile");
    }

    #[test]
    fn an_answer_to_what_is_not_so_any_more_is_not_heard() {
        let mut world = World::new(Some("10.8.0.2"), Some("there"), true);
        world.holdings.note_arrival(world.row.uuid);
        world.decide_by(Row::Known);
        let before = world.at.replace(whereabouts("10.8.0.3"));
        world.holdings.note_arrival(world.row.uuid);
        world.decide_by(Row::Known);
        let now = std::mem::replace(&mut world.at, before);
        assert_eq!(world.is_answered(false), 0);
        world.at = now;
        assert_eq!(world.decide_by(Row::Known), (Some("here"), true));
    }

    #[test]
    fn what_is_not_taken_is_told_again_with_what_the_vpn_says_by_then() {
        let mut world = World::new(Some("10.8.0.2"), Some("there"), true);
        world.decide_by(Row::JustRead);
        assert_eq!(world.reported(), here());
        let later = Whereabouts { since: Some(UnixMillis(9_000)), ..whereabouts("10.8.0.2") };
        world.holdings.repeat(|_| Some(later));
        assert_eq!(world.reported(), None, "not yet");
        world.holdings.repeat_at = Instant::now();
        world.holdings.repeat(|_| Some(later));
        assert_eq!(world.reported(), Some(Report::Here { address: later.address, since: later.since }));
        world.holdings.retain(|_| false);
        world.holdings.repeat_at = Instant::now();
        world.holdings.repeat(|_| Some(later));
        assert_eq!(world.reported(), None, "there is no such device any more");
    }
}
