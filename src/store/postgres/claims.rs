//! The claims of nodes to devices on PostgreSQL, written on the primary. `sqlite/claims.rs` has the same rules; here a
//! batch is written by two statements, since each costs a round trip.

use std::time::Duration;

use super::PostgresWriter;
use crate::authz::{DeviceUuid, UnixMillis};
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;
use crate::store::presence::{CLAIM_MARGIN, ClaimTable, PresenceReport};

pub(in crate::store) struct PostgresClaims(PostgresWriter);

impl PostgresClaims {
    pub(in crate::store) fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self(PostgresWriter::new(url, store))
    }
}

impl ClaimTable for PostgresClaims {
    fn write(
        &mut self,
        node: &str,
        max_age: Duration,
        reports: &[(DeviceUuid, PresenceReport)],
    ) -> Result<Vec<DeviceUuid>, StoreError> {
        let now = UnixMillis::now();
        let (mut here, mut addresses, mut ages_ms, mut gone) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (uuid, report) in reports {
            match report {
                PresenceReport::Here { address, since } => {
                    here.push(uuid.to_string());
                    addresses.push(address.to_string());
                    // Ages are by this node's clock, so that the store's own need not agree with it.
                    ages_ms.push(since.map(|since| now.0.saturating_sub(since.0).max(0)));
                }
                PresenceReport::Gone => gone.push(uuid.to_string()),
            }
        }
        let (max_age_ms, margin_ms) = (max_age.as_millis() as i64, CLAIM_MARGIN.as_millis() as i64);
        let rows = self.0.with(|session| {
            session.execute(LEAVE, &[&node, &gone])?;
            session.query(CLAIM, &[&node, &here, &addresses, &ages_ms, &max_age_ms, &margin_ms])
        })?;
        Ok(rows.iter().filter_map(|row| DeviceUuid::parse(row.try_get(0).ok()?)).collect())
    }
}

/// Takes devices offline that the node itself holds. Rows that no node ever wrote are left alone.
const LEAVE: &str = "UPDATE sluicegate.devices SET online = false, address = NULL
    WHERE uuid = ANY ($2::text[]) AND node = $1 AND online AND located_at IS NOT NULL";

/// Gives the devices that the node has now, also if that was written before.
const CLAIM: &str = "WITH claimed AS (
        SELECT uuid, address::inet AS address, age_ms * interval '1 millisecond' AS age
        FROM unnest($2::text[], $3::text[], $4::int8[]) AS claimed (uuid, address, age_ms)
    ), written AS (
        UPDATE sluicegate.devices AS device
        SET node = $1, address = claimed.address, online = true,
            located_at = now() - coalesce(claimed.age, interval '0')
        FROM claimed
        WHERE device.uuid = claimed.uuid
            AND (device.node, device.address, device.online) IS DISTINCT FROM ($1, claimed.address, true)
            AND (
                device.node IS NULL OR device.node = $1 OR NOT device.online
                OR coalesce(device.located_at, '-infinity')
                    < now() - claimed.age - $6::int8 * interval '1 millisecond'
                OR NOT EXISTS (
                    SELECT FROM sluicegate.nodes AS holder WHERE holder.name = device.node
                        AND holder.heartbeat_at > now() - $5::int8 * interval '1 millisecond'
                )
            )
        RETURNING device.uuid
    )
    SELECT uuid FROM written
    UNION ALL
    SELECT uuid FROM sluicegate.devices AS device JOIN claimed USING (uuid)
        WHERE device.node = $1 AND device.online AND device.address = claimed.address";
