//! Writes to the store which devices this node's VPN holds.
//!
//! On a thread of its own: a slow store must keep neither revocations nor signs of life waiting. Many devices that
//! come at once are written together.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::select;

use super::readers::jittered;
use super::write_pause::WritePause;
use crate::authz::{Authority, DeviceUuid};
use crate::config::Config;
use crate::store::{ClaimTable, PresenceReport, ReportQueue, StoreError};
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;

/// The thread; dropping it ends it.
pub struct PresenceWriterThread {
    _thread: ServiceThread,
    counts: LocationCounts,
    max_age_ms: Arc<AtomicU64>,
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
        let max_age_ms = Arc::new(AtomicU64::new(millis(config.forward.max_age)));
        let pause = WritePause::default();
        let Some(node) = config.vpn.node.clone().filter(|_| config.vpn.report) else {
            return Ok(Self { _thread: ServiceThread::default(), counts, max_age_ms, pause });
        };
        let mut keeper = PresenceWriter {
            table,
            authority,
            node,
            max_age_ms: Arc::clone(&max_age_ms),
            counts: counts.clone(),
            pause: pause.clone(),
            trouble: LogOnChange::default(),
        };
        let thread = ServiceThread::start("locations", move |stop| keeper.run(&stop))?;
        Ok(Self { _thread: thread, counts, max_age_ms, pause })
    }

    /// The switch that leaves the writing to another process.
    pub fn write_pause(&self) -> WritePause {
        self.pause.clone()
    }

    /// Takes another node for gone after `max_age` without a heartbeat, from now on.
    pub fn set_max_age(&self, max_age: Duration) {
        self.max_age_ms.store(millis(max_age), Ordering::Relaxed);
    }

    pub fn counts(&self) -> LocationCounts {
        self.counts.clone()
    }
}

struct PresenceWriter {
    table: ClaimTable,
    authority: Arc<Authority>,
    node: String,
    max_age_ms: Arc<AtomicU64>,
    counts: LocationCounts,
    pause: WritePause,
    trouble: LogOnChange,
}

impl PresenceWriter {
    fn run(&mut self, stop: &StopSignal) {
        let wake = self.counts.reports.wake().clone();
        loop {
            let pause = match self.write() {
                Ok(0) if self.pause.is_on() => Some(GUARD_PAUSE),
                Ok(_) if self.counts.reports.waiting() == 0 => None,
                Ok(0) => Some(GUARD_PAUSE),
                Ok(_) => Some(BATCH_PAUSE),
                Err(()) => Some(jittered(FAILURE_PAUSE)),
            };
            if pause.is_none() {
                select! {
                    recv(stop.channel()) -> _ => return,
                    recv(wake) -> _ => {}
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
        if self.pause.is_on() {
            return Ok(0);
        }
        let batch = self.counts.reports.drain(BATCH_MAX, |uuid, report| self.is_settled(uuid, report));
        if batch.is_empty() {
            return Ok(0);
        }
        let max_age = Duration::from_millis(self.max_age_ms.load(Ordering::Relaxed));
        let done = self.table.write(&self.node, max_age, &batch);
        self.log_outcome(&done);
        match done {
            Ok(here) => {
                let told = batch.iter().filter(|(_, report)| *report != PresenceReport::Gone).count();
                self.counts.taken.fetch_add(here.len() as u64, Ordering::Relaxed);
                self.counts.refused.fetch_add(told.saturating_sub(here.len()) as u64, Ordering::Relaxed);
                self.counts.reports.record_answers(&batch, &here);
                Ok(batch.len())
            }
            Err(_) => {
                self.counts.reports.put_back(batch);
                Err(())
            }
        }
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

    fn log_outcome(&mut self, done: &Result<Vec<DeviceUuid>, StoreError>) {
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Devices that are written together. Some 10 ms of PostgreSQL's time, which others who write wait for.
const BATCH_MAX: usize = 1000;

/// Pause that lets more devices join the first, and between two batches.
const BATCH_PAUSE: Duration = Duration::from_millis(50);

/// Pause between two checks for reports that wait for the guard, which may take days.
const GUARD_PAUSE: Duration = Duration::from_millis(250);

/// Pause before a failed write is tried again.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
