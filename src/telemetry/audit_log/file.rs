//! The file with one JSON object per line.
//!
//! Lines are kept whole until they are written, so that a disk that fails in the middle of one loses lines, but
//! never tears one. Several processes of a node may append to one file, as after a hand-over: each writes under a lock
//! of the file, keeps the lock while a line is begun, and first looks whether the path has another file by now.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::LostEvents;
use super::destination::{AuditLine, DestinationState};

/// See the module.
pub(super) struct LogFile<F> {
    path: PathBuf,
    file: F,
    /// Whole lines. An empty one before them ends what another writer left unfinished.
    pending: Vec<u8>,
    /// Bytes of the first of them that are in the file. While there are any, this process has the lock.
    begun: usize,
    /// Another process had the lock.
    waits_for_lock: bool,
    state: DestinationState,
    lost: LostEvents,
}

/// A file that other processes may append to.
pub(super) trait SharedFile: Write + Sized {
    /// Returns `false` where another process has the lock.
    fn try_lock(&self) -> bool;
    fn unlock(&self);
    /// The file that the path has, where it is another one.
    fn successor(&self, path: &Path) -> Option<Self>;
    /// Returns whether every line in the file is whole.
    fn ends_in_newline(&self) -> bool;
}

impl LogFile<File> {
    pub fn open(path: &Path, lost: LostEvents) -> io::Result<Self> {
        Ok(Self::on(open(path)?, path, lost))
    }

    /// Opens the path again after a rotation gave it another file. Where that fails, the old file stays in use.
    pub fn reopen(&mut self) {
        self.flush();
        let path = self.path.display().to_string();
        match open(&self.path).and_then(|file| Ok((is_same(&file, &self.file)?, file))) {
            Ok((true, _)) => tracing::info!("audit.path {path} is still the same file"),
            Ok((false, file)) => {
                let before = self.continue_on(file);
                self.flush();
                wait_for_writers(&before);
                tracing::info!("audit.path {path} is opened anew");
            }
            Err(error) => tracing::error!(
                "audit.path {path} cannot be opened anew: {error}; the file from before is written on"
            ),
        }
    }
}

impl<F: SharedFile> LogFile<F> {
    pub(super) fn on(file: F, path: &Path, lost: LostEvents) -> Self {
        let pending = Vec::with_capacity(PENDING_BYTES_MAX);
        let (path, state) = (path.to_owned(), DestinationState::Writing);
        Self { path, file, pending, begun: 0, waits_for_lock: false, state, lost }
    }

    pub fn append(&mut self, line: &AuditLine<'_>) {
        let mut line = serde_json::to_vec(line).expect("an event's maps have keys of text");
        line.push(b'\n');
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            self.flush();
        }
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            if self.waits_for_lock {
                let busy = io::Error::new(io::ErrorKind::WouldBlock, "another process keeps it locked");
                self.state.record(NAME, Err(busy), &self.lost);
            }
            self.lost.add(1);
        } else {
            self.pending.append(&mut line);
        }
    }

    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.waits_for_lock = !self.lock();
        if self.waits_for_lock {
            return;
        }
        let mut written = self.begun;
        let outcome = loop {
            if written == self.pending.len() {
                break Ok(());
            }
            match self.file.write(&self.pending[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let whole_lines =
            self.pending[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.pending.drain(..whole_lines);
        self.begun = written - whole_lines;
        if self.begun == 0 {
            self.file.unlock();
        }
        self.state.record(NAME, outcome, &self.lost);
    }

    /// Time until the next try to write lines that are left; `None` where there are none.
    pub fn pause(&self) -> Option<Duration> {
        let pause = if self.waits_for_lock { LOCK_RETRY } else { DISK_RETRY };
        (!self.pending.is_empty()).then_some(pause)
    }

    /// Returns whether another process has the lock for a moment.
    pub fn waits_for_lock(&self) -> bool {
        self.waits_for_lock && !self.pending.is_empty()
    }

    /// Lines that were never written whole.
    pub fn lines_left(&self) -> u64 {
        self.pending.iter().filter(|&&byte| byte == b'\n').count() as u64
    }

    /// Takes the lock of the file that the path has, and ends a line that another writer left unfinished there.
    fn lock(&mut self) -> bool {
        if self.begun > 0 {
            return true;
        }
        loop {
            if !self.file.try_lock() {
                return false;
            }
            let Some(successor) = self.file.successor(&self.path) else { break };
            tracing::info!(
                "audit.path {} has another file, which is written from here on",
                self.path.display()
            );
            drop(self.continue_on(successor));
        }
        match (self.file.ends_in_newline(), self.pending.first()) {
            (false, Some(first)) if *first != b'\n' => self.pending.insert(0, b'\n'),
            (true, Some(b'\n')) => drop(self.pending.remove(0)),
            _ => {}
        }
        true
    }

    /// Writes to `file` from here on. Returns the file before; without it, its lock is free.
    fn continue_on(&mut self, file: F) -> F {
        // What was begun is begun again: the rest of a line is none.
        self.begun = 0;
        std::mem::replace(&mut self.file, file)
    }
}

impl SharedFile for File {
    fn try_lock(&self) -> bool {
        // A file system without locks has one process that writes, as far as we can tell.
        !matches!(File::try_lock(self), Err(TryLockError::WouldBlock))
    }

    fn unlock(&self) {
        let _had_none = File::unlock(self);
    }

    fn successor(&self, path: &Path) -> Option<Self> {
        let is_other = std::fs::metadata(path)
            .and_then(|there| Ok((there.dev(), there.ino()) != identity(self)?))
            // While a rotation has not made the next file, the lines belong to this one.
            .unwrap_or(false);
        is_other.then(|| open(path).ok()).flatten()
    }

    fn ends_in_newline(&self) -> bool {
        let mut last = [0];
        // A pipe or a device has no end to look at.
        let end = self.metadata().ok().and_then(|metadata| metadata.len().checked_sub(1));
        end.is_none_or(|end| self.read_exact_at(&mut last, end).is_err() || last == *b"\n")
    }
}

/// Waits until no process writes to a file that was rotated away: one that began before the path had the next file may be
/// in the middle of it. Gives up on one that is stuck.
fn wait_for_writers(rotated: &File) {
    for _ in 0..ROTATED_LOOKS_MAX {
        if SharedFile::try_lock(rotated) {
            return;
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

/// Opens the file so that a pipe without a reader refuses lines instead of blocking the writer. A file of a disk or of a
/// network blocks all the same.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.append(true).read(true).create(true).mode(FILE_MODE).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Says why the file at `path` could not be opened for lines, without making it.
pub(super) fn check(path: &Path) -> Result<(), String> {
    match File::options().append(true).read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{error}; check its permissions")),
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let shown = folder.display();
    match access(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if folder.is_dir() => Ok(()),
        Err(Errno::ENOENT) => Err(format!("there is no folder {shown}; create it for the relay's user")),
        Ok(()) | Err(Errno::ENOTDIR) => Err(format!("{shown} is no folder; name another file")),
        Err(error) => Err(format!(
            "no file can be made in {shown} ({}); let the relay's user write there",
            error.desc()
        )),
    }
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    Ok(identity(one)? == identity(other)?)
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

const NAME: &str = "the audit log's file";

/// Lines that may wait for the disk: some 400, and few enough to be written by one call.
pub(super) const PENDING_BYTES_MAX: usize = 128 * 1024;

/// Readable by the group that operates the node, and nobody else.
const FILE_MODE: u32 = 0o640;

/// Time until the next try to write a file that failed, unless an event comes first.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// Time until the next try to lock a file. Another process has it for one write.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Tries to lock a file that was rotated away, for some 100 ms.
const ROTATED_LOOKS_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::super::tests::refusal;
    use super::*;

    fn append<F: SharedFile>(file: &mut LogFile<F>, session: u64) {
        file.append(&AuditLine { time: "now".to_owned(), node: None, event: &refusal(session) });
        file.flush();
    }

    fn sessions(text: &str) -> Vec<u64> {
        let session = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["session"].as_u64();
        text.lines().map(|line| session(line).unwrap()).collect()
    }

    /// A file on a disk with room for `room` bytes. Each clone is another process's.
    #[derive(Default)]
    struct Disk {
        room: Arc<AtomicUsize>,
        written: Arc<Mutex<Vec<u8>>>,
        is_locked: Arc<AtomicBool>,
        has_lock: Cell<bool>,
    }

    impl Clone for Disk {
        fn clone(&self) -> Self {
            let Self { room, written, is_locked, .. } = self;
            let (room, written, is_locked) = (Arc::clone(room), Arc::clone(written), Arc::clone(is_locked));
            Self { room, written, is_locked, has_lock: Cell::default() }
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            self.unlock();
        }
    }

    impl SharedFile for Disk {
        fn try_lock(&self) -> bool {
            let got_it = self.has_lock.get() || !self.is_locked.swap(true, Ordering::Relaxed);
            self.has_lock.set(got_it);
            got_it
        }

        fn unlock(&self) {
            if self.has_lock.take() {
                self.is_locked.store(false, Ordering::Relaxed);
            }
        }

        fn successor(&self, _path: &Path) -> Option<Self> {
            None
        }

        fn ends_in_newline(&self) -> bool {
            self.written.lock().last().is_none_or(|last| *last == b'\n')
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room.load(Ordering::Relaxed));
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room.fetch_sub(taken, Ordering::Relaxed);
            self.written.lock().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_was_full_loses_lines_that_are_counted_and_tears_none() {
        let (disk, lost) = (Disk::default(), LostEvents::default());
        let mut file = LogFile::on(disk.clone(), Path::new("audit.jsonl"), lost.clone());
        // Room for the first line and a half.
        disk.room.store(250, Ordering::Relaxed);
        for session in 0..2_000 {
            append(&mut file, session);
        }
        let lost = lost.get();
        assert!((1..2_000).contains(&lost), "{lost}");
        disk.room.store(usize::MAX, Ordering::Relaxed);
        append(&mut file, 2_000);
        let text = String::from_utf8(disk.written.lock().clone()).unwrap();
        let sessions = sessions(&text);
        assert_eq!(sessions.len() as u64 + lost, 2_001);
        assert!(sessions.is_sorted());
        assert_eq!((sessions[0], sessions.last()), (0, Some(&2_000)));
    }

    #[test]
    fn processes_that_write_one_file_tear_no_line_of_each_other_when_the_disk_is_full_in_the_middle_of_one() {
        let disk = Disk::default();
        let on = |disk: &Disk| LogFile::on(disk.clone(), Path::new("audit.jsonl"), LostEvents::default());
        let (mut one, mut other) = (on(&disk), on(&disk));
        let mut wanted = Vec::new();
        for round in 0..200 {
            // Each line is some 150 bytes, so that the room ends within one of either process.
            disk.room.fetch_add(round * 7 % 400, Ordering::Relaxed);
            append(&mut one, 2 * round as u64);
            append(&mut other, 2 * round as u64 + 1);
            wanted.extend([2 * round as u64, 2 * round as u64 + 1]);
        }
        disk.room.store(usize::MAX, Ordering::Relaxed);
        for file in [&mut one, &mut other] {
            file.flush();
        }
        one.flush();
        let text = String::from_utf8(disk.written.lock().clone()).unwrap();
        let mut written = sessions(&text);
        written.sort_unstable();
        assert_eq!(written, wanted, "each line once");
    }

    #[test]
    fn a_process_that_dies_within_a_line_spoils_none_of_the_other_ones() {
        let disk = Disk::default();
        let on = |disk: &Disk| LogFile::on(disk.clone(), Path::new("audit.jsonl"), LostEvents::default());
        let (mut dies, mut other) = (on(&disk), on(&disk));
        disk.room.store(30, Ordering::Relaxed);
        append(&mut dies, 1);
        append(&mut other, 2);
        assert!(other.waits_for_lock(), "the first has begun a line");
        drop(dies);
        disk.room.store(usize::MAX, Ordering::Relaxed);
        append(&mut other, 3);
        let text = String::from_utf8(disk.written.lock().clone()).unwrap();
        let (torn, rest) = text.split_once('\n').unwrap();
        assert_eq!((torn.len(), sessions(rest)), (30, vec![2, 3]));
    }

    #[test]
    fn a_file_that_another_process_began_after_a_rotation_gets_the_lines_of_both() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
        let open = || LogFile::open(&path, LostEvents::default()).unwrap();
        let (mut one, mut other) = (open(), open());
        append(&mut one, 1);
        append(&mut other, 2);
        std::fs::rename(&path, &rotated).unwrap();
        append(&mut other, 3);
        one.reopen();
        append(&mut other, 4);
        append(&mut one, 5);
        let read = |path: &Path| sessions(&std::fs::read_to_string(path).unwrap());
        assert_eq!((read(&rotated), read(&path)), (vec![1, 2, 3], vec![4, 5]));
    }

    #[test]
    fn a_line_that_was_begun_in_a_file_is_whole_in_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
        let mut file = LogFile::open(&path, LostEvents::default()).unwrap();
        append(&mut file, 1);
        std::fs::rename(&path, &rotated).unwrap();
        // As if the disk had taken a part of the second line.
        file.file = File::options().write(true).open("/dev/full").unwrap();
        append(&mut file, 2);
        file.begun = 20;
        file.reopen();
        append(&mut file, 3);
        let read = |path: &Path| sessions(&std::fs::read_to_string(path).unwrap());
        assert_eq!((read(&rotated), read(&path)), (vec![1], vec![2, 3]));
    }

    #[test]
    fn a_torn_last_line_spoils_none_of_those_that_follow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "{\"time\":\"20").unwrap();
        let mut file = LogFile::open(&path, LostEvents::default()).unwrap();
        append(&mut file, 1);
        let text = std::fs::read_to_string(&path).unwrap();
        let (torn, rest) = text.split_once('\n').unwrap();
        assert_eq!((torn, sessions(rest)), ("{\"time\":\"20", vec![1]));
    }

    #[test]
    fn the_file_is_its_owners_to_write_and_its_groups_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        drop(LogFile::open(&path, LostEvents::default()).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    }
}
