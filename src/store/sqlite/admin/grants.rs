//! Grants: which principal may reach which ports of which devices.

use super::devices::{device_with, fleet_named};
use super::principals::principal_named;
use super::{Admin, AdminError, Revoked};
use crate::authz::{DeviceUuid, GrantId, PortRange, UnixMillis};

/// Which devices a grant is about, in the words of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantTarget {
    Any,
    Fleet(String),
    Device(DeviceUuid),
}

/// A grant as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRow {
    pub id: GrantId,
    pub principal: String,
    pub scope: String,
    /// A fleet's name or a device's uuid; the number, where what it names is gone.
    pub target: Option<String>,
    pub port_min: u16,
    pub port_max: u16,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
}

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
