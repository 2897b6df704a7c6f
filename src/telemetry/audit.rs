//! Audit events: one JSON object per line, for each tunnel that ended and for each refusal.
//!
//! Engines put events into a bounded queue and never wait; a thread of its own writes them. What finds
//! the queue full is counted by the sender.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use serde::Serialize;

use crate::authz::{CredentialId, DeviceId, DeviceUuid, Generation, GrantId, PrincipalId};

/// Who and what a session was about, as far as it got.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SessionFacts {
    pub session: u64,
    pub client: Option<SocketAddr>,
    pub principal: Option<PrincipalId>,
    pub credential: Option<CredentialId>,
    pub grant: Option<GrantId>,
    pub device: Option<DeviceId>,
    pub uuid: Option<DeviceUuid>,
    pub port: Option<u16>,
    /// The snapshot that decided.
    pub generation: Option<Generation>,
}

/// A tunnel that was open has ended.
#[derive(Clone, Debug, Serialize)]
pub struct SessionEnd {
    #[serde(flatten)]
    pub facts: SessionFacts,
    pub cause: &'static str,
    /// Client to device.
    pub bytes_up: u64,
    /// Device to client.
    pub bytes_down: u64,
    /// From accept to the reply.
    pub handshake_us: u64,
    /// From accept to close.
    pub duration_ms: u64,
}

/// A session that never became a tunnel.
#[derive(Clone, Debug, Serialize)]
pub struct SessionRefusal {
    #[serde(flatten)]
    pub facts: SessionFacts,
    /// Absent where the client was gone before it could be told anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub slug: Option<&'static str>,
    /// The true cause, which the reply may hide.
    pub cause: &'static str,
    /// The operating system's word for it, where it said one.
    pub detail: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum AuditEvent {
    SessionEnd(SessionEnd),
    Refusal(SessionRefusal),
}

/// The engines' end of the queue.
#[derive(Clone)]
pub struct AuditSender {
    queue: Option<Sender<AuditEvent>>,
}

impl AuditSender {
    /// A sender into nowhere, for a node without an audit log.
    pub fn disabled() -> Self {
        Self { queue: None }
    }

    /// Whether the event was taken, or nobody wants it; `false` where the queue was full.
    #[must_use]
    pub fn send(&self, event: AuditEvent) -> bool {
        match &self.queue {
            Some(queue) => queue.try_send(event).is_ok(),
            None => true,
        }
    }
}

/// The writing end: owns the thread and the file. Dropping it writes what is queued and closes the file;
/// senders that are left find nobody.
pub struct AuditLog {
    /// Dropped to stop the writer; nothing is ever sent.
    stop: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
}

impl AuditLog {
    /// Opens `path` for appending and starts the writer.
    pub fn open(path: &Path) -> io::Result<(Self, AuditSender)> {
        let file = File::options().append(true).create(true).mode(FILE_MODE).open(path)?;
        let (sender, receiver) = bounded(QUEUED_EVENTS_MAX);
        let (stop, stopped) = bounded(0);
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || Writer { file: BufWriter::new(file), failed: false }.run(&receiver, &stopped))?;
        Ok((Self { stop: Some(stop), writer: Some(writer) }, AuditSender { queue: Some(sender) }))
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

struct Writer {
    file: BufWriter<File>,
    /// The last write failed; told once, and once more when writing works again.
    failed: bool,
}

/// An event as a line: its time first.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a AuditEvent,
}

impl Writer {
    fn run(mut self, events: &Receiver<AuditEvent>, stopped: &Receiver<()>) {
        let next = || {
            crossbeam::channel::select_biased! {
                recv(events) -> event => event.ok(),
                recv(stopped) -> _ => None,
            }
        };
        while let Some(event) = next() {
            let written = self.write(&event);
            // Nothing else waits: what is buffered should be readable now.
            let flushed = if events.is_empty() { self.file.flush() } else { Ok(()) };
            self.note(written.and(flushed));
        }
        let flushed = self.file.flush();
        self.note(flushed);
    }

    fn write(&mut self, event: &AuditEvent) -> io::Result<()> {
        let line = Line { time: jiff::Timestamp::now().to_string(), event };
        serde_json::to_writer(&mut self.file, &line)?;
        self.file.write_all(b"\n")
    }

    fn note(&mut self, outcome: io::Result<()>) {
        match outcome {
            Err(error) if !self.failed => {
                tracing::error!(%error, "the audit log cannot be written; events are lost until it can");
                self.failed = true;
            }
            Ok(()) if self.failed => {
                tracing::info!("the audit log is written again");
                self.failed = false;
            }
            _ => {}
        }
    }
}

/// Events that may wait for the writer. A burst of refusals fits; a disk that stands still costs events,
/// not memory.
const QUEUED_EVENTS_MAX: usize = 8192;

/// Readable by the group that operates the node, and nobody else.
const FILE_MODE: u32 = 0o640;

#[cfg(test)]
mod tests {
    use super::*;

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
        let sender = AuditSender { queue: Some(queue) };
        let taken = (0..5).filter(|&session| sender.send(refusal(session))).count();
        assert_eq!(taken, 2);
    }

    #[test]
    fn a_disk_that_is_full_does_not_stop_the_writer() {
        let (log, sender) = AuditLog::open(Path::new("/dev/full")).unwrap();
        for session in 0..10 {
            assert!(sender.send(refusal(session)));
        }
        drop(log);
    }
}
