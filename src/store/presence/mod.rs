//! Addresses of devices from the sources that `vpn.addresses` names, laid over the rows of a store.
//!
//! `layer` owns the tables and says which address is whose. With `vpn.report`, it also reports to the store which devices
//! are in this node's VPN.

mod address_list;
mod claim_table;
mod claims;
mod file;
#[doc(hidden)]
pub mod fuzzing;
mod known_devices;
mod layer;
mod mailbox;
mod openvpn;
mod report_queue;
mod table;
mod wireguard;

use std::time::Duration;

use crate::authz::DeviceUuid;
use table::PresenceTable;

pub use claim_table::ClaimTable;
pub use layer::{AddressHolder, AddressLayer, DeviceMoves, HolderChange};
pub use report_queue::{PresenceReport, ReportAnswer, ReportQueue};
pub use wireguard::calls as wireguard_calls;

/// Addresses that are kept outside the store, and that change without it.
trait PresenceSource: Send {
    /// Applies what is new to the table, and returns the devices whose address has changed. A source that has not begun
    /// yet is waited for as long as `patience` says.
    fn poll(&mut self, patience: Patience) -> Vec<DeviceUuid>;

    fn table(&self) -> &PresenceTable;
}

/// The wait for addresses that are not there yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Nothing,
    /// As long as the source's own time limit, a few seconds.
    FirstAddresses,
}

impl Patience {
    const fn within(self, limit: Duration) -> Duration {
        match self {
            Self::Nothing => Duration::ZERO,
            Self::FirstAddresses => limit,
        }
    }
}
