//! Reports about the devices in a node's VPN, on their way to the store, and the store's answers to them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::authz::{DeviceUuid, UnixMillis};

/// Place of a device by its node's VPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceReport {
    /// The device is in the node's VPN at this address, since this time if it is known.
    Here { address: IpAddr, since: Option<UnixMillis> },
    /// The device is no longer in the node's VPN.
    Gone,
}

/// The store's answer to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportAnswer {
    pub report: PresenceReport,
    /// True if the store has the device so now. Otherwise another node's claim was later.
    pub is_accepted: bool,
}

/// The device's own word on whether it is in the node's VPN: whether it answers at its address there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceAnswer {
    Answers,
    Silent,
}

/// Queue between the control thread, which finds where devices are, and the thread that writes it. It holds the last
/// report of each device, so it is at most as long as the store has devices. Clones share one queue.
#[derive(Clone)]
pub struct ReportQueue(Arc<SharedQueue>);

struct SharedQueue {
    state: Mutex<QueueState>,
    /// Holds a message while there may be something to write.
    wake: (Sender<()>, Receiver<()>),
}

#[derive(Default)]
struct QueueState {
    waiting: HashMap<DeviceUuid, PresenceReport>,
    answers: HashMap<DeviceUuid, ReportAnswer>,
    /// Devices that the VPN has here and another node by the store, to be asked themselves.
    contested: HashMap<DeviceUuid, IpAddr>,
    heard: HashMap<DeviceUuid, DeviceAnswer>,
}

impl Default for ReportQueue {
    fn default() -> Self {
        Self(Arc::new(SharedQueue { state: Mutex::default(), wake: bounded(1) }))
    }
}

impl ReportQueue {
    /// Queues a report in place of the device's earlier one.
    pub fn put(&self, uuid: DeviceUuid, report: PresenceReport) {
        self.0.state.lock().waiting.insert(uuid, report);
        // A full channel holds a wake-up already.
        let _full = self.0.wake.0.try_send(());
    }

    /// Removes the device's report, if one waits.
    pub fn withdraw(&self, uuid: &DeviceUuid) {
        self.0.state.lock().waiting.remove(uuid);
    }

    /// Removes and returns the answers since the last call.
    pub fn drain_answers(&self) -> HashMap<DeviceUuid, ReportAnswer> {
        std::mem::take(&mut self.0.state.lock().answers)
    }

    /// Removes and returns up to `count_max` reports that may be written now.
    pub fn drain(
        &self,
        count_max: usize,
        may_be_written: impl Fn(&DeviceUuid, &PresenceReport) -> bool,
    ) -> Vec<(DeviceUuid, PresenceReport)> {
        let mut state = self.0.state.lock();
        let ready = state.waiting.iter().filter(|(uuid, report)| may_be_written(uuid, report));
        let batch: Vec<_> = ready.take(count_max).map(|(uuid, report)| (*uuid, *report)).collect();
        for (uuid, _) in &batch {
            state.waiting.remove(uuid);
        }
        batch
    }

    /// Queues a batch again that could not be written. A newer report of the same device stays.
    pub fn put_back(&self, batch: Vec<(DeviceUuid, PresenceReport)>) {
        let mut state = self.0.state.lock();
        for (uuid, report) in batch {
            state.waiting.entry(uuid).or_insert(report);
        }
    }

    /// Records the answers to a batch that was written. The store has the devices `here` at this node.
    pub fn record_answers(&self, batch: &[(DeviceUuid, PresenceReport)], here: &[DeviceUuid]) {
        let mut state = self.0.state.lock();
        for (uuid, report) in batch {
            let answer = ReportAnswer { report: *report, is_accepted: false };
            state.answers.insert(*uuid, answer);
        }
        for uuid in here {
            if let Some(answer) = state.answers.get_mut(uuid) {
                answer.is_accepted = true;
            }
        }
    }

    /// Has the device asked whether it is in the node's VPN at `address`.
    pub fn contest(&self, uuid: DeviceUuid, address: IpAddr) {
        self.0.state.lock().contested.insert(uuid, address);
    }

    /// Removes and returns the devices that are to be asked, with their addresses.
    pub fn drain_contested(&self) -> HashMap<DeviceUuid, IpAddr> {
        std::mem::take(&mut self.0.state.lock().contested)
    }

    /// Records what a device has answered.
    pub fn record_device_answer(&self, uuid: DeviceUuid, answer: DeviceAnswer) {
        self.0.state.lock().heard.insert(uuid, answer);
    }

    /// Removes and returns what devices have answered since the last call.
    pub fn drain_device_answers(&self) -> HashMap<DeviceUuid, DeviceAnswer> {
        std::mem::take(&mut self.0.state.lock().heard)
    }

    /// Number of reports that wait.
    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }

    /// Receives a message when there may be something to write.
    pub fn wake(&self) -> &Receiver<()> {
        &self.0.wake.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid(number: u8) -> DeviceUuid {
        DeviceUuid::parse(&format!("{number:032x}")).unwrap()
    }

    fn here(address: &str) -> PresenceReport {
        PresenceReport::Here { address: address.parse().unwrap(), since: None }
    }

    #[test]
    fn of_each_device_the_last_report_waits() {
        let reports = ReportQueue::default();
        assert!(reports.wake().try_recv().is_err());
        for address in ["10.8.0.2", "10.8.0.3", "10.8.0.4"] {
            reports.put(uuid(1), here(address));
        }
        reports.put(uuid(2), PresenceReport::Gone);
        reports.put(uuid(3), PresenceReport::Gone);
        reports.withdraw(&uuid(3));
        assert!(reports.wake().try_recv().is_ok() && reports.wake().try_recv().is_err());
        let mut batch = reports.drain(10, |_, _| true);
        batch.sort_by_key(|(uuid, _)| uuid.to_string());
        assert_eq!(batch, [(uuid(1), here("10.8.0.4")), (uuid(2), PresenceReport::Gone)]);
        assert_eq!(reports.waiting(), 0);
    }

    #[test]
    fn a_batch_has_no_more_than_one_transaction_writes_and_none_before_its_time() {
        let reports = ReportQueue::default();
        (0..5).for_each(|number| reports.put(uuid(number), here("10.8.0.2")));
        (5..9).for_each(|number| reports.put(uuid(number), PresenceReport::Gone));
        let is_here = |_: &DeviceUuid, report: &PresenceReport| *report != PresenceReport::Gone;
        assert_eq!([3, 3, 3].map(|count_max| reports.drain(count_max, is_here).len()), [3, 2, 0]);
        assert_eq!(reports.waiting(), 4);
    }

    #[test]
    fn what_could_not_be_written_waits_again_unless_something_newer_does() {
        let reports = ReportQueue::default();
        reports.put(uuid(1), here("10.8.0.2"));
        reports.put(uuid(2), here("10.8.0.3"));
        let batch = reports.drain(10, |_, _| true);
        reports.put(uuid(1), PresenceReport::Gone);
        reports.put_back(batch);
        let again: HashMap<_, _> = reports.drain(10, |_, _| true).into_iter().collect();
        assert_eq!((again[&uuid(1)], again[&uuid(2)]), (PresenceReport::Gone, here("10.8.0.3")));
    }

    #[test]
    fn each_report_has_one_answer() {
        let reports = ReportQueue::default();
        let batch = [(uuid(1), here("10.8.0.2")), (uuid(2), here("10.8.0.3"))];
        reports.record_answers(&batch, &[uuid(2)]);
        let answers = reports.drain_answers();
        assert_eq!(answers[&uuid(1)], ReportAnswer { report: here("10.8.0.2"), is_accepted: false });
        assert_eq!(answers[&uuid(2)], ReportAnswer { report: here("10.8.0.3"), is_accepted: true });
        assert!(reports.drain_answers().is_empty());
    }
}
