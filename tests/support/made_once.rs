//! Folders that one test process makes and all others use. Each test runs in a process of its own, so work that
//! every test needs would otherwise be repeated by each of them.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A complete folder, which stays unchanged while this value lives.
pub struct MadeOnce {
    folder: PathBuf,
    _shared_lock: File,
}

impl MadeOnce {
    /// Opens the folder `kind`/`key` below cargo's folder for tests. If it does not exist, `make` fills an empty
    /// folder, which then gets that name, and folders of this kind with other keys are removed: what they were made
    /// from is gone. `key` has to name everything that the content depends on.
    ///
    /// One process makes a folder while the others wait. A process that dies meanwhile leaves nothing that looks
    /// complete.
    pub fn new(kind: &str, key: &str, mut make: impl FnMut(&Path)) -> Self {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("made-once").join(kind);
        let folder = parent.join(key);
        std::fs::create_dir_all(&parent).unwrap();
        let lock_file = parent.with_extension("lock");
        loop {
            let lock = File::options().create(true).append(true).open(&lock_file).unwrap();
            lock.lock_shared().unwrap();
            if folder.exists() {
                return Self { folder, _shared_lock: lock };
            }
            lock.unlock().unwrap();
            lock.lock().unwrap();
            if !folder.exists() {
                replace_all(&parent, &folder, &mut make);
            }
            // The loop looks again under the shared lock: a process with another key may have been faster.
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn replace_all(parent: &Path, folder: &Path, make: &mut impl FnMut(&Path)) {
    match std::fs::remove_dir_all(parent) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", parent.display()),
        _ => {}
    }
    let unfinished = parent.join("unfinished");
    std::fs::create_dir_all(&unfinished).unwrap();
    make(&unfinished);
    std::fs::rename(&unfinished, folder).unwrap();
}
