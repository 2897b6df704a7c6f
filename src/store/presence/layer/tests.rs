//! Tests of the layer on tables that a test fills.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::authz::PrincipalId;
use crate::store::Relation;
use crate::store::presence::address_list::AddressList;
use crate::store::presence::table::PresenceTable;

const A: u8 = 0xaa;
const B: u8 = 0xbb;

/// A table that a test writes.
struct WrittenTable {
    text: Arc<Mutex<Option<String>>>,
    table: PresenceTable,
}

impl PresenceSource for WrittenTable {
    fn poll(&mut self, _: Patience) -> Vec<DeviceUuid> {
        let Some(text) = self.text.lock().take() else { return Vec::new() };
        self.table.replace(AddressList::parse(&text, "table"))
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

/// A layer on tables, and the texts that they read next.
struct LayerBench {
    layer: AddressLayer,
    texts: Vec<Arc<Mutex<Option<String>>>>,
}

impl LayerBench {
    fn new(tables: usize, is_store_listed: bool) -> Self {
        let texts: Vec<Arc<Mutex<Option<String>>>> = (0..tables).map(|_| Arc::default()).collect();
        let written = texts.clone();
        let make = Box::new(move || {
            let table = |text: &Arc<_>| -> Box<dyn PresenceSource> {
                let table = PresenceTable::new("table".to_owned());
                Box::new(WrittenTable { text: Arc::clone(text), table })
            };
            (written.iter().map(table).collect(), None)
        });
        Self { layer: AddressLayer::of_tables(make, is_store_listed), texts }
    }

    fn write(&mut self, table: usize, lines: &[(u8, &str)]) {
        let lines = lines.iter().map(|(digit, address)| format!("{} {address}\n", uuid(*digit)));
        *self.texts[table].lock() = Some(format!("nobody\n{}", lines.collect::<String>()));
        self.layer.poll();
    }

    /// Lays the tables over rows of the store, and returns their addresses.
    fn laid(&mut self, rows: &[Device]) -> Vec<Option<IpAddr>> {
        let mut rows = rows.to_vec();
        self.layer.lay_relation(&mut rows);
        rows.into_iter().map(|row| row.address).collect()
    }
}

fn uuid(digit: u8) -> DeviceUuid {
    DeviceUuid::from_bytes(&[digit; 16]).unwrap()
}

fn device(digit: u8, address: Option<&str>) -> Device {
    let address = address.map(|address| address.parse().unwrap());
    let node = Some("here".into());
    Device {
        id: DeviceId(digit.into()),
        uuid: uuid(digit),
        fleet: None,
        address,
        node,
        online: true,
        disputed: false,
    }
}

fn ip(address: &str) -> Option<IpAddr> {
    Some(address.parse().unwrap())
}

#[test]
fn a_table_comes_before_the_store_and_the_first_table_before_the_second() {
    let mut bench = LayerBench::new(2, true);
    let rows = [device(A, Some("10.0.0.1")), device(B, Some("10.0.0.2"))];
    assert_eq!(bench.laid(&rows), [ip("10.0.0.1"), ip("10.0.0.2")], "no table has said anything yet");
    bench.write(1, &[(A, "10.8.1.1")]);
    assert_eq!(bench.laid(&rows), [ip("10.8.1.1"), ip("10.0.0.2")]);
    bench.write(0, &[(A, "10.8.0.1")]);
    assert_eq!(bench.laid(&rows), [ip("10.8.0.1"), ip("10.0.0.2")]);
    assert!(bench.layer.is_here(&uuid(A)) && !bench.layer.is_here(&uuid(B)));
    bench.layer.is_store_listed = false;
    assert_eq!(bench.laid(&rows), [ip("10.8.0.1"), None], "the store is not asked for addresses");
}

#[test]
fn tables_that_are_taken_again_give_addresses_as_before() {
    let mut bench = LayerBench::new(1, true);
    let rows = [device(A, Some("10.0.0.1"))];
    bench.write(0, &[(A, "10.8.0.1")]);
    assert_eq!(bench.laid(&rows), [ip("10.8.0.1")]);
    bench.layer.leave_tables();
    bench.write(0, &[(A, "10.8.0.2")]);
    assert_eq!(bench.laid(&rows), [ip("10.0.0.1")], "nobody reads them here");
    bench.layer.take_tables();
    bench.layer.poll();
    assert_eq!(bench.laid(&rows), [ip("10.8.0.2")]);
}

#[test]
fn an_address_is_the_device_s_that_the_first_table_gives_it_to() {
    let mut bench = LayerBench::new(2, true);
    bench.write(0, &[(A, "10.8.0.1")]);
    bench.write(1, &[(B, "10.8.0.1"), (A, "10.8.0.2")]);
    assert_eq!(bench.layer.owner_here(&ip("10.8.0.1").unwrap()), Some(uuid(A)));
    assert_eq!(bench.layer.owner_here(&ip("::ffff:10.8.0.1").unwrap()), Some(uuid(A)));
    assert_eq!(bench.layer.owner_here(&ip("10.8.0.2").unwrap()), None, "it is at the first table's address");
    let mut changed = bench.layer.drain_holders();
    changed.retain(|change| change.holder.is_some());
    let holder = Some(AddressHolder::Device(uuid(A)));
    assert_eq!(changed, [HolderChange { address: ip("10.8.0.1").unwrap(), holder }]);
    bench.write(0, &[(A, "10.8.0.3")]);
    let changed: HashMap<_, _> =
        bench.layer.drain_holders().into_iter().map(|change| (change.address, change.holder)).collect();
    assert_eq!(changed[&ip("10.8.0.1").unwrap()], Some(AddressHolder::Device(uuid(B))));
    assert_eq!(changed[&ip("10.8.0.3").unwrap()], Some(AddressHolder::Device(uuid(A))));
}

#[test]
fn an_address_that_a_table_gives_to_two_devices_is_a_stranger_s() {
    let mut bench = LayerBench::new(1, true);
    bench.write(0, &[(A, "10.8.0.1"), (B, "10.8.0.1")]);
    assert_eq!(bench.layer.holder(&ip("10.8.0.1").unwrap()), Some(AddressHolder::Stranger));
    assert_eq!(bench.layer.owner_here(&ip("10.8.0.1").unwrap()), None);
}

/// A wrong answer of the store must not ride on a move that the VPN has seen.
#[test]
fn a_move_changes_the_place_of_the_row_in_force_and_nothing_else_of_it() {
    let mut bench = LayerBench::new(1, true);
    bench.write(0, &[(A, "10.8.0.1")]);
    let wrong = Device { fleet: Some(crate::authz::FleetId(9)), online: false, ..device(A, None) };
    bench.laid(&[wrong]);
    bench.write(0, &[(A, "10.8.0.7")]);
    let in_force = device(A, Some("10.8.0.1"));
    let moves = bench.layer.drain_moves(|_| Some(in_force.clone()));
    assert_eq!(moves.settled, [Device { address: ip("10.8.0.7"), ..in_force }]);
    assert_eq!(moves.left, []);
    assert_eq!(bench.layer.drain_moves(|_| panic!("nothing has moved since")), DeviceMoves::default());
}

#[test]
fn a_device_moves_that_the_store_s_last_answer_lacks_or_that_did_not_decode() {
    let in_force = device(A, Some("10.8.0.1"));
    for is_quarantined in [true, false] {
        let mut bench = LayerBench::new(1, true);
        bench.write(0, &[(A, "10.8.0.1")]);
        bench.laid(std::slice::from_ref(&in_force));
        if is_quarantined {
            let row = Quarantined { key: RowKey::Device(in_force.id), reason: String::new() };
            bench.layer.lay_words(&mut [], &[row]);
        } else {
            bench.laid(&[]);
        }
        bench.write(0, &[(A, "10.8.0.7")]);
        let moves = bench.layer.drain_moves(|_| Some(in_force.clone()));
        assert_eq!(moves.settled, [Device { address: ip("10.8.0.7"), ..in_force.clone() }]);
        bench.write(0, &[]);
        let moves = bench.layer.drain_moves(|_| Some(in_force.clone()));
        assert_eq!(moves.left, [Device { address: None, ..in_force.clone() }]);
    }
}

#[test]
fn a_device_that_leaves_all_tables_is_where_the_store_has_it() {
    let mut bench = LayerBench::new(1, true);
    bench.write(0, &[(A, "10.8.0.1")]);
    let by_store = Device { node: Some("there".into()), ..device(A, Some("10.0.0.1")) };
    bench.laid(std::slice::from_ref(&by_store));
    bench.write(0, &[]);
    let moves = bench.layer.drain_moves(|_| Some(device(A, Some("10.8.0.1"))));
    assert_eq!((moves.settled, moves.left), (Vec::new(), vec![by_store]));
}

#[test]
fn words_are_laid_over_like_rows_and_an_ended_device_no_longer_moves_by_its_old_row() {
    let mut bench = LayerBench::new(1, true);
    bench.write(0, &[(A, "10.8.0.1")]);
    let mut words = [
        Word::Row(Change::Device(device(A, None))),
        Word::Row(Change::Device(device(B, Some("10.0.0.2")))),
        Word::PrincipalEnded(PrincipalId(1)),
        Word::Ended(RowKey::Unreadable { relation: Relation::Devices, key: String::new() }),
    ];
    bench.layer.lay_words(&mut words, &[]);
    assert_eq!(words[0], Word::Row(Change::Device(device(A, Some("10.8.0.1")))));
    assert_eq!(words[1], Word::Row(Change::Device(device(B, Some("10.0.0.2")))));
    bench.layer.lay_words(&mut [Word::Ended(RowKey::Device(DeviceId(A.into())))], &[]);
    bench.write(0, &[(A, "10.8.0.9")]);
    assert_eq!(bench.layer.drain_moves(|_| None), DeviceMoves::default());
}
