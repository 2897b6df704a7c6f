//! The control thread's loop: read, publish, confirm, wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, select};

use super::publisher::Publisher;
use super::quarantine::Quarantine;
use super::status::{Status, StatusHandle};
use crate::authz::{Authority, UnixMillis};
use crate::config::Authz;
use crate::store::{Changes, Rows, Source, StoreError};

/// Everything that the control thread owns.
pub(super) struct Refresher {
    source: Box<dyn Source>,
    authority: Arc<Authority>,
    publisher: Publisher,
    quarantine: Quarantine,
    status: StatusHandle,
    refresh_every: Duration,
    reconcile_every: Duration,
    reconcile_at: Instant,
    /// Failed reads in a row.
    failures: u32,
    /// The failure that was last told in the log.
    trouble: Option<String>,
}

impl Refresher {
    /// Reads everything and publishes it.
    pub(super) fn start(
        mut source: Box<dyn Source>,
        authority: Arc<Authority>,
        on_publish: Box<dyn Fn() + Send>,
        config: &Authz,
    ) -> Result<Self, StoreError> {
        let now = UnixMillis::now();
        let mut rows = source.read_all()?;
        let mut quarantine = Quarantine::default();
        quarantine.replace(std::mem::take(&mut rows.quarantined));
        let publisher = Publisher::start(Arc::clone(&authority), on_publish, rows);
        authority.confirm(now);
        let status = StatusHandle::new(Status {
            store: source.describe(),
            generation: publisher.snapshot().generation(),
            rows: publisher.snapshot().row_counts(),
            confirmed_at: now,
            last_error: None,
            quarantined: quarantine.len(),
        });
        Ok(Self {
            source,
            authority,
            publisher,
            quarantine,
            status,
            refresh_every: config.refresh,
            reconcile_every: config.reconcile,
            reconcile_at: Instant::now() + jittered(config.reconcile),
            failures: 0,
            trouble: None,
        })
    }

    pub(super) fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Keeps up with the store until the other end of `stopped` is dropped.
    pub(super) fn run(mut self, stopped: &Receiver<()>) {
        let wake_ups = self.source.wake_ups();
        loop {
            select! {
                recv(stopped) -> _ => return,
                recv(wake_ups) -> _ => {}
                default(self.pause()) => {}
            }
            self.turn();
        }
    }

    /// Until the next read. A store that fails is asked less and less often, by no two nodes in step, but comes
    /// back soon.
    fn pause(&self) -> Duration {
        let pause = self.refresh_every.saturating_mul(1 << self.failures.min(16));
        let pause = pause.min(FAILURE_PAUSE_MAX.max(self.refresh_every)).max(PAUSE_MIN);
        if self.failures == 0 { pause } else { jittered(pause) }
    }

    fn turn(&mut self) {
        // Unwind safe: after a fault everything is read anew, and views are replaced as a whole.
        match catch_unwind(AssertUnwindSafe(|| self.refresh())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(error.to_string()),
            Err(panic) => {
                // What was read may be lost: the source takes it for delivered.
                self.reconcile_at = Instant::now();
                self.fail(format!("a fault of sluicegate itself ({}); please report it", message(&*panic)));
            }
        }
    }

    fn refresh(&mut self) -> Result<(), StoreError> {
        self.publisher.reclaim();
        let now = UnixMillis::now();
        self.read()?;
        let lag_ms = i64::try_from(self.source.lag().as_millis()).unwrap_or(i64::MAX);
        self.confirm(UnixMillis(now.0.saturating_sub(lag_ms)));
        Ok(())
    }

    fn read(&mut self) -> Result<(), StoreError> {
        if Instant::now() >= self.reconcile_at {
            return self.read_everything();
        }
        match self.source.read_changes()? {
            Changes::Nothing => {}
            Changes::Some { changes, quarantined } => {
                self.publisher.take_changes(&changes);
                self.quarantine.update(&changes, quarantined);
            }
            Changes::All(rows) => self.take_everything(rows),
            Changes::Behind => {
                tracing::info!("the outbox of {} does not reach back; reading all", self.source.describe());
                self.read_everything()?;
            }
        }
        Ok(())
    }

    fn read_everything(&mut self) -> Result<(), StoreError> {
        let rows = self.source.read_all()?;
        self.take_everything(rows);
        self.reconcile_at = Instant::now() + jittered(self.reconcile_every);
        Ok(())
    }

    fn take_everything(&mut self, mut rows: Rows) {
        let quarantined = std::mem::take(&mut rows.quarantined);
        self.publisher.take_rows(rows, &quarantined);
        self.quarantine.replace(quarantined);
    }

    /// The store was read as it was at `now`, and what it said is in force.
    fn confirm(&mut self, now: UnixMillis) {
        self.authority.confirm(now);
        self.failures = 0;
        if self.trouble.take().is_some() {
            tracing::info!("{} can be read again", self.source.describe());
        }
        let snapshot = self.publisher.snapshot();
        self.status.update(|status| {
            status.generation = snapshot.generation();
            status.rows = snapshot.row_counts();
            status.confirmed_at = now;
            status.last_error = None;
            status.quarantined = self.quarantine.len();
        });
    }

    /// Tells a failure when it begins and when it turns into another one, not with every read.
    fn fail(&mut self, error: String) {
        self.authority.lost_store();
        self.failures = self.failures.saturating_add(1);
        if self.trouble.as_ref() != Some(&error) {
            tracing::warn!("{error}; until then the last good snapshot decides");
            self.status.update(|status| status.last_error = Some(error.clone()));
            self.trouble = Some(error);
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Within 10 % of `period`, so that nodes do not all read everything in the same second.
fn jittered(period: Duration) -> Duration {
    // Without random bytes there is no jitter; nothing depends on it.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    period.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

/// Between two reads of a store that fails.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Between two reads at all, also where `authz.refresh` is 0.
const PAUSE_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconciles_are_spread_by_a_tenth_to_either_side() {
        let period = Duration::from_secs(100);
        let periods: Vec<_> = (0..1_000).map(|_| jittered(period)).collect();
        assert!(periods.iter().all(|p| (90..=110).contains(&p.as_secs())));
        assert!(periods.iter().any(|p| *p < period) && periods.iter().any(|p| *p > period));
    }
}
