//! Devices and the fleets that they are in.

use super::{Admin, Failure, Session, nearest};
use crate::authz::{DeviceId, DeviceUuid, FleetId};
use crate::store::admin::{AdminError, DevicePatch, DeviceRow, NewDevice, names};

impl Admin {
    pub fn add_device(&mut self, device: &NewDevice) -> Result<DeviceId, AdminError> {
        for name in [&device.name, &device.fleet, &device.node].into_iter().flatten() {
            names::check(name)?;
        }
        self.write(|session| {
            let uuid = device.uuid.to_string();
            let fleet = device.fleet.as_deref().map(|name| fleet_made(session, name)).transpose()?;
            let added = session.query_opt(
                "INSERT INTO sluicegate.devices (uuid, name, fleet, address, node, online)
                VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (uuid) DO NOTHING RETURNING id",
                &[&uuid, &device.name, &fleet.map(|id| id.0), &device.address, &device.node, &device.online],
            )?;
            match added {
                Some(row) => Ok(DeviceId(row.try_get(0)?)),
                None => Err(AdminError::DeviceExists { uuid }.into()),
            }
        })
    }

    pub fn set_device(&mut self, uuid: DeviceUuid, patch: &DevicePatch) -> Result<(), AdminError> {
        patch.node.as_deref().map_or(Ok(()), names::check)?;
        self.write(|session| {
            let id = device_with(session, uuid)?;
            session.execute(
                "UPDATE sluicegate.devices SET address = coalesce($2, address), node = coalesce($3, node),
                    online = coalesce($4, online)
                WHERE id = $1",
                &[&id.0, &patch.address, &patch.node, &patch.online],
            )?;
            Ok(())
        })
    }

    pub fn devices(&mut self) -> Result<Vec<DeviceRow>, AdminError> {
        self.read(|session| {
            let rows = session.query(
                "SELECT devices.id, uuid, devices.name, fleets.name, host(address), node, online, created_at
                FROM sluicegate.devices LEFT JOIN sluicegate.fleets ON fleets.id = fleet ORDER BY devices.id",
                &[],
            )?;
            let rows = rows.iter().map(|row| {
                Ok(DeviceRow {
                    id: DeviceId(row.try_get(0)?),
                    uuid: row.try_get(1)?,
                    name: row.try_get(2)?,
                    fleet: row.try_get(3)?,
                    address: row.try_get(4)?,
                    node: row.try_get(5)?,
                    online: row.try_get(6)?,
                    created_at: row.try_get(7)?,
                })
            });
            rows.collect()
        })
    }

    /// Deletes the device; what was granted on it alone is revoked.
    pub fn remove_device(&mut self, uuid: DeviceUuid) -> Result<DeviceId, AdminError> {
        self.write(|session| {
            let id = device_with(session, uuid)?;
            session.execute("DELETE FROM sluicegate.devices WHERE id = $1", &[&id.0])?;
            Ok(id)
        })
    }
}

pub(super) fn device_with(session: &Session, uuid: DeviceUuid) -> Result<DeviceId, Failure> {
    let uuid = uuid.to_string();
    if let Some(row) = session.query_opt("SELECT id FROM sluicegate.devices WHERE uuid = $1", &[&uuid])? {
        return Ok(DeviceId(row.try_get(0)?));
    }
    let sql = "SELECT uuid FROM sluicegate.devices";
    let nearest = nearest(session, sql, &uuid, "`sluicegate device list` shows all")?;
    Err(AdminError::DeviceUnknown { uuid, nearest }.into())
}

pub(super) fn fleet_named(session: &Session, name: &str) -> Result<FleetId, Failure> {
    if let Some(id) = find_fleet(session, name)? {
        return Ok(id);
    }
    let sql = "SELECT name FROM sluicegate.fleets";
    let nearest = nearest(session, sql, name, "`sluicegate device add --fleet` makes one")?;
    Err(AdminError::FleetUnknown { name: name.to_owned(), nearest }.into())
}

fn fleet_made(session: &Session, name: &str) -> Result<FleetId, Failure> {
    let sql = "INSERT INTO sluicegate.fleets (name) VALUES ($1) ON CONFLICT (name) DO NOTHING RETURNING id";
    if let Some(row) = session.query_opt(sql, &[&name])? {
        return Ok(FleetId(row.try_get(0)?));
    }
    fleet_named(session, name)
}

fn find_fleet(session: &Session, name: &str) -> Result<Option<FleetId>, Failure> {
    let row = session.query_opt("SELECT id FROM sluicegate.fleets WHERE name = $1", &[&name])?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.map(FleetId))
}
