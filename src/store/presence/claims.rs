//! Claims of this node to the devices in its VPN: what to report to the store, and what to decide by until the store
//! says so itself.
//!
//! A device that was seen to come is here at once, so that it can be reached while the store is away. It stays here until
//! the store has a later claim of another node. A device that the VPN has here and that the store has at another node is
//! asked itself: it is here, whatever the row says, unless it does not answer. In all other cases the store's row counts:
//! if the store has lost a device that the VPN has, the guard has to see that.
//!
//! The age of a claim is bounded by when this node itself saw the device: clocks that are wrong, of a VPN or of this
//! machine, make no claim new for ever or old at once.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::report_queue::{DeviceAnswer, PresenceReport, ReportQueue};
use crate::authz::{Device, DeviceUuid, UnixMillis};

/// The claims of this node. There is one for each device that the VPN has here and the store has not.
pub(super) struct PresenceClaims {
    node: Box<str>,
    reports: ReportQueue,
    /// Devices that were seen to come, and whose rows were not settled since.
    came: HashSet<DeviceUuid>,
    unsettled: HashMap<DeviceUuid, PresenceClaim>,
    /// Devices that the VPN has here and that did not answer, with the time until which that counts.
    silent: HashMap<DeviceUuid, Instant>,
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
    /// The store has the device at another node.
    is_contested: bool,
    /// The device has answered here while it was contested.
    answered_at: Option<UnixMillis>,
    first_seen: FirstSeen,
}

/// When this node first saw a device where it is, by its own clock.
#[derive(Clone, Copy)]
enum FirstSeen {
    /// It was there before.
    Present(UnixMillis),
    /// It came then.
    Arrived(UnixMillis),
}

impl FirstSeen {
    /// The time that the VPN says, as far as this node can believe it.
    fn bound(self, since: UnixMillis) -> UnixMillis {
        match self {
            Self::Present(seen) => since.min(seen),
            Self::Arrived(seen) => since.clamp(UnixMillis(seen.0 - ARRIVAL_MS_MAX), seen),
        }
    }
}

impl PresenceClaim {
    fn report(&self, Whereabouts { address, since }: Whereabouts) -> PresenceReport {
        let since = self.answered_at.or_else(|| since.map(|since| self.first_seen.bound(since)));
        PresenceReport::Here { address, since }
    }
}

impl PresenceClaims {
    pub(super) fn new(node: &str, reports: ReportQueue, repeat_every: Duration) -> Self {
        Self {
            node: node.into(),
            reports,
            came: HashSet::new(),
            unsettled: HashMap::new(),
            silent: HashMap::new(),
            repeat_every,
            repeat_at: Instant::now() + repeat_every,
        }
    }

    /// Records that a device has come into the VPN, or has got another address there.
    pub(super) fn record_arrival(&mut self, uuid: DeviceUuid) {
        self.silent.remove(&uuid);
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
        let Some(place) = whereabouts else {
            self.unsettled.remove(&device.uuid);
            self.silent.remove(&device.uuid);
            if is_filled && is_ours && device.online {
                self.reports.put(device.uuid, PresenceReport::Gone);
                // The row says that it is here, and nobody knows better than the VPN itself.
                device.online = false;
            } else {
                self.reports.withdraw(&device.uuid);
            }
            return;
        };
        if is_ours && device.online && device.address == Some(place.address) {
            self.unsettled.remove(&device.uuid);
            self.reports.withdraw(&device.uuid);
            return;
        }
        let now = UnixMillis::now();
        let new = PresenceClaim {
            report: PresenceReport::Gone,
            is_new: false,
            is_accepted: false,
            is_contested: false,
            answered_at: None,
            first_seen: FirstSeen::Present(now),
        };
        let claim = self.unsettled.entry(device.uuid).or_insert(new);
        if has_come {
            *claim = PresenceClaim { is_new: true, first_seen: FirstSeen::Arrived(now), ..new };
        } else if age == RowAge::JustRead && claim.is_accepted {
            claim.is_new = false;
        }
        claim.is_contested = !is_ours && device.online && device.node.is_some() && !claim.is_new;
        claim.report = claim.report(place);
        self.reports.put(device.uuid, claim.report);
        if claim.is_contested {
            self.reports.contest(device.uuid, place.address);
        }
        if claim.is_new || claim.is_contested && !is_silent(&self.silent, &device.uuid) {
            device.node = Some(self.node.clone());
            device.online = true;
        }
    }

    /// True if this node's own word on the device counts and not the row that the store gave before: the device was seen
    /// to come and no other node's claim was later, or another node has it by the store and it was asked.
    pub(super) fn decides(&self, uuid: &DeviceUuid) -> bool {
        self.unsettled.get(uuid).is_some_and(|claim| claim.is_new || claim.is_contested)
    }

    /// Applies what contested devices have answered, and returns those whose decisions may have changed by that.
    pub(super) fn apply_device_answers(&mut self) -> Vec<DeviceUuid> {
        let mut changed = Vec::new();
        for (uuid, answer) in self.reports.drain_device_answers() {
            match answer {
                DeviceAnswer::Silent => {
                    self.silent.insert(uuid, Instant::now() + SILENCE_COUNTS);
                }
                DeviceAnswer::Answers => {
                    self.silent.remove(&uuid);
                    let contested = self.unsettled.get_mut(&uuid).filter(|claim| claim.is_contested);
                    if let Some(claim) = contested {
                        claim.answered_at.get_or_insert(UnixMillis::now());
                    }
                }
            }
            changed.push(uuid);
        }
        changed
    }

    /// Drops the claim to a device that the store no longer has.
    pub(super) fn forget(&mut self, uuid: &DeviceUuid) {
        self.came.remove(uuid);
        self.unsettled.remove(uuid);
        self.silent.remove(uuid);
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
            if let Some(place) = whereabouts(uuid) {
                claim.report = claim.report(place);
                self.reports.put(*uuid, claim.report);
                if claim.is_contested {
                    self.reports.contest(*uuid, place.address);
                }
            }
        }
        let now = Instant::now();
        self.silent.retain(|_, until| now < *until);
    }
}

fn is_silent(silent: &HashMap<DeviceUuid, Instant>, uuid: &DeviceUuid) -> bool {
    silent.get(uuid).is_some_and(|until| Instant::now() < *until)
}

/// Longest time between a device's connection to a VPN and this node's notice of it.
const ARRIVAL_MS_MAX: i64 = 60_000;

/// Time for which a device that did not answer counts as gone, unless it comes again. It is asked again before.
const SILENCE_COUNTS: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::authz::DeviceId;

    /// A node's claims to one device, and the store's row of it.
    struct ClaimWorld {
        claims: PresenceClaims,
        reports: ReportQueue,
        at: Option<Whereabouts>,
        row: Device,
    }

    /// In the last seconds, so that each claim can say so.
    fn whereabouts(address: &str) -> Whereabouts {
        static SINCE: LazyLock<UnixMillis> = LazyLock::new(|| UnixMillis(UnixMillis::now().0 - 5_000));
        Whereabouts { address: address.parse().unwrap(), since: Some(*SINCE) }
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

        /// The device has been asked whether it is here.
        fn says(&mut self, answer: DeviceAnswer) -> bool {
            let is_asked = self.reports.drain_contested().contains_key(&self.row.uuid);
            self.reports.record_device_answer(self.row.uuid, answer);
            is_asked && self.claims.apply_device_answers() == [self.row.uuid]
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
            // Another node that has it has to prove that.
            let decided = if node == Some("there") && online { (Some("here"), true) } else { (node, online) };
            assert_eq!(world.decide_by(RowAge::JustRead), decided, "{node:?} {online}");
            assert_eq!(world.reported(), here(), "{node:?} {online}");
        }
    }

    #[test]
    fn a_device_that_another_node_has_by_the_store_is_here_unless_it_does_not_answer_here() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("here"), true));
        assert!(world.claims.decides(&world.row.uuid));
        assert!(world.says(DeviceAnswer::Silent));
        assert_eq!(world.decide_by(RowAge::Known), (Some("there"), true));
        assert!(world.says(DeviceAnswer::Answers));
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("here"), true));
        let Some(PresenceReport::Here { since, .. }) = world.reported() else { panic!("it is claimed") };
        assert!(since > world.at.unwrap().since, "it was heard here after it is said to have left");
        assert!(world.says(DeviceAnswer::Silent));
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("there"), true));
        world.claims.record_arrival(world.row.uuid);
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true), "it has come back");
    }

    #[test]
    fn a_device_that_did_not_answer_a_claim_is_the_claimants_once_the_row_says_so() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("here"), true);
        world.row.address = Some("10.8.0.2".parse().unwrap());
        world.decide_by(RowAge::JustRead);
        world.reports.record_device_answer(world.row.uuid, DeviceAnswer::Silent);
        world.claims.apply_device_answers();
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true), "nobody has taken it");
        world.row.node = Some("there".into());
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("there"), true));
    }

    #[test]
    fn an_age_is_bounded_by_when_the_device_was_seen() {
        let now = UnixMillis::now();
        let at = |ms: i64| UnixMillis(now.0 + ms);
        let present = FirstSeen::Present(now);
        assert_eq!(present.bound(at(3_600_000)), now, "a clock that is ahead makes it no newer at each look");
        assert_eq!(present.bound(at(-3_600_000)), at(-3_600_000));
        let arrived = FirstSeen::Arrived(now);
        assert_eq!(arrived.bound(at(3_600_000)), now);
        assert_eq!(
            arrived.bound(at(-3_600_000)),
            at(-ARRIVAL_MS_MAX),
            "it came a moment ago, whatever is said"
        );
        assert_eq!(arrived.bound(at(-2_000)), at(-2_000));

        let mut world = ClaimWorld::new(Some("10.8.0.2"), None, true);
        world.at = world.at.map(|place| Whereabouts { since: Some(at(3_600_000)), ..place });
        world.decide_by(RowAge::JustRead);
        let first = world.reported();
        std::thread::sleep(Duration::from_millis(5));
        world.decide_by(RowAge::JustRead);
        assert_eq!(world.reported(), first, "it gets older");
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
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true), "it is asked first");
        assert!(world.says(DeviceAnswer::Silent));
        assert_eq!(world.decide_by(RowAge::Known), (Some("there"), true));
    }

    #[test]
    fn a_claim_that_was_accepted_lasts_until_the_store_has_somebody_else() {
        let mut world = ClaimWorld::new(Some("10.8.0.2"), Some("there"), true);
        world.claims.record_arrival(world.row.uuid);
        world.decide_by(RowAge::Known);
        assert_eq!(world.is_answered(true), 0);
        assert_eq!(world.decide_by(RowAge::Known), (Some("here"), true), "the row was not read since");
        assert_eq!(world.decide_by(RowAge::JustRead), (Some("here"), true), "it is asked first");
        assert!(world.says(DeviceAnswer::Silent));
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
        let since = whereabouts("10.8.0.2").since.map(|since| UnixMillis(since.0 + 1_000));
        let later = Whereabouts { since, ..whereabouts("10.8.0.2") };
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
