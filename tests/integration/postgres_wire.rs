//! Answers of a PostgreSQL server that are cut, stop half-way, come late or are not what it said: none
//! decides anything by half, and each is over when the wire is mended.

use std::time::{Duration, Instant};

use sluicegate::config::{self, Authz};
use sluicegate::store::StoreError;

use crate::support::{Changes, Cluster, Database, Fault, Proxy, Rights, StoreView, UUID, store_at};

/// Enough for an answer of many pieces.
const DEVICES: usize = 3_000;

const PATIENCE: Duration = Duration::from_millis(500);

/// A source behind a wire of its own, and a store with many devices.
fn scene<'a>(rights: &Rights<'a>, cluster: &Cluster) -> (Proxy, StoreView) {
    rights.by_hand(&format!(
        "INSERT INTO sluicegate.devices (uuid, address)
        SELECT lpad(to_hex(n), 32, '0'), '127.0.0.1' FROM generate_series(1, {DEVICES}) n"
    ));
    let proxy = Proxy::to(([127, 0, 0, 1], cluster.port()).into());
    let Database { name, .. } = &rights.database;
    let url = format!("postgres://{}@127.0.0.1:{}/{name}", rights.database.relay(), proxy.port());
    let store =
        config::Store { statement_timeout: PATIENCE, connect_timeout: PATIENCE * 4, ..store_at(&url) };
    (proxy, StoreView::new(&store, &Authz::default()))
}

#[test]
fn an_answer_that_is_cut_in_the_middle_is_no_answer() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let (proxy, mut source) = scene(&rights, cluster);
    assert_eq!(source.read_all().unwrap().devices.len(), DEVICES);
    for after_bytes in [1, 1_000, 50_000, 150_000] {
        proxy.set(Fault::Cut { after_bytes });
        let error = source.read_all().unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "after {after_bytes} bytes: {error}");
        assert!(proxy.has_struck());
        proxy.set(Fault::None);
        assert_eq!(source.read_all().unwrap().devices.len(), DEVICES, "after {after_bytes} bytes");
    }
}

#[test]
fn an_answer_that_stops_in_the_middle_is_given_up() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let (proxy, mut source) = scene(&rights, cluster);
    source.read_all().unwrap();
    for after_bytes in [1_000, 50_000] {
        proxy.set(Fault::Hang { after_bytes });
        let asked = Instant::now();
        let error = source.read_all().unwrap_err();
        assert!(matches!(error, StoreError::Slow { .. }), "after {after_bytes} bytes: {error}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(proxy.has_struck());
        proxy.set(Fault::None);
        assert_eq!(source.read_all().unwrap().devices.len(), DEVICES);
    }
}

#[test]
fn an_answer_that_comes_late_but_goes_on_is_waited_for() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let (proxy, mut source) = scene(&rights, cluster);
    source.read_all().unwrap();
    proxy.set(Fault::Delay(PATIENCE / 5));
    let asked = Instant::now();
    assert_eq!(source.read_all().unwrap().devices.len(), DEVICES);
    assert!(asked.elapsed() > PATIENCE, "the whole took longer than any part may: {:?}", asked.elapsed());
}

#[test]
fn a_row_that_was_rewritten_on_its_way_is_set_aside_and_comes_back() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.add_device(UUID);
    let (proxy, mut source) = scene(&rights, cluster);
    proxy.set(Fault::Rewrite { from: UUID, to: "no uuid, but of the same length." });
    let rows = source.read_all().unwrap();
    assert_eq!((rows.devices.len(), rows.quarantined.len()), (DEVICES, 1));
    assert!(rows.quarantined[0].reason.contains("uuid is `no uuid"), "{:?}", rows.quarantined);
    proxy.set(Fault::None);
    assert_eq!(source.read_all().unwrap().devices.len(), DEVICES + 1);
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)));
}
