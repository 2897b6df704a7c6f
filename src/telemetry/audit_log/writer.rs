//! The thread between the queue and the places that events go to: sums floods, writes, and tries again what could
//! not be written.

use std::fs::File;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::LostEvents;
use super::destination::AuditLine;
use super::file::LogFile;
use super::journal::SystemJournal;
use super::throttle::{Admitted, Throttle};
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
        stop: &StopSignal,
        lost: &LostEvents,
    ) {
        // Without a file nothing is sent here.
        let mut reopens = reopens.clone();
        loop {
            crossbeam::channel::select_biased! {
                recv(reopens) -> asked => match (asked, &mut self.file) {
                    (Ok(()), Some(file)) => file.reopen(),
                    _ => reopens = crossbeam::channel::never(),
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
        let file = self.file.as_ref().filter(|file| file.is_behind()).map(|_| FILE_RETRY);
        let journal = self.journal.as_ref().and_then(SystemJournal::pause);
        [sum, file, journal].into_iter().flatten().min().unwrap_or(NOTHING_TO_DO)
    }

    fn close(mut self, lost: &LostEvents) {
        while let Some(sum) = self.throttle.next_sum_early(Instant::now()) {
            self.write(&AuditEvent::MoreRefusals(sum));
        }
        let give_up_at = Instant::now() + CLOSE_TIME;
        self.flush();
        while let Some(pause) = self.journal.as_ref().and_then(SystemJournal::pause)
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

/// Time until the next try to write a file that failed, unless an event comes first.
const FILE_RETRY: Duration = Duration::from_secs(1);

/// Time that a journald without room gets when the node stops.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// Wait of a writer that has nothing to do.
const NOTHING_TO_DO: Duration = Duration::from_secs(3600);
