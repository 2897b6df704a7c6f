//! Rule `location`: devices that the store loses sight of are really gone.
//!
//! Devices do go offline together, when a VPN server restarts; and a query that no longer finds them looks
//! the same. So a mass loss of location is put to the network: if most of a sample still answer where they
//! were, the store is wrong.

use std::collections::HashSet;
use std::net::IpAddr;

use super::network_answer::NetworkAnswer;
use super::probe::ProbeTarget;
use super::{Difference, Hold, Rule, Verdict};
use crate::authz::{Device, DeviceId, Snapshot};
use crate::config::{self, Allowance};
use crate::store::RowKey;

/// Devices that could be dialled and that the store gives no address any more, too many for one read.
pub(in crate::control) struct Unlocated {
    pub devices: HashSet<DeviceId>,
    /// Former addresses, without those that another device has now.
    pub targets: Vec<ProbeTarget>,
    /// Devices that could be dialled.
    pub total: usize,
}

impl Unlocated {
    /// `None` where no more were lost than may be.
    pub(in crate::control) fn among(
        difference: &Difference,
        in_force: &Snapshot,
        config: &config::GuardConfig,
        node: Option<&str>,
    ) -> Option<Self> {
        let Allowance { rows, .. } = config.max_unlocated;
        let lost: Vec<&Device> = difference
            .devices
            .iter()
            .filter(|row| row.after.as_ref().is_some_and(|device| device.location(node).is_none()))
            .filter_map(|row| row.before.as_ref().filter(|device| device.location(node).is_some()))
            .collect();
        // Before all devices are counted.
        if lost.len() <= rows {
            return None;
        }
        let total = in_force.devices().filter(|device| device.location(node).is_some()).count();
        if !config.max_unlocated.is_exceeded_by(lost.len(), total) {
            return None;
        }
        let taken: HashSet<IpAddr> = difference
            .devices
            .iter()
            .filter_map(|row| {
                let address = |device: &Option<Device>| device.as_ref()?.address;
                address(&row.after).filter(|after| address(&row.before) != Some(*after))
            })
            .collect();
        let targets = lost.iter().filter_map(|device| ProbeTarget::of(device));
        Some(Self {
            devices: lost.iter().map(|device| device.id).collect(),
            targets: targets.filter(|target| !taken.contains(&target.address)).collect(),
            total,
        })
    }

    /// Returns the verdict that follows from the network's answer.
    pub(super) fn verdict(&self, network: NetworkAnswer) -> Verdict {
        match network {
            NetworkAnswer::Silent | NetworkAnswer::Unasked => Verdict::Publish,
            NetworkAnswer::Asked => Verdict::Wait,
            NetworkAnswer::Answers { answered, sampled } => Verdict::Hold(self.hold(format!(
                "{} of {} devices have lost their location, but {answered} of {sampled} that were asked still answer",
                self.devices.len(),
                self.total
            ))),
        }
    }

    /// Returns the hold for devices that a changed query lost: the network has nothing to say about them.
    pub(in crate::control) fn by_query(&self) -> Hold {
        let (lost, total) = (self.devices.len(), self.total);
        self.hold(format!("{lost} of {total} devices would lose their location by the query"))
    }

    fn hold(&self, figures: String) -> Hold {
        let examples = self.devices.iter().map(|id| RowKey::Device(*id));
        Hold::new(Rule::Location, self.devices.len(), figures, examples)
    }
}
