//! The thread that makes records outlive a power cut, so that a disk that hangs delays no end.
//!
//! It has one request at a time, the newest: a journal that is synced once has everything that was written before.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// See the module. The thread is started with the first request, and ends by itself once this is dropped.
pub(super) struct SyncThread {
    shared: Arc<Shared>,
    is_started: bool,
}

/// Makes the contents of a file outlive a power cut.
pub(super) type SyncCall = Box<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

struct Shared {
    sync: SyncCall,
    state: Mutex<SyncState>,
    changed: Condvar,
}

#[derive(Default)]
struct SyncState {
    /// The file of the newest request that has not begun.
    wanted: Option<File>,
    is_syncing: bool,
    is_stopped: bool,
    failure: Option<io::Error>,
}

impl SyncThread {
    pub(super) fn new(sync: SyncCall) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { sync, state, changed }), is_started: false }
    }

    /// Has `file` synced soon. A request that has not begun is replaced: it was for the same file, or for one that was
    /// synced before the next was begun.
    pub(super) fn request(&mut self, file: File) -> io::Result<()> {
        if !self.is_started {
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new().name("sync-journal".to_owned()).spawn(move || shared.run())?;
            self.is_started = true;
        }
        self.shared.state.lock().wanted = Some(file);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Returns whether a request has not been served yet.
    pub(super) fn is_busy(&self) -> bool {
        self.shared.state.lock().is_busy()
    }

    /// Returns why a request failed, once.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.shared.state.lock().failure.take()
    }

    /// Waits until all requests are served, for at most `patience`. Returns whether they are.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        while state.is_busy() {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                return !state.is_busy();
            }
        }
        true
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.shared.state.lock().is_stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            match state.wanted.take() {
                Some(file) => {
                    state.is_syncing = true;
                    drop(state);
                    let synced = (self.sync)(&file);
                    state = self.state.lock();
                    state.is_syncing = false;
                    if let Err(error) = synced {
                        state.failure = Some(error);
                    }
                    self.changed.notify_all();
                }
                None if state.is_stopped => return,
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl SyncState {
    const fn is_busy(&self) -> bool {
        self.wanted.is_some() || self.is_syncing
    }
}
