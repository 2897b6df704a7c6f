//! Connections of this process to a store file, which all lead to the files that are at its path now.
//!
//! SQLite shares the index of the write-ahead log among all connections that a process has to one database file. As
//! long as one of them is open, a new one gets the old index, even after the index was deleted. So the connections of
//! a process are known to each other here: whoever notices that a file was replaced closes all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, InterruptHandle};

use super::SqlitePath;
use super::files::{FileOrigin, FilePaths, FileSet, LogContent};
use crate::store::StoreError;

/// A connection that opens itself, and opens anew when the files at the path are not those that it has open.
pub(super) struct SharedConnection {
    path: SqlitePath,
    open: fn(&SqlitePath) -> rusqlite::Result<Connection>,
    store: Option<Arc<OpenStore>>,
    slot: Arc<Slot>,
    openings: u64,
}

/// An open connection.
pub(super) struct OpenConnection {
    pub(super) connection: Connection,
    /// Counts the openings, so that the user of a connection notices that it is another one.
    pub(super) opening: u64,
}

/// A connection, and the commits that it has seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileMoment {
    opening: u64,
    data_version: i64,
}

/// What the connections of this process to one store share.
struct OpenStore {
    paths: FilePaths,
    state: Mutex<OpenState>,
}

#[derive(Default)]
struct OpenState {
    /// The files that all connections have open; `None` while none is open.
    files: Option<FileSet>,
    slots: Vec<Weak<Slot>>,
    /// The database among `files`.
    origin: Option<FileOrigin>,
    /// The log of a database whose file was replaced. It must not be used with another one.
    left_log: Option<LeftLog>,
}

/// A log that was left beside the path, and the database that it belongs to.
#[derive(Clone, Copy)]
struct LeftLog {
    log: LogContent,
    origin: Option<FileOrigin>,
    left_at: SystemTime,
}

impl LeftLog {
    /// True if the log is there, and the database at the path is not the one that it belongs to. A file that was renamed
    /// away and back is.
    fn is_of_another_file(&self, paths: &FilePaths) -> bool {
        let is_back = self.origin.is_some_and(|origin| origin.is_back(paths, self.left_at));
        LogContent::at(paths) == Some(self.log) && !is_back
    }
}

/// The place of one connection. Locked while it is used.
#[derive(Default)]
struct Slot {
    connection: Mutex<Option<OpenConnection>>,
    interrupt: Mutex<Option<InterruptHandle>>,
}

impl SharedConnection {
    pub(super) fn new(path: SqlitePath, open: fn(&SqlitePath) -> rusqlite::Result<Connection>) -> Self {
        Self { path, open, store: None, slot: Arc::default(), openings: 0 }
    }

    /// Runs `work` on a connection to the files that are at the path now. Fails if they were replaced meanwhile,
    /// whatever `work` returned. After an error other than a lock, the connection is closed.
    pub(super) fn with<T>(
        &mut self,
        work: impl FnOnce(&mut OpenConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let store = self.attach()?;
        let slot = Arc::clone(&self.slot);
        let mut state = store.state.lock();
        let files = self.renew(&store, &mut state)?;
        // The lock on the store goes before that on a slot, here and in `OpenState::close_all`.
        let mut guard = slot.connection.lock();
        drop(state);
        let Some(open) = guard.as_mut() else {
            return Err(self.path.replaced());
        };
        let result = work(open);
        let at_path = FileSet::at(&store.paths, &self.path);
        if at_path.as_ref().is_ok_and(|now| *now == files) {
            if result.as_ref().is_err_and(|error| !matches!(error, StoreError::Locked { .. })) {
                *guard = None;
            }
            return result;
        }
        drop(guard);
        store.state.lock().close_all(&store.paths);
        at_path?;
        Err(self.path.replaced())
    }

    /// Closes the connection, with everything that it remembers of the file.
    pub(super) fn close(&mut self) {
        *self.slot.connection.lock() = None;
    }

    /// Joins the connections to the file at the path.
    fn attach(&mut self) -> Result<Arc<OpenStore>, StoreError> {
        let paths = FilePaths::of(&self.path).inspect_err(|_| self.close())?;
        if let Some(store) = &self.store
            && store.paths == paths
        {
            return Ok(Arc::clone(store));
        }
        // The first use, or a symbolic link that leads elsewhere now.
        self.close();
        let store = OpenStore::of(paths);
        let mut state = store.state.lock();
        state.slots.retain(|slot| slot.strong_count() > 0);
        state.slots.push(Arc::downgrade(&self.slot));
        drop(state);
        self.store = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Opens the connection if it is not open, after all were closed whose files are not at the path any more.
    fn renew(
        &mut self,
        store: &OpenStore,
        state: &mut MutexGuard<'_, OpenState>,
    ) -> Result<FileSet, StoreError> {
        let at_path = FileSet::at(&store.paths, &self.path);
        if let Some(files) = state.files {
            if at_path.as_ref().is_ok_and(|now| *now == files) {
                if self.slot.connection.lock().is_some() {
                    return Ok(files);
                }
            } else {
                if state.is_open() {
                    let store = self.path.describe();
                    tracing::info!("the files of {store} were replaced; those that are there now are opened");
                }
                state.close_all(&store.paths);
            }
        }
        at_path?;
        for _ in 0..OPEN_TRIES {
            let before = FileSet::at(&store.paths, &self.path)?;
            if state.left_log.is_some_and(|left| left.is_of_another_file(&store.paths)) {
                return Err(StoreError::LeftLog {
                    store: self.path.describe(),
                    log: store.paths.log.display().to_string(),
                });
            }
            let connection = self.open_once()?;
            // The first opening makes the log and its index where they are absent, and the next one finds them.
            let is_settled = FileSet::at(&store.paths, &self.path)? == before;
            if is_settled && state.files.is_none_or(|files| files == before) {
                state.files = Some(before);
                state.origin = FileOrigin::at(&store.paths);
                state.left_log = None;
                self.openings += 1;
                *self.slot.interrupt.lock() = Some(connection.get_interrupt_handle());
                *self.slot.connection.lock() = Some(OpenConnection { connection, opening: self.openings });
                return Ok(before);
            }
            close(connection);
            if state.files.is_some_and(|files| files != before) {
                state.close_all(&store.paths);
            }
        }
        Err(self.path.replaced())
    }

    fn open_once(&self) -> Result<Connection, StoreError> {
        let open = || {
            let connection = (self.open)(&self.path)?;
            // Opens the log and its index.
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            Ok(connection)
        };
        open().map_err(|error| self.path.error(error))
    }
}

impl OpenConnection {
    /// Says whether anybody else has committed, by comparison with another moment.
    pub(super) fn moment(&self, path: &SqlitePath) -> Result<FileMoment, StoreError> {
        let version = self.connection.pragma_query_value(None, "data_version", |row| row.get(0));
        let data_version = version.map_err(|error| path.error(error))?;
        Ok(FileMoment { opening: self.opening, data_version })
    }
}

impl OpenStore {
    /// What this process has of the store at `paths`.
    fn of(paths: FilePaths) -> Arc<Self> {
        let mut stores = STORES.lock();
        stores.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = stores.get(&paths).and_then(Weak::upgrade) {
            return store;
        }
        let store = Arc::new(Self { paths: paths.clone(), state: Mutex::default() });
        stores.insert(paths, Arc::downgrade(&store));
        store
    }
}

impl OpenState {
    /// True while a connection is open. The last one that closes deletes the log and its index.
    fn is_open(&self) -> bool {
        let slots = self.slots.iter().filter_map(Weak::upgrade);
        slots.into_iter().any(|slot| slot.connection.try_lock().is_none_or(|open| open.is_some()))
    }

    /// Closes all connections. A query that runs on one of them is interrupted: it reads files that do not count.
    fn close_all(&mut self, paths: &FilePaths) {
        let log = LogContent::at(paths);
        for slot in self.slots.iter().filter_map(Weak::upgrade) {
            let mut guard = loop {
                match slot.connection.try_lock_for(INTERRUPT_EVERY) {
                    Some(guard) => break guard,
                    None => slot.interrupt(),
                }
            };
            if let Some(open) = guard.take() {
                close(open.connection);
            }
        }
        if let Some(files) = self.files.take()
            && let Some(log) = log
            && files.log == Some(log.file())
            && !paths.has_database(files.database)
        {
            self.left_log = Some(LeftLog { log, origin: self.origin.take(), left_at: SystemTime::now() });
        }
    }
}

impl Slot {
    fn interrupt(&self) {
        if let Some(handle) = &*self.interrupt.lock() {
            handle.interrupt();
        }
    }
}

/// Closes a connection without writing its log into the database, which may be another one now.
fn close(connection: Connection) {
    let kept = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    if let Err(error) = kept.and_then(|_| connection.close().map_err(|(_, error)| error)) {
        tracing::debug!("closing a connection to replaced files failed: {error}");
    }
}

/// The stores that this process has open. SQLite itself shares them per process.
static STORES: Mutex<BTreeMap<FilePaths, Weak<OpenStore>>> = Mutex::new(BTreeMap::new());

/// Attempts to find the same files before and after an opening. Other processes make and delete the log and its index
/// only as they open the first and close the last connection.
const OPEN_TRIES: usize = 5;

/// Time between two interrupts of a query on replaced files.
const INTERRUPT_EVERY: Duration = Duration::from_millis(5);
