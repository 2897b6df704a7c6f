//! How a snapshot comes to its decision. Looks at nothing but memory.

#[cfg(test)]
mod past_grants;

use std::net::IpAddr;
use std::ops::ControlFlow;

use super::relations::{
    Between, HeldCredential, LocatedDevice, SoughtCredential, SoughtDevice, SoughtGrants,
};
use super::{
    Decision, DeviceRight, Grant, PeerRoute, Query, Refusal, Revocations, Route, Snapshot, Subject,
    UnixMillis,
};

/// The context of a decision, beside the snapshot and the query.
#[derive(Clone, Copy)]
pub struct DecisionContext<'a> {
    /// Revocations on top of the snapshot.
    pub revocations: &'a Revocations,
    /// Name of the node that decides; `None` reaches every device.
    pub node: Option<&'a str>,
    pub now: UnixMillis,
}

impl Snapshot {
    /// Decides from this snapshot.
    ///
    /// Asks in this order, and the first thing that is wrong is the reason: the credential, the device,
    /// a grant that leads from one to the other, and whether the node reaches the device now.
    pub fn decide(&self, query: &Query, context: DecisionContext<'_>) -> Decision {
        let route = self.seek(query).and_then(|asked| {
            let found = self.find(&asked, context)?;
            self.route(query, &found, context)
        });
        match route {
            Ok(route) => Decision::Allow(route),
            Err(refusal) => Decision::Refuse(refusal),
        }
    }

    /// Shows the decision on each of `queries` to `each`, in their order.
    ///
    /// Nearly all of a decision's time goes by waiting for memory; these wait together.
    pub fn decide_all(
        &self,
        queries: &[Query],
        context: DecisionContext<'_>,
        mut each: impl FnMut(Decision),
    ) {
        for together in queries.chunks(DECISIONS_AT_ONCE) {
            let mut asked = [const { Err(Refusal::CredentialMissing) }; DECISIONS_AT_ONCE];
            for (asked, query) in asked.iter_mut().zip(together) {
                *asked = self.seek(query);
            }
            let mut found = [const { Err(Refusal::CredentialMissing) }; DECISIONS_AT_ONCE];
            for (found, asked) in found.iter_mut().zip(&asked).take(together.len()) {
                *found = match asked {
                    Ok(asked) => self.find(asked, context),
                    Err(refusal) => Err(*refusal),
                };
            }
            for (found, query) in found.iter().zip(together) {
                let route = match found {
                    Ok(found) => self.route(query, found, context),
                    Err(refusal) => Err(*refusal),
                };
                match route {
                    Ok(route) => each(Decision::Allow(route)),
                    Err(refusal) => each(Decision::Refuse(refusal)),
                }
            }
        }
    }

    /// Returns the peer that holds the device, where the subject may reach it; otherwise the refusal.
    pub fn decide_elsewhere<'a>(
        &'a self,
        query: &'a Query,
        context: DecisionContext<'_>,
    ) -> Result<PeerRoute<'a>, Refusal> {
        let asked = self.seek(query)?;
        let found = self.find(&asked, context)?;
        let right = found.right(query.port, context)?;
        let device = &found.device;
        match (device.node, context.node) {
            _ if device.disputed => Err(Refusal::DeviceDisputed),
            (Some(node), Some(ours)) if node != ours && device.online => Ok(PeerRoute { node, right }),
            _ => Err(Refusal::DeviceOffline),
        }
    }

    /// Returns the right of the subject to reach the device and port, wherever the device is.
    pub fn decide_right(&self, query: &Query, context: DecisionContext<'_>) -> Result<DeviceRight, Refusal> {
        let asked = self.seek(query)?;
        self.find(&asked, context)?.right(query.port, context)
    }

    /// Looks up what the query names.
    #[inline]
    fn seek<'a>(&'a self, query: &'a Query) -> Result<SoughtQuery<'a>, Refusal> {
        let subject = query.subject.as_ref().ok_or(Refusal::CredentialMissing)?;
        // A login's token has a row of its own only where the token was ended before its time.
        let credential = Some(self.credentials.seek(subject.key()));
        let device = query.device.as_ref().map(|uuid| self.devices.seek(uuid));
        Ok(SoughtQuery { subject, credential, device })
    }

    /// Looks up the grants that lead from the credential to the device.
    #[inline]
    fn find<'a>(
        &'a self,
        asked: &SoughtQuery<'a>,
        context: DecisionContext<'_>,
    ) -> Result<Found<'a>, Refusal> {
        let SoughtQuery { subject, credential, device } = asked;
        let held = match subject {
            Subject::Principal { id, until, .. } | Subject::Bearer { id, until, .. } => {
                let ended = credential.as_ref().and_then(SoughtCredential::get);
                let revoked = ended.is_some_and(|row| row.revoked);
                Some(HeldCredential { principal: *id, expires_at: Some(*until), revoked })
            }
            Subject::Key(_) | Subject::Secret { .. } | Subject::Login { .. } => {
                credential.as_ref().and_then(SoughtCredential::get)
            }
        };
        let held = live_credential(held, subject, context)?;
        let device = device.as_ref().and_then(SoughtDevice::get).ok_or(Refusal::DeviceUnknown)?;
        let principal = subject.acts_as().unwrap_or(held.principal);
        let between = Between { principal, device: device.id, fleet: device.fleet };
        Ok(Found { subject, expires_at: held.expires_at, device, grants: self.grants.seek(between) })
    }

    #[inline]
    fn route(
        &self,
        query: &Query,
        found: &Found<'_>,
        context: DecisionContext<'_>,
    ) -> Result<Route, Refusal> {
        let DeviceRight { principal, device, grant, expires_at } = found.right(query.port, context)?;
        Ok(Route {
            address: reachable_address(&found.device, context.node)?,
            port: query.port,
            credential: found.subject.key().credential_id(),
            principal,
            device,
            grant,
            generation: self.generation(),
            expires_at,
        })
    }
}

/// Questions that wait for memory together. A core has some dozen lines on their way at a time, and a
/// question needs two at once.
const DECISIONS_AT_ONCE: usize = 16;

/// The credential and the device are on their way from memory.
struct SoughtQuery<'a> {
    subject: &'a Subject,
    /// `None` where nothing rests on one.
    credential: Option<SoughtCredential<'a>>,
    device: Option<SoughtDevice<'a>>,
}

/// The credential and the device are there, and the grants between them on their way from memory.
struct Found<'a> {
    subject: &'a Subject,
    /// The credential or the session token does.
    expires_at: Option<UnixMillis>,
    device: LocatedDevice<'a>,
    grants: SoughtGrants<'a>,
}

impl Found<'_> {
    #[inline]
    fn right(&self, port: u16, context: DecisionContext<'_>) -> Result<DeviceRight, Refusal> {
        let grant = self.best_grant(port, context)?;
        Ok(DeviceRight {
            principal: grant.principal,
            device: self.device.id,
            grant: grant.id,
            expires_at: [self.expires_at, grant.expires_at].into_iter().flatten().min(),
        })
    }

    /// The one that opens the port, or the most reason_rank reason why none does.
    #[inline]
    fn best_grant(&self, port: u16, context: DecisionContext<'_>) -> Result<Grant, Refusal> {
        let mut search = GrantSearch { port, context, best: None, refusal: Refusal::NoGrant };
        self.grants.visit(context.now, |grant| search.consider(grant));
        if let Some(grant) = self.subject.carried_grant() {
            let _it_is_the_last = search.consider(grant);
        }
        search.best.ok_or(search.refusal)
    }
}

/// Looks for the grant that a tunnel rests on.
struct GrantSearch<'a> {
    port: u16,
    context: DecisionContext<'a>,
    /// Returns the live grant that opens the port and lasts longest; of equals the oldest.
    best: Option<Grant>,
    /// The most reason_rank reason against a grant. One that ended says more than one for other ports.
    refusal: Refusal,
}

impl GrantSearch<'_> {
    /// Breaks where no grant of the same scope that ranks after this one can change the result.
    #[inline]
    fn consider(&mut self, grant: Grant) -> ControlFlow<()> {
        let problem = if !grant.ports.contains(self.port) {
            Refusal::PortNotGranted
        } else if grant.revoked || self.context.revocations.grant(&grant) {
            Refusal::GrantRevoked
        } else if has_expired(grant.expires_at, self.context.now) {
            Refusal::GrantExpired
        } else {
            if self.best.is_none_or(|best| grant.rank() < best.rank()) {
                self.best = Some(grant);
            }
            return ControlFlow::Break(());
        };
        if reason_rank(problem) > reason_rank(self.refusal) {
            self.refusal = problem;
        }
        // Behind a grant that has ended all have, and with a live one at hand no reason is wanted.
        if self.best.is_some() && grant.has_ended(self.context.now) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[inline]
fn live_credential(
    held: Option<HeldCredential>,
    subject: &Subject,
    context: DecisionContext<'_>,
) -> Result<HeldCredential, Refusal> {
    let DecisionContext { revocations, now, .. } = context;
    // A principal's removal revokes its credentials too; the removal is the true cause.
    if held.as_ref().is_some_and(|held| revocations.principal(held.principal)) {
        return Err(Refusal::PrincipalRevoked);
    }
    if revocations.credential(subject.key()) {
        return Err(Refusal::CredentialRevoked);
    }
    let held = held.ok_or(Refusal::CredentialUnknown)?;
    if held.revoked {
        return Err(Refusal::CredentialRevoked);
    }
    if !subject.names(held.principal) {
        return Err(Refusal::PrincipalMismatch);
    }
    let expires_at = [held.expires_at, subject.until()].into_iter().flatten().min();
    if has_expired(expires_at, now) {
        Err(Refusal::CredentialExpired)
    } else {
        Ok(HeldCredential { expires_at, ..held })
    }
}

/// Returns the address of the device, if this node may and can dial it.
fn reachable_address(device: &LocatedDevice<'_>, node: Option<&str>) -> Result<IpAddr, Refusal> {
    match (device.node, node) {
        // First, since a peer that has not heard of it would dial.
        _ if device.disputed => Err(Refusal::DeviceDisputed),
        (Some(holder), Some(ours)) if holder != ours => Err(Refusal::DeviceElsewhere),
        _ if !device.online => Err(Refusal::DeviceOffline),
        _ => device.address.ok_or(Refusal::DeviceOffline),
    }
}

fn has_expired(expires_at: Option<UnixMillis>, now: UnixMillis) -> bool {
    expires_at.is_some_and(|end| end <= now)
}

/// Ranks refusals for want of a grant by how much they say about what to do.
const fn reason_rank(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::GrantRevoked => 3,
        Refusal::GrantExpired => 2,
        Refusal::PortNotGranted => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{
        Change, Credential, Device, DeviceId, DeviceUuid, FleetId, Generation, GrantId, KeyHash, PortRange,
        PrincipalId, Scope,
    };

    const NOW: UnixMillis = UnixMillis(1_000);
    const PRINCIPAL: PrincipalId = PrincipalId(1);
    const DEVICE: DeviceId = DeviceId(7);
    const FLEET: FleetId = FleetId(3);

    fn uuid() -> DeviceUuid {
        DeviceUuid::parse(&"ab".repeat(16)).unwrap()
    }

    fn credential() -> Credential {
        let key = KeyHash::of_token(b"token");
        Credential { key, principal: PRINCIPAL, expires_at: None, revoked: false }
    }

    fn grant(id: i64, scope: Scope) -> Grant {
        let ports = PortRange::new(22, 80).unwrap();
        Grant { id: GrantId(id), principal: PRINCIPAL, scope, ports, expires_at: None, revoked: false }
    }

    fn device() -> Device {
        Device {
            id: DEVICE,
            uuid: uuid(),
            fleet: Some(FLEET),
            address: Some(IpAddr::from([10, 0, 0, 1])),
            node: Some("here".into()),
            online: true,
            disputed: false,
        }
    }

    fn snapshot(credential: Credential, grants: &[Grant], device: Device) -> Snapshot {
        Snapshot::build(Generation(1), vec![credential], grants.to_vec(), vec![device])
    }

    fn ask(snapshot: &Snapshot, port: u16) -> Decision {
        let query = Query { subject: Some(credential().key.into()), device: Some(uuid()), port };
        snapshot.decide(&query, context(&Revocations::default(), Some("here")))
    }

    fn context<'a>(revocations: &'a Revocations, node: Option<&'a str>) -> DecisionContext<'a> {
        DecisionContext { revocations, node, now: NOW }
    }

    fn granted(decision: Decision) -> GrantId {
        match decision {
            Decision::Allow(route) => route.grant,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_right_ends_at_the_instant_that_it_names() {
        let at = |end: i64| Some(UnixMillis(end));
        for (end, expected) in [(NOW.0 - 1, true), (NOW.0, true), (NOW.0 + 1, false)] {
            let any = grant(1, Scope::Any);
            let by_credential =
                snapshot(Credential { expires_at: at(end), ..credential() }, &[any], device());
            let refused = ask(&by_credential, 22) == Decision::Refuse(Refusal::CredentialExpired);
            assert_eq!(refused, expected, "credential until {end}");
            let by_grant = snapshot(credential(), &[Grant { expires_at: at(end), ..any }], device());
            let refused = ask(&by_grant, 22) == Decision::Refuse(Refusal::GrantExpired);
            assert_eq!(refused, expected, "grant until {end}");
        }
    }

    #[test]
    fn a_route_names_what_it_rests_on_and_its_first_end() {
        let credential = Credential { expires_at: Some(UnixMillis(5_000)), ..credential() };
        let grant = Grant { expires_at: Some(UnixMillis(4_000)), ..grant(9, Scope::Fleet(FLEET)) };
        let route = Route {
            address: IpAddr::from([10, 0, 0, 1]),
            port: 80,
            credential: credential.key.credential_id(),
            principal: PRINCIPAL,
            device: DEVICE,
            grant: GrantId(9),
            generation: Generation(1),
            expires_at: Some(UnixMillis(4_000)),
        };
        assert_eq!(ask(&snapshot(credential, &[grant], device()), 80), Decision::Allow(route));
    }

    #[test]
    fn the_grant_that_lasts_longest_carries_the_tunnel() {
        let until = |id, scope, end| Grant { expires_at: Some(UnixMillis(end)), ..grant(id, scope) };
        let (short, long) = (until(1, Scope::Device(DEVICE), 2_000), until(2, Scope::Any, 3_000));
        let forever = [grant(4, Scope::Any), grant(3, Scope::Fleet(FLEET))];
        assert_eq!(granted(ask(&snapshot(credential(), &[short, long], device()), 22)), GrantId(2));
        let all = [&[short, long][..], &forever].concat();
        assert_eq!(granted(ask(&snapshot(credential(), &all, device()), 22)), GrantId(3));
    }

    #[test]
    fn without_a_live_grant_the_most_telling_one_gives_the_reason() {
        let other_port = Grant { ports: PortRange::new(443, 443).unwrap(), ..grant(1, Scope::Any) };
        let expired = Grant { expires_at: Some(NOW), ..grant(2, Scope::Fleet(FLEET)) };
        let revoked = Grant { revoked: true, ..grant(3, Scope::Device(DEVICE)) };
        let elsewhere = [
            grant(4, Scope::Device(DeviceId(8))),
            grant(5, Scope::Fleet(FleetId(4))),
            Grant { principal: PrincipalId(2), ..grant(6, Scope::Any) },
        ];
        for (grants, expected) in [
            (&elsewhere[..], Refusal::NoGrant),
            (&[other_port], Refusal::PortNotGranted),
            (&[expired, other_port], Refusal::GrantExpired),
            (&[other_port, expired, revoked], Refusal::GrantRevoked),
        ] {
            let snapshot = snapshot(credential(), grants, device());
            assert_eq!(ask(&snapshot, 22), Decision::Refuse(expected), "{grants:?}");
        }
    }

    #[test]
    fn a_device_is_reached_where_it_is_held_and_while_it_is_online() {
        let allowed = [Device { node: None, ..device() }, device()];
        let refused = [
            (Device { node: Some("there".into()), ..device() }, Refusal::DeviceElsewhere),
            (Device { online: false, ..device() }, Refusal::DeviceOffline),
            (Device { address: None, ..device() }, Refusal::DeviceOffline),
            (Device { disputed: true, ..device() }, Refusal::DeviceDisputed),
            (Device { disputed: true, node: Some("there".into()), ..device() }, Refusal::DeviceDisputed),
            (Device { disputed: true, node: None, online: false, ..device() }, Refusal::DeviceDisputed),
        ];
        let any = [grant(1, Scope::Any)];
        for device in allowed {
            assert_eq!(granted(ask(&snapshot(credential(), &any, device), 22)), GrantId(1));
        }
        for (device, expected) in refused {
            assert_eq!(ask(&snapshot(credential(), &any, device), 22), Decision::Refuse(expected));
        }
    }

    #[test]
    fn a_disputed_device_is_passed_to_no_peer_and_its_state_is_shown_to_nobody_without_the_right() {
        let at_peer = Device { disputed: true, node: Some("there".into()), ..device() };
        let disputed = snapshot(credential(), &[grant(1, Scope::Any)], at_peer.clone());
        let query = Query { subject: Some(credential().key.into()), device: Some(uuid()), port: 22 };
        let revocations = Revocations::default();
        let elsewhere = disputed.decide_elsewhere(&query, context(&revocations, Some("here")));
        assert_eq!(elsewhere, Err(Refusal::DeviceDisputed));
        let right = disputed.decide_right(&query, context(&revocations, Some("here"))).unwrap();
        assert_eq!((right.device, right.grant), (DEVICE, GrantId(1)));
        let settled =
            snapshot(credential(), &[grant(1, Scope::Any)], Device { disputed: false, ..at_peer.clone() });
        let elsewhere = settled.decide_elsewhere(&query, context(&revocations, Some("here"))).unwrap();
        assert_eq!((elsewhere.node, elsewhere.right), ("there", right));
        assert_eq!(ask(&snapshot(credential(), &[], at_peer), 22), Decision::Refuse(Refusal::NoGrant));
    }

    #[test]
    fn a_node_without_a_name_takes_every_device_for_its_own() {
        let there = Device { node: Some("there".into()), ..device() };
        let snapshot = snapshot(credential(), &[grant(1, Scope::Any)], there);
        let query = Query { subject: Some(credential().key.into()), device: Some(uuid()), port: 22 };
        assert_eq!(granted(snapshot.decide(&query, context(&Revocations::default(), None))), GrantId(1));
    }

    #[test]
    fn a_revocation_outweighs_a_snapshot_that_has_not_heard_of_it() {
        let snapshot = snapshot(credential(), &[grant(1, Scope::Any)], device());
        let query = Query { subject: Some(credential().key.into()), device: Some(uuid()), port: 22 };
        for (change, expected) in [
            (Change::CredentialGone(credential().key), Refusal::CredentialRevoked),
            (Change::GrantGone(GrantId(1)), Refusal::GrantRevoked),
            (Change::PrincipalGone(PRINCIPAL), Refusal::PrincipalRevoked),
        ] {
            let revocations = Revocations::default().with(&[change]).unwrap();
            let decision = snapshot.decide(&query, context(&revocations, None));
            assert_eq!(decision, Decision::Refuse(expected));
        }
    }
}
