//! Limits on sessions: of the node, of one principal, to one device, and of one network before their heads have come.
//!
//! All engine threads share them. A session changes them when it begins, is permitted and ends, never while it
//! forwards.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;
use ipnet::IpNet;
use parking_lot::Mutex;

use super::fd_budget::ClientShare;
use crate::authz::{DeviceId, PrincipalId};
use crate::config;
use crate::telemetry::Cause;

/// The current counts of sessions and their bounds.
pub(super) struct SessionLimits {
    sessions: AtomicU32,
    sessions_max: AtomicU32,
    refused_max: usize,
    /// Those of them whose heads have not come.
    heads_awaited: AtomicU32,
    networks: Counts<IpNet>,
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

/// The reason why a client has no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    /// `limits.sessions` sessions exist.
    Node,
    /// The client's network has `limits.heads_per_network` sessions without a head.
    Network,
}

/// A place among the sessions whose heads have not come, of the client's network where that is known; freed when
/// dropped.
pub(super) struct HeadPermit {
    limits: Arc<SessionLimits>,
    network: Option<IpNet>,
}

/// A place among one principal's and one device's sessions; freed when dropped.
pub(super) struct TunnelPermit {
    limits: Arc<SessionLimits>,
    principal: PrincipalId,
    device: DeviceId,
}

/// Sessions without a decision that one network may have.
const fn heads_max(config: &config::Limits) -> u32 {
    match config.heads_per_network {
        0 => u32::MAX,
        bound => bound,
    }
}

/// The places of a session that another process has, or that moves: it is within the limits there, and counts here.
pub struct HeldPlace {
    pub(super) session: SessionPermit,
    /// `None` before the session has a right.
    pub(super) tunnel: Option<TunnelPermit>,
    /// Present while the session's head is awaited.
    _network: Option<NetworkPlace>,
}

/// A place among the sessions of a network whose heads have not come; freed when dropped.
struct NetworkPlace {
    limits: Arc<SessionLimits>,
    network: IpNet,
}

impl SessionLimits {
    pub fn new(config: &config::Limits, share: ClientShare) -> Self {
        Self {
            sessions: AtomicU32::new(0),
            sessions_max: AtomicU32::new(share.sessions_max),
            refused_max: share.refused_max,
            heads_awaited: AtomicU32::new(0),
            networks: Counts::new(heads_max(config)),
            principals: Counts::new(config.sessions_per_principal),
            devices: Counts::new(config.sessions_per_device),
        }
    }

    /// Puts other bounds in force. Sessions over a lower one go on.
    pub fn replace(&self, config: &config::Limits, sessions_max: u32) {
        self.sessions_max.store(sessions_max, Ordering::Relaxed);
        self.networks.max.store(heads_max(config), Ordering::Relaxed);
        self.principals.max.store(config.sessions_per_principal, Ordering::Relaxed);
        self.devices.max.store(config.sessions_per_device, Ordering::Relaxed);
    }

    pub fn sessions_max(&self) -> u32 {
        self.sessions_max.load(Ordering::Relaxed)
    }

    /// Clients over a limit to which one thread replies at a time.
    pub fn refused_max(&self) -> usize {
        self.refused_max
    }

    /// True where no client gets a place: those whose heads have not come would give way to it.
    pub fn is_full(&self) -> bool {
        let awaited = self.heads_awaited.load(Ordering::Relaxed);
        self.sessions.load(Ordering::Relaxed).saturating_sub(awaited) >= self.sessions_max()
    }

    /// No place is taken.
    #[cfg(simulation)]
    pub fn is_unused(&self) -> bool {
        self.sessions.load(Ordering::Relaxed) == 0
            && self.heads_awaited.load(Ordering::Relaxed) == 0
            && self.networks.is_unused()
            && self.principals.is_unused()
            && self.devices.is_unused()
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

    /// Takes a place for a session until its head has come. `network` is absent for a client that a load balancer has
    /// not named yet, or a peer's. `None` where the network has too many.
    pub fn await_head(self: &Arc<Self>, network: Option<IpNet>) -> Option<HeadPermit> {
        if network.is_some_and(|network| !self.networks.take(network)) {
            return None;
        }
        self.heads_awaited.fetch_add(1, Ordering::Relaxed);
        Some(HeadPermit { limits: Arc::clone(self), network })
    }

    /// Takes places for a session that exists already, whatever the limits are. `network` is its client's while its head
    /// is awaited; nobody here can make it give way, so it counts as a session in full.
    pub fn hold(
        self: &Arc<Self>,
        tunnel: Option<(PrincipalId, DeviceId)>,
        network: Option<IpNet>,
    ) -> HeldPlace {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let tunnel = tunnel.map(|(principal, device)| {
            self.principals.add(principal);
            self.devices.add(device);
            TunnelPermit { limits: Arc::clone(self), principal, device }
        });
        let network = network.map(|network| {
            self.networks.add(network);
            NetworkPlace { limits: Arc::clone(self), network }
        });
        HeldPlace { session: SessionPermit { limits: Arc::clone(self) }, tunnel, _network: network }
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

impl From<NoPlace> for Cause {
    fn from(reason: NoPlace) -> Self {
        match reason {
            NoPlace::Node => Self::LimitNode,
            NoPlace::Network => Self::LimitNetwork,
        }
    }
}

impl HeadPermit {
    pub fn network(&self) -> Option<IpNet> {
        self.network
    }
}

impl Drop for HeadPermit {
    fn drop(&mut self) {
        self.limits.heads_awaited.fetch_sub(1, Ordering::Relaxed);
        if let Some(network) = self.network {
            self.limits.networks.give_back(network);
        }
    }
}

impl Drop for NetworkPlace {
    fn drop(&mut self) {
        self.limits.networks.give_back(self.network);
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

    fn add(&self, key: K) {
        *self.shard(key).lock().entry(key).or_insert(0) += 1;
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

    #[cfg(simulation)]
    fn is_unused(&self) -> bool {
        self.shards.iter().all(|shard| shard.lock().is_empty())
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

impl Number for IpNet {
    fn number(self) -> i64 {
        match self {
            Self::V4(network) => i64::from(network.network().to_bits() >> 8),
            Self::V6(network) => (network.network().to_bits() >> 64) as i64,
        }
    }
}

/// The network that one party probably has: an IPv4 /24 or an IPv6 /64.
pub(super) fn network_of(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let prefix = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, prefix).expect("both are valid prefixes").trunc()
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
        Arc::new(SessionLimits::new(&config, ClientShare { sessions_max: sessions, refused_max: 9 }))
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
    fn a_network_has_a_bound_on_heads_that_have_not_come_and_others_have_theirs() {
        let config = config::Limits { heads_per_network: 2, ..config::Limits::default() };
        let limits = Arc::new(SessionLimits::new(&config, ClientShare { sessions_max: 2, refused_max: 9 }));
        let await_head = |address: &str| limits.await_head(Some(network_of(address.parse().unwrap())));
        for (own, same, other) in [
            ("192.0.2.1", "192.0.2.200", "192.0.3.1"),
            ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
            ("192.0.2.1", "::ffff:192.0.2.7", "::ffff:192.0.3.1"),
        ] {
            let first = await_head(own);
            let second = await_head(same);
            assert!(first.is_some() && second.is_some() && await_head(own).is_none());
            assert!(await_head(other).is_some());
            drop(first);
            assert!(await_head(same).is_some());
        }
        assert!(limits.networks.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn a_node_whose_clients_have_not_sent_their_heads_is_not_full() {
        let limits = limits(1, 9, 9);
        let _place = limits.enter();
        let head = limits.await_head(None);
        assert!(!limits.is_full());
        drop(head);
        assert!(limits.is_full());
    }

    #[test]
    fn a_session_that_another_process_has_counts_as_long_as_its_place_is_held() {
        let limits = limits(2, 1, 9);
        let (principal, device) = (PrincipalId(1), DeviceId(2));
        let held = [(); 3].map(|()| limits.hold(Some((principal, device)), None));
        assert!(limits.is_full() && limits.enter().is_none());
        assert_eq!(limits.permit(principal, device).err(), Some(LimitHit::Principal));
        drop(held);
        assert!(!limits.is_full() && limits.permit(principal, device).is_ok());
    }

    #[test]
    fn a_head_that_another_process_awaits_counts_for_its_network() {
        let config = config::Limits { heads_per_network: 2, ..config::Limits::default() };
        let limits = Arc::new(SessionLimits::new(&config, ClientShare { sessions_max: 1, refused_max: 9 }));
        let network = Some(network_of("192.0.2.1".parse().unwrap()));
        let held = [(); 3].map(|()| limits.hold(None, network));
        assert!(limits.await_head(network).is_none() && limits.is_full());
        drop(held);
        assert!(limits.await_head(network).is_some() && !limits.is_full());
        assert!(limits.networks.shards.iter().all(|shard| shard.lock().is_empty()));
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
