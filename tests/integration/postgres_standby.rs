//! Relays on a streaming standby, and on several hosts: nothing is passed over, a standby that is behind is
//! told and left where another host is not, and a failover is followed.

use std::time::Duration;

use sluicegate::authz::Change;
use sluicegate::config::{self, Authz};
use sluicegate::store::{self, KnownPosition, Relation, Standing, StoreReader};

use crate::support::{Changes, Cluster, Device, PATIENCE, Rights, Site, StoreView, V4, store_at, wait_for};

const LAG_MAX: Duration = Duration::from_millis(500);

/// A source at `hosts`, in their order, that minds a lag soon.
fn source(rights: &Rights, hosts: &[&Cluster], parameters: &str) -> StoreView {
    let authz = Authz { max_replica_lag: LAG_MAX, ..Authz::default() };
    StoreView::new(&store(rights, hosts, parameters), &authz)
}

fn store(rights: &Rights, hosts: &[&Cluster], parameters: &str) -> config::Store {
    let hosts: Vec<_> = hosts.iter().map(|host| format!("127.0.0.1:{}", host.port())).collect();
    let (role, name) = (rights.database.relay(), &rights.database.name);
    store_at(&format!("postgres://{role}@{}/{name}?application_name=reader&{parameters}", hosts.join(",")))
}

/// Reads until there is a change that `is_wanted`.
fn wait_for_change(source: &mut StoreView, is_wanted: impl Fn(&Change) -> bool) -> Option<()> {
    wait_for(|| match source.read_changes().unwrap() {
        Changes::Some { changes, .. } => changes.iter().any(&is_wanted).then_some(()),
        Changes::Behind => {
            let rows = source.read_all().unwrap();
            rows.grants.iter().any(|row| is_wanted(&Change::Grant(*row))).then_some(())
        }
        _ => None,
    })
}

fn is_grant(id: i64) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::Grant(row) if row.id.0 == id)
}

/// Number of sessions of [`source`] at a server.
fn readers(cluster: &Cluster) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'reader'";
    cluster.client("postgres").query_one(sql, &[]).unwrap().get(0)
}

fn has_caught_up(standby: &Cluster, primary: &Cluster) -> Option<()> {
    let sql = "SELECT pg_current_wal_flush_lsn()::text";
    let written: String = primary.client("postgres").query_one(sql, &[]).unwrap().get(0);
    let sql = "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)";
    wait_for(|| {
        standby.client("postgres").query_one(sql, &[&written]).unwrap().get::<_, bool>(0).then_some(())
    })
}

#[test]
fn a_transaction_that_runs_while_a_standby_is_read_is_not_passed_over() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    let mut late = rights.database.client();
    let mut late = late.transaction().unwrap();
    late.batch_execute("INSERT INTO sluicegate.devices (uuid) VALUES (repeat('ab', 16))").unwrap();
    rights.grant_any();
    has_caught_up(&standby, &primary).unwrap();
    let mut source = source(&rights, &[&standby], "");
    assert_eq!(source.read_all().unwrap().grants.len(), 1);

    late.commit().unwrap();

    let is_device = |change: &Change| matches!(change, Change::Device(row) if row.id.0 == 1);
    assert!(wait_for_change(&mut source, is_device).is_some());
    rights.grant_any();
    assert!(wait_for_change(&mut source, is_grant(2)).is_some());
}

/// Two readers that share what is known, as those of one node do: one for words, one for a relation.
fn words_and_grants(rights: &Rights, hosts: &[&Cluster]) -> [Box<dyn StoreReader>; 2] {
    let (known, store) = (KnownPosition::default(), store(rights, hosts, ""));
    let authz = Authz { max_replica_lag: LAG_MAX, ..Authz::default() };
    [(); 2].map(|()| store::reader(&store, &authz, known.clone()))
}

#[test]
fn a_relation_is_read_from_the_host_of_the_words_while_that_can_be_reached() {
    let Some(mut primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let [mut words, mut grants] = {
        let rights = Rights::new(&primary);
        has_caught_up(&standby, &primary).unwrap();
        words_and_grants(&rights, &[&standby, &primary])
    };
    let pause = |function: &str| {
        standby.client("postgres").batch_execute(&format!("SELECT pg_wal_replay_{function}()")).unwrap();
    };
    grants.read_relation(Relation::Grants).unwrap();
    assert_eq!((readers(&standby), readers(&primary)), (1, 0));
    // The words go to the primary, since the standby falls behind, and come to a standby that catches up.
    pause("pause");
    primary.client("postgres").batch_execute("CREATE TABLE more ()").unwrap();
    std::thread::sleep(LAG_MAX * 2);
    words.read_words().unwrap();
    assert_eq!((readers(&standby), readers(&primary)), (1, 1));
    pause("resume");
    has_caught_up(&standby, &primary).unwrap();

    grants.read_relation(Relation::Grants).unwrap();

    assert_eq!((readers(&standby), readers(&primary)), (0, 2), "after the words");
    primary.stop();
    assert!(words.read_words().is_err() && grants.read_relation(Relation::Grants).is_err());
    words.read_words().unwrap();
    grants.read_relation(Relation::Grants).unwrap();
    assert_eq!(readers(&standby), 2, "the words came here, since the primary is gone");
}

#[test]
fn a_standby_is_not_older_than_the_words_of_an_idle_primary() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    rights.grant_any();
    let known = KnownPosition::default();
    let reader = |host| store::reader(&store(&rights, &[host], ""), &Authz::default(), known.clone());
    let (mut words, mut grants) = (reader(&primary), reader(&standby));
    // Log that no commit waits for: it stays off the disk until something else is written.
    let unwritten = "SELECT pg_logical_emit_message(false, 'test', 'idle')";
    let mut client = primary.client("postgres");
    // The server's own writer may come first.
    let answer = wait_for(|| {
        client.batch_execute(unwritten).unwrap();
        let answer = words.read_words().unwrap();
        (answer.durable.log < answer.position.log).then_some(answer)
    });
    known.advance(answer.expect("some log is not on the disk").durable);

    has_caught_up(&standby, &primary).unwrap();

    assert_eq!(grants.read_relation(Relation::Grants).unwrap().standing, Standing::Newer);
}

#[test]
fn a_standby_of_an_idle_primary_is_not_behind() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    rights.grant_any();
    has_caught_up(&standby, &primary).unwrap();
    let mut source = source(&rights, &[&standby, &primary], "");
    source.read_all().unwrap();
    std::thread::sleep(LAG_MAX * 2);
    source.read_changes().unwrap();
    assert_eq!((readers(&standby), readers(&primary)), (1, 0));
}

#[test]
fn a_standby_that_falls_behind_is_left_for_a_host_that_is_not() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    has_caught_up(&standby, &primary).unwrap();
    let mut source = source(&rights, &[&standby, &primary], "");
    source.read_all().unwrap();
    assert_eq!((readers(&standby), readers(&primary)), (1, 0));

    standby.client("postgres").batch_execute("SELECT pg_wal_replay_pause()").unwrap();
    rights.grant_any();

    assert!(wait_for_change(&mut source, is_grant(1)).is_some());
    assert_eq!((readers(&standby), readers(&primary)), (0, 1));
}

#[test]
fn a_standby_that_is_behind_is_not_chosen_first() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let standby = primary.standby("");
    has_caught_up(&standby, &primary).unwrap();
    standby.client("postgres").batch_execute("SELECT pg_wal_replay_pause()").unwrap();
    rights.grant_any();
    std::thread::sleep(LAG_MAX * 2);
    let mut both = source(&rights, &[&standby, &primary], "");
    assert_eq!(both.read_all().unwrap().grants.len(), 1);
    let mut alone = source(&rights, &[&standby], "");
    assert_eq!(alone.read_all().unwrap().grants.len(), 0, "what is behind is better than nothing");
}

#[test]
fn a_reader_says_how_far_it_is_behind_and_since_when_a_revocation_could_be_read() {
    let Some(primary) = Cluster::start() else { return };
    let mut rights = Rights::new(&primary);
    let grant = rights.grant_any();
    let standby = primary.standby("");
    has_caught_up(&standby, &primary).unwrap();
    let (mut at_primary, mut at_standby) =
        (source(&rights, &[&primary], ""), source(&rights, &[&standby], ""));
    at_primary.read_all().unwrap();
    let woken = at_primary.reader.wake_ups();
    // One comes of itself when somebody listens.
    woken.recv_timeout(PATIENCE).unwrap();
    standby.client("postgres").batch_execute("SELECT pg_wal_replay_pause()").unwrap();

    rights.by_hand(&format!("UPDATE sluicegate.grants SET revoked_at = now() WHERE id = {}", grant.0));

    assert!(woken.recv_timeout(PATIENCE).is_ok(), "it wakes");
    std::thread::sleep(LAG_MAX);
    assert!(wait_for_change(&mut at_primary, is_grant(grant.0)).is_some());
    let told_at = at_primary.readable_since.expect("the outbox says when");
    assert!(told_at.elapsed() >= LAG_MAX, "since it was revoked, and not since it was read: {told_at:?}");
    let is_behind = || {
        at_standby.read_all().unwrap();
        (at_standby.reader.lag() >= LAG_MAX).then_some(())
    };
    assert!(wait_for(is_behind).is_some());
}

#[test]
fn a_standby_without_its_primary_is_told_and_goes_stale_until_it_catches_up() {
    let Some(mut primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let site = {
        let database = primary.database();
        let site =
            Site::on_postgres(&database, "authz.max_replica_lag = \"500ms\"\nauthz.max_stale = \"4s\"");
        has_caught_up(&standby, &primary).unwrap();
        site
    };
    let port = |cluster: &Cluster| format!("127.0.0.1:{}", cluster.port());
    let config = std::fs::read_to_string(site.config_path()).unwrap();
    std::fs::write(site.config_path(), config.replace(&port(&primary), &port(&standby))).unwrap();
    let relay = site.start();
    let device = Device::echo(V4);
    assert_eq!(site.ask(&relay, device.port()).status, 200);

    primary.stop();
    assert!(relay.logs("s behind its primary, and no other host will do"));
    let becomes =
        |status: u16| wait_for(|| (site.ask(&relay, device.port()).status == status).then_some(())).is_some();
    assert!(becomes(503), "what it says is as stale as its last word from the primary");
    primary.run();
    assert!(relay.logs("has caught up"));
    assert!(becomes(200));
}

#[test]
fn target_session_attrs_chooses_the_host() {
    let Some(primary) = Cluster::start() else { return };
    let rights = Rights::new(&primary);
    let standby = primary.standby("");
    has_caught_up(&standby, &primary).unwrap();
    for (attributes, on_standby) in [
        ("any", false),
        ("primary", false),
        ("read-write", false),
        ("standby", true),
        ("read-only", true),
        ("prefer-standby", true),
    ] {
        let mut source =
            source(&rights, &[&primary, &standby], &format!("target_session_attrs={attributes}"));
        source.read_all().unwrap();
        let expected = if on_standby { (0, 1) } else { (1, 0) };
        assert_eq!((readers(&primary), readers(&standby)), expected, "{attributes}");
        drop(source);
        wait_for(|| (readers(&primary) + readers(&standby) == 0).then_some(())).unwrap();
    }
    let error = source(&rights, &[&primary], "target_session_attrs=standby").read_all().unwrap_err();
    assert!(error.to_string().contains("is a primary, which target_session_attrs does not want"), "{error}");
    source(&rights, &[&primary], "target_session_attrs=prefer-standby").read_all().unwrap();

    // One that takes no writes by default is read-only, and still a primary.
    let mut client = primary.client("postgres");
    client.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    let read_all = |attributes: &str| {
        source(&rights, &[&primary], &format!("target_session_attrs={attributes}")).read_all()
    };
    assert!(wait_for(|| read_all("read-only").ok()).is_some());
    assert!(read_all("read-write").is_err());
    assert!(read_all("primary").is_ok());
}

#[test]
fn a_failover_is_followed() {
    let Some(mut primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let (mut source, name) = {
        let mut rights = Rights::new(&primary);
        rights.grant_any();
        has_caught_up(&standby, &primary).unwrap();
        let source = source(&rights, &[&primary, &standby], "target_session_attrs=read-write");
        (source, rights.database.name.clone())
    };
    assert_eq!(source.read_all().unwrap().grants.len(), 1);

    primary.stop();
    let error = wait_for(|| source.read_changes().err()).unwrap();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    standby.client("postgres").batch_execute("SELECT pg_promote()").unwrap();

    assert!(wait_for(|| source.read_changes().ok()).is_some());
    source.read_all().unwrap();
    standby.client(&name).batch_execute("UPDATE sluicegate.grants SET revoked_at = now()").unwrap();
    let is_revoked = |change: &Change| matches!(change, Change::Grant(row) if row.revoked);
    assert!(wait_for_change(&mut source, is_revoked).is_some());
}

#[test]
fn a_relay_on_a_standby_is_woken_by_the_primary() {
    let Some(primary) = Cluster::start() else { return };
    let standby = primary.standby("");
    let database = primary.database();
    let url = format!("{}?target_session_attrs=prefer-standby", database.relay_url())
        .replace("@", &format!("@127.0.0.1:{},", standby.port()));
    let site = Site::on_postgres(&database, "authz.refresh = \"10m\"");
    has_caught_up(&standby, &primary).unwrap();
    let config = std::fs::read_to_string(site.config_path()).unwrap();
    std::fs::write(site.config_path(), config.replace(&database.relay_url(), &url)).unwrap();
    let relay = site.start();
    assert!(relay.logs("a standby"));
    let device = Device::echo(V4);
    assert_eq!(site.ask(&relay, device.port()).status, 200);
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN sluicegate'";
    let listens =
        || (primary.client("postgres").query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1).then_some(());
    wait_for(listens).unwrap();

    site.cli(&["token", "revoke", &site.credential]);

    assert!(wait_for(|| (site.ask(&relay, device.port()).status == 407).then_some(())).is_some());
}
