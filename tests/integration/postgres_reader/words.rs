//! What the outbox and the query for ended rows say of single rows.

use sluicegate::authz::{Change, GrantId, KeyHash, PrincipalId};
use sluicegate::config::Queries;
use sluicegate::store::{RowKey, Word};

use super::{following, query, wait_for_word, words};
use crate::support::{Cluster, Rights, UUID};

const GRANTS: &str = "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
    false AS revoked FROM sluicegate.grants";

fn shown(words: &[Word]) -> Vec<String> {
    let shown = |word: &Word| match word {
        Word::Row(Change::Credential(row)) => format!("credential revoked={}", row.revoked),
        Word::Row(Change::Grant(row)) => format!("grant {} revoked={}", row.id.0, row.revoked),
        Word::Row(Change::Device(row)) => format!("device {} online={}", row.id.0, row.online),
        Word::Row(gone) => format!("{gone:?}"),
        Word::Ended(key) => format!("{key} ended"),
        Word::Live(key) => format!("{key} live"),
        Word::PrincipalEnded(id) => format!("principal {} ended", id.0),
        Word::PrincipalLive(id) => format!("principal {} live", id.0),
    };
    words.iter().map(shown).collect()
}

#[test]
fn each_change_is_a_word_on_its_row() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let mut reader = following(&rights.database.relay_url(), Queries::default());
    assert!(reader.follows_outbox());

    rights.add_device(UUID);
    rights.grant_any();
    let key = rights.issue();
    assert_eq!(
        shown(&words(&mut reader)),
        ["device 1 online=true", "grant 1 revoked=false", "credential revoked=false"]
    );
    assert_eq!(words(&mut reader), []);

    rights.by_hand("DELETE FROM sluicegate.credentials; DELETE FROM sluicegate.grants");
    let gone = [Word::Row(Change::CredentialGone(key)), Word::Row(Change::GrantGone(GrantId(1)))];
    assert_eq!(words(&mut reader), gone);

    rights.admin.remove_principal("alice").unwrap();
    assert_eq!(words(&mut reader), [Word::PrincipalEnded(PrincipalId(1))]);
    rights.by_hand("INSERT INTO sluicegate.principals (name) VALUES ('bob')");
    assert_eq!(words(&mut reader), [Word::PrincipalLive(PrincipalId(2))]);
}

#[test]
fn a_writer_in_the_role_of_a_replica_hides_nothing() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let key = rights.issue();
    rights.grant_any();
    rights.add_device(UUID);
    let mut reader = following(&rights.database.relay_url(), Queries::default());
    let as_replica = |statement: &str| {
        rights.by_hand(&format!("SET session_replication_role = replica; {statement}"));
    };

    as_replica("UPDATE sluicegate.credentials SET revoked_at = now()");
    assert_eq!(shown(&words(&mut reader)), ["credential revoked=true"]);
    as_replica("UPDATE sluicegate.credentials SET revoked_at = NULL");
    assert_eq!(shown(&words(&mut reader)), ["credential revoked=false"], "on purpose, and told");
    as_replica("DELETE FROM sluicegate.grants; DELETE FROM sluicegate.devices");
    assert_eq!(shown(&words(&mut reader)), ["GrantGone(GrantId(1))", "DeviceGone(DeviceId(1))"]);
    as_replica("UPDATE sluicegate.principals SET removed_at = now()");
    assert_eq!(shown(&words(&mut reader)), ["principal 1 ended", "credential revoked=true"]);
    as_replica("DELETE FROM sluicegate.credentials");
    assert_eq!(words(&mut reader), [Word::Row(Change::CredentialGone(key))]);
    as_replica("INSERT INTO sluicegate.devices (uuid) SELECT md5(n::text) FROM generate_series(1, 3) n");
    assert_eq!(words(&mut reader).len(), 3);
}

#[test]
fn of_a_relation_with_another_query_the_outbox_says_only_what_has_ended() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let queries = Queries { grants: query(GRANTS), ..Queries::default() };
    let mut reader = following(&rights.database.relay_url(), queries);
    assert!(!reader.follows_outbox());

    rights.grant_any();
    rights.issue();
    assert_eq!(shown(&words(&mut reader)), ["grants 1 live", "credential revoked=false"]);
    rights.by_hand("UPDATE sluicegate.grants SET expires_at = now() - interval '1 second'");
    assert_eq!(shown(&words(&mut reader)), ["grants 1 ended"]);
    rights.by_hand("UPDATE sluicegate.grants SET expires_at = NULL");
    assert_eq!(shown(&words(&mut reader)), ["grants 1 live"]);
    rights.admin.revoke_grant(GrantId(1)).unwrap();
    assert_eq!(shown(&words(&mut reader)), ["grants 1 ended"]);
    rights.by_hand("DELETE FROM sluicegate.grants");
    assert_eq!(shown(&words(&mut reader)), ["grants 1 ended"]);
}

#[test]
fn a_query_for_ended_rows_gives_each_end_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    let relay = rights.database.relay();
    rights.by_hand(&format!(
        "CREATE TABLE public.ends (relation text, id text, ended_at timestamptz DEFAULT now());
        GRANT SELECT ON public.ends TO {relay}; INSERT INTO public.ends VALUES ('grants', '7')"
    ));
    // A comment at the end must not swallow what is put behind the query.
    let ended = query("SELECT relation, id, ended_at FROM ends -- all of them");
    let mut reader = following(&rights.database.relay_url(), Queries { ended, ..Queries::default() });
    let grant = |id| Word::Ended(RowKey::Grant(GrantId(id)));
    assert_eq!(words(&mut reader), [grant(7)]);
    assert_eq!(words(&mut reader), []);
    let hex = "09".repeat(32);
    rights.by_hand(&format!("INSERT INTO public.ends VALUES ('credentials', '{hex}'), ('principals', '3')"));
    let mut said = words(&mut reader);
    said.sort_by_key(|word| format!("{word:?}"));
    let key = RowKey::Credential(KeyHash::from_bytes([9; 32]));
    assert_eq!(said, [Word::Ended(key), Word::PrincipalEnded(PrincipalId(3))]);

    rights.by_hand("ALTER TABLE public.ends RENAME TO ends_elsewhere");
    rights.grant_any();
    assert_eq!(shown(&words(&mut reader)), ["grant 1 revoked=false"], "its failure hides no other word");
    rights.by_hand(
        "ALTER TABLE public.ends_elsewhere RENAME TO ends; INSERT INTO public.ends VALUES ('grants', '8')",
    );
    assert!(wait_for_word(&mut reader, |word| *word == grant(8)).is_some());
}

#[test]
fn where_our_schema_is_absent_the_operators_queries_are_read_without_an_outbox() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.empty_database();
    database.by_hand(&format!("CREATE ROLE {} LOGIN", database.relay()));
    let empty = "SELECT 1::int8 AS grant_id, 1::int8 AS principal, 'any' AS scope, NULL::int8 AS target,
        1 AS port_min, 2 AS port_max, NULL::timestamptz AS expires_at, false AS revoked";
    let queries = Queries { grants: query(empty), ..Queries::default() };
    let mut reader = following(&database.relay_url(), queries);
    assert_eq!(words(&mut reader), []);
    assert_eq!(super::rows(&mut reader, sluicegate::store::Relation::Grants), 1);

    let mut ours = super::reader(&database.relay_url());
    let error = ours.read_words().unwrap_err().to_string();
    assert!(error.contains("`sluicegate store init`"), "{error}");
}
