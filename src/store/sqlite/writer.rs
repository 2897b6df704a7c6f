//! The connection by which a node writes what it has to say of itself, beside others on its machine.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Place;
use crate::store::StoreError;

/// See the module. Opens the file when it is used, and anew after an error.
pub(super) struct Writer {
    place: Place,
    connection: Option<Connection>,
}

impl Writer {
    pub(super) fn new(path: &Path) -> Self {
        Self { place: Place::new(path), connection: None }
    }

    pub(super) fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let done = match self.connection.take().map_or_else(|| self.open(), Ok) {
            Ok(mut connection) => {
                let done = act(&mut connection);
                self.connection = done.is_ok().then_some(connection);
                done
            }
            Err(error) => Err(error),
        };
        done.map_err(|error| self.place.error(error))
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.place.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }
}

/// For another writer to finish; the next try is soon.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
