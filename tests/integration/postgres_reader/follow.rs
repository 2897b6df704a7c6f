//! The outbox is followed past open transactions, through restarts of the relay, standbys and a failover.

use std::time::{Duration, Instant};

use sluicegate::authz::{Change, GrantId};
use sluicegate::config::Queries;
use sluicegate::store::{StoreReader, Word, Words};

use super::{following, promote, reader, wait_for_word, wait_until_replayed, words};
use crate::support::{Cluster, Rights, wait_for};

fn is_grant(id: GrantId, revoked: bool) -> impl Fn(&Word) -> bool {
    move |word| matches!(word, Word::Row(Change::Grant(row)) if row.id == id && row.revoked == revoked)
}

/// A reader in another process, which goes on where `before` was.
fn restarted(before: &dyn StoreReader, url: &str) -> Box<dyn StoreReader> {
    let mut after = reader(url);
    after.resume(before.bookmark().unwrap());
    after
}

#[test]
fn a_transaction_that_commits_late_is_read_late_also_after_a_restart() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let first = rights.grant_any();
    let url = rights.database.relay_url();
    let mut late = rights.database.client();
    let mut late = late.transaction().unwrap();
    late.batch_execute("UPDATE sluicegate.grants SET revoked_at = now()").unwrap();
    let mut reader = following(&url, Queries::default());
    let second = rights.grant_any();
    assert!(wait_for_word(&mut reader, is_grant(second, false)).is_some());
    cluster.client("postgres").batch_execute("CHECKPOINT").unwrap();
    assert_eq!(words(&mut reader), []);

    let mut reader = restarted(&*reader, &url);
    assert_eq!(words(&mut reader), [], "nothing is read twice");
    late.commit().unwrap();

    let said = words(&mut reader);
    assert!(matches!(&said[..], [word] if is_grant(first, true)(word)), "{said:?}");
    let mut reader = restarted(&*reader, &url);
    assert!(words(&mut reader).len() <= 1);
    rights.grant_any();
    assert!(wait_for_word(&mut reader, is_grant(GrantId(3), false)).is_some());
}

#[test]
fn a_reader_on_a_standby_passes_no_late_transaction_over() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let first = rights.grant_any();
    let standby = primary.standby("");
    let url = standby.url(&rights.database.relay(), &rights.database.name);
    let mut late = rights.database.client();
    let mut late = late.transaction().unwrap();
    late.batch_execute("UPDATE sluicegate.grants SET revoked_at = now()").unwrap();
    wait_until_replayed(&standby, &primary);
    let mut reader = following(&url, Queries::default());
    for _ in 0..3 {
        let grant = rights.grant_any();
        let said = wait_for_word(&mut reader, is_grant(grant, false)).unwrap();
        assert_eq!(said.len(), 1, "each once: {said:?}");
    }
    let mut reader = restarted(&*reader, &url);
    assert_eq!(words(&mut reader), []);

    late.commit().unwrap();

    let said = wait_for_word(&mut reader, is_grant(first, true)).unwrap();
    assert_eq!(said.len(), 1, "{said:?}");
    // The primary goes on from what the standby has shown.
    let mut reader = restarted(&*reader, &primary.url(&rights.database.relay(), &rights.database.name));
    assert!(!words(&mut reader).iter().any(|word| !is_grant(first, true)(word)));
    rights.admin.revoke_grant(GrantId(2)).unwrap();
    assert!(wait_for_word(&mut reader, is_grant(GrantId(2), true)).is_some());
}

#[test]
fn after_a_failover_the_whole_outbox_is_read_again() {
    let Some(mut primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let (mut reader, role, name) = {
        let mut rights = Rights::new(&primary);
        let mut reader = following(&rights.database.relay_url(), Queries::default());
        rights.grant_any();
        rights.grant_any();
        assert_eq!(words(&mut reader).len(), 2);
        wait_until_replayed(&standby, &primary);
        assert!(wait_for(|| (words(&mut reader).is_empty()).then_some(())).is_some());
        (reader, rights.database.relay(), rights.database.name.clone())
    };
    primary.stop();
    assert!(reader.read_words().is_err());
    promote(&standby);
    standby
        .client(&name)
        .batch_execute("UPDATE sluicegate.grants SET revoked_at = now() WHERE id = 2")
        .unwrap();

    let mut reader = restarted(&*reader, &standby.url(&role, &name));

    let said = wait_for_word(&mut reader, is_grant(GrantId(2), true)).unwrap();
    assert!(said.iter().any(is_grant(GrantId(1), false)), "{said:?}");
    assert_eq!(words(&mut reader), []);
}

#[test]
fn a_reader_that_lives_through_a_promotion_reads_on() {
    let Some(mut primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let (mut reader, name) = {
        let mut rights = Rights::new(&primary);
        rights.grant_any();
        wait_until_replayed(&standby, &primary);
        let url = standby.url(&rights.database.relay(), &rights.database.name);
        (following(&url, Queries::default()), rights.database.name.clone())
    };
    primary.stop();
    promote(&standby);
    standby.client(&name).batch_execute("UPDATE sluicegate.grants SET revoked_at = now()").unwrap();
    assert!(wait_for_word(&mut reader, is_grant(GrantId(1), true)).is_some());
}

#[test]
fn a_bookmark_of_another_store_leads_nowhere() {
    let Some(cluster) = Cluster::shared() else { return };
    let (rights, other) = (Rights::new(cluster), Rights::new(cluster));
    let reader = following(&rights.database.relay_url(), Queries::default());
    let mut elsewhere = restarted(&*reader, &other.database.relay_url());
    assert!(matches!(elsewhere.read_words().unwrap().words, Words::Behind));
    assert_eq!(words(&mut elsewhere), []);
}

#[test]
fn more_rows_than_one_read_gives_come_in_several() {
    let Some(cluster) = Cluster::start() else { return };
    let rights = Rights::new(&cluster);
    let mut reader = following(&rights.database.relay_url(), Queries::default());
    // Keeps the outbox from being pruned, as another prune that runs does.
    let mut pruner = rights.database.client();
    let mut pruner = pruner.transaction().unwrap();
    pruner.batch_execute("SELECT pg_advisory_xact_lock(x'534c4754'::integer, 0)").unwrap();
    for part in 0..3 {
        rights.by_hand(&format!(
            "INSERT INTO sluicegate.changes (relation, key_id)
            SELECT 'devices', n FROM generate_series({}, {}) n",
            part * 40_000,
            part * 40_000 + 39_999
        ));
    }
    let parts: Vec<_> =
        std::iter::from_fn(|| Some(words(&mut reader).len()).filter(|len| *len > 0)).collect();
    assert_eq!(parts, [80_000, 40_000]);
    rights.by_hand(
        "INSERT INTO sluicegate.changes (relation, key_id) SELECT 'devices', n FROM generate_series(1, 100001) n",
    );
    assert!(matches!(reader.read_words().unwrap().words, Words::Behind), "one transaction that is too large");
    assert_eq!(words(&mut reader), []);
    pruner.rollback().unwrap();
}

#[test]
fn a_prune_while_a_transaction_is_open_is_a_gap_only_if_its_rows_went() {
    let Some(cluster) = Cluster::start() else { return };
    let mut rights = Rights::new(&cluster);
    rights.grant_any();
    let mut late = rights.database.client();
    let mut late = late.transaction().unwrap();
    late.batch_execute("UPDATE sluicegate.grants SET revoked_at = now()").unwrap();
    let mut reader = following(&rights.database.relay_url(), Queries::default());
    let write = |rows: i64| {
        rights.by_hand(&format!(
            "INSERT INTO sluicegate.changes (relation, key_id) SELECT 'devices', n FROM generate_series(1, {rows}) n"
        ));
    };
    for _ in 0..4 {
        write(60_000);
        assert!(!words(&mut reader).is_empty(), "it reads along");
    }
    late.commit().unwrap();
    // Prunes the rows of the late one, which nobody has read.
    (0..20).for_each(|_| write(1_000));
    assert!(matches!(reader.read_words().unwrap().words, Words::Behind));
    assert_eq!(words(&mut reader), []);
}

/// Rows of the index that reads of the outbox have examined, by the server's own count.
fn rows_examined(cluster: &Cluster, database: &str) -> i64 {
    let sql = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'changes_by_xid'";
    // A session reports its counts when it ends.
    std::thread::sleep(Duration::from_millis(200));
    cluster.client(database).query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn following_costs_the_new_changes_whatever_was_written_behind_an_open_transaction() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    // In another database, as it is with most.
    let mut open = primary.client("postgres");
    let mut open = open.transaction().unwrap();
    open.batch_execute("SELECT pg_current_xact_id()").unwrap();
    let (role, name) = (rights.database.relay(), rights.database.name.clone());
    let urls = [primary.url(&role, &name), standby.url(&role, &name)];
    wait_until_replayed(&standby, &primary);
    let readers = urls.clone().map(|url| following(&url, Queries::default()));
    let mut writer = rights.database.client();
    writer.batch_execute("SET synchronous_commit = off").unwrap();
    let write = "DO $$ BEGIN FOR n IN 1..100000 LOOP
            INSERT INTO sluicegate.changes (relation, key_id) VALUES ('devices', n); COMMIT;
        END LOOP; END $$";
    writer.batch_execute(write).unwrap();
    wait_until_replayed(&standby, &primary);
    for (place, (cluster, mut reader)) in [&primary, &standby].into_iter().zip(readers).enumerate() {
        let mut read = 0;
        wait_for(|| {
            read += words(&mut reader).len();
            (read >= 100_000).then_some(())
        })
        .unwrap();
        assert_eq!(read, 100_000, "each once");
        words(&mut reader);
        let mut resumed = restarted(&*reader, &urls[place]);
        drop(reader);
        let before = rows_examined(cluster, &name);

        let mut latencies = Vec::new();
        for _ in 0..ROUNDS {
            let grant = rights.grant_any();
            let committed = Instant::now();
            let said = wait_for_word(&mut resumed, is_grant(grant, false)).unwrap();
            latencies.push(committed.elapsed());
            assert_eq!(said.len(), 1);
            assert_eq!(words(&mut resumed), []);
        }

        drop(resumed);
        let examined = rows_examined(cluster, &name) - before;
        latencies.sort();
        println!("{place}: {examined} rows examined, p99 {:?}", latencies[ROUNDS * 99 / 100]);
        assert!(examined <= ROUNDS as i64 * ROWS_PER_ROUND_MAX, "{examined} rows in {ROUNDS} rounds");
    }
    open.rollback().unwrap();
}

/// Changes that are made and followed behind the open transaction.
const ROUNDS: usize = 100;

/// Rows of the index that a change, and some polls that find nothing, may cost.
const ROWS_PER_ROUND_MAX: i64 = 100;
