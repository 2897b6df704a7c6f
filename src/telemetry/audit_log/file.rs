//! The file with one JSON object per line.
//!
//! Lines are kept whole until they are written, so that a disk that fails in the middle of one loses lines, but
//! never tears one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::LostEvents;
use super::destination::{AuditLine, DestinationState};

/// See the module.
pub(super) struct LogFile<F> {
    path: PathBuf,
    file: F,
    /// Whole lines.
    pending: Vec<u8>,
    /// Bytes of the first of them that are in the file.
    begun: usize,
    state: DestinationState,
    lost: LostEvents,
}

impl LogFile<File> {
    pub fn open(path: &Path, lost: LostEvents) -> io::Result<Self> {
        let mut file = Self::on(open(path)?, path, lost);
        file.heal();
        Ok(file)
    }

    /// Opens the path again after a rotation gave it another file. Where that fails, the old file stays in use.
    pub fn reopen(&mut self) {
        self.flush();
        let path = self.path.display().to_string();
        match open(&self.path).and_then(|file| Ok((is_same(&file, &self.file)?, file))) {
            Ok((true, _)) => tracing::info!("audit.path {path} is still the same file"),
            Ok((false, file)) => {
                self.file = file;
                // What was begun is begun again: the rest of a line is none.
                self.begun = 0;
                self.heal();
                self.flush();
                tracing::info!("audit.path {path} is opened anew");
            }
            Err(error) => tracing::error!(
                "audit.path {path} cannot be opened anew: {error}; the file from before is written on"
            ),
        }
    }

    /// Ends a line that an earlier writer of the file left unfinished.
    fn heal(&mut self) {
        // A pipe or a device has no end to look at.
        if let Ok(false) = ends_in_newline(&self.file) {
            self.pending.insert(0, b'\n');
        }
    }
}

impl<F: Write> LogFile<F> {
    pub(super) fn on(file: F, path: &Path, lost: LostEvents) -> Self {
        let pending = Vec::with_capacity(PENDING_BYTES_MAX);
        Self { path: path.to_owned(), file, pending, begun: 0, state: DestinationState::Writing, lost }
    }

    pub fn append(&mut self, line: &AuditLine<'_>) {
        let mut line = serde_json::to_vec(line).expect("an event's maps have keys of text");
        line.push(b'\n');
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            self.flush();
        }
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            self.lost.add(1);
        } else {
            self.pending.append(&mut line);
        }
    }

    pub fn flush(&mut self) {
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
        self.state.record("the audit log's file", outcome, &self.lost);
    }

    /// Returns whether lines wait for the disk.
    pub fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Lines that were never written whole.
    pub fn lines_left(&self) -> u64 {
        self.pending.iter().filter(|&&byte| byte == b'\n').count() as u64
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
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// An empty file does.
fn ends_in_newline(mut file: &File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Lines that may wait for the disk: some 400, and few enough to be written by one call.
pub(super) const PENDING_BYTES_MAX: usize = 128 * 1024;

/// Readable by the group that operates the node, and nobody else.
const FILE_MODE: u32 = 0o640;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::super::tests::refusal;
    use super::*;

    fn append<F: Write>(file: &mut LogFile<F>, session: u64) {
        file.append(&AuditLine { time: "now".to_owned(), node: None, event: &refusal(session) });
        file.flush();
    }

    fn sessions(text: &str) -> Vec<u64> {
        let session = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["session"].as_u64();
        text.lines().map(|line| session(line).unwrap()).collect()
    }

    /// A disk with room for `room` bytes.
    #[derive(Clone, Default)]
    struct Disk {
        room: Arc<AtomicUsize>,
        written: Arc<Mutex<Vec<u8>>>,
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
    fn a_line_that_was_begun_in_a_file_is_whole_in_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = LogFile::open(&path, LostEvents::default()).unwrap();
        append(&mut file, 1);
        // As if the disk had taken a part of the second line.
        file.file = File::options().write(true).open("/dev/full").unwrap();
        append(&mut file, 2);
        file.begun = 20;
        file.reopen();
        append(&mut file, 3);
        assert_eq!(sessions(&std::fs::read_to_string(&path).unwrap()), [1, 2, 3]);
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
