//! Writes to the store which devices this node's VPN holds.
//!
//! On a thread of its own: a slow store must keep neither revocations nor signs of life waiting. Many devices that
//! come at once are written together. The same thread answers the claims of other nodes to devices of this one.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::select;
use parking_lot::Mutex;

use super::contested_devices::{ClaimAnswers, ContestedDevices};
use super::readers::jittered;
use super::write_pause::WritePause;
use crate::authz::{Authority, DeviceUuid};
use crate::config::Config;
use crate::store::{ClaimTable, PresenceReport, ReportQueue, StoreError, WrittenClaims};
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// The thread; dropping it ends it.
pub struct PresenceWriterThread {
    _thread: ServiceThread,
    counts: LocationCounts,
    config: Arc<Mutex<Arc<Config>>>,
    pause: WritePause,
}

/// Counts of what was written so far. Cheap to clone.
#[derive(Clone, Default)]
pub struct LocationCounts {
    pub reports: ReportQueue,
    /// Devices that the store has as they were reported.
    pub taken: Arc<AtomicU64>,
    /// Devices that another node has claimed later, or that the store does not have.
    pub refused: Arc<AtomicU64>,
    /// Times that nothing could be written.
    pub errors: Arc<AtomicU64>,
    /// Answers to claims of other nodes.
    pub answers: ClaimAnswers,
}

impl PresenceWriterThread {
    /// Writes what waits in `reports`, if the configuration wants that.
    pub fn start(
        table: ClaimTable,
        authority: Arc<Authority>,
        reports: ReportQueue,
        config: &Config,
    ) -> io::Result<Self> {
        let counts = LocationCounts { reports, ..LocationCounts::default() };
        let shared = Arc::new(Mutex::new(Arc::new(config.clone())));
        let pause = WritePause::default();
        let Some(node) = config.vpn.node.clone().filter(|_| config.vpn.report) else {
            return Ok(Self { _thread: ServiceThread::default(), counts, config: shared, pause });
        };
        let contested = ContestedDevices::new(
            &node,
            Arc::clone(&authority),
            counts.reports.clone(),
            Arc::clone(&shared),
            counts.answers.clone(),
        );
        let mut keeper = PresenceWriter {
            table,
            authority,
            node,
            config: Arc::clone(&shared),
            counts: counts.clone(),
            contested,
            answer_at: Instant::now(),
            asked: HashMap::new(),
            pause: pause.clone(),
            trouble: LogOnChange::default(),
        };
        let thread = ServiceThread::start("locations", move |stop| keeper.run(&stop))?;
        Ok(Self { _thread: thread, counts, config: shared, pause })
    }

    /// The switch that leaves the writing to another process.
    pub fn write_pause(&self) -> WritePause {
        self.pause.clone()
    }

    /// Goes by `config` from now on.
    pub fn reconfigure(&self, config: &Arc<Config>) {
        *self.config.lock() = Arc::clone(config);
    }

    pub fn counts(&self) -> LocationCounts {
        self.counts.clone()
    }
}

struct PresenceWriter {
    table: ClaimTable,
    authority: Arc<Authority>,
    node: String,
    config: Arc<Mutex<Arc<Config>>>,
    counts: LocationCounts,
    contested: ContestedDevices,
    /// Time of the next look for claims of other nodes.
    answer_at: Instant,
    /// Devices that their holder is asked for, since when.
    asked: HashMap<DeviceUuid, Instant>,
    pause: WritePause,
    trouble: LogOnChange,
}

impl PresenceWriter {
    fn run(&mut self, stop: &StopSignal) {
        let wake = self.counts.reports.wake().clone();
        loop {
            let written = self.answer_claims().and_then(|()| self.write());
            let pause = match written {
                Ok(_) if self.is_paused() => Some(GUARD_PAUSE),
                Ok(_) if self.counts.reports.waiting() == 0 => None,
                Ok(_) if !self.asked.is_empty() => Some(ASK_PAUSE),
                Ok(0) => Some(GUARD_PAUSE),
                Ok(_) => Some(BATCH_PAUSE),
                Err(()) => Some(jittered(FAILURE_PAUSE)),
            };
            if pause.is_none() {
                select! {
                    recv(stop.channel()) -> _ => return,
                    recv(wake) -> _ => {}
                    default(ANSWER_EVERY) => continue,
                }
            }
            // Others are about to come, or what could not be written has a rest.
            if stop.is_stopped_within(pause.unwrap_or(BATCH_PAUSE)) {
                return;
            }
        }
    }

    /// Writes some of what waits, and says how much.
    fn write(&mut self) -> Result<usize, ()> {
        if self.is_paused() {
            return Ok(0);
        }
        let batch = self.counts.reports.drain(BATCH_MAX, |uuid, report| self.is_settled(uuid, report));
        if batch.is_empty() {
            return Ok(0);
        }
        let max_age = self.config.lock().forward.max_age;
        let done = self.table.write(&self.node, max_age, &batch);
        self.log_outcome(&done);
        match done {
            Ok(written) => {
                let count = batch.len();
                self.record(batch, written);
                Ok(count)
            }
            Err(_) => {
                self.counts.reports.put_back(batch);
                Err(())
            }
        }
    }

    /// Records the outcome of a batch. Devices that their holder is asked for wait for its answer.
    fn record(&mut self, batch: Vec<(DeviceUuid, PresenceReport)>, written: WrittenClaims) {
        let WrittenClaims { here, asked } = written;
        let now = Instant::now();
        self.asked.retain(|_, since| now < *since + ASKED_FORGOTTEN);
        let is_open = |uuid: &DeviceUuid| {
            asked.contains(uuid) && self.asked.get(uuid).is_none_or(|since| now < *since + HOLDER_PATIENCE)
        };
        let (open, settled): (Vec<_>, Vec<_>) = batch.into_iter().partition(|(uuid, _)| is_open(uuid));
        for (uuid, _) in &open {
            self.asked.entry(*uuid).or_insert(now);
        }
        for uuid in &here {
            self.asked.remove(uuid);
        }
        let told = settled.iter().filter(|(_, report)| *report != PresenceReport::Gone).count();
        self.counts.taken.fetch_add(here.len() as u64, Ordering::Relaxed);
        self.counts.refused.fetch_add(told.saturating_sub(here.len()) as u64, Ordering::Relaxed);
        self.counts.reports.record_answers(&settled, &here);
        self.counts.reports.put_back(open);
    }

    /// Answers the claims of other nodes, from time to time.
    fn answer_claims(&mut self) -> Result<(), ()> {
        if self.is_paused() || Instant::now() < self.answer_at {
            return Ok(());
        }
        self.answer_at = Instant::now() + ANSWER_EVERY;
        let answered = self.contested.answer(&mut self.table);
        answered.map_err(|error| self.log_outcome(&Err(error)))
    }

    /// Another process writes: one that this one has handed over to, or one that has the node's name.
    fn is_paused(&self) -> bool {
        self.pause.is_on() || self.authority.is_stand_by()
    }

    /// Returns whether the guard has settled `report`. A device that the VPN lost and that still answers is not gone,
    /// and a reader of the store could not ask it.
    fn is_settled(&self, uuid: &DeviceUuid, report: &PresenceReport) -> bool {
        if *report != PresenceReport::Gone {
            return true;
        }
        let view = self.authority.pin();
        let device = view.get().map(|view| view.snapshot.device_named(*uuid));
        device.is_some_and(|device| device.is_none_or(|device| device.location(Some(&self.node)).is_none()))
    }

    fn log_outcome(&mut self, done: &Result<WrittenClaims, StoreError>) {
        match done {
            Ok(_) if self.trouble.ends() => tracing::info!("the store can be told where devices are again"),
            Ok(_) => {}
            Err(error) => {
                self.counts.errors.fetch_add(1, Ordering::Relaxed);
                if self.trouble.changes_to(error.to_string()) {
                    tracing::warn!("the store cannot be told where devices are: {error}");
                }
            }
        }
    }
}

/// Devices that are written together. Some 10 ms of PostgreSQL's time, which others who write wait for.
const BATCH_MAX: usize = 1000;

/// Pause that lets more devices join the first, and between two batches.
const BATCH_PAUSE: Duration = Duration::from_millis(50);

/// Pause between two checks for reports that wait for the guard, which may take days.
const GUARD_PAUSE: Duration = Duration::from_millis(250);

/// Time between two looks for claims of other nodes.
const ANSWER_EVERY: Duration = Duration::from_millis(500);

/// Pause between two looks whether a holder has answered.
const ASK_PAUSE: Duration = Duration::from_millis(250);

/// Time that a holder has for its answer. The store gives the device to the claimant then, as to one whose holder has
/// died.
const HOLDER_PATIENCE: Duration = Duration::from_secs(7);

/// Time after which a device that was asked for counts as asked for anew.
const ASKED_FORGOTTEN: Duration = Duration::from_secs(30);

/// Pause before a failed write is tried again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
