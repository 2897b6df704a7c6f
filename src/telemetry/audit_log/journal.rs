//! The system's journal, as a destination of audit events.
//!
//! Speaks journald's native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>): a datagram of fields for each
//! event. The crates for it wait until journald takes a datagram. Here nothing waits: while journald stands still,
//! events are lost and counted.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::LostEvents;
use super::destination::DestinationState;
use crate::telemetry::AuditEvent;

/// See the module.
pub(super) struct SystemJournal {
    socket: UnixDatagram,
    path: PathBuf,
    pending: VecDeque<Vec<u8>>,
    /// Time until the next try to send to journald.
    pause: Duration,
    state: DestinationState,
    lost: LostEvents,
}

impl SystemJournal {
    /// Fails where nobody listens at `path`.
    pub fn connect(path: &Path, lost: LostEvents) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // Nothing is what journald takes for nothing.
        match socket.send_to(&[], path) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        let (path, pending) = (path.to_owned(), VecDeque::new());
        Ok(Self { socket, path, pending, pause: PAUSE_MIN, state: DestinationState::Writing, lost })
    }

    pub fn append(&mut self, event: &AuditEvent, node: Option<&str>) {
        if self.pending.len() == PENDING_EVENTS_MAX {
            self.flush();
        }
        if self.pending.len() == PENDING_EVENTS_MAX {
            self.lost.add(1);
        } else {
            self.pending.push_back(datagram(event, node));
        }
    }

    pub fn flush(&mut self) {
        let before = self.pending.len();
        while let Some(datagram) = self.pending.front() {
            match self.socket.send_to(datagram, &self.path) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => self.lost.add(1),
                Err(error) => {
                    self.fall_behind(before, error);
                    return;
                }
            }
            self.pending.pop_front();
        }
        self.pause = PAUSE_MIN;
        self.state.record(NAME, Ok(()), &self.lost);
    }

    /// Time until the next flush; `None` where nothing is left.
    pub fn pause(&self) -> Option<Duration> {
        (!self.pending.is_empty()).then_some(self.pause)
    }

    pub fn events_left(&self) -> u64 {
        self.pending.len() as u64
    }

    fn fall_behind(&mut self, before: usize, error: io::Error) {
        self.pause = if self.pending.len() < before { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        // A burst that finds journald's queue full is no trouble yet.
        if error.kind() != io::ErrorKind::WouldBlock || self.pending.len() == PENDING_EVENTS_MAX {
            self.state.record(NAME, Err(error), &self.lost);
        }
    }
}

/// An event as journald reads it.
fn datagram(event: &AuditEvent, node: Option<&str>) -> Vec<u8> {
    let mut fields = Vec::with_capacity(FIELDS_BYTES_USUAL);
    put(&mut fields, "MESSAGE", &event.to_string());
    put(&mut fields, "PRIORITY", priority(event));
    put(&mut fields, "SYSLOG_IDENTIFIER", "sluicegate");
    if let Some(node) = node {
        put(&mut fields, "SLUICEGATE_NODE", node);
    }
    let Ok(Value::Object(members)) = serde_json::to_value(event) else { return fields };
    for (name, value) in members {
        let name = format!("SLUICEGATE_{}", name.to_ascii_uppercase());
        match value {
            Value::Null => {}
            Value::String(text) => put(&mut fields, &name, &text),
            other => put(&mut fields, &name, &other.to_string()),
        }
    }
    fields
}

/// A value with a line break in it goes with its length in front.
fn put(fields: &mut Vec<u8>, name: &str, value: &str) {
    fields.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        fields.push(b'\n');
        fields.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        fields.push(b'=');
    }
    fields.extend_from_slice(value.as_bytes());
    fields.push(b'\n');
}

/// Priority of an event, by the numbers of syslog(3).
fn priority(event: &AuditEvent) -> &'static str {
    const WARNING: &str = "4";
    const NOTICE: &str = "5";
    const INFO: &str = "6";
    match event {
        AuditEvent::SessionEnd(_) | AuditEvent::Usage(_) => INFO,
        AuditEvent::Refusal(_) | AuditEvent::MoreRefusals(_) | AuditEvent::HoldEnd(_) => NOTICE,
        AuditEvent::OperatorCommand(_) => NOTICE,
        AuditEvent::HoldBegin(_) | AuditEvent::HoldChange(_) | AuditEvent::Rollback(_) => WARNING,
        AuditEvent::Regression(_) | AuditEvent::RegressionAlarm(_) => WARNING,
        AuditEvent::Quarantine(_) | AuditEvent::MoreQuarantined(_) => WARNING,
    }
}

/// Name of this destination in log lines.
const NAME: &str = "the journal";

/// Events that may wait for journald: some 1 MiB. Its own queue holds more bytes, but often few datagrams
/// (`net.unix.max_dgram_qlen`).
const PENDING_EVENTS_MAX: usize = 2048;

/// Shortest and longest time until the next try to send to a journald that had no room.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Bytes reserved for an event, so that most events need one allocation.
const FIELDS_BYTES_USUAL: usize = 768;

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;
    use super::*;
    use crate::telemetry::{AuditEvent, HeldGroup};

    fn listening(folder: &tempfile::TempDir) -> (UnixDatagram, PathBuf) {
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (socket, path)
    }

    /// The next datagram that is not empty, as its fields.
    fn received(socket: &UnixDatagram) -> Option<Vec<(String, String)>> {
        let mut bytes = [0; 4096];
        let len =
            std::iter::repeat_with(|| socket.recv(&mut bytes)).find(|len| !matches!(len, Ok(0)))?.ok()?;
        let mut rest = &bytes[..len];
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| b"=\n".contains(byte)).unwrap();
            let (name, is_short) = (&rest[..end], rest[end] == b'=');
            rest = &rest[end + 1..];
            let value_len = if is_short {
                rest.iter().position(|&byte| byte == b'\n').unwrap()
            } else {
                let (len, after) = rest.split_at(8);
                rest = after;
                u64::from_le_bytes(len.try_into().unwrap()) as usize
            };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(&rest[..value_len])));
            rest = rest[value_len..].strip_prefix(b"\n").unwrap();
        }
        Some(fields)
    }

    #[test]
    fn every_field_of_an_event_is_a_field_of_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, path) = listening(&folder);
        let mut journal = SystemJournal::connect(&path, LostEvents::default()).unwrap();
        journal.append(&refusal(7), Some("relay-1"));
        journal.flush();
        let expected = [
            ("MESSAGE", "session 7 refused (no-grant)"),
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "sluicegate"),
            ("SLUICEGATE_NODE", "relay-1"),
            ("SLUICEGATE_CAUSE", "no-grant"),
            ("SLUICEGATE_DURATION_US", "12"),
            ("SLUICEGATE_EVENT", "refusal"),
            ("SLUICEGATE_SESSION", "7"),
            ("SLUICEGATE_SLUG", "not-permitted"),
            ("SLUICEGATE_STATUS", "403"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(received(&socket).unwrap(), expected);
    }

    #[test]
    fn a_value_with_line_breaks_cannot_make_fields_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, path) = listening(&folder);
        let mut journal = SystemJournal::connect(&path, LostEvents::default()).unwrap();
        let figures = "1 row\nPRIORITY=0".to_owned();
        let examples = vec!["grants 1".to_owned()];
        journal.append(
            &AuditEvent::HoldBegin(HeldGroup {
                rule: "budget",
                held: "grants.absent".to_owned(),
                rows: 1,
                figures: figures.clone(),
                examples,
                generation: None,
            }),
            None,
        );
        journal.flush();
        let fields = received(&socket).unwrap();
        let of = |name: &str| -> Vec<_> {
            fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(of("PRIORITY"), ["4"]);
        assert_eq!(of("SLUICEGATE_FIGURES"), [figures]);
        assert_eq!(of("SLUICEGATE_EXAMPLES"), ["[\"grants 1\"]"]);
    }

    #[test]
    fn a_journal_that_stands_still_costs_events_that_are_counted_and_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, path) = listening(&folder);
        let lost = LostEvents::default();
        let mut journal = SystemJournal::connect(&path, lost.clone()).unwrap();
        let told = 2 * PENDING_EVENTS_MAX as u64;
        for session in 0..told {
            journal.append(&refusal(session), None);
            journal.flush();
        }
        assert!(lost.get() > 0);
        assert!(journal.pause().is_some_and(|pause| pause == PAUSE_MAX));
        // It goes on.
        let mut sessions = Vec::new();
        while journal.events_left() > 0 || sessions.is_empty() {
            while let Some(fields) = received(&socket) {
                let session = fields.into_iter().find(|(name, _)| name == "SLUICEGATE_SESSION").unwrap().1;
                sessions.push(session.parse::<u64>().unwrap());
            }
            journal.flush();
        }
        while let Some(fields) = received(&socket) {
            let session = fields.into_iter().find(|(name, _)| name == "SLUICEGATE_SESSION").unwrap().1;
            sessions.push(session.parse::<u64>().unwrap());
        }
        assert_eq!(sessions.len() as u64 + lost.get(), told);
        assert!(sessions.is_sorted());
        assert_eq!(journal.pause(), None);
    }

    #[test]
    fn a_long_burst_is_handed_over_before_anything_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (_socket, path) = listening(&folder);
        let lost = LostEvents::default();
        let mut journal = SystemJournal::connect(&path, lost.clone()).unwrap();
        for session in 0..=PENDING_EVENTS_MAX as u64 {
            journal.append(&refusal(session), None);
        }
        assert_eq!(lost.get(), 0);
        assert!(journal.events_left() < PENDING_EVENTS_MAX as u64);
    }

    #[test]
    fn a_journal_that_comes_back_gets_what_waited() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, path) = listening(&folder);
        let lost = LostEvents::default();
        let mut journal = SystemJournal::connect(&path, lost.clone()).unwrap();
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        journal.append(&refusal(1), None);
        journal.flush();
        assert_eq!(journal.events_left(), 1);
        let (socket, _) = listening(&folder);
        journal.flush();
        assert!(received(&socket).is_some());
        assert_eq!((journal.events_left(), lost.get()), (0, 0));
    }

    #[test]
    fn a_machine_without_a_journal_is_told_of_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let error = SystemJournal::connect(&folder.path().join("none"), LostEvents::default()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
