//! Grants: which principal may reach which ports of which devices.

use super::devices::{device_with, fleet_named};
use super::principals::principal_named;
use super::{Admin, AdminError, GrantRow, GrantTarget, Revoked, id};
use crate::authz::{GrantId, PortRange, UnixMillis};
use crate::store::StoreError;
use crate::store::sql::{SqlParam, SqlTransaction};
use crate::store::value::ColumnValue;

impl Admin {
    pub fn add_grant(
        &mut self,
        principal: &str,
        target: &GrantTarget,
        ports: PortRange,
        expires_at: Option<UnixMillis>,
    ) -> Result<GrantId, AdminError> {
        self.write(|store| {
            let principal = principal_named(store, principal)?;
            let (scope, target) = match target {
                GrantTarget::Any => ("any", None),
                GrantTarget::Fleet(name) => ("fleet", Some(fleet_named(store, name)?.0)),
                GrantTarget::Device(uuid) => ("device", Some(device_with(store, *uuid)?.0)),
            };
            let insert = "INSERT INTO {schema}grants
                    (principal, scope, target, port_min, port_max, created_at, expires_at)
                VALUES ($1, $2, $3, $4, $5, {now}, $6) RETURNING id";
            let (port_min, port_max) = (i64::from(ports.min()), i64::from(ports.max()));
            let params = [
                principal.0.into(),
                scope.into(),
                target.into(),
                port_min.into(),
                port_max.into(),
                expires_at.into(),
            ];
            let added = store.first_row(insert, &params, id)?;
            Ok(GrantId(added.ok_or_else(|| no_row(store))?))
        })
    }

    pub fn grants(&mut self) -> Result<Vec<GrantRow>, AdminError> {
        let query = "SELECT grants.id, principals.name, scope,
                coalesce(
                    CASE scope
                        WHEN 'fleet' THEN (SELECT name FROM {schema}fleets WHERE id = target)
                        WHEN 'device' THEN (SELECT uuid FROM {schema}devices WHERE id = target)
                    END,
                    CAST(target AS text)
                ),
                port_min, port_max, grants.created_at, expires_at, revoked_at
            FROM {schema}grants JOIN {schema}principals ON principals.id = principal ORDER BY grants.id";
        self.list(query, |row| {
            Ok(GrantRow {
                id: GrantId(ColumnValue::of(row, 0, "id").integer()?),
                principal: ColumnValue::of(row, 1, "name").text()?.to_owned(),
                scope: ColumnValue::of(row, 2, "scope").text()?.to_owned(),
                target: ColumnValue::of(row, 3, "target").nullable_text()?,
                port_min: ColumnValue::of(row, 4, "port_min").port()?,
                port_max: ColumnValue::of(row, 5, "port_max").port()?,
                created_at: ColumnValue::of(row, 6, "created_at").time()?,
                expires_at: ColumnValue::of(row, 7, "expires_at").nullable(ColumnValue::time)?,
                revoked_at: ColumnValue::of(row, 8, "revoked_at").nullable(ColumnValue::time)?,
            })
        })
    }

    pub fn revoke_grant(&mut self, id: GrantId) -> Result<Revoked, AdminError> {
        self.write(|store| {
            let update = "UPDATE {schema}grants SET revoked_at = {now} WHERE id = $1 AND revoked_at IS NULL";
            let query = "SELECT max(revoked_at) FROM {schema}grants WHERE id = $1";
            let revoked = Revoked::by(store, update, query, id.0.into())?;
            revoked.ok_or(AdminError::GrantUnknown { id: id.0 })
        })
    }
}

impl Revoked {
    /// Runs `update`, which revokes what `key` names, or else `query`, which gives the time of an earlier revocation.
    /// Returns `None` if nothing has that key.
    pub(super) fn by(
        store: &dyn SqlTransaction,
        update: &str,
        query: &str,
        key: SqlParam<'_>,
    ) -> Result<Option<Self>, StoreError> {
        if store.execute(update, &[key])? > 0 {
            return Ok(Some(Self::Now));
        }
        let before = store.first_row(query, &[key], |row| {
            ColumnValue::of(row, 0, "revoked_at").nullable(ColumnValue::time)
        })?;
        Ok(before.flatten().map(Self::Before))
    }
}

/// The error for an `INSERT … RETURNING` that gave no row. No trigger of the schema makes one do that.
fn no_row(store: &dyn SqlTransaction) -> StoreError {
    StoreError::Query { store: store.store(), detail: "an insert gave no row".to_owned() }
}
