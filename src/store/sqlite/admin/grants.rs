//! Grants: which principal may reach which ports of which devices.

use super::Admin;
use super::devices::{device_with, fleet_named};
use super::principals::principal_named;
use crate::authz::{GrantId, PortRange, UnixMillis};
use crate::store::admin::{AdminError, GrantRow, GrantTarget, Revoked};

impl Admin {
    pub fn add_grant(
        &mut self,
        principal: &str,
        target: &GrantTarget,
        ports: PortRange,
        expires_at: Option<UnixMillis>,
    ) -> Result<GrantId, AdminError> {
        self.write(|transaction| {
            let principal = principal_named(transaction, principal)?;
            let (scope, target) = match target {
                GrantTarget::Any => ("any", None),
                GrantTarget::Fleet(name) => ("fleet", Some(fleet_named(transaction, name)?.0)),
                GrantTarget::Device(uuid) => ("device", Some(device_with(transaction, *uuid)?.0)),
            };
            transaction.execute(
                "INSERT INTO grants (principal, scope, target, port_min, port_max, created_at, expires_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                (
                    principal.0,
                    scope,
                    target,
                    ports.min(),
                    ports.max(),
                    UnixMillis::now().0,
                    expires_at.map(|at| at.0),
                ),
            )?;
            Ok(GrantId(transaction.last_insert_rowid()))
        })
    }

    pub fn grants(&mut self) -> Result<Vec<GrantRow>, AdminError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT grants.id, principals.name, scope,
                    coalesce(
                        CASE scope
                            WHEN 'fleet' THEN (SELECT name FROM fleets WHERE id = target)
                            WHEN 'device' THEN (SELECT uuid FROM devices WHERE id = target)
                        END,
                        CAST(target AS TEXT)
                    ),
                    port_min, port_max, grants.created_at, expires_at, revoked_at
                FROM grants JOIN principals ON principals.id = principal ORDER BY grants.id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(GrantRow {
                    id: GrantId(row.get(0)?),
                    principal: row.get(1)?,
                    scope: row.get(2)?,
                    target: row.get(3)?,
                    port_min: row.get(4)?,
                    port_max: row.get(5)?,
                    created_at: UnixMillis(row.get(6)?),
                    expires_at: row.get::<_, Option<i64>>(7)?.map(UnixMillis),
                    revoked_at: row.get::<_, Option<i64>>(8)?.map(UnixMillis),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    pub fn revoke_grant(&mut self, id: GrantId) -> Result<Revoked, AdminError> {
        self.write(|transaction| {
            let sql = "UPDATE grants SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL";
            if transaction.execute(sql, (id.0, UnixMillis::now().0))? > 0 {
                return Ok(Revoked::Now);
            }
            let sql = "SELECT max(revoked_at) FROM grants WHERE id = ?1";
            let before: Option<i64> = transaction.query_row(sql, [id.0], |row| row.get(0))?;
            let before = before.map(|at| Revoked::Before(UnixMillis(at)));
            Ok(before.ok_or(AdminError::GrantUnknown { id: id.0 })?)
        })
    }
}
