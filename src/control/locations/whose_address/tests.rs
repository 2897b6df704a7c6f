//! Tests of whose an address is, single cases and random histories.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const OURS: &str = "here";

fn uuid(id: i64) -> DeviceUuid {
    DeviceUuid::parse(&format!("{id:032x}")).unwrap()
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 8, 0, number])
}

fn at(id: i64, number: u8) -> Device {
    Device {
        id: DeviceId(id),
        uuid: uuid(id),
        fleet: None,
        address: Some(address(number)),
        node: Some(OURS.into()),
        online: true,
        disputed: false,
    }
}

/// Devices 1, 2, … at the addresses 1, 2, …
fn owners(devices: i64) -> AddressOwners {
    let mut owners = AddressOwners::new(Some(OURS));
    (1..=devices)
        .for_each(|id| owners.change(None, Some(&at(id, u8::try_from(id).unwrap())), WordKind::Inferred));
    owners
}

fn disputed(owners: &AddressOwners) -> Vec<i64> {
    let mut ids: Vec<i64> = owners.disputed().map(|id| id.0).collect();
    ids.sort_unstable();
    ids
}

fn holder(number: u8, holder: Option<AddressHolder>) -> HolderChange {
    HolderChange { address: address(number), holder }
}

#[test]
fn two_devices_at_one_address_are_disputed_until_one_leaves() {
    let mut owners = owners(3);
    owners.change(Some(&at(1, 1)), Some(&at(1, 2)), WordKind::Inferred);
    assert_eq!(disputed(&owners), [1, 2]);
    assert_eq!(owners.drain_changed(), HashSet::from([DeviceId(1), DeviceId(2)]));
    owners.change(Some(&at(1, 2)), Some(&Device { online: false, ..at(1, 2) }), WordKind::Inferred);
    assert_eq!(disputed(&owners), [0; 0]);
    assert_eq!(owners.drain_changed(), HashSet::from([DeviceId(1), DeviceId(2)]));
}

#[test]
fn an_address_at_another_node_is_another_address_and_one_of_no_node_is_ours() {
    let mut owners = owners(1);
    let elsewhere = Device { node: Some("there".into()), ..at(2, 1) };
    owners.change(None, Some(&elsewhere), WordKind::Inferred);
    owners.change(None, Some(&Device { online: false, ..at(3, 1) }), WordKind::Inferred);
    assert_eq!(disputed(&owners), [0; 0]);
    let mapped = Some("::ffff:10.8.0.1".parse().unwrap());
    owners.change(None, Some(&Device { node: None, address: mapped, ..at(4, 1) }), WordKind::Inferred);
    assert_eq!(disputed(&owners), [1, 4]);
}

#[test]
fn the_own_table_settles_it_whatever_the_rows_say() {
    let mut owners = owners(2);
    owners.change(Some(&at(2, 2)), Some(&at(2, 1)), WordKind::Inferred);
    let ours = Some(AddressHolder::Device(uuid(2)));
    owners.change_holder(&holder(1, ours), |_| Some(DeviceId(2)));
    assert_eq!(disputed(&owners), [1]);
    owners.change_holder(&holder(1, Some(AddressHolder::Stranger)), |_| None);
    assert_eq!(disputed(&owners), [1, 2], "it is no device's");
    owners.change_holder(&holder(1, None), |_| None);
    owners.change(Some(&at(1, 1)), None, WordKind::Inferred);
    assert_eq!(disputed(&owners), [0; 0]);
    owners.change_holder(&holder(1, Some(AddressHolder::Device(uuid(7)))), |_| None);
    assert_eq!(disputed(&owners), [2], "alone, and yet at a device's address that has no row");
    owners.change(Some(&at(2, 1)), Some(&at(2, 2)), WordKind::Explicit);
    owners.change(None, Some(&at(7, 1)), WordKind::Inferred);
    assert_eq!(disputed(&owners), [0; 0], "now it has one");
}

#[test]
fn an_explicit_word_gives_the_address_to_the_device_that_it_moves_there() {
    let mut owners = owners(2);
    owners.change(Some(&at(2, 2)), Some(&at(2, 1)), WordKind::Explicit);
    assert_eq!(disputed(&owners), [1]);
    let renamed = Device { fleet: Some(crate::authz::FleetId(1)), ..at(1, 1) };
    owners.change(Some(&at(1, 1)), Some(&renamed), WordKind::Explicit);
    assert_eq!(disputed(&owners), [1], "a word on something else moves nobody");
    owners.change(None, Some(&at(3, 1)), WordKind::Explicit);
    assert_eq!(disputed(&owners), [1, 2], "the newest counts");
}

#[test]
fn a_word_about_a_move_that_a_query_had_come_to_before_gives_the_address_as_well() {
    let mut owners = owners(3);
    owners.change(Some(&at(2, 2)), Some(&at(2, 1)), WordKind::Inferred);
    assert_eq!(disputed(&owners), [1, 2]);
    owners.confirm(&at(2, 1));
    assert_eq!(disputed(&owners), [1]);
}

#[test]
fn a_held_answer_disputes_the_device_whose_place_it_gives_away_and_no_other() {
    let mut owners = owners(4);
    (2..=4).for_each(|id| owners.set_pending(DeviceId(id), Some(&at(id, 1))));
    assert_eq!(disputed(&owners), [1], "the others are where nobody else is said to be");
    (2..=4).for_each(|id| owners.set_pending(DeviceId(id), None));
    assert_eq!(disputed(&owners), [0; 0]);
    (1..=4).for_each(|id| owners.set_pending(DeviceId(id), Some(&at(id, id as u8 % 4 + 1))));
    assert_eq!(disputed(&owners), [1, 2, 3, 4], "all change places");
    owners.change_holder(&holder(3, Some(AddressHolder::Device(uuid(3)))), |_| Some(DeviceId(3)));
    assert_eq!(disputed(&owners), [1, 2, 4]);
}

#[test]
fn an_answer_from_an_address_that_another_device_has_is_not_the_device_s() {
    let mut owners = owners(2);
    let gone = Device { online: false, ..at(3, 9) };
    assert!(!owners.is_another_s(&gone) && !owners.is_another_s(&at(1, 1)));
    owners.set_pending(DeviceId(2), Some(&at(2, 9)));
    assert!(owners.is_another_s(&gone), "by the newest answer");
    owners.set_pending(DeviceId(2), None);
    owners.change(Some(&at(2, 2)), Some(&at(2, 9)), WordKind::Explicit);
    assert!(owners.is_another_s(&gone), "by an explicit word");
    owners.change(Some(&at(2, 9)), None, WordKind::Explicit);
    assert!(!owners.is_another_s(&gone));
    owners.change_holder(&holder(9, Some(AddressHolder::Device(uuid(7)))), |_| None);
    assert!(owners.is_another_s(&gone), "by the own table");
}

/// One step of each device in `steps`: its number, where it goes, and whether that is in force already.
fn judge(owners: &mut AddressOwners, devices: usize, steps: &[(i64, u8, Option<u8>)]) -> Vec<i64> {
    let steps: Vec<PlaceMove> = steps
        .iter()
        .map(|(id, from, to)| {
            let after = to.map(|to| at(*id, to));
            owners.place_move(DeviceId(*id), Some(&at(*id, *from)), after.as_ref(), false)
        })
        .collect();
    let mut ids: Vec<i64> = owners.judge_moves(&steps, devices).into_iter().map(|id| id.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_circle_is_contested_and_a_reused_address_is_not() {
    let mut owners = owners(9);
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(2)), (2, 2, Some(1))]), [1, 2]);
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(2)), (2, 2, Some(3)), (3, 3, Some(1))]), [1, 2, 3]);
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(2)), (2, 2, Some(20))]), [0; 0], "it has another one now");
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(2)), (2, 2, None)]), [0; 0], "it is offline");
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(2))]), [1], "the other one is still there");
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(20)), (2, 2, Some(20))]), [1, 2], "both go there");
    assert_eq!(judge(&mut owners, 9, &[(1, 1, Some(2)), (2, 2, Some(3))]), [1, 2], "neither can move");
}

#[test]
fn more_reused_addresses_than_are_ordinary_are_contested() {
    for (devices, expected) in [(1, 1), (5, 1), (40, 3), (300, 9), (5_000, 35), (1_000_000, 500)] {
        assert_eq!(places_max(devices), expected, "{devices}");
    }
    let mut owners = owners(200);
    // Each goes where the one before was, and the first goes elsewhere.
    let shifted = |count: i64| -> Vec<(i64, u8, Option<u8>)> {
        (1..=count).map(|id| (id, id as u8, Some(if id == 1 { 201 } else { id as u8 - 1 }))).collect()
    };
    let max = places_max(200) as i64;
    assert_eq!(judge(&mut owners, 200, &shifted(max + 1)), [0; 0]);
    assert_eq!(judge(&mut owners, 200, &shifted(max + 2)), (2..=max + 2).collect::<Vec<_>>());
}

#[test]
fn a_circle_that_closes_later_disputes_the_devices_that_have_moved_already() {
    let mut owners = owners(3);
    // 1 has gone aside and 2 has come to its place; now 1 is to go to the place of 2.
    owners.change(Some(&at(1, 1)), Some(&at(1, 9)), WordKind::Inferred);
    owners.change(Some(&at(2, 2)), Some(&at(2, 1)), WordKind::Inferred);
    let second = owners.place_move(DeviceId(2), Some(&at(2, 2)), Some(&at(2, 1)), true);
    let first = owners.place_move(DeviceId(1), Some(&at(1, 1)), Some(&at(1, 2)), false);
    assert_eq!(owners.judge_moves(&[first, second], 3), HashSet::from([DeviceId(1), DeviceId(2)]));
    assert_eq!(disputed(&owners), [2], "the other one has not moved");
    assert_eq!(owners.judge_moves(&[second], 3), HashSet::new());
    assert_eq!(disputed(&owners), [0; 0]);
    assert!(owners.drain_changed().contains(&DeviceId(2)));
}

#[derive(Clone, Debug)]
enum Event {
    Row { id: i64, to: Option<u8>, is_online: bool, is_explicit: bool },
    Pending { id: i64, to: Option<u8> },
    Table { number: u8, holder: Option<i64> },
    Stranger { number: u8 },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let id = || 1..8_i64;
    let number = || 1..5_u8;
    let event = prop_oneof![
        4 => (id(), prop::option::weighted(0.9, number()), prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(id, to, is_online, is_explicit)| Event::Row { id, to, is_online, is_explicit }),
        2 => (id(), prop::option::of(number())).prop_map(|(id, to)| Event::Pending { id, to }),
        1 => (number(), prop::option::of(id())).prop_map(|(number, holder)| Event::Table { number, holder }),
        1 => number().prop_map(|number| Event::Stranger { number }),
    ];
    prop::collection::vec(event, 1..60)
}

/// Everything that was said, without any index.
#[derive(Default)]
struct PlainModel {
    rows: HashMap<i64, Device>,
    pending: HashMap<i64, u8>,
    tables: HashMap<u8, Option<i64>>,
    /// The device that an explicit word moved to an address last, while it stays.
    moved_here: HashMap<u8, i64>,
}

impl PlainModel {
    fn place(&self, id: i64) -> Option<u8> {
        let row = self.rows.get(&id).filter(|row| row.online)?;
        match row.address? {
            IpAddr::V4(address) => Some(address.octets()[3]),
            IpAddr::V6(_) => None,
        }
    }

    fn claimants(&self, number: u8) -> HashSet<i64> {
        (1..8).filter(|id| self.place(*id) == Some(number) || self.pending.get(id) == Some(&number)).collect()
    }

    fn apply(&mut self, event: &Event, owners: &mut AddressOwners) {
        match *event {
            Event::Row { id, to, is_online, is_explicit } => {
                let before = self.rows.remove(&id);
                let place_before = before.as_ref().filter(|row| row.online).and_then(|row| row.address);
                let after = to.map(|to| Device { online: is_online, ..at(id, to) });
                let word = if is_explicit { WordKind::Explicit } else { WordKind::Inferred };
                owners.change(before.as_ref(), after.as_ref(), word);
                self.rows.extend(after.clone().map(|row| (id, row)));
                let place_after = after.filter(|row| row.online).and_then(|row| row.address);
                if place_before != place_after {
                    self.moved_here.retain(|_, mover| *mover != id);
                    if let (true, Some(number)) = (is_explicit, self.place(id)) {
                        self.moved_here.insert(number, id);
                    }
                }
            }
            Event::Pending { id, to } => {
                owners.set_pending(DeviceId(id), to.map(|to| at(id, to)).as_ref());
                match to {
                    Some(to) => _ = self.pending.insert(id, to),
                    None => _ = self.pending.remove(&id),
                }
            }
            Event::Table { number, holder: id } => {
                // A device has one address in a table.
                let elsewhere: Vec<u8> = self
                    .tables
                    .iter()
                    .filter(|(_, holder)| id.is_some() && **holder == id)
                    .map(|(number, _)| *number)
                    .collect();
                for number in elsewhere {
                    self.tables.remove(&number);
                    owners.change_holder(&holder(number, None), |_| None);
                }
                let known =
                    |uuid: &DeviceUuid| self.rows.values().find(|row| row.uuid == *uuid).map(|row| row.id);
                owners.change_holder(&holder(number, id.map(|id| AddressHolder::Device(uuid(id)))), known);
                match id {
                    Some(id) => _ = self.tables.insert(number, Some(id)),
                    None => _ = self.tables.remove(&number),
                }
            }
            Event::Stranger { number } => {
                owners.change_holder(&holder(number, Some(AddressHolder::Stranger)), |_| None);
                self.tables.insert(number, None);
            }
        }
    }

    fn check(&self, owners: &AddressOwners) -> Result<(), TestCaseError> {
        for number in 1..5 {
            let there: Vec<i64> = (1..8).filter(|id| self.place(*id) == Some(number)).collect();
            let is_sure = |id: &&i64| !owners.is_disputed(DeviceId(**id));
            let sure: Vec<i64> = there.iter().filter(is_sure).copied().collect();
            prop_assert!(sure.len() <= 1, "{sure:?} at {number}");
            let claimants = self.claimants(number);
            match self.tables.get(&number) {
                Some(holder) => {
                    let expected: Vec<i64> = there.into_iter().filter(|id| Some(*id) == *holder).collect();
                    prop_assert_eq!(sure, expected, "the table says {:?}", holder);
                }
                None if claimants.len() <= 1 => prop_assert_eq!(sure, there, "nobody else claims {}", number),
                None => {
                    let mover = self.moved_here.get(&number);
                    prop_assert!(sure.iter().all(|id| Some(id) == mover), "{sure:?} at {number}, {mover:?}");
                }
            }
        }
        prop_assert!(
            owners.disputed().all(|id| self.place(id.0).is_some()),
            "what is nowhere is not disputed"
        );
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_two_devices_are_surely_at_one_address_and_no_device_is_disputed_for_nothing(events in events()) {
        let mut owners = AddressOwners::new(Some(OURS));
        let mut model = PlainModel::default();
        let mut known: HashSet<DeviceId> = HashSet::new();
        for event in &events {
            model.apply(event, &mut owners);
            model.check(&owners)?;
            let changed = owners.drain_changed();
            let now: HashSet<DeviceId> = owners.disputed().collect();
            prop_assert!(now.symmetric_difference(&known).all(|id| changed.contains(id)));
            known = now;
        }
        // What is forgotten leaves nothing behind.
        for id in 1..8 {
            owners.set_pending(DeviceId(id), None);
            owners.change(model.rows.get(&id), None, WordKind::Inferred);
        }
        prop_assert!(owners.sole.is_empty() && owners.contests.is_empty() && owners.pending.is_empty());
        prop_assert!(owners.at_doubtful_place.is_empty());
    }

    #[test]
    fn what_is_not_contested_gives_no_address_to_two_and_takes_no_more_than_is_ordinary(
        targets in prop::collection::vec(prop::option::of(1..12_u8), 8),
    ) {
        let mut owners = owners(8);
        let steps: Vec<(i64, u8, Option<u8>)> =
            (1..=8_u8).zip(&targets).map(|(id, to)| (i64::from(id), id, *to)).collect();
        let contested = judge(&mut owners, 8, &steps);
        let moved: Vec<&(i64, u8, Option<u8>)> =
            steps.iter().filter(|(id, ..)| !contested.contains(id)).collect();
        for (id, from, to) in &moved {
            owners.change(Some(&at(*id, *from)), to.map(|to| at(*id, to)).as_ref(), WordKind::Inferred);
        }
        prop_assert_eq!(disputed(&owners), [0; 0]);
        let taken = moved.iter().filter(|(id, _, to)| to.is_some_and(|to| to <= 8 && i64::from(to) != *id));
        prop_assert!(taken.count() <= places_max(8));
    }
}
