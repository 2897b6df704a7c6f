//! The audit log: events to a file, to the system's journal, or to both, by a thread of its own.
//!
//! What neither takes is kept up to a bound and then lost, event by event and counted. Engines never wait for
//! it.

mod file;
mod journal;
mod throttle;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use serde::Serialize;

use super::{AuditEvent, AuditSender};
use crate::config;
use file::LogFile;
use journal::Journal;
use throttle::{Admitted, Throttle};

/// The writing end: owns the thread, the file and the journal's socket. Dropping it writes what is queued and
/// closes them; senders that are left find nobody.
pub struct AuditLog {
    /// Dropped to stop the writer; nothing is ever sent.
    stop: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
    reopener: AuditReopener,
    lost: LostEvents,
}

/// A way to have `audit.path` opened anew once the file there was renamed. Cheap to clone.
#[derive(Clone)]
pub struct AuditReopener {
    /// `None` where no file is written.
    ask: Option<Sender<()>>,
}

/// How many events could not be written, one for each place that did not take it. Cheap to clone.
#[derive(Clone, Default)]
pub struct LostEvents(Arc<AtomicU64>);

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("audit.path {path} cannot be opened: {source}; check its folder and permissions")]
    File { path: String, source: io::Error },
    #[error(
        "audit.journald is on, but nobody listens at {JOURNALD}: {0}; turn it off where there is no journald"
    )]
    Journal(io::Error),
    #[error(
        "the thread that writes the audit log cannot be started ({0}); raise the limit on threads or memory"
    )]
    Thread(io::Error),
}

impl AuditLog {
    /// Opens what `config` names and starts the writer; there is none where it names nothing. `node` is this
    /// node's name, which each event is told with.
    pub fn start(config: &config::Audit, node: Option<&str>) -> Result<(Self, AuditSender), AuditError> {
        let lost = LostEvents::default();
        let file = config.path.as_deref().map(|path| {
            LogFile::open(path, lost.clone())
                .map_err(|source| AuditError::File { path: path.display().to_string(), source })
        });
        let journal = config
            .journald
            .then(|| Journal::connect(Path::new(JOURNALD), lost.clone()).map_err(AuditError::Journal));
        let writer = Writer {
            node: node.map(str::to_owned),
            throttle: Throttle::new(config.refusals_per_source),
            file: file.transpose()?,
            journal: journal.transpose()?,
        };
        writer.start(lost).map_err(AuditError::Thread)
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
        self.stop.take();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the audit writer ended by a panic; its last events are lost");
        }
    }
}

impl AuditReopener {
    /// Asks for it and does not wait; the log tells what came of it.
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

/// What the thread owns.
struct Writer {
    node: Option<String>,
    throttle: Throttle,
    file: Option<LogFile<File>>,
    journal: Option<Journal>,
}

/// How a place that takes events is doing. Told once per change.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(flatten)]
    event: &'a AuditEvent,
}

impl Writer {
    fn start(self, lost: LostEvents) -> io::Result<(AuditLog, AuditSender)> {
        if self.file.is_none() && self.journal.is_none() {
            let reopener = AuditReopener { ask: None };
            return Ok((AuditLog { stop: None, writer: None, reopener, lost }, AuditSender::disabled()));
        }
        let (sender, events) = bounded(QUEUED_EVENTS_MAX);
        let (stop, stopped) = bounded(0);
        let (ask, reopens) = bounded(1);
        let reopener = AuditReopener { ask: self.file.is_some().then_some(ask) };
        let counted = lost.clone();
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || self.run(&events, &reopens, &stopped, &counted))?;
        let log = AuditLog { stop: Some(stop), writer: Some(writer), reopener, lost: lost.clone() };
        Ok((log, AuditSender::into_queue(sender, lost)))
    }

    fn run(
        mut self,
        events: &Receiver<AuditEvent>,
        reopens: &Receiver<()>,
        stopped: &Receiver<()>,
        lost: &LostEvents,
    ) {
        // Where no file is written, nobody asks for another one.
        let mut reopens = reopens.clone();
        loop {
            crossbeam::channel::select_biased! {
                recv(reopens) -> asked => match (asked, &mut self.file) {
                    (Ok(()), Some(file)) => file.reopen(),
                    _ => reopens = crossbeam::channel::never(),
                },
                recv(events) -> event => match event {
                    Ok(event) => self.take(event),
                    Err(_) => break,
                },
                recv(stopped) -> _ => break,
                default(self.patience()) => {}
            }
            while let Some(sum) = self.throttle.next_sum(Instant::now()) {
                self.write(&AuditEvent::MoreRefusals(sum));
            }
            // Nothing else waits: what is pending should be readable now.
            if events.is_empty() {
                self.flush();
            }
        }
        self.close(lost);
    }

    fn take(&mut self, event: AuditEvent) {
        if let AuditEvent::Refusal(refusal) = &event
            && self.throttle.admit(refusal.facts.client, refusal.cause, Instant::now()) == Admitted::Summed
        {
            return;
        }
        self.write(&event);
    }

    fn write(&mut self, event: &AuditEvent) {
        let node = self.node.as_deref();
        if let Some(file) = &mut self.file {
            file.append(&Line { time: jiff::Timestamp::now().to_string(), node, event });
        }
        if let Some(journal) = &mut self.journal {
            journal.append(event, node);
        }
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            file.flush();
        }
        if let Some(journal) = &mut self.journal {
            journal.flush();
        }
    }

    /// How long to wait for an event before looking at what else there may be to do.
    fn patience(&self) -> Duration {
        let sum = self.throttle.next_end().map(|end| end.saturating_duration_since(Instant::now()));
        let file = self.file.as_ref().filter(|file| file.is_behind()).map(|_| FILE_RETRY);
        let journal = self.journal.as_ref().and_then(Journal::pause);
        [sum, file, journal].into_iter().flatten().min().unwrap_or(NOTHING_TO_DO)
    }

    fn close(mut self, lost: &LostEvents) {
        while let Some(sum) = self.throttle.next_sum_early(Instant::now()) {
            self.write(&AuditEvent::MoreRefusals(sum));
        }
        let give_up_at = Instant::now() + CLOSE_TIME;
        self.flush();
        while let Some(pause) = self.journal.as_ref().and_then(Journal::pause)
            && Instant::now() < give_up_at
        {
            std::thread::sleep(pause.min(CLOSE_TIME));
            self.flush();
        }
        let left = self.file.as_ref().map_or(0, LogFile::lines_left)
            + self.journal.as_ref().map_or(0, Journal::events_left);
        if left > 0 {
            lost.add(left);
            tracing::error!(lost = lost.get(), "the audit log is closed with events unwritten");
        }
    }
}

impl State {
    fn note(&mut self, place: &'static str, outcome: io::Result<()>, lost: &LostEvents) {
        *self = match (outcome, *self) {
            (Err(error), Self::Writing) => {
                tracing::error!(%error, "{place} takes no audit events; see to it, or events get lost");
                Self::Failing { lost_before: lost.get() }
            }
            (Ok(()), Self::Failing { lost_before }) => {
                tracing::warn!(lost = lost.get() - lost_before, "{place} takes audit events again");
                Self::Writing
            }
            (_, state) => state,
        };
    }
}

/// Where journald listens, on every system that has it.
const JOURNALD: &str = "/run/systemd/journal/socket";

/// Events that may wait for the writer. A burst of refusals fits; a disk that stands still costs events,
/// not memory.
const QUEUED_EVENTS_MAX: usize = 8192;

/// Until a file that could not be written is tried again, where no event comes before.
const FILE_RETRY: Duration = Duration::from_secs(1);

/// What a journald without room is granted when the node ends.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// Until the writer looks up without a reason.
const NOTHING_TO_DO: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{SessionFacts, SessionRefusal};

    pub(super) fn refusal(session: u64) -> AuditEvent {
        AuditEvent::Refusal(SessionRefusal {
            facts: SessionFacts { session, ..SessionFacts::default() },
            status: Some(403),
            slug: Some("not-permitted"),
            cause: "no-grant",
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
        sender.tell(refusal(5));
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
