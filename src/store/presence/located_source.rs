//! A source of rows whose devices have the addresses that `vpn.addresses` gives.

use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::layer::AddressLayer;
use super::report_queue::ReportQueue;
use crate::authz::Change;
use crate::config::{Config, Queries};
use crate::store::{Changes, Comparison, Rows, Source, StoreError, StoreWarnings};

/// A store beneath the layer of addresses. To its callers an address of a table is one that the store gave.
pub(in crate::store) struct LocatedSource {
    store: Box<dyn Source>,
    layer: AddressLayer,
    has_waited: bool,
}

impl LocatedSource {
    pub(in crate::store) fn new(store: Box<dyn Source>, config: &Config, reports: &ReportQueue) -> Self {
        Self { store, layer: AddressLayer::new(config, reports), has_waited: false }
    }

    fn poll_tables(&mut self) {
        if self.has_waited {
            self.layer.poll();
        } else {
            self.layer.wait_for_tables();
            self.has_waited = true;
        }
    }

    fn located(&mut self, mut rows: Rows) -> Rows {
        self.layer.lay_relation(&mut rows.devices);
        rows
    }

    /// Drains the devices that have moved in a table, as changes of their rows.
    fn drain_moves(&mut self) -> Vec<Change> {
        let rows = self.layer.moved_rows();
        let moves = self.layer.drain_moves(|uuid| rows.get(uuid).cloned());
        moves.settled.into_iter().chain(moves.left).map(Change::Device).collect()
    }
}

impl Source for LocatedSource {
    fn read_all(&mut self) -> Result<Rows, StoreError> {
        self.poll_tables();
        let rows = self.store.read_all()?;
        Ok(self.located(rows))
    }

    fn read_changes(&mut self) -> Result<Changes, StoreError> {
        self.poll_tables();
        let (mut changes, quarantined) = match self.store.read_changes()? {
            Changes::Nothing => (Vec::new(), Vec::new()),
            Changes::Some { changes, quarantined } => (changes, quarantined),
            Changes::All(rows) => return Ok(Changes::All(self.located(rows))),
            Changes::Behind => return Ok(Changes::Behind),
        };
        self.layer.forget_quarantined(&quarantined);
        changes.iter_mut().for_each(|change| self.layer.lay_change(change));
        changes.extend(self.drain_moves());
        if changes.is_empty() && quarantined.is_empty() {
            return Ok(Changes::Nothing);
        }
        Ok(Changes::Some { changes, quarantined })
    }

    fn compare(&mut self, candidate: &Queries) -> Result<Comparison, StoreError> {
        self.poll_tables();
        let Comparison { mut running, mut candidate } = self.store.compare(candidate)?;
        running.devices.iter_mut().chain(&mut candidate.devices).for_each(|device| self.layer.lay(device));
        Ok(Comparison { running, candidate })
    }

    fn replace_queries(&mut self, queries: Queries) {
        self.store.replace_queries(queries);
    }

    fn changes_elsewhere(&mut self) -> Vec<Change> {
        self.poll_tables();
        self.drain_moves()
    }

    fn warnings(&self) -> StoreWarnings {
        let mut warnings = self.store.warnings();
        self.layer.add_warnings(&mut warnings);
        warnings
    }

    fn lag(&self) -> Duration {
        self.store.lag()
    }

    fn readable_since(&self) -> Option<Instant> {
        self.store.readable_since()
    }

    fn wake_ups(&mut self) -> Receiver<()> {
        self.store.wake_ups()
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}
