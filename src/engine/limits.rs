//! Limits on sessions: of the node, of one principal, to one device.
//!
//! All engine threads share them. A session changes them when it begins, is permitted and ends, never while it
//! forwards.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use crate::authz::{DeviceId, PrincipalId};
use crate::config;
use crate::telemetry::Cause;

/// The current counts of sessions and their bounds.
pub(super) struct SessionLimits {
    sessions: AtomicU32,
    sessions_max: AtomicU32,
    principals: Counts<PrincipalId>,
    devices: Counts<DeviceId>,
}

/// The limit that a session would exceed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LimitHit {
    Principal,
    Device,
}

/// A place among the node's sessions; freed when dropped.
pub(super) struct SessionPermit {
    limits: Arc<SessionLimits>,
}

/// A place among one principal's and one device's sessions; freed when dropped.
pub(super) struct TunnelPermit {
    limits: Arc<SessionLimits>,
    principal: PrincipalId,
    device: DeviceId,
}

impl SessionLimits {
    pub fn new(config: &config::Limits, sessions_max: u32) -> Self {
        Self {
            sessions: AtomicU32::new(0),
            sessions_max: AtomicU32::new(sessions_max),
            principals: Counts::new(config.sessions_per_principal),
            devices: Counts::new(config.sessions_per_device),
        }
    }

    /// Puts other bounds in force. Sessions over a lower one go on.
    pub fn replace(&self, config: &config::Limits, sessions_max: u32) {
        self.sessions_max.store(sessions_max, Ordering::Relaxed);
        self.principals.max.store(config.sessions_per_principal, Ordering::Relaxed);
        self.devices.max.store(config.sessions_per_device, Ordering::Relaxed);
    }

    pub fn sessions_max(&self) -> u32 {
        self.sessions_max.load(Ordering::Relaxed)
    }

    pub fn is_full(&self) -> bool {
        self.sessions.load(Ordering::Relaxed) >= self.sessions_max()
    }

    /// Takes a place for one more session; `None` where the node is full.
    pub fn enter(self: &Arc<Self>) -> Option<SessionPermit> {
        self.sessions
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sessions| {
                (sessions < self.sessions_max()).then_some(sessions + 1)
            })
            .ok()?;
        Some(SessionPermit { limits: Arc::clone(self) })
    }

    pub fn permit(
        self: &Arc<Self>,
        principal: PrincipalId,
        device: DeviceId,
    ) -> Result<TunnelPermit, LimitHit> {
        if !self.principals.take(principal) {
            return Err(LimitHit::Principal);
        }
        if !self.devices.take(device) {
            self.principals.give_back(principal);
            return Err(LimitHit::Device);
        }
        Ok(TunnelPermit { limits: Arc::clone(self), principal, device })
    }
}

impl From<LimitHit> for Cause {
    fn from(hit: LimitHit) -> Self {
        match hit {
            LimitHit::Principal => Self::LimitPrincipal,
            LimitHit::Device => Self::LimitDevice,
        }
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.limits.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for TunnelPermit {
    fn drop(&mut self) {
        self.limits.principals.give_back(self.principal);
        self.limits.devices.give_back(self.device);
    }
}

/// Counts by key, spread over shards so that engine threads seldom need the same lock. A key is removed at zero, so
/// the maps have no more entries than there are sessions.
struct Counts<K> {
    shards: [CachePadded<Mutex<HashMap<K, u32>>>; SHARDS],
    max: AtomicU32,
}

impl<K: Copy + Eq + Hash + Number> Counts<K> {
    fn new(max: u32) -> Self {
        Self { shards: std::array::from_fn(|_| CachePadded::default()), max: AtomicU32::new(max) }
    }

    fn take(&self, key: K) -> bool {
        let mut shard = self.shard(key).lock();
        let count = shard.entry(key).or_insert(0);
        let free = *count < self.max.load(Ordering::Relaxed);
        if free {
            *count += 1;
        }
        free
    }

    fn give_back(&self, key: K) {
        let mut shard = self.shard(key).lock();
        if let Some(count) = shard.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&key);
            }
        }
    }

    fn shard(&self, key: K) -> &Mutex<HashMap<K, u32>> {
        &self.shards[key.number().rem_euclid(SHARDS as i64) as usize]
    }
}

/// An id as a number, for spreading over shards.
trait Number {
    fn number(self) -> i64;
}

impl Number for PrincipalId {
    fn number(self) -> i64 {
        self.0
    }
}

impl Number for DeviceId {
    fn number(self) -> i64 {
        self.0
    }
}

const SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(sessions: u32, per_principal: u32, per_device: u32) -> Arc<SessionLimits> {
        let config = config::Limits {
            sessions,
            sessions_per_principal: per_principal,
            sessions_per_device: per_device,
            ..config::Limits::default()
        };
        Arc::new(SessionLimits::new(&config, sessions))
    }

    #[test]
    fn a_full_node_has_a_place_again_when_a_session_ends() {
        let limits = limits(1, 9, 9);
        let place = limits.enter();
        assert!(place.is_some());
        assert!(limits.is_full() && limits.enter().is_none());
        drop(place);
        assert!(!limits.is_full());
        assert!(limits.enter().is_some());
    }

    #[test]
    fn a_refused_device_takes_nothing_from_the_principal() {
        let limits = limits(9, 2, 1);
        let (principal, device) = (PrincipalId(1), DeviceId(-7));
        let first = limits.permit(principal, device);
        assert!(first.is_ok());
        assert_eq!(limits.permit(principal, device).err(), Some(LimitHit::Device));
        let second = limits.permit(principal, DeviceId(8));
        assert!(second.is_ok());
        assert_eq!(limits.permit(principal, DeviceId(9)).err(), Some(LimitHit::Principal));
        drop((first, second));
        assert!(limits.principals.shards.iter().all(|shard| shard.lock().is_empty()));
        assert!(limits.devices.shards.iter().all(|shard| shard.lock().is_empty()));
    }
}
