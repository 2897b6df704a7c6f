//! Devices and the fleets that they are in.

use rusqlite::{OptionalExtension, Transaction};

use super::{Admin, Failure, nearest};
use crate::authz::{DeviceId, DeviceUuid, FleetId, UnixMillis};
use crate::store::admin::{AdminError, DevicePatch, DeviceRow, NewDevice, names};

impl Admin {
    pub fn add_device(&mut self, device: &NewDevice) -> Result<DeviceId, AdminError> {
        for name in [&device.name, &device.fleet, &device.node].into_iter().flatten() {
            names::check(name)?;
        }
        self.write(|transaction| {
            let uuid = device.uuid.to_string();
            if find_device(transaction, &uuid)?.is_some() {
                return Err(AdminError::DeviceExists { uuid }.into());
            }
            let fleet = device.fleet.as_deref().map(|name| fleet_made(transaction, name)).transpose()?;
            transaction.execute(
                "INSERT INTO devices (uuid, name, fleet, address, node, online, created_at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                (
                    uuid,
                    &device.name,
                    fleet.map(|id| id.0),
                    device.address.map(|address| address.to_string()),
                    &device.node,
                    device.online,
                    UnixMillis::now().0,
                ),
            )?;
            Ok(DeviceId(transaction.last_insert_rowid()))
        })
    }

    pub fn set_device(&mut self, uuid: DeviceUuid, patch: &DevicePatch) -> Result<(), AdminError> {
        patch.node.as_deref().map_or(Ok(()), names::check)?;
        self.write(|transaction| {
            let id = device_with(transaction, uuid)?;
            transaction.execute(
                "UPDATE devices SET address = coalesce(?2, address), node = coalesce(?3, node),
                    online = coalesce(?4, online)
                WHERE id = ?1",
                (id.0, patch.address.map(|address| address.to_string()), &patch.node, patch.online),
            )?;
            Ok(())
        })
    }

    pub fn devices(&mut self) -> Result<Vec<DeviceRow>, AdminError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT devices.id, uuid, devices.name, fleets.name, address, node, online, created_at
                FROM devices LEFT JOIN fleets ON fleets.id = fleet ORDER BY devices.id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(DeviceRow {
                    id: DeviceId(row.get(0)?),
                    uuid: row.get(1)?,
                    name: row.get(2)?,
                    fleet: row.get(3)?,
                    address: row.get(4)?,
                    node: row.get(5)?,
                    online: row.get(6)?,
                    created_at: UnixMillis(row.get(7)?),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Deletes the device; what was granted on it alone is revoked.
    pub fn remove_device(&mut self, uuid: DeviceUuid) -> Result<DeviceId, AdminError> {
        self.write(|transaction| {
            let id = device_with(transaction, uuid)?;
            transaction.execute("DELETE FROM devices WHERE id = ?1", [id.0])?;
            Ok(id)
        })
    }
}

pub(super) fn device_with(transaction: &Transaction<'_>, uuid: DeviceUuid) -> Result<DeviceId, Failure> {
    let uuid = uuid.to_string();
    if let Some(id) = find_device(transaction, &uuid)? {
        return Ok(id);
    }
    let nearest =
        nearest(transaction, "SELECT uuid FROM devices", &uuid, "`sluicegate device list` shows all")?;
    Err(AdminError::DeviceUnknown { uuid, nearest }.into())
}

pub(super) fn fleet_named(transaction: &Transaction<'_>, name: &str) -> Result<FleetId, Failure> {
    if let Some(id) = find_fleet(transaction, name)? {
        return Ok(id);
    }
    let otherwise = "`sluicegate device add --fleet` makes one";
    let nearest = nearest(transaction, "SELECT name FROM fleets", name, otherwise)?;
    Err(AdminError::FleetUnknown { name: name.to_owned(), nearest }.into())
}

fn fleet_made(transaction: &Transaction<'_>, name: &str) -> Result<FleetId, Failure> {
    if let Some(id) = find_fleet(transaction, name)? {
        return Ok(id);
    }
    transaction.execute("INSERT INTO fleets (name) VALUES (?1)", [name])?;
    Ok(FleetId(transaction.last_insert_rowid()))
}

fn find_device(transaction: &Transaction<'_>, uuid: &str) -> Result<Option<DeviceId>, Failure> {
    let sql = "SELECT id FROM devices WHERE uuid = ?1";
    let id = transaction.query_row(sql, [uuid], |row| row.get(0)).optional()?;
    Ok(id.map(DeviceId))
}

fn find_fleet(transaction: &Transaction<'_>, name: &str) -> Result<Option<FleetId>, Failure> {
    let sql = "SELECT id FROM fleets WHERE name = ?1";
    let id = transaction.query_row(sql, [name], |row| row.get(0)).optional()?;
    Ok(id.map(FleetId))
}
