//! Errors that name the cause and not where it was noticed.

use std::process::Command;

use sluicegate::config::Authz;
use sluicegate::store::{StoreError, check_sessions};

use crate::support::{
    BINARY, Cluster, Pooler, Rights, Site, StoreView, root_or_skip, store_at, tools_or_skip, with_mounts,
};

#[test]
fn a_store_in_a_folder_that_may_not_be_written_is_told_as_that() {
    let name = "a_store_in_a_folder_that_may_not_be_written_is_told_as_that";
    if !root_or_skip(name) || !tools_or_skip(name, &["unshare", "mount"]) {
        return;
    }
    let site = Site::new("");
    let folder = site.store_path().parent().unwrap().to_owned();
    let at = folder.display();
    let words = with_mounts(&format!("mount --bind {at} {at}; mount -o remount,bind,ro {at}"));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(BINARY).args(["check", "--config"]).arg(site.config_path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("the user root may not write {at} (Read-only file system)")), "{said}");
    assert!(said.contains("SQLite writes beside a store even to read it; "), "{said}");
}

#[test]
fn a_pooler_that_shares_connections_between_sessions_is_no_store() {
    let Some(cluster) = Cluster::start() else { return };
    let rights = Rights::new(&cluster);
    let relay = rights.database.relay();
    let store_through = |pool_mode: &str| {
        let pooler = Pooler::start(&cluster, pool_mode, &[&relay])?;
        let store = store_at(&pooler.url(&relay, &rights.database.name));
        Some((pooler, store))
    };
    let Some((_pooler, store)) = store_through("transaction") else { return };
    let refused = check_sessions(&store).unwrap_err();
    assert!(matches!(refused, StoreError::Pooled { .. }), "{refused}");
    let refused = refused.to_string();
    assert!(refused.contains("pool_mode = transaction") && refused.contains("; "), "{refused}");

    let (_pooler, store) = store_through("session").unwrap();
    check_sessions(&store).unwrap();
    StoreView::new(&store, &Authz::default()).read_all().unwrap();
    check_sessions(&store_at(&rights.database.relay_url())).unwrap();
}
