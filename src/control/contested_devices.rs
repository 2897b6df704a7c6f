//! Devices that two nodes claim: each is asked itself whether it is in this node's VPN.
//!
//! A node that took over a device which this one holds has asked for it in the store. The device goes there if it does
//! not answer here any more, and stays otherwise. A node that lives keeps its devices, whatever another one writes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::locations::{ASKED_MAX, ask_each};
use crate::authz::{Authority, DeviceUuid};
use crate::config::Config;
use crate::store::{ClaimTable, DeviceAnswer, OpenClaim, ReportQueue, StoreError};
use crate::telemetry::LogOnChange;

/// Answers to claims of other nodes so far. Cheap to clone.
#[derive(Clone, Default)]
pub struct ClaimAnswers {
    /// Devices that stayed, because they answer here.
    pub kept: Arc<AtomicU64>,
    /// Devices that went to the claimant.
    pub yielded: Arc<AtomicU64>,
}

/// What is needed to ask devices.
pub(super) struct ContestedDevices {
    node: String,
    authority: Arc<Authority>,
    reports: ReportQueue,
    config: Arc<Mutex<Arc<Config>>>,
    answers: ClaimAnswers,
    /// Nodes that claim devices which answer here, with one of the devices.
    wrong: LogOnChange<Vec<Box<str>>>,
}

impl ContestedDevices {
    pub(super) fn new(
        node: &str,
        authority: Arc<Authority>,
        reports: ReportQueue,
        config: Arc<Mutex<Arc<Config>>>,
        answers: ClaimAnswers,
    ) -> Self {
        Self { node: node.to_owned(), authority, reports, config, answers, wrong: LogOnChange::default() }
    }

    /// Answers the claims of other nodes to devices of this one, some at a time, and asks the devices that the store has
    /// elsewhere. It waits for the devices, for `authz.guard.probe_time` at most.
    pub(super) fn answer(&mut self, table: &mut ClaimTable) -> Result<(), StoreError> {
        let claims = table.open_claims(&self.node)?;
        let contested = self.reports.drain_contested();
        let claimed = claims.iter().map(|claim| (claim.uuid, None));
        let contested = contested.into_iter().map(|(uuid, address)| (uuid, Some(address)));
        let devices: HashMap<DeviceUuid, Option<IpAddr>> = claimed.chain(contested).collect();
        if devices.is_empty() {
            drop(self.wrong.new_among(Vec::new()));
            return Ok(());
        }
        let heard = self.ask(&devices);
        let mut answers = Vec::new();
        let mut wrong = Vec::new();
        for OpenClaim { uuid, claimant } in &claims {
            match heard.get(uuid) {
                Some(DeviceAnswer::Answers) => {
                    answers.push((*uuid, self.node.as_str()));
                    wrong.push(claimant.clone());
                }
                Some(DeviceAnswer::Silent) => answers.push((*uuid, &**claimant)),
                // It is asked in the next round.
                None => {}
            }
        }
        if !answers.is_empty() {
            table.answer(&self.node, &answers)?;
        }
        let kept = wrong.len() as u64;
        self.answers.kept.fetch_add(kept, Ordering::Relaxed);
        self.answers.yielded.fetch_add(answers.len() as u64 - kept, Ordering::Relaxed);
        for (uuid, answer) in heard {
            self.reports.record_device_answer(uuid, answer);
        }
        self.log_wrong(wrong, kept);
        Ok(())
    }

    /// Asks devices at the addresses that they have in this node's VPN, by what decides where none stands beside them.
    /// Where none of many answers, all are gone: a VPN has lost them.
    fn ask(&self, devices: &HashMap<DeviceUuid, Option<IpAddr>>) -> HashMap<DeviceUuid, DeviceAnswer> {
        let config = Arc::clone(&self.config.lock());
        let mut heard = HashMap::new();
        let mut asked: Vec<(DeviceUuid, IpAddr)> = Vec::new();
        {
            let view = self.authority.pin();
            let Some(view) = view.get() else { return heard };
            let here = |uuid: DeviceUuid| view.snapshot.device_named(uuid)?.location(Some(&self.node));
            for (uuid, address) in devices {
                match address.or_else(|| here(*uuid)) {
                    Some(address) => asked.push((*uuid, address)),
                    // The VPN has lost it, or the guard has settled that.
                    None => drop(heard.insert(*uuid, DeviceAnswer::Silent)),
                }
            }
        }
        let addresses: Vec<IpAddr> = asked.iter().map(|(_, address)| *address).collect();
        let answered = ask_each(&addresses, &config);
        let none_answers = answered.len() == ASKED_MAX && !answered.contains(&true);
        for (place, (uuid, _)) in asked.iter().enumerate() {
            let answer = match answered.get(place) {
                Some(true) => DeviceAnswer::Answers,
                Some(false) => DeviceAnswer::Silent,
                None if none_answers => DeviceAnswer::Silent,
                None => continue,
            };
            heard.insert(*uuid, answer);
        }
        heard
    }

    fn log_wrong(&mut self, mut claimants: Vec<Box<str>>, devices: u64) {
        claimants.sort_unstable();
        claimants.dedup();
        for claimant in self.wrong.new_among(claimants) {
            tracing::error!(
                "{claimant} claims devices that answer in this node's VPN ({devices} just now), and does not get them; see \
                 whether somebody has broken into {claimant}, or two devices have one identity"
            );
        }
    }
}
