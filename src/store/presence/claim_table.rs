//! The columns of the reference schema's devices that say which node holds each device, and since when.

use std::time::Duration;

use serde_json::{Value, json};

use super::report_queue::PresenceReport;
use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::StoreError;
use crate::store::sql::{SqlDatabase, SqlParam, TransactionKind};
use crate::store::value::ColumnValue;

/// The table of claims. Calls block; after an error the next call connects again.
pub struct ClaimTable {
    database: Box<dyn SqlDatabase>,
}

impl ClaimTable {
    pub(in crate::store) fn new(database: impl SqlDatabase + 'static) -> Self {
        Self { database: Box::new(database) }
    }

    /// Writes `reports` of `node`, and returns what became of them.
    ///
    /// A device of another node that has lived within `max_age` changes hands only by a later claim, and only once that
    /// node let it go: until then the claim is a question to it, which the store keeps. A node takes offline its own
    /// devices alone. A device that the store does not know is left out. If the call fails, a part may be written; the
    /// same reports can be written again.
    pub fn write(
        &mut self,
        node: &str,
        max_age: Duration,
        reports: &[(DeviceUuid, PresenceReport)],
    ) -> Result<WrittenClaims, StoreError> {
        let now = UnixMillis::now();
        let (mut here, mut gone) = (Vec::new(), Vec::new());
        for (uuid, report) in reports {
            let uuid = uuid.to_string();
            match report {
                PresenceReport::Here { address, since } => {
                    // Ages are by this node's clock, so that the store's own need not agree with it.
                    let age_ms = since.map(|since| now.0.saturating_sub(since.0).max(0));
                    here.push(json!({ "uuid": uuid, "address": address.to_string(), "age_ms": age_ms }));
                }
                PresenceReport::Gone => gone.push(json!({ "uuid": uuid })),
            }
        }
        let (here, gone) = (Value::from(here).to_string(), Value::from(gone).to_string());
        let (max_age_ms, margin_ms) = (max_age.as_millis() as i64, CLAIM_MARGIN.as_millis() as i64);
        self.execute(LEAVE, node, &gone, &[])?;
        self.execute(&claim(CLAIM), node, &here, &[max_age_ms, margin_ms])?;
        let mut uuids = |statement: &str| {
            self.database.transaction(TransactionKind::OneStatement, |store| {
                store.rows(&claim(statement), &[node.into(), here.as_str().into()], |row| {
                    ColumnValue::of(row, 0, "uuid").uuid()
                })
            })
        };
        Ok(WrittenClaims { here: uuids(HERE)?, asked: uuids(ASKED)? })
    }

    /// Reads the claims of other nodes to devices of `node` that it has not answered, at most `OPEN_CLAIMS_MAX`.
    pub fn open_claims(&mut self, node: &str) -> Result<Vec<OpenClaim>, StoreError> {
        self.database.transaction(TransactionKind::OneStatement, |store| {
            store.rows(OPEN, &[node.into(), (OPEN_CLAIMS_MAX as i64).into()], |row| {
                Ok(OpenClaim {
                    uuid: ColumnValue::of(row, 0, "uuid").uuid()?,
                    claimant: ColumnValue::of(row, 1, "node").text()?.into(),
                })
            })
        })
    }

    /// Answers claims to devices of `node`: each device goes to the node beside it, or stays where that is `node`.
    pub fn answer(&mut self, node: &str, answers: &[(DeviceUuid, &str)]) -> Result<(), StoreError> {
        let answers = answers.iter().map(|(uuid, to)| json!({ "uuid": uuid.to_string(), "to": to }));
        let answers = answers.collect::<Value>().to_string();
        self.execute(ANSWER, node, &answers, &[])
    }

    fn execute(
        &mut self,
        statement: &str,
        node: &str,
        reports: &str,
        others: &[i64],
    ) -> Result<(), StoreError> {
        let mut params = vec![node.into(), reports.into()];
        params.extend(others.iter().map(|number| SqlParam::Integer(*number)));
        self.database
            .transaction(TransactionKind::OneStatement, |store| store.execute(statement, &params).map(drop))
    }
}

/// The outcome of reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrittenClaims {
    /// Devices that the store has at the node now.
    pub here: Vec<DeviceUuid>,
    /// Devices that another node holds, which is asked to let them go.
    pub asked: Vec<DeviceUuid>,
}

/// A claim of another node to a device that this one holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenClaim {
    pub uuid: DeviceUuid,
    pub claimant: Box<str>,
}

fn claim(statement: &str) -> String {
    format!("{CLAIMED} {statement}")
}

/// Time by which another node's claim has to be later before it gets a device from a node that lives. VPNs give whole
/// seconds, and two nodes that hold the same device must not take it from each other for ever.
const CLAIM_MARGIN: Duration = Duration::from_secs(1);

/// Takes devices offline that node `$1` itself holds. Rows that no node ever wrote are left alone.
const LEAVE: &str = "UPDATE {schema}devices SET online = false, address = NULL
    WHERE uuid IN (SELECT value ->> 'uuid' FROM {json_array_2}) AND node = $1 AND online
        AND located_at IS NOT NULL";

/// The devices in the JSON array `$2`, with their address and the age of their connection.
const CLAIMED: &str = "WITH claimed AS (
        SELECT value ->> 'uuid' AS uuid, CAST(value ->> 'address' AS {address}) AS address,
            CAST(value ->> 'age_ms' AS bigint) AS age_ms
        FROM {json_array_2}
    )";

/// Gives claimed devices to node `$1`. `$3` is the age up to which a heartbeat counts, `$4` the margin, both in
/// milliseconds. A row that does not change is not written.
const CLAIM: &str = "UPDATE {schema}devices AS device
    SET node = $1, address = claimed.address, online = true,
        located_at = {now} - coalesce(claimed.age_ms, 0) * {millisecond}
    FROM claimed
    WHERE device.uuid = claimed.uuid
        AND (
            device.node IS DISTINCT FROM $1 OR device.address IS DISTINCT FROM claimed.address
            OR NOT device.online
        )
        AND (
            device.node IS NULL OR device.node = $1 OR NOT device.online OR device.yields_to = $1
            OR device.located_at IS NULL AND claimed.age_ms IS NOT NULL
            OR device.located_at < {now} - (claimed.age_ms + CAST($4 AS bigint)) * {millisecond}
            OR NOT EXISTS (
                SELECT 1 FROM {schema}nodes AS holder WHERE holder.name = device.node
                    AND holder.heartbeat_at > {now} - CAST($3 AS bigint) * {millisecond}
            )
        )";

/// Finds the claimed devices that node `$1` has now.
const HERE: &str = "SELECT device.uuid FROM {schema}devices AS device
    JOIN claimed ON claimed.uuid = device.uuid
    WHERE device.node = $1 AND device.online AND device.address = claimed.address";

/// Finds the claimed devices whose holder is asked. The question stands where the claim was just made.
const ASKED: &str = "SELECT device.uuid FROM {schema}devices AS device
    JOIN claimed ON claimed.uuid = device.uuid
    JOIN {schema}claims AS claim ON claim.device = device.id
    WHERE claim.node = $1 AND claim.claimed_at > {now} - 2000 * {millisecond}
        AND NOT coalesce(device.yields_to = device.node AND device.yields_at > {now} - 15000 * {millisecond}, false)";

/// The latest claim to each device of node `$1` that it has not answered. An answer counts for longer.
const OPEN: &str = "SELECT device.uuid, claim.node FROM {schema}claims AS claim
    JOIN {schema}devices AS device ON device.id = claim.device
    WHERE device.node = $1 AND claim.node <> $1 AND claim.claimed_at > {now} - 10000 * {millisecond}
        AND NOT coalesce(device.yields_at > {now} - 10000 * {millisecond}, false)
    ORDER BY claim.claimed_at, claim.device LIMIT $2";

const ANSWER: &str = "UPDATE {schema}devices AS device SET yields_to = answer.goes_to, yields_at = {now}
    FROM (SELECT value ->> 'uuid' AS uuid, value ->> 'to' AS goes_to FROM {json_array_2}) AS answer
    WHERE device.uuid = answer.uuid AND device.node = $1";

/// Claims that are read at once. The rest waits for a second.
pub const OPEN_CLAIMS_MAX: usize = 5_000;
