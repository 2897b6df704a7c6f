//! The claims of nodes to devices on SQLite, for nodes on one machine. `postgres/claims.rs` has the same rules.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::SqliteWriter;
use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::StoreError;
use crate::store::presence::{CLAIM_MARGIN, ClaimTable, PresenceReport};

pub(in crate::store) struct SqliteClaims(SqliteWriter);

impl SqliteClaims {
    pub(in crate::store) fn new(path: &Path) -> Self {
        Self(SqliteWriter::new(path))
    }
}

impl ClaimTable for SqliteClaims {
    fn write(
        &mut self,
        node: &str,
        max_age: Duration,
        reports: &[(DeviceUuid, PresenceReport)],
    ) -> Result<Vec<DeviceUuid>, StoreError> {
        self.0.with(|connection, path| {
            write(connection, node, max_age, reports).map_err(|error| path.error(error))
        })
    }
}

fn write(
    connection: &mut Connection,
    node: &str,
    max_age: Duration,
    reports: &[(DeviceUuid, PresenceReport)],
) -> rusqlite::Result<Vec<DeviceUuid>> {
    let now = UnixMillis::now();
    let (max_age_ms, margin_ms) = (max_age.as_millis() as i64, CLAIM_MARGIN.as_millis() as i64);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut here = Vec::new();
    for (uuid, report) in reports {
        let name = uuid.to_string();
        let PresenceReport::Here { address, since } = report else {
            transaction.prepare_cached(LEAVE)?.execute((node, &name))?;
            continue;
        };
        let address = address.to_string();
        let since_ms = since.map(|since| since.0.min(now.0));
        let claim = (node, &name, &address, since_ms, now.0, now.0 - max_age_ms, margin_ms);
        transaction.prepare_cached(CLAIM)?.execute(claim)?;
        if transaction.prepare_cached(IS_HERE)?.exists((node, &name, &address))? {
            here.push(*uuid);
        }
    }
    transaction.commit()?;
    Ok(here)
}

/// Takes a device offline that the node itself holds. A row that no node ever wrote is left alone.
const LEAVE: &str = "UPDATE devices SET online = 0, address = NULL
    WHERE uuid = ?2 AND node = ?1 AND online = 1 AND located_at IS NOT NULL";

const CLAIM: &str = "UPDATE devices
    SET node = ?1, address = ?3, online = 1, located_at = coalesce(?4, ?5)
    WHERE uuid = ?2 AND (node IS NOT ?1 OR address IS NOT ?3 OR online = 0)
        AND (
            node IS NULL OR node = ?1 OR online = 0
            OR coalesce(located_at, 0) < ?4 - ?7
            OR NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.name = devices.node AND nodes.heartbeat_at > ?6)
        )";

const IS_HERE: &str = "SELECT 1 FROM devices WHERE uuid = ?2 AND node = ?1 AND address = ?3 AND online = 1";
