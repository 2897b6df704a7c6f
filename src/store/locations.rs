//! Which devices a node's VPN holds, on its way to the store: what waits to be written, and what came of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::directory::writing_store;
use super::{StoreError, postgres, sqlite};
use crate::authz::{DeviceUuid, UnixMillis};
use crate::config::{Config, StoreUrl};

/// The rows of devices in the reference schema, as far as they say where a device is. Calls block; after an error the
/// next call connects anew.
pub trait LocationTable: Send {
    /// Writes `reports` of `node`, and gives the devices that the store has there now. Another node that holds a
    /// device and has lived within `max_age` loses it only to a later claim, and only its own devices does a node
    /// take out of the VPN. A device that the store does not know is passed over. What failed may be written in part,
    /// and can be written again.
    fn write(
        &mut self,
        node: &str,
        max_age: Duration,
        reports: &[(DeviceUuid, Report)],
    ) -> Result<Vec<DeviceUuid>, StoreError>;
}

/// Where a device is, as its node's VPN has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// At that address of the node's VPN, and since when, where that is known.
    Here { address: IpAddr, since: Option<UnixMillis> },
    /// Not in the node's VPN any more.
    Gone,
}

/// A report with what the store made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub report: Report,
    /// Whether the store has it so now; if not, somebody else was later.
    pub is_taken: bool,
}

/// Between the control thread, which finds out where devices are, and the thread that writes it. Holds one report for
/// each device, the last; so there are at most as many as the store has devices. Cheap to clone.
#[derive(Clone)]
pub struct Reports(Arc<ReportQueue>);

struct ReportQueue {
    state: Mutex<QueueState>,
    /// Full where there is something to write.
    wake: (Sender<()>, Receiver<()>),
}

#[derive(Default)]
struct QueueState {
    waiting: HashMap<DeviceUuid, Report>,
    answers: HashMap<DeviceUuid, Answer>,
}

impl Default for Reports {
    fn default() -> Self {
        Self(Arc::new(ReportQueue { state: Mutex::default(), wake: bounded(1) }))
    }
}

impl Reports {
    /// In the place of what waits of that device.
    pub fn put(&self, uuid: DeviceUuid, report: Report) {
        self.0.state.lock().waiting.insert(uuid, report);
        self.ring();
    }

    /// Nothing is to be written of that device any more.
    pub fn withdraw(&self, uuid: &DeviceUuid) {
        self.0.state.lock().waiting.remove(uuid);
    }

    /// What has come of reports since this was last called.
    pub fn answers(&self) -> HashMap<DeviceUuid, Answer> {
        std::mem::take(&mut self.0.state.lock().answers)
    }

    /// Takes up to `count_max` reports that may be written now.
    pub fn take(
        &self,
        count_max: usize,
        may_be_written: impl Fn(&DeviceUuid, &Report) -> bool,
    ) -> Vec<(DeviceUuid, Report)> {
        let mut state = self.0.state.lock();
        let ready = state.waiting.iter().filter(|(uuid, report)| may_be_written(uuid, report));
        let taken: Vec<_> = ready.take(count_max).map(|(uuid, report)| (*uuid, *report)).collect();
        for (uuid, _) in &taken {
            state.waiting.remove(uuid);
        }
        taken
    }

    /// What was taken and could not be written waits again, unless there is something newer.
    pub fn put_back(&self, taken: Vec<(DeviceUuid, Report)>) {
        let mut state = self.0.state.lock();
        for (uuid, report) in taken {
            state.waiting.entry(uuid).or_insert(report);
        }
    }

    /// What was taken has been written, and the store has the devices `here` at this node.
    pub fn answer(&self, taken: &[(DeviceUuid, Report)], here: &[DeviceUuid]) {
        let mut state = self.0.state.lock();
        for (uuid, report) in taken {
            let answer = Answer { report: *report, is_taken: false };
            state.answers.insert(*uuid, answer);
        }
        for uuid in here {
            if let Some(answer) = state.answers.get_mut(uuid) {
                answer.is_taken = true;
            }
        }
    }

    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }

    /// Full where there is something to write.
    pub fn wake(&self) -> &Receiver<()> {
        &self.0.wake.1
    }

    fn ring(&self) {
        // It rings already.
        let _full = self.0.wake.0.try_send(());
    }
}

/// The table that the configuration names, written by the role that keeps the directory of nodes.
pub fn location_table(config: &Config) -> Box<dyn LocationTable> {
    let store = writing_store(config);
    match &store.url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::SqliteLocations::new(path)),
        StoreUrl::Postgres(url) => Box::new(postgres::PostgresLocations::new(url, &store)),
    }
}

/// A device that is held by a node that lives goes to another one whose claim is later by more than this. What VPNs tell
/// is in whole seconds, and two nodes that hold the same must not take it from each other for ever.
pub const CLAIM_MARGIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid(number: u8) -> DeviceUuid {
        DeviceUuid::parse(&format!("{number:032x}")).unwrap()
    }

    fn here(address: &str) -> Report {
        Report::Here { address: address.parse().unwrap(), since: None }
    }

    #[test]
    fn of_each_device_the_last_report_waits() {
        let reports = Reports::default();
        assert!(reports.wake().try_recv().is_err());
        for address in ["10.8.0.2", "10.8.0.3", "10.8.0.4"] {
            reports.put(uuid(1), here(address));
        }
        reports.put(uuid(2), Report::Gone);
        reports.put(uuid(3), Report::Gone);
        reports.withdraw(&uuid(3));
        assert!(reports.wake().try_recv().is_ok() && reports.wake().try_recv().is_err());
        let mut taken = reports.take(10, |_, _| true);
        taken.sort_by_key(|(uuid, _)| uuid.to_string());
        assert_eq!(taken, [(uuid(1), here("10.8.0.4")), (uuid(2), Report::Gone)]);
        assert_eq!(reports.waiting(), 0);
    }

    #[test]
    fn no_more_are_taken_than_one_transaction_writes_and_none_before_its_time() {
        let reports = Reports::default();
        (0..5).for_each(|number| reports.put(uuid(number), here("10.8.0.2")));
        (5..9).for_each(|number| reports.put(uuid(number), Report::Gone));
        let is_here = |_: &DeviceUuid, report: &Report| *report != Report::Gone;
        assert_eq!([3, 3, 3].map(|count_max| reports.take(count_max, is_here).len()), [3, 2, 0]);
        assert_eq!(reports.waiting(), 4);
    }

    #[test]
    fn what_could_not_be_written_waits_again_unless_something_newer_does() {
        let reports = Reports::default();
        reports.put(uuid(1), here("10.8.0.2"));
        reports.put(uuid(2), here("10.8.0.3"));
        let taken = reports.take(10, |_, _| true);
        reports.put(uuid(1), Report::Gone);
        reports.put_back(taken);
        let again: HashMap<_, _> = reports.take(10, |_, _| true).into_iter().collect();
        assert_eq!((again[&uuid(1)], again[&uuid(2)]), (Report::Gone, here("10.8.0.3")));
    }

    #[test]
    fn each_report_has_one_answer() {
        let reports = Reports::default();
        let taken = [(uuid(1), here("10.8.0.2")), (uuid(2), here("10.8.0.3"))];
        reports.answer(&taken, &[uuid(2)]);
        let answers = reports.answers();
        assert_eq!(answers[&uuid(1)], Answer { report: here("10.8.0.2"), is_taken: false });
        assert_eq!(answers[&uuid(2)], Answer { report: here("10.8.0.3"), is_taken: true });
        assert!(reports.answers().is_empty());
    }
}
