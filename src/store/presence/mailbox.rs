//! Updates of a source of addresses, and the place where a thread that follows one leaves them.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::address_list::AddressList;

/// Change of a source since it was last polled.
pub(super) enum PresenceUpdate {
    Nothing,
    Addresses(Box<AddressList>),
    /// The source gives no addresses, for this reason.
    Failed(String),
}

/// The last update of a thread. It stays until it is polled.
#[derive(Default)]
pub(super) struct Mailbox {
    latest: Mutex<LatestUpdate>,
    has_changed: Condvar,
}

#[derive(Default)]
struct LatestUpdate {
    addresses: Option<AddressList>,
    failure: Option<String>,
    /// True from the first update on.
    is_filled: bool,
}

impl Mailbox {
    pub(super) fn put(&self, addresses: AddressList) {
        *self.latest.lock() = LatestUpdate { addresses: Some(addresses), failure: None, is_filled: true };
        self.has_changed.notify_all();
    }

    pub(super) fn put_failure(&self, failure: String) {
        let mut latest = self.latest.lock();
        latest.failure = Some(failure);
        latest.is_filled = true;
        self.has_changed.notify_all();
    }

    /// Removes and returns the update. If there never was one, this waits for at most `first_timeout`.
    pub(super) fn poll(&self, first_timeout: Duration) -> PresenceUpdate {
        let mut latest = self.latest.lock();
        if !first_timeout.is_zero() {
            self.has_changed.wait_while_for(&mut latest, |latest| !latest.is_filled, first_timeout);
        }
        // Addresses that came before a failure are returned before it.
        match latest.addresses.take() {
            Some(addresses) => PresenceUpdate::Addresses(Box::new(addresses)),
            None => latest.failure.take().map_or(PresenceUpdate::Nothing, PresenceUpdate::Failed),
        }
    }
}
