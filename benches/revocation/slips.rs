//! Ways in which what a relay reads slips, underneath its queries: each has a hold, an error or a slow read follow.

use super::test_support::{PATIENCE, wait_for};
use super::tunnels::{Bench, Store};

/// See the module.
pub struct Slip {
    pub name: &'static str,
    relation: &'static str,
    /// The view in the relation's place, on PostgreSQL and on SQLite, over the table of the same name with `_table`.
    views: [&'static str; 2],
    /// A part of the line of metrics that says so; `None` for a slow read, which is not held.
    held: Option<&'static str>,
}

impl Slip {
    pub const ALL: [Self; 5] = [
        Self {
            name: "60 % of the grants absent",
            relation: "grants",
            views: ["SELECT * FROM grants_table WHERE id % 5 < 2"; 2],
            held: Some("relation=\"grants\",kind=\"absent\"} 1"),
        },
        Self {
            name: "each grant twice",
            relation: "grants",
            views: [TWICE; 2],
            held: Some("relation=\"grants\",kind=\"gained\"} 1"),
        },
        Self {
            name: "all devices moved",
            relation: "devices",
            views: [
                "SELECT id, uuid, fleet, address + 65536 * 8 AS address, node, online FROM devices_table",
                "SELECT id, uuid, fleet, '127.9' || substr(address, 6) AS address, node, online FROM devices_table",
            ],
            held: Some("relation=\"devices\",kind=\"moved\"} 1"),
        },
        Self {
            name: "contract broken",
            relation: "devices",
            views: ["SELECT id, uuid, fleet, node, online FROM devices_table"; 2],
            held: Some("rule=\"contract\",relation=\"devices\",kind=\"all\"} 1"),
        },
        Self {
            name: "devices take 3 s to read",
            relation: "devices",
            views: [
                "SELECT devices_table.* FROM devices_table, (SELECT pg_sleep(3)) AS slow",
                "SELECT * FROM devices_table WHERE (WITH RECURSIVE count(n) AS
                    (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 20000000) SELECT max(n) FROM count) > 0",
            ],
            held: None,
        },
    ];

    /// Slips, and waits until the relay holds it.
    pub fn begin(&self, bench: &mut Bench) {
        let relation = self.relation;
        let view = match bench.store {
            Store::Postgres(..) => self.views[0],
            Store::Sqlite(_) => self.views[1],
        };
        let (prefix, grant) = match &bench.store {
            Store::Postgres(_, role) => {
                ("SET search_path = sluicegate;", format!("GRANT SELECT ON {relation} TO {role};"))
            }
            Store::Sqlite(_) => ("", String::new()),
        };
        bench.store.batch(&format!(
            "{prefix} BEGIN; ALTER TABLE {relation} RENAME TO {relation}_table; CREATE VIEW {relation} AS {view}; {grant}
            COMMIT"
        ));
        if relation == "grants" {
            bench.grants = "grants_table";
        }
        match self.held {
            Some(held) => assert!(is_shown(bench, held, true), "{}: {}", self.name, holds(bench)),
            // It is being read by then.
            None => std::thread::sleep(PATIENCE.min(std::time::Duration::from_secs(3))),
        }
    }

    /// Mends it, and waits until nothing is held.
    pub fn end(&self, bench: &mut Bench) {
        if let Some(held) = self.held {
            assert!(is_shown(bench, held, true), "{} was held all the time: {}", self.name, holds(bench));
        }
        let relation = self.relation;
        bench.store.batch(&format!(
            "BEGIN; DROP VIEW {relation}; ALTER TABLE {relation}_table RENAME TO {relation}; COMMIT"
        ));
        bench.grants = "grants";
        if let Some(held) = self.held {
            assert!(is_shown(bench, held, false), "{} heals: {}", self.name, holds(bench));
        }
    }
}

fn is_shown(bench: &Bench, held: &str, wanted: bool) -> bool {
    wait_for(|| (holds(bench).contains(held) == wanted).then_some(())).is_some()
}

fn holds(bench: &Bench) -> String {
    let page = bench.relay.admin_get("/metrics");
    page.lines().filter(|line| line.starts_with("sluicegate_guard_held{")).collect::<Vec<_>>().join("\n")
}

const TWICE: &str = "
    SELECT id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at FROM grants_table
    UNION ALL
    SELECT id + 1000000, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at
    FROM grants_table";
