//! Devices and their fleets.

use super::{Admin, AdminError, DevicePatch, DeviceRow, NewDevice, id, names, nearest};
use crate::authz::{DeviceId, DeviceUuid, FleetId};
use crate::store::sql::SqlTransaction;
use crate::store::value::ColumnValue;

impl Admin {
    pub fn add_device(&mut self, device: &NewDevice) -> Result<DeviceId, AdminError> {
        for name in [&device.name, &device.fleet, &device.node].into_iter().flatten() {
            names::check(name)?;
        }
        self.write(|store| {
            let uuid = device.uuid.to_string();
            let fleet = device.fleet.as_deref().map(|name| fleet_added(store, name)).transpose()?;
            let insert = "INSERT INTO {schema}devices (uuid, name, fleet, address, node, online, created_at)
                VALUES ($1, $2, $3, $4, $5, $6, {now}) ON CONFLICT (uuid) DO NOTHING RETURNING id";
            let params = [
                uuid.as_str().into(),
                device.name.as_deref().into(),
                fleet.map(|id| id.0).into(),
                device.address.into(),
                device.node.as_deref().into(),
                device.online.into(),
            ];
            let added = store.first_row(insert, &params, id)?;
            added.map(DeviceId).ok_or(AdminError::DeviceExists { uuid })
        })
    }

    pub fn set_device(&mut self, uuid: DeviceUuid, patch: &DevicePatch) -> Result<(), AdminError> {
        patch.node.as_deref().map_or(Ok(()), names::check)?;
        self.write(|store| {
            let id = device_with(store, uuid)?;
            let update =
                "UPDATE {schema}devices SET address = coalesce($2, address), node = coalesce($3, node),
                    online = coalesce($4, online)
                WHERE id = $1";
            let node = patch.node.as_deref();
            store.execute(update, &[id.0.into(), patch.address.into(), node.into(), patch.online.into()])?;
            Ok(())
        })
    }

    pub fn devices(&mut self) -> Result<Vec<DeviceRow>, AdminError> {
        let query = "SELECT devices.id, uuid, devices.name, fleets.name, address, node, online, created_at
            FROM {schema}devices LEFT JOIN {schema}fleets ON fleets.id = fleet ORDER BY devices.id";
        self.list(query, |row| {
            Ok(DeviceRow {
                id: DeviceId(ColumnValue::of(row, 0, "id").integer()?),
                uuid: ColumnValue::of(row, 1, "uuid").text()?.to_owned(),
                name: ColumnValue::of(row, 2, "name").nullable_text()?,
                fleet: ColumnValue::of(row, 3, "fleet").nullable_text()?,
                address: ColumnValue::of(row, 4, "address").nullable(ColumnValue::host)?,
                node: ColumnValue::of(row, 5, "node").nullable_text()?,
                online: ColumnValue::of(row, 6, "online").boolean()?,
                created_at: ColumnValue::of(row, 7, "created_at").time()?,
            })
        })
    }

    /// Deletes the device. Grants on it alone are revoked.
    pub fn remove_device(&mut self, uuid: DeviceUuid) -> Result<DeviceId, AdminError> {
        self.write(|store| {
            let id = device_with(store, uuid)?;
            store.execute("DELETE FROM {schema}devices WHERE id = $1", &[id.0.into()])?;
            Ok(id)
        })
    }
}

pub(super) fn device_with(store: &dyn SqlTransaction, uuid: DeviceUuid) -> Result<DeviceId, AdminError> {
    let uuid = uuid.to_string();
    let query = "SELECT id FROM {schema}devices WHERE uuid = $1";
    if let Some(found) = store.first_row(query, &[uuid.as_str().into()], id)? {
        return Ok(DeviceId(found));
    }
    let query = "SELECT uuid FROM {schema}devices";
    let nearest = nearest(store, query, &uuid, "`sluicegate device list` shows all")?;
    Err(AdminError::DeviceUnknown { uuid, nearest })
}

pub(super) fn fleet_named(store: &dyn SqlTransaction, name: &str) -> Result<FleetId, AdminError> {
    let query = "SELECT id FROM {schema}fleets WHERE name = $1";
    if let Some(found) = store.first_row(query, &[name.into()], id)? {
        return Ok(FleetId(found));
    }
    let query = "SELECT name FROM {schema}fleets";
    let nearest = nearest(store, query, name, "`sluicegate device add --fleet` makes one")?;
    Err(AdminError::FleetUnknown { name: name.to_owned(), nearest })
}

/// The fleet with that name. It is made if there is none.
fn fleet_added(store: &dyn SqlTransaction, name: &str) -> Result<FleetId, AdminError> {
    let insert = "INSERT INTO {schema}fleets (name) VALUES ($1) ON CONFLICT (name) DO NOTHING RETURNING id";
    match store.first_row(insert, &[name.into()], id)? {
        Some(added) => Ok(FleetId(added)),
        None => fleet_named(store, name),
    }
}
