//! Where devices are: disputed addresses, and what the network says of masses of lost or moved devices.

use std::sync::Arc;

use super::ControlThread;
use crate::authz::{Snapshot, UnixMillis};
use crate::config::Config;
use crate::control::guard::{Guard, Unpublished};
use crate::store::AddressLayer;

/// See the module.
pub(super) struct Locations {
    node: Option<String>,
}

impl Locations {
    pub(super) fn new(config: &Config) -> Self {
        Self { node: config.vpn.node.clone() }
    }

    pub(super) fn reconfigure(&mut self, _config: &Config) {}

    pub(super) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// What is in force, with the devices marked of which it cannot be told whose their address is.
    pub(super) fn mask(
        &mut self,
        guard: &Guard,
        _layer: &AddressLayer,
        _changed: &Unpublished,
    ) -> Option<Arc<Snapshot>> {
        guard.in_force().cloned()
    }

    /// Number of devices that are disputed.
    pub(super) fn disputed(&self) -> usize {
        0
    }

    pub(super) fn has_news(&mut self, _layer: &mut AddressLayer) -> bool {
        false
    }
}

impl ControlThread {
    pub(super) fn poll_network(&mut self, _now: UnixMillis) {}
}
