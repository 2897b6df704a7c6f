//! The audit log: events to a file, to the system's journal, or to both, by a thread of its own.
//!
//! What neither takes is kept up to a bound and then lost, event by event and counted. Engines never wait for
//! it.

mod destination;
mod file;
mod journal;
mod throttle;
mod writer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::{AuditEvent, AuditSender};
use crate::config::{self, KeyProblem};
use crate::sys::service_thread::ServiceThread;
use file::LogFile;
use journal::SystemJournal;
use throttle::Throttle;
use writer::AuditWriter;

/// The writing end: owns the thread, the file and the journal's socket. Dropping it writes what is queued and
/// closes them; events of senders that are left are dropped. A destination that blocks is given up after a while.
pub struct AuditLog {
    writer: ServiceThread,
    /// Events that the writer has not taken; `None` without a destination.
    queued: Option<Receiver<AuditEvent>>,
    reopener: AuditReopener,
    /// `None` where nothing is written.
    changes: Option<Sender<AuditChange>>,
    path: Mutex<Option<PathBuf>>,
    lost: LostEvents,
}

/// Destinations that a running audit log is to have.
pub struct AuditChange {
    path: Option<PathBuf>,
    file: FileChange,
    journal: Option<SystemJournal>,
    refusals_per_source: u32,
}

enum FileChange {
    Kept,
    Replaced(Option<LogFile<File>>),
}

/// A way to have `audit.path` opened anew once the file there was renamed. Cheap to clone.
#[derive(Clone)]
pub struct AuditReopener {
    /// `None` where nothing is written.
    ask: Option<Sender<()>>,
}

/// Number of events that could not be written. An event counts once for each destination that missed it. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct LostEvents(Arc<AtomicU64>);

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("audit.path {path} cannot be opened: {source}; check its folder and permissions")]
    File { path: String, source: io::Error },
    #[error(
        "audit.journald is on, but nobody listens at {JOURNALD}: {0}; turn it off where there is no journald"
    )]
    SystemJournal(io::Error),
    #[error(
        "the thread that writes the audit log cannot be started ({0}); raise the limit on threads or memory"
    )]
    Thread(io::Error),
}

impl AuditLog {
    /// Opens what `config` names and starts the writer; there is none where it names nothing. `node` is this
    /// node's name, which each event carries.
    pub fn start(config: &config::Audit, node: Option<&str>) -> Result<(Self, AuditSender), AuditError> {
        let lost = LostEvents::default();
        let file = config.path.as_deref().map(|path| open_file(path, &lost));
        let journal = config.journald.then(|| open_journal(&lost));
        let writer = AuditWriter {
            node: node.map(str::to_owned),
            throttle: Throttle::new(config.refusals_per_source),
            file: file.transpose()?,
            journal: journal.transpose()?,
        };
        let (log, sender) = start(writer, lost).map_err(AuditError::Thread)?;
        log.path.lock().clone_from(&config.path);
        Ok((log, sender))
    }

    /// Opens what `config` names and is not open yet, for [`apply`](Self::apply).
    pub fn prepare(&self, config: &config::Audit) -> Result<AuditChange, AuditError> {
        let is_same = *self.path.lock() == config.path;
        let file = match config.path.as_deref() {
            Some(_) if is_same => FileChange::Kept,
            Some(path) => FileChange::Replaced(Some(open_file(path, &self.lost)?)),
            None => FileChange::Replaced(None),
        };
        let journal = config.journald.then(|| open_journal(&self.lost)).transpose()?;
        let (path, refusals_per_source) = (config.path.clone(), config.refusals_per_source);
        Ok(AuditChange { path, file, journal, refusals_per_source })
    }

    /// Has events written by `change` from now on. The events that are queued go there too.
    pub fn apply(&self, change: AuditChange) {
        let Some(changes) = &self.changes else { return };
        let path = change.path.clone();
        match changes.try_send(change) {
            Ok(()) => *self.path.lock() = path,
            Err(_) => tracing::error!("the audit log's thread is stuck; it goes on as before"),
        }
    }

    /// Returns the reasons why [`start`](Self::start) would fail. Makes no file.
    pub fn check(config: &config::Audit) -> Vec<KeyProblem> {
        let problem = |key: &str, problem| KeyProblem { key: key.to_owned(), problem };
        let file = config.path.as_deref().and_then(|path| {
            let detail = file::check(path).err()?;
            Some(problem("audit.path", format!("{} cannot be opened: {detail}", path.display())))
        });
        let journal = config.journald.then(|| {
            SystemJournal::connect(Path::new(JOURNALD), LostEvents::default()).err().map(|error| {
                let told =
                    format!("nobody listens at {JOURNALD} ({error}); turn it off where there is no journald");
                problem("audit.journald", told)
            })
        });
        file.into_iter().chain(journal.flatten()).collect()
    }

    pub fn reopener(&self) -> AuditReopener {
        self.reopener.clone()
    }

    pub fn lost(&self) -> LostEvents {
        self.lost.clone()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        // The writer empties the queue, or is left behind.
        drop(std::mem::take(&mut self.writer));
        let left = self.queued.as_ref().map_or(0, Receiver::len) as u64;
        if left > 0 {
            self.lost.add(left);
            tracing::error!(lost = left, "the audit log blocks; it is given up with events unwritten");
        }
    }
}

impl AuditReopener {
    /// Requests it without waiting; the result is logged.
    pub fn reopen(&self) {
        if let Some(ask) = &self.ask {
            // A full queue asks already.
            let _asked = ask.try_send(());
        }
    }
}

impl LostEvents {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, events: u64) {
        self.0.fetch_add(events, Ordering::Relaxed);
    }
}

fn start(writer: AuditWriter, lost: LostEvents) -> io::Result<(AuditLog, AuditSender)> {
    if writer.file.is_none() && writer.journal.is_none() {
        let (reopener, path) = (AuditReopener { ask: None }, Mutex::default());
        let writer = ServiceThread::default();
        let log = AuditLog { writer, queued: None, reopener, changes: None, path, lost };
        return Ok((log, AuditSender::disabled()));
    }
    let (sender, events) = bounded(QUEUED_EVENTS_MAX);
    let (ask, reopens) = bounded(1);
    let (changes, to_apply) = bounded(CHANGES_MAX);
    let reopener = AuditReopener { ask: Some(ask) };
    let counted = lost.clone();
    let queued = Some(events.clone());
    let thread = ServiceThread::start("audit", move |stop| {
        writer.run(&events, &reopens, &to_apply, &stop, &counted);
    })?;
    let (changes, path) = (Some(changes), Mutex::default());
    let log = AuditLog { writer: thread, queued, reopener, changes, path, lost: lost.clone() };
    Ok((log, AuditSender::into_queue(sender, lost)))
}

fn open_file(path: &Path, lost: &LostEvents) -> Result<LogFile<File>, AuditError> {
    LogFile::open(path, lost.clone())
        .map_err(|source| AuditError::File { path: path.display().to_string(), source })
}

fn open_journal(lost: &LostEvents) -> Result<SystemJournal, AuditError> {
    SystemJournal::connect(Path::new(JOURNALD), lost.clone()).map_err(AuditError::SystemJournal)
}

/// Path of journald's socket, which is the same on every system that has journald.
const JOURNALD: &str = "/run/systemd/journal/socket";

/// Changes of the configuration that may wait for the writer; more come only where it is stuck.
const CHANGES_MAX: usize = 4;

/// Events that may wait for the writer. A burst of refusals fits; a disk that stands still costs events,
/// not memory.
const QUEUED_EVENTS_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{AuditEvent, Cause, SessionFacts, SessionRefusal};

    pub(super) fn refusal(session: u64) -> AuditEvent {
        AuditEvent::Refusal(SessionRefusal {
            facts: SessionFacts { session, ..SessionFacts::default() },
            status: Some(403),
            slug: Some("not-permitted"),
            cause: Cause::NoGrant,
            detail: None,
            duration_us: 12,
        })
    }

    fn to_file(path: &Path, refusals_per_source: u32) -> (AuditLog, AuditSender) {
        let config = config::Audit { path: Some(path.to_owned()), journald: false, refusals_per_source };
        AuditLog::start(&config, Some("relay-1")).unwrap()
    }

    #[test]
    fn every_event_is_one_line_in_order_behind_its_time_and_node() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "kept\n").unwrap();
        let (log, sender) = to_file(&path, u32::MAX);
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
            assert_eq!(value["node"], "relay-1");
            assert!(line.starts_with("{\"time\":"), "{line}");
        }
    }

    #[test]
    fn what_is_beyond_the_rate_is_in_one_line_when_the_log_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let (log, sender) = to_file(&path, 5);
        for session in 0..100 {
            assert!(sender.send(refusal(session)));
        }
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(text.lines().count(), 6);
        assert_eq!((&last["event"], &last["refusals"]), (&"more-refusals".into(), &95.into()));
        assert_eq!(last["causes"], serde_json::json!({ "no-grant": 95 }));
    }

    #[test]
    fn a_full_queue_is_told_to_the_sender_and_blocks_nobody() {
        let (queue, _receiver) = bounded(2);
        let lost = LostEvents::default();
        let sender = AuditSender::into_queue(queue, lost.clone());
        let taken = (0..5).filter(|&session| sender.send(refusal(session))).count();
        assert_eq!((taken, lost.get()), (2, 0), "engines count themselves");
        sender.emit(refusal(5));
        assert_eq!(lost.get(), 1);
    }

    #[test]
    fn a_log_on_a_full_disk_closes_and_counts_what_is_lost() {
        let (log, sender) = to_file(Path::new("/dev/full"), u32::MAX);
        let lost = log.lost();
        for session in 0..10 {
            assert!(sender.send(refusal(session)));
        }
        drop(log);
        assert_eq!(lost.get(), 10);
    }

    #[test]
    fn a_node_without_an_audit_log_takes_every_event() {
        let (_log, sender) = AuditLog::start(&config::Audit::default(), None).unwrap();
        assert!((0..100_000).all(|session| sender.send(refusal(session))));
    }
}
