//! Where devices are, as their nodes tell: rows of the reference schema, written on the primary.

use std::time::Duration;

use super::writer::Writer;
use crate::authz::{DeviceUuid, UnixMillis};
use crate::config::{PostgresUrl, Store};
use crate::store::StoreError;
use crate::store::locations::{CLAIM_MARGIN, LocationTable, Report};

/// See the module.
pub struct PostgresLocations(Writer);

impl PostgresLocations {
    pub fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self(Writer::new(url, store))
    }
}

impl LocationTable for PostgresLocations {
    fn write(
        &mut self,
        node: &str,
        max_age: Duration,
        reports: &[(DeviceUuid, Report)],
    ) -> Result<Vec<DeviceUuid>, StoreError> {
        let now = UnixMillis::now();
        let (mut here, mut addresses, mut ages_ms, mut gone) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (uuid, report) in reports {
            match report {
                Report::Here { address, since } => {
                    here.push(uuid.to_string());
                    addresses.push(address.to_string());
                    // By this node's clock, so that the store's own need not agree with it.
                    ages_ms.push(since.map(|since| now.0.saturating_sub(since.0).max(0)));
                }
                Report::Gone => gone.push(uuid.to_string()),
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

/// Rows that no node has told of are somebody else's.
const LEAVE: &str = "UPDATE sluicegate.devices SET online = false, address = NULL
    WHERE uuid = ANY ($2::text[]) AND node = $1 AND online AND located_at IS NOT NULL";

/// Gives who is here now, also where that was written before.
const CLAIM: &str = "WITH told AS (
        SELECT uuid, address::inet AS address, age_ms * interval '1 millisecond' AS age
        FROM unnest($2::text[], $3::text[], $4::int8[]) AS told (uuid, address, age_ms)
    ), written AS (
        UPDATE sluicegate.devices AS device
        SET node = $1, address = told.address, online = true, located_at = now() - coalesce(told.age, interval '0')
        FROM told
        WHERE device.uuid = told.uuid
            AND (device.node, device.address, device.online) IS DISTINCT FROM ($1, told.address, true)
            AND (
                device.node IS NULL OR device.node = $1 OR NOT device.online
                OR coalesce(device.located_at, '-infinity') < now() - told.age - $6::int8 * interval '1 millisecond'
                OR NOT EXISTS (
                    SELECT FROM sluicegate.nodes AS holder WHERE holder.name = device.node
                        AND holder.heartbeat_at > now() - $5::int8 * interval '1 millisecond'
                )
            )
        RETURNING device.uuid
    )
    SELECT uuid FROM written
    UNION ALL
    SELECT uuid FROM sluicegate.devices AS device JOIN told USING (uuid)
        WHERE device.node = $1 AND device.online AND device.address = told.address";
