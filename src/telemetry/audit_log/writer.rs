//! The thread between the queue and the places that events go to: sums floods, writes, and tries again what could
//! not be written.

use std::fs::File;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::destination::AuditLine;
use super::file::LogFile;
use super::journal::SystemJournal;
use super::throttle::{Admitted, Throttle};
use super::{AuditChange, FileChange, LostEvents};
use crate::sys::service_thread::StopSignal;
use crate::telemetry::AuditEvent;

/// The state of the writer's thread.
pub(super) struct AuditWriter {
    pub node: Option<String>,
    pub throttle: Throttle,
    pub file: Option<LogFile<File>>,
    pub journal: Option<SystemJournal>,
}

impl AuditWriter {
    /// Writes until `stop`.
    pub fn run(
        mut self,
        events: &Receiver<AuditEvent>,
        reopens: &Receiver<()>,
        changes: &Receiver<AuditChange>,
        stop: &StopSignal,
        lost: &LostEvents,
    ) {
        // The senders of both may be gone before the log closes.
        let (mut reopens, mut changes) = (reopens.clone(), changes.clone());
        loop {
            crossbeam::channel::select_biased! {
                recv(reopens) -> asked => match (asked, &mut self.file) {
                    (Ok(()), Some(file)) => file.reopen(),
                    (Ok(()), None) => {}
                    (Err(_), _) => reopens = crossbeam::channel::never(),
                },
                recv(changes) -> change => match change {
                    Ok(change) => self.change(change, lost),
                    Err(_) => changes = crossbeam::channel::never(),
                },
                recv(events) -> event => match event {
                    Ok(event) => self.apply(event),
                    Err(_) => break,
                },
                recv(stop.channel()) -> _ => break,
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

    /// Writes to other destinations from here on.
    fn change(&mut self, change: AuditChange, lost: &LostEvents) {
        let AuditChange { file, journal, refusals_per_source, .. } = change;
        self.flush();
        if let FileChange::Replaced(file) = file {
            lost.add(self.file.as_ref().map_or(0, LogFile::lines_left));
            self.file = file;
        }
        // A connection to the journal that is there already stays, with the events that it has left.
        if self.journal.is_none() || journal.is_none() {
            lost.add(self.journal.as_ref().map_or(0, SystemJournal::events_left));
            self.journal = journal;
        }
        self.throttle.set_written_max(refusals_per_source);
    }

    fn apply(&mut self, event: AuditEvent) {
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
            file.append(&AuditLine { time: jiff::Timestamp::now().to_string(), node, event });
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

    /// Time to wait for an event before the next check of other work.
    fn patience(&self) -> Duration {
        let sum = self.throttle.next_end().map(|end| end.saturating_duration_since(Instant::now()));
        let file = self.file.as_ref().and_then(LogFile::pause);
        let journal = self.journal.as_ref().and_then(SystemJournal::pause);
        [sum, file, journal].into_iter().flatten().min().unwrap_or(NOTHING_TO_DO)
    }

    /// Time to wait at the close for a destination that has no room, or is in use, for a moment.
    fn closing_pause(&self) -> Option<Duration> {
        let file = self.file.as_ref().filter(|file| file.waits_for_lock()).and_then(LogFile::pause);
        file.or_else(|| self.journal.as_ref().and_then(SystemJournal::pause))
    }

    fn close(mut self, lost: &LostEvents) {
        while let Some(sum) = self.throttle.next_sum_early(Instant::now()) {
            self.write(&AuditEvent::MoreRefusals(sum));
        }
        let give_up_at = Instant::now() + CLOSE_TIME;
        self.flush();
        while let Some(pause) = self.closing_pause()
            && Instant::now() < give_up_at
        {
            std::thread::sleep(pause.min(CLOSE_TIME));
            self.flush();
        }
        let left = self.file.as_ref().map_or(0, LogFile::lines_left)
            + self.journal.as_ref().map_or(0, SystemJournal::events_left);
        if left > 0 {
            lost.add(left);
            tracing::error!(lost = lost.get(), "the audit log is closed with events unwritten");
        }
    }
}

/// Time that a journald without room, or a file that another process has locked, gets when the node stops.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// Wait of a writer that has nothing to do.
const NOTHING_TO_DO: Duration = Duration::from_secs(3600);
