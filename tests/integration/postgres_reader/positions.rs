//! Positions of answers, on primaries, standbys, after a promotion, and of restored copies.

use sluicegate::config::Queries;
use sluicegate::store::{KnownPosition, Position, Relation, RelationRows, Standing, StoreReader};

use super::{promote, query, reader, reader_with, wait_until_replayed};
use crate::support::{Cluster, Rights, wait_for};

fn grants(reader: &mut Box<dyn StoreReader>) -> (Position, Standing) {
    let answer = reader.read_relation(Relation::Grants).unwrap();
    (answer.position, answer.standing)
}

fn log_position(cluster: &Cluster) -> u64 {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8";
    let log: i64 = cluster.client("postgres").query_one(sql, &[]).unwrap().get(0);
    log.unsigned_abs()
}

#[test]
fn a_position_moves_on_with_commits_and_names_the_database() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let known = KnownPosition::default();
    let mut reader = reader_with(&rights.database.relay_url(), Queries::default(), &known);
    let (before, standing) = grants(&mut reader);
    assert_eq!((standing, before.timeline), (Standing::Newer, 1));
    known.advance(before);

    rights.grant_any();

    let (after, standing) = grants(&mut reader);
    assert_eq!((standing, after.store), (Standing::Newer, before.store));
    assert!(after.log > before.log, "{before:?} {after:?}");
    let words = reader.read_words().unwrap();
    assert!(words.position.log >= after.log, "{words:?}");
    let other = cluster.database();
    let mut elsewhere = reader_with(&other.relay_url(), Queries::default(), &known);
    assert_eq!(grants(&mut elsewhere).1, Standing::Elsewhere);
}

#[test]
fn a_commit_during_a_read_is_behind_its_position() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let slow =
        "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at, false AS revoked
        FROM (SELECT pg_sleep(1)) AS pause, sluicegate.grants";
    let queries = Queries { grants: query(slow), ..Queries::default() };
    let mut reader = reader_with(&rights.database.relay_url(), queries, &KnownPosition::default());
    let reading = std::thread::spawn(move || reader.read_relation(Relation::Grants).unwrap());
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%pg_sleep%'
        AND state = 'active'";
    let mut client = rights.database.client();
    wait_for(|| {
        let sleeps: i64 = client.query_one(sql, &[&rights.database.relay()]).unwrap().get(0);
        (sleeps == 1).then_some(())
    })
    .unwrap();

    rights.by_hand(
        "INSERT INTO sluicegate.grants (principal, scope, port_min, port_max) VALUES (1, 'any', 1, 2)",
    );
    let committed = log_position(cluster);

    let answer = reading.join().unwrap();
    assert!(matches!(answer.rows, RelationRows::Grants(rows) if rows.is_empty()));
    assert!(answer.position.log < committed, "{:?} {committed}", answer.position);
}

#[test]
fn a_standby_that_is_behind_gives_older_answers_until_it_has_caught_up() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    wait_until_replayed(&standby, &primary);
    let known = KnownPosition::default();
    let (role, name) = (rights.database.relay(), rights.database.name.clone());
    let mut at_primary = reader_with(&primary.url(&role, &name), Queries::default(), &known);
    let mut at_standby = reader_with(&standby.url(&role, &name), Queries::default(), &known);
    let same_store = grants(&mut at_primary).0.store == grants(&mut at_standby).0.store;
    assert!(same_store, "one store on two servers");

    standby.client("postgres").batch_execute("SELECT pg_wal_replay_pause()").unwrap();
    rights.grant_any();
    known.advance(grants(&mut at_primary).0);

    let (behind, standing) = grants(&mut at_standby);
    assert_eq!((standing, behind.timeline), (Standing::Older, 1));
    assert_eq!(at_standby.read_words().unwrap().standing, Standing::Older);
    standby.client("postgres").batch_execute("SELECT pg_wal_replay_resume()").unwrap();
    wait_until_replayed(&standby, &primary);
    assert_eq!(grants(&mut at_standby).1, Standing::Newer);
    assert_eq!(at_standby.read_words().unwrap().standing, Standing::Newer);
}

#[test]
fn a_promoted_standby_goes_on_from_the_primary() {
    let Some(mut primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let known = KnownPosition::default();
    let (role, name) = {
        let mut rights = Rights::new(&primary);
        rights.grant_any();
        wait_until_replayed(&standby, &primary);
        known.advance(grants(&mut reader(&rights.database.relay_url())).0);
        (rights.database.relay(), rights.database.name.clone())
    };
    let before = known.get().unwrap();
    let mut followed = reader_with(&standby.url(&role, &name), Queries::default(), &known);
    grants(&mut followed);
    primary.stop();

    promote(&standby);

    let (position, standing) = grants(&mut followed);
    assert_eq!((position.store, position.timeline), (before.store, before.timeline + 1));
    assert_eq!(standing, Standing::Newer, "{before:?} {position:?}");
    known.advance(position);
    primary.run();
    let mut old = reader_with(&primary.url(&role, &name), Queries::default(), &known);
    assert_eq!(grants(&mut old).1, Standing::Older, "the old primary has another history");
}

#[test]
fn a_store_that_was_restored_to_an_earlier_time_is_older() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let mut backup = primary.standby("");
    wait_until_replayed(&backup, &primary);
    // Stopped, it is a backup of this moment.
    backup.stop();
    // More than the copy writes to its own log when it starts.
    rights
        .by_hand("INSERT INTO sluicegate.devices (uuid) SELECT md5(n::text) FROM generate_series(1, 5000) n");
    rights.grant_any();
    let known = KnownPosition::default();
    let (role, name) = (rights.database.relay(), rights.database.name.clone());
    known.advance(grants(&mut reader(&primary.url(&role, &name))).0);

    let conf = backup.data().join("postgresql.auto.conf");
    std::fs::write(&conf, "").unwrap();
    std::fs::remove_file(backup.data().join("standby.signal")).unwrap();
    backup.run();

    let mut restored = reader_with(&backup.url(&role, &name), Queries::default(), &known);
    let (position, standing) = grants(&mut restored);
    assert_eq!(standing, Standing::Older, "{:?} {position:?}", known.get());
    assert_eq!(position.store, known.get().unwrap().store);
}

#[test]
fn tables_that_were_made_again_in_place_are_another_store() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let known = KnownPosition::default();
    let mut reader = reader_with(&rights.database.relay_url(), Queries::default(), &known);
    known.advance(grants(&mut reader).0);
    let relay = rights.database.relay();
    rights.by_hand("DROP SCHEMA sluicegate CASCADE");
    rights.database.init();
    rights.by_hand(&format!(
        "GRANT USAGE ON SCHEMA sluicegate TO {relay};
        GRANT SELECT ON ALL TABLES IN SCHEMA sluicegate TO {relay}"
    ));
    let standing = wait_for(|| reader.read_relation(Relation::Grants).ok()).unwrap().standing;
    assert_eq!(standing, Standing::Elsewhere);
}
