//! Grants: which principal may reach which ports of which devices.

use super::devices::{device_with, fleet_named};
use super::principals::principal_named;
use super::{Admin, Failure};
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
        self.write(|session| {
            let principal = principal_named(session, principal)?;
            let (scope, target) = match target {
                GrantTarget::Any => ("any", None),
                GrantTarget::Fleet(name) => ("fleet", Some(fleet_named(session, name)?.0)),
                GrantTarget::Device(uuid) => ("device", Some(device_with(session, *uuid)?.0)),
            };
            let (port_min, port_max) = (i32::from(ports.min()), i32::from(ports.max()));
            let added = session.query_one(
                "INSERT INTO sluicegate.grants (principal, scope, target, port_min, port_max, expires_at)
                VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
                &[&principal.0, &scope, &target, &port_min, &port_max, &expires_at],
            )?;
            Ok(GrantId(added.try_get(0)?))
        })
    }

    pub fn grants(&mut self) -> Result<Vec<GrantRow>, AdminError> {
        self.read(|session| {
            let rows = session.query(
                "SELECT grants.id, principals.name, scope,
                    coalesce(
                        CASE scope
                            WHEN 'fleet' THEN (SELECT name FROM sluicegate.fleets WHERE id = target)
                            WHEN 'device' THEN (SELECT uuid FROM sluicegate.devices WHERE id = target)
                        END,
                        target::text
                    ),
                    port_min, port_max, grants.created_at, expires_at, revoked_at
                FROM sluicegate.grants JOIN sluicegate.principals ON principals.id = principal
                ORDER BY grants.id",
                &[],
            )?;
            // The schema holds ports to their range.
            let port = |port: i32| u16::try_from(port).unwrap_or(u16::MAX);
            let rows = rows.iter().map(|row| {
                Ok(GrantRow {
                    id: GrantId(row.try_get(0)?),
                    principal: row.try_get(1)?,
                    scope: row.try_get(2)?,
                    target: row.try_get(3)?,
                    port_min: port(row.try_get(4)?),
                    port_max: port(row.try_get(5)?),
                    created_at: row.try_get(6)?,
                    expires_at: row.try_get(7)?,
                    revoked_at: row.try_get(8)?,
                })
            });
            rows.collect::<Result<_, Failure>>()
        })
    }

    pub fn revoke_grant(&mut self, id: GrantId) -> Result<Revoked, AdminError> {
        self.write(|session| {
            let sql = "UPDATE sluicegate.grants SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL";
            if session.execute(sql, &[&id.0])? > 0 {
                return Ok(Revoked::Now);
            }
            let sql = "SELECT max(revoked_at) FROM sluicegate.grants WHERE id = $1";
            let before: Option<UnixMillis> = session.query_one(sql, &[&id.0])?.try_get(0)?;
            Ok(before.map(Revoked::Before).ok_or(AdminError::GrantUnknown { id: id.0 })?)
        })
    }
}
