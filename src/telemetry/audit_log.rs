//! The audit log: a file with one JSON object per line, written by a thread of its own.
//!
//! What cannot be written is kept up to a bound and then lost, line by line and counted. Engines never
//! wait for it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use serde::Serialize;

use super::{AuditEvent, AuditSender, Counter};

/// The writing end: owns the thread and the file. Dropping it writes what is queued and closes the file;
/// senders that are left find nobody.
pub struct AuditLog {
    /// Dropped to stop the writer; nothing is ever sent.
    stop: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
    lost: LostEvents,
}

/// How many events were taken from the queue and could not be written. Cheap to clone.
#[derive(Clone, Default)]
pub struct LostEvents(Arc<Counter>);

impl AuditLog {
    /// Opens `path` for appending and starts the writer.
    pub fn open(path: &Path) -> io::Result<(Self, AuditSender)> {
        let file = File::options().append(true).create(true).mode(FILE_MODE).open(path)?;
        let (sender, receiver) = bounded(QUEUED_EVENTS_MAX);
        let (stop, stopped) = bounded(0);
        let lost = LostEvents::default();
        let writer = Writer::new(file, lost.clone());
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&receiver, &stopped))?;
        Ok((Self { stop: Some(stop), writer: Some(writer), lost }, AuditSender::into_queue(sender)))
    }

    pub fn lost(&self) -> LostEvents {
        self.lost.clone()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the audit writer ended by a panic; its last events are lost");
        }
    }
}

impl LostEvents {
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Keeps whole lines until they are written, so that a disk that fails in the middle of one loses lines,
/// but never tears one.
struct Writer<F> {
    file: F,
    /// Lines, of which the first may have been written in part.
    pending: Vec<u8>,
    state: State,
    lost: LostEvents,
}

/// Told once per change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Writing,
    /// With the count of lost events from before.
    Failing {
        lost_before: u64,
    },
}

/// An event as a line: its time first.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a AuditEvent,
}

impl<F: Write> Writer<F> {
    fn new(file: F, lost: LostEvents) -> Self {
        Self { file, pending: Vec::with_capacity(PENDING_BYTES_MAX), state: State::Writing, lost }
    }

    fn run(mut self, events: &Receiver<AuditEvent>, stopped: &Receiver<()>) {
        let next = || {
            crossbeam::channel::select_biased! {
                recv(events) -> event => event.ok(),
                recv(stopped) -> _ => None,
            }
        };
        while let Some(event) = next() {
            self.append(&event);
            // Nothing else waits: what is pending should be readable now.
            if events.is_empty() {
                self.flush();
            }
        }
        self.flush();
        let left = self.pending.iter().filter(|&&byte| byte == b'\n').count() as u64;
        if left > 0 {
            self.lost.0.add(left);
            tracing::error!(lost = self.lost.get(), "the audit log is closed with events unwritten");
        }
    }

    fn append(&mut self, event: &AuditEvent) {
        let line = Line { time: jiff::Timestamp::now().to_string(), event };
        let mut line = serde_json::to_vec(&line).expect("an event has no map and no non-text key");
        line.push(b'\n');
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            self.flush();
        }
        if self.pending.len() + line.len() > PENDING_BYTES_MAX {
            self.lost.0.add(1);
        } else {
            self.pending.append(&mut line);
        }
    }

    fn flush(&mut self) {
        let mut written = 0;
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
        self.pending.drain(..written);
        self.note(outcome);
    }

    fn note(&mut self, outcome: io::Result<()>) {
        self.state = match (outcome, self.state) {
            (Err(error), State::Writing) => {
                tracing::error!(%error, "the audit log cannot be written; free its disk, or events get lost");
                State::Failing { lost_before: self.lost.get() }
            }
            (Ok(()), State::Failing { lost_before }) => {
                tracing::warn!(lost = self.lost.get() - lost_before, "the audit log is written again");
                State::Writing
            }
            (_, state) => state,
        };
    }
}

/// Events that may wait for the writer. A burst of refusals fits; a disk that stands still costs events,
/// not memory.
const QUEUED_EVENTS_MAX: usize = 8192;

/// Lines that may wait for the disk: some 400, and few enough to be written by one call.
const PENDING_BYTES_MAX: usize = 128 * 1024;

/// Readable by the group that operates the node, and nobody else.
const FILE_MODE: u32 = 0o640;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::*;
    use crate::telemetry::{SessionFacts, SessionRefusal};

    fn refusal(session: u64) -> AuditEvent {
        AuditEvent::Refusal(SessionRefusal {
            facts: SessionFacts { session, ..SessionFacts::default() },
            status: Some(403),
            slug: Some("not-permitted"),
            cause: "no-grant",
            detail: None,
        })
    }

    #[test]
    fn every_event_is_one_line_in_order_behind_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "kept\n").unwrap();
        let (log, sender) = AuditLog::open(&path).unwrap();
        for session in 0..100 {
            assert!(sender.send(refusal(session)));
        }
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (101, "kept"));
        for (line, session) in lines[1..].iter().zip(0u64..) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["session"], session);
            assert_eq!((&value["event"], &value["cause"]), (&"refusal".into(), &"no-grant".into()));
            assert!(value["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
            assert!(line.starts_with("{\"time\":"), "{line}");
        }
    }

    #[test]
    fn a_full_queue_is_told_to_the_sender_and_blocks_nobody() {
        let (queue, _receiver) = bounded(2);
        let sender = AuditSender::into_queue(queue);
        let taken = (0..5).filter(|&session| sender.send(refusal(session))).count();
        assert_eq!(taken, 2);
    }

    /// A disk with room for `room` bytes.
    #[derive(Default)]
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
        let disk = Disk::default();
        let (room, written) = (Arc::clone(&disk.room), Arc::clone(&disk.written));
        let mut writer = Writer::new(disk, LostEvents::default());
        // Room for the first line and a half.
        room.store(250, Ordering::Relaxed);
        for session in 0..2_000 {
            writer.append(&refusal(session));
            writer.flush();
        }
        let lost = writer.lost.get();
        assert!((1..2_000).contains(&lost), "{lost}");
        room.store(usize::MAX, Ordering::Relaxed);
        writer.append(&refusal(2_000));
        writer.flush();
        let text = String::from_utf8(written.lock().clone()).unwrap();
        let sessions: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["session"].as_u64().unwrap())
            .collect();
        assert_eq!(sessions.len() as u64 + lost, 2_001);
        assert!(sessions.is_sorted());
        assert_eq!((sessions[0], sessions.last()), (0, Some(&2_000)));
    }

    #[test]
    fn a_log_on_a_full_disk_closes_and_counts_what_is_lost() {
        let (log, sender) = AuditLog::open(Path::new("/dev/full")).unwrap();
        let lost = log.lost();
        for session in 0..10 {
            assert!(sender.send(refusal(session)));
        }
        drop(log);
        assert_eq!(lost.get(), 10);
    }

    #[test]
    fn a_node_without_an_audit_log_takes_every_event() {
        let sender = AuditSender::disabled();
        assert!((0..100_000).all(|session| sender.send(refusal(session))));
    }

    #[test]
    fn the_file_is_its_owners_to_write_and_its_groups_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        drop(AuditLog::open(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    }
}
