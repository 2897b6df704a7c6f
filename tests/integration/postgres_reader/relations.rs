//! Relations that are read apart, also on schemas of the operator's own.

use sluicegate::config::{self, Authz, Profile, Queries};
use sluicegate::store::{self, KnownPosition, Relation, RelationRows, StoreError, Words};

use super::{query, reader, reader_with, rows, words};
use crate::support::{Cluster, OpenBalena, Rights, UUID, store_at};

#[test]
fn a_query_that_breaks_the_contract_fails_alone_and_keeps_the_session() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.add_device(UUID);
    rights.issue();
    rights.by_hand(&format!(
        "CREATE VIEW public.grants_view AS SELECT id AS grant_id, principal, scope, target, port_min, port_max,
            expires_at, false AS revoked FROM sluicegate.grants;
        GRANT SELECT ON public.grants_view TO {}",
        rights.database.relay()
    ));
    let queries = Queries { grants: query("SELECT * FROM grants_view"), ..Queries::default() };
    let url = format!("{}?application_name=apart", rights.database.relay_url());
    let mut reader = reader_with(&url, queries, &KnownPosition::default());
    assert_eq!(rows(&mut reader, Relation::Grants), 0);
    let session = |cluster: &Cluster| {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'apart'";
        cluster.client("postgres").query_one(sql, &[]).unwrap().get::<_, i32>(0)
    };
    let before = session(cluster);

    rights.by_hand(
        "CREATE OR REPLACE VIEW public.grants_view AS SELECT id AS grant_id, principal, scope, target,
            (port_min / (id - id))::int4 AS port_min, port_max, expires_at, false AS revoked
        FROM sluicegate.grants",
    );
    rights.grant_any();

    let error = reader.read_relation(Relation::Grants).unwrap_err();
    assert!(matches!(error, StoreError::Contract { relation: "grants", .. }), "{error}");
    assert!(error.to_string().contains("division by zero"), "{error}");
    assert_eq!(rows(&mut reader, Relation::Devices), 1);
    assert_eq!(rows(&mut reader, Relation::Credentials), 1);
    assert_eq!(session(cluster), before);
}

#[test]
fn a_relation_of_another_schema_is_given_only_if_it_has_changed() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.grant_any();
    let sql =
        "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at, false AS revoked
        FROM sluicegate.grants";
    let queries = Queries { grants: query(sql), ..Queries::default() };
    let mut reader = reader_with(&rights.database.relay_url(), queries, &KnownPosition::default());
    assert_eq!(rows(&mut reader, Relation::Grants), 1);
    let answer = reader.read_relation(Relation::Grants).unwrap();
    assert!(matches!(answer.rows, RelationRows::Unchanged), "{answer:?}");
    assert!(!reader.follows_outbox());
    rights.grant_any();
    assert_eq!(rows(&mut reader, Relation::Grants), 2);
    for _ in 0..2 {
        assert_eq!(rows(&mut reader, Relation::Credentials), 0, "ours, which the outbox names");
    }
}

#[test]
fn a_schema_that_is_named_like_the_role_shadows_no_table() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.grant_any();
    let relay = rights.database.relay();
    rights.by_hand(&format!(
        "CREATE TABLE public.rights (n int8); INSERT INTO public.rights VALUES (1), (2);
        CREATE SCHEMA {relay};
        CREATE TABLE {relay}.rights (n int8);
        CREATE TABLE {relay}.grants AS SELECT * FROM sluicegate.grants LIMIT 0;
        GRANT USAGE ON SCHEMA {relay} TO {relay};
        GRANT SELECT ON public.rights, {relay}.rights, {relay}.grants TO {relay}"
    ));
    let sql =
        "SELECT n AS grant_id, 1::int8 AS principal, 'any' AS scope, NULL::int8 AS target, 1 AS port_min,
        2 AS port_max, NULL::timestamptz AS expires_at, false AS revoked FROM rights";
    let shadowed = cluster.try_client(&relay, &rights.database.name).unwrap().query(sql, &[]).unwrap();
    assert_eq!(shadowed.len(), 0, "another client reads the wrong table");

    let queries = Queries { grants: query(sql), ..Queries::default() };
    let url = rights.database.relay_url();
    let mut replaced = reader_with(&url, queries.clone(), &KnownPosition::default());
    assert_eq!(rows(&mut replaced, Relation::Grants), 2);
    assert_eq!(rows(&mut reader(&url), Relation::Grants), 1);
    let chosen = format!("{url}?options=-csearch_path%3D{relay}");
    let mut chosen = reader_with(&chosen, queries, &KnownPosition::default());
    assert_eq!(rows(&mut chosen, Relation::Grants), 0, "what the URL says counts");
}

#[test]
fn a_schema_that_is_named_like_the_role_shadows_no_table_of_open_balena() {
    let Some(cluster) = Cluster::shared() else { return };
    let world = OpenBalena::new(cluster);
    let relay = world.database.relay();
    world.database.by_hand(&format!(
        "CREATE SCHEMA {relay}; GRANT USAGE ON SCHEMA {relay} TO {relay};
        CREATE TABLE {relay}.\"api key\" AS SELECT * FROM public.\"api key\" LIMIT 0;
        CREATE TABLE {relay}.device AS SELECT * FROM public.device LIMIT 0;
        GRANT SELECT ON ALL TABLES IN SCHEMA {relay} TO {relay}"
    ));
    let store = config::Store { profile: Profile::OpenBalena, ..store_at(&world.database.relay_url()) };
    let mut reader = store::reader(&store, &Authz::default(), KnownPosition::default());
    assert!(rows(&mut reader, Relation::Credentials) >= 40);
    assert_eq!(rows(&mut reader, Relation::Devices), 2);
    let answer = reader.read_relation(Relation::Devices).unwrap();
    assert!(matches!(answer.rows, RelationRows::Unchanged), "{answer:?}");
    assert!(matches!(reader.read_words().unwrap().words, Words::Behind));
    assert_eq!(words(&mut reader), [], "there is no outbox");
}

#[test]
fn two_sets_of_queries_are_compared_as_of_one_moment() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut rights = Rights::new(cluster);
    rights.grant_any();
    let mut reader = reader(&rights.database.relay_url());
    let none =
        "SELECT id AS grant_id, principal, scope, target, port_min, port_max, expires_at, false AS revoked
        FROM sluicegate.grants WHERE false";
    let candidate = Queries { grants: query(none), ..Queries::default() };
    let comparison = reader.compare(&candidate).unwrap();
    assert_eq!((comparison.running.grants.len(), comparison.candidate.grants.len()), (1, 0));
    let broken = Queries { grants: query("SELECT 1 AS grant_id"), ..Queries::default() };
    assert!(matches!(reader.compare(&broken), Err(StoreError::Contract { .. })));
    assert_eq!(rows(&mut reader, Relation::Grants), 1);
}
