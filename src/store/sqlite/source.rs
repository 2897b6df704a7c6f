//! The relay's side: reads and never writes.
//!
//! One connection of the relay's own, which writers do not share. `PRAGMA data_version` tells on it whether
//! anybody else has committed, so that a quiet store costs two system calls per poll; only then is the outbox
//! read, and by it the rows that changed, in one read transaction. In WAL mode none of that waits for a
//! writer or makes one wait.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, Transaction};

use super::decode::{self, BadRow};
use super::{OUTBOX_ROWS_MAX, Place, schema};
use crate::authz::{Change, DeviceId, GrantId, KeyHash, PrincipalId};
use crate::store::{Changes, Rows, Source, StoreError};

/// See the module.
pub struct SqliteSource {
    place: Place,
    /// `None` before the first read and after an error.
    open: Option<Open>,
}

/// A connection and how far it has read.
struct Open {
    connection: Connection,
    file: FileId,
    /// `None` until everything was read through this connection.
    position: Option<Position>,
}

/// The moment of the last read.
struct Position {
    /// Read before the transaction, so that a commit in between is looked at twice, not missed.
    data_version: i64,
    newest: Option<OutboxRow>,
}

impl SqliteSource {
    pub fn new(path: &Path) -> Self {
        Self { place: Place::new(path), open: None }
    }

    /// Runs `read` on a connection to the file that is at the path now.
    ///
    /// After an error the connection is dropped, and with it the position: what was done to a store in the
    /// meantime to mend it cannot be told from the outbox. A lock alone does nothing to either.
    fn with_open<T>(
        &mut self,
        read: impl FnOnce(&mut Open, &Place) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = self.connect().and_then(|mut open| {
            let result = read(&mut open, &self.place);
            self.open = Some(open);
            result
        });
        if result.as_ref().is_err_and(|error| !matches!(error, StoreError::Locked { .. })) {
            self.open = None;
        }
        result
    }

    /// The open connection, unless another file has taken the place of the one that it leads to.
    fn connect(&mut self) -> Result<Open, StoreError> {
        let file = FileId::at(&self.place)?;
        match self.open.take() {
            Some(open) if open.file == file => Ok(open),
            _ => Open::new(file, &self.place),
        }
    }
}

impl Source for SqliteSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        self.with_open(Open::read_all)
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        self.with_open(Open::read_changes)
    }

    fn describe(&self) -> String {
        self.place.describe()
    }
}

impl Open {
    /// `file` was looked at before this opens the path, so that a file that replaces it meanwhile is
    /// noticed with the next read.
    fn new(file: FileId, place: &Place) -> Result<Self, StoreError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&place.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "query_only", true)?;
            // A store need not be trusted with more than its rows.
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| place.error(error))?;
        Ok(Self { connection, file, position: None })
    }

    fn read_all(&mut self, place: &Place) -> Result<Rows, StoreError> {
        self.read(place, |transaction, _| {
            let mut rows = Rows::default();
            let Rows { credentials, grants, devices, quarantined, ended } = &mut rows;
            let mut take_bad = |bad: BadRow| {
                ended.extend(bad.end());
                quarantined.push(bad.quarantined);
            };
            for_each(transaction, CREDENTIALS, [], decode::credential, |row| match row {
                Ok(credential) => credentials.push(credential),
                Err(bad) => take_bad(bad),
            })?;
            for_each(transaction, GRANTS, [], decode::grant, |row| match row {
                Ok(grant) => grants.push(grant),
                Err(bad) => take_bad(bad),
            })?;
            for_each(transaction, DEVICES, [], decode::device, |row| match row {
                Ok(device) => devices.push(device),
                Err(bad) => take_bad(bad),
            })?;
            Ok((rows, OutboxRow::newest(transaction)?))
        })
    }

    fn read_changes(&mut self, place: &Place) -> Result<Changes, StoreError> {
        match &self.position {
            None => return Ok(Changes::Behind),
            Some(position) => {
                let data_version = data_version(&self.connection).map_err(|error| place.error(error))?;
                if data_version == position.data_version {
                    return Ok(Changes::Nothing);
                }
            }
        }
        self.read(place, |transaction, since| {
            let newest = OutboxRow::newest(transaction)?;
            if newest == since {
                return Ok((Changes::Nothing, newest));
            }
            if !leads_on(transaction, since.as_ref(), newest.as_ref())? {
                return Ok((Changes::Behind, newest));
            }
            let Some(changed) = read_outbox(transaction, since.map_or(0, |row| row.id))? else {
                return Ok((Changes::Behind, newest));
            };
            let (mut changes, mut quarantined) = (Vec::new(), Vec::new());
            for key in changed {
                key.read(transaction, &mut |row| match row {
                    Ok(change) => changes.push(change),
                    Err(bad) => {
                        changes.extend(bad.end());
                        quarantined.push(bad.quarantined);
                    }
                })?;
            }
            Ok((Changes::Some { changes, quarantined }, newest))
        })
    }

    /// Runs `read` in one read transaction; it gets and returns the newest row of the outbox.
    fn read<T>(
        &mut self,
        place: &Place,
        read: impl FnOnce(&Transaction<'_>, Option<OutboxRow>) -> rusqlite::Result<(T, Option<OutboxRow>)>,
    ) -> Result<T, StoreError> {
        let error = |error| place.error(error);
        let data_version = data_version(&self.connection).map_err(error)?;
        let transaction = self.connection.transaction().map_err(error)?;
        schema::check(&transaction, place)?;
        let since = self.position.as_ref().and_then(|position| position.newest.clone());
        let (value, newest) = read(&transaction, since).map_err(error)?;
        transaction.commit().map_err(error)?;
        self.position = Some(Position { data_version, newest });
        Ok(value)
    }
}

/// Whether the outbox holds everything that was committed between `since` and `newest`: the row that was
/// read last is still there and the same, or none was there and the first one ever is. A store that was
/// restored in place from a backup fails this too.
fn leads_on(
    transaction: &Transaction<'_>,
    since: Option<&OutboxRow>,
    newest: Option<&OutboxRow>,
) -> rusqlite::Result<bool> {
    let Some(newest) = newest else {
        return Ok(false);
    };
    if newest.id - since.map_or(0, |row| row.id) > OUTBOX_ROWS_MAX {
        return Ok(false);
    }
    match since {
        Some(since) => Ok(OutboxRow::by_id(transaction, since.id)?.as_ref() == Some(since)),
        None => Ok(OutboxRow::by_id(transaction, 1)?.is_some()),
    }
}

/// The rows that changed after outbox row `since`, each once, in the order of their last change; `None`
/// where the outbox holds what no trigger of ours wrote.
fn read_outbox(transaction: &Transaction<'_>, since: i64) -> rusqlite::Result<Option<Vec<ChangedRow>>> {
    let mut statement = transaction.prepare_cached(
        "SELECT relation, key FROM changes WHERE id > ?1 GROUP BY relation, key ORDER BY max(id)",
    )?;
    let rows = statement.query_map([since], |row| Ok(ChangedRow::decode(row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// A row that the outbox names.
enum ChangedRow {
    Principal(PrincipalId),
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
}

impl ChangedRow {
    fn decode(relation: Value, key: Value) -> Option<Self> {
        let Value::Text(relation) = relation else {
            return None;
        };
        match (relation.as_str(), key) {
            ("principals", Value::Integer(id)) => Some(Self::Principal(PrincipalId(id))),
            ("credentials", Value::Blob(key)) => {
                key.try_into().ok().map(|key| Self::Credential(KeyHash::from_bytes(key)))
            }
            ("grants", Value::Integer(id)) => Some(Self::Grant(GrantId(id))),
            ("devices", Value::Integer(id)) => Some(Self::Device(DeviceId(id))),
            _ => None,
        }
    }

    /// Reads the row as it is now and gives it, or its absence, to `take`.
    fn read(
        &self,
        transaction: &Transaction<'_>,
        take: &mut impl FnMut(Result<Change, BadRow>),
    ) -> rusqlite::Result<()> {
        let mut found = false;
        let mut take_found = |row| {
            found = true;
            take(row);
        };
        let gone = match self {
            Self::Principal(id) => {
                if is_live(transaction, *id)? {
                    return Ok(());
                }
                Change::PrincipalGone(*id)
            }
            Self::Credential(key) => {
                let sql = format!("SELECT * FROM ({CREDENTIALS}) WHERE key_sha256 = ?1");
                let decode = |row: &Row<'_>| decode::credential(row).map(Change::Credential);
                for_each(transaction, &sql, [key.as_bytes()], decode, &mut take_found)?;
                Change::CredentialGone(*key)
            }
            Self::Grant(id) => {
                let sql = format!("SELECT * FROM ({GRANTS}) WHERE grant_id = ?1");
                let decode = |row: &Row<'_>| decode::grant(row).map(Change::Grant);
                for_each(transaction, &sql, [id.0], decode, &mut take_found)?;
                Change::GrantGone(*id)
            }
            Self::Device(id) => {
                let sql = format!("SELECT * FROM ({DEVICES}) WHERE device = ?1");
                let decode = |row: &Row<'_>| decode::device(row).map(Change::Device);
                for_each(transaction, &sql, [id.0], decode, &mut take_found)?;
                Change::DeviceGone(*id)
            }
        };
        if !found {
            take(Ok(gone));
        }
        Ok(())
    }
}

fn is_live(transaction: &Transaction<'_>, id: PrincipalId) -> rusqlite::Result<bool> {
    let sql = "SELECT removed_at IS NULL FROM principals WHERE id = ?1";
    let live = transaction.prepare_cached(sql)?.query_row([id.0], |row| row.get(0)).optional()?;
    Ok(live.unwrap_or(false))
}

fn for_each<T>(
    transaction: &Transaction<'_>,
    sql: &str,
    params: impl Params,
    decode: impl Fn(&Row<'_>) -> Result<T, BadRow>,
    mut take: impl FnMut(Result<T, BadRow>),
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        take(decode(row));
    }
    Ok(())
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

/// A row of the outbox, with everything by which it can be known again.
#[derive(Clone, PartialEq)]
struct OutboxRow {
    id: i64,
    relation: Value,
    key: Value,
    changed_at: Value,
}

impl OutboxRow {
    fn newest(transaction: &Transaction<'_>) -> rusqlite::Result<Option<Self>> {
        let sql = "SELECT id, relation, key, changed_at FROM changes ORDER BY id DESC LIMIT 1";
        transaction.prepare_cached(sql)?.query_row([], Self::decode).optional()
    }

    fn by_id(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<Option<Self>> {
        let sql = "SELECT id, relation, key, changed_at FROM changes WHERE id = ?1";
        transaction.prepare_cached(sql)?.query_row([id], Self::decode).optional()
    }

    fn decode(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, relation: row.get(1)?, key: row.get(2)?, changed_at: row.get(3)? })
    }
}

/// What tells a file from one that takes its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Only looks: opening and closing the file here would drop the locks that SQLite holds on it.
    fn at(place: &Place) -> Result<Self, StoreError> {
        match std::fs::metadata(&place.path) {
            Ok(metadata) => Ok(Self { device: metadata.dev(), inode: metadata.ino() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(place.missing()),
            Err(error) => Err(place.unreadable(error)),
        }
    }
}

/// Relation `credentials` of the contract. What is held by nobody, or by a principal that was removed, has
/// ended.
const CREDENTIALS: &str = "
    SELECT key_sha256, principal, expires_at,
        revoked_at IS NOT NULL OR principals.id IS NULL OR removed_at IS NOT NULL AS revoked
    FROM credentials LEFT JOIN principals ON principals.id = principal";

/// Relation `grants` of the contract.
const GRANTS: &str = "
    SELECT grants.id AS grant_id, principal, scope, target, port_min, port_max, expires_at,
        revoked_at IS NOT NULL OR principals.id IS NULL OR removed_at IS NOT NULL AS revoked
    FROM grants LEFT JOIN principals ON principals.id = principal";

/// Relation `devices` of the contract.
const DEVICES: &str = "SELECT id AS device, uuid, fleet, address, node, online FROM devices";

/// How long a read waits where the store is locked, which in WAL mode no ordinary writer does.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::Admin;

    #[test]
    fn the_relays_connection_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        Admin::init(&path).unwrap();
        let mut source = SqliteSource::new(&path);
        source.read_all().unwrap();
        let open = source.open.as_ref().unwrap();
        let error = open.connection.execute("DELETE FROM changes", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{error}");
    }
}
