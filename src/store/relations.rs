//! The three relations of the contract: the queries that read them, and the collection of their rows.

use super::dialect::Dialect;
use super::value::StoreRow;
use super::{Quarantined, Relation, RelationRows, RowKey, Rows, decode};
use crate::config::Queries;

/// One value for each relation.
#[derive(Default)]
pub(super) struct PerRelation<T> {
    pub(super) credentials: T,
    pub(super) grants: T,
    pub(super) devices: T,
}

impl<T> PerRelation<T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Relation, &T)> {
        let Self { credentials, grants, devices } = self;
        [(Relation::Credentials, credentials), (Relation::Grants, grants), (Relation::Devices, devices)]
            .into_iter()
    }

    pub(super) const fn get(&self, relation: Relation) -> &T {
        match relation {
            Relation::Credentials => &self.credentials,
            Relation::Grants => &self.grants,
            Relation::Devices => &self.devices,
        }
    }

    /// Makes another value of each, and stops at the first error.
    pub(super) fn try_map<U, E>(
        &self,
        mut map: impl FnMut(Relation, &T) -> Result<U, E>,
    ) -> Result<PerRelation<U>, E> {
        Ok(PerRelation {
            credentials: map(Relation::Credentials, &self.credentials)?,
            grants: map(Relation::Grants, &self.grants)?,
            devices: map(Relation::Devices, &self.devices)?,
        })
    }
}

impl PerRelation<String> {
    /// The queries on the reference schema.
    pub(super) fn of_reference_schema(dialect: &Dialect) -> Self {
        Self {
            credentials: dialect.sql(CREDENTIALS),
            grants: dialect.sql(GRANTS),
            devices: dialect.sql(DEVICES),
        }
    }

    /// The queries on what the outbox recorded, whose columns are those of the relations, and `id`, the number there.
    pub(super) fn of_outbox(dialect: &Dialect) -> Self {
        Self {
            credentials: dialect.sql(WRITTEN_CREDENTIALS),
            grants: dialect.sql(WRITTEN_GRANTS),
            devices: dialect.sql(WRITTEN_DEVICES),
        }
    }

    /// These queries, except for those that the operator has replaced.
    pub(super) fn replaced_by(self, queries: &Queries) -> Self {
        let sql = |replaced: &Option<crate::config::RelationQuery>, ours| {
            replaced.as_ref().map_or(ours, |query| query.sql.clone())
        };
        Self {
            credentials: sql(&queries.credentials, self.credentials),
            grants: sql(&queries.grants, self.grants),
            devices: sql(&queries.devices, self.devices),
        }
    }
}

impl Rows {
    /// Decodes `row` and puts it where it belongs.
    pub(super) fn add(&mut self, relation: Relation, row: &impl StoreRow) {
        let bad = match relation {
            Relation::Credentials => decode::credential(row).map(|row| self.credentials.push(row)),
            Relation::Grants => decode::grant(row).map(|row| self.grants.push(row)),
            Relation::Devices => decode::device(row).map(|row| self.devices.push(row)),
        };
        self.quarantined.extend(bad.err().map(|bad| bad.quarantined));
    }
}

/// Rows of one relation, decoded as they come in.
pub(super) struct DecodedRelation {
    pub(super) rows: RelationRows,
    pub(super) quarantined: Vec<Quarantined>,
    /// Rights that have ended and whose rows are quarantined.
    pub(super) ended: Vec<RowKey>,
}

impl DecodedRelation {
    pub(super) const fn new(relation: Relation) -> Self {
        let rows = match relation {
            Relation::Credentials => RelationRows::Credentials(Vec::new()),
            Relation::Grants => RelationRows::Grants(Vec::new()),
            Relation::Devices => RelationRows::Devices(Vec::new()),
        };
        Self { rows, quarantined: Vec::new(), ended: Vec::new() }
    }

    pub(super) fn add(&mut self, row: &impl StoreRow) {
        let decoded = match &mut self.rows {
            RelationRows::Credentials(rows) => decode::credential(row).map(|row| rows.push(row)),
            RelationRows::Grants(rows) => decode::grant(row).map(|row| rows.push(row)),
            RelationRows::Devices(rows) => decode::device(row).map(|row| rows.push(row)),
            RelationRows::Unchanged => Ok(()),
        };
        if let Err(bad) = decoded {
            self.ended.extend(bad.ended_key());
            self.quarantined.push(bad.quarantined);
        }
    }
}

/// Relation `credentials`. The credentials of a removed principal are revoked. A credential whose principal does not
/// exist is left out and not revoked: if the column has come to mean something else, nothing may end for ever.
const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM {schema}credentials JOIN {schema}principals ON principals.id = principal";

/// Relation `grants`. Removed and missing principals count as in [`CREDENTIALS`].
const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR removed_at IS NOT NULL AS revoked
    FROM {schema}grants JOIN {schema}principals ON principals.id = principal";

/// Relation `devices`.
const DEVICES: &str = "SELECT id AS device, uuid, fleet, address, node, online FROM {schema}devices";

/// What the outbox recorded of credentials.
const WRITTEN_CREDENTIALS: &str =
    "SELECT {outbox_sha256} AS key_sha256, principal, expires_at, revoked, id FROM {schema}changes";

/// What the outbox recorded of grants.
const WRITTEN_GRANTS: &str = "
    SELECT {outbox_id} AS grant_id, principal, scope, target, port_min, port_max, expires_at, revoked, id
    FROM {schema}changes";

/// What the outbox recorded of devices.
const WRITTEN_DEVICES: &str =
    "SELECT {outbox_id} AS device, uuid, fleet, address, node, online, id FROM {schema}changes";

/// Principals that were not removed.
pub(super) const LIVE_PRINCIPALS: &str = "SELECT id FROM {schema}principals WHERE removed_at IS NULL";
