//! The cache decides like plain lists do, through any sequence of deltas and full builds, and what was
//! published once never changes.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use proptest::sample::select;
use sluicegate::authz::{
    Change, Credential, Decision, DecisionContext, Device, DeviceId, DeviceUuid, FleetId, Generation, Grant,
    GrantId, KeyHash, LoginUser, PortRange, PrincipalId, Query, Refusal, Revocations, Route, RowCounts,
    Scope, Snapshot, Subject, UnixMillis,
};

/// All rights as lists, and what ended as lists. Every question walks them from the start.
#[derive(Clone, Default)]
struct Model {
    generation: u64,
    credentials: Vec<Credential>,
    grants: Vec<Grant>,
    devices: Vec<Device>,
    ended_keys: Vec<KeyHash>,
    ended_grants: Vec<GrantId>,
    ended_principals: Vec<PrincipalId>,
}

impl Model {
    fn put_credential(&mut self, row: Credential) {
        self.credentials.retain(|other| other.key != row.key);
        self.credentials.push(row);
    }

    fn put_grant(&mut self, row: Grant) {
        self.grants.retain(|other| other.id != row.id);
        self.grants.push(row);
    }

    fn put_device(&mut self, row: Device) {
        self.devices.retain(|other| other.id != row.id && other.uuid != row.uuid);
        self.devices.push(row);
    }

    fn replace_all(&mut self, rows: &Rows) {
        (self.credentials, self.grants, self.devices) = Default::default();
        rows.credentials.iter().for_each(|row| self.put_credential(*row));
        rows.grants.iter().for_each(|row| self.put_grant(*row));
        rows.devices.iter().for_each(|row| self.put_device(row.clone()));
    }

    fn apply(&mut self, changes: &[Change]) {
        for change in changes.iter().cloned() {
            match change {
                Change::Credential(row) => self.put_credential(row),
                Change::CredentialGone(key) => self.credentials.retain(|row| row.key != key),
                Change::Grant(row) => self.put_grant(row),
                Change::GrantGone(id) => self.grants.retain(|row| row.id != id),
                Change::Device(row) => self.put_device(row),
                Change::DeviceGone(id) => self.devices.retain(|row| row.id != id),
                Change::PrincipalGone(_) => {}
            }
        }
    }

    fn revoke(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Credential(row) if row.revoked => self.ended_keys.push(row.key),
                Change::CredentialGone(key) => self.ended_keys.push(*key),
                Change::Grant(row) if row.revoked => self.ended_grants.push(row.id),
                Change::GrantGone(id) => self.ended_grants.push(*id),
                Change::PrincipalGone(id) => self.ended_principals.push(*id),
                _ => {}
            }
        }
    }

    fn decide(&self, query: &Query, node: Option<&str>, now: UnixMillis) -> Decision {
        let expired = |end: Option<UnixMillis>| end.is_some_and(|end| now >= end);
        let Some(subject) = query.subject else { return Decision::Refuse(Refusal::CredentialMissing) };
        let row = |key| self.credentials.iter().find(|row| row.key == key).copied();
        let (key, until, credential) = match subject {
            Subject::Key(key) => (key, None, row(key)),
            Subject::Secret { key, until, .. } | Subject::Login { key, until, .. } => {
                (key, Some(until), row(key))
            }
            Subject::Principal { id, token, until } | Subject::Bearer { id, token, until, .. } => {
                // A row of the token ends it before its time.
                let revoked = row(token).is_some_and(|row| row.revoked);
                let stands_in = Credential { key: token, principal: id, expires_at: None, revoked };
                (token, Some(until), Some(stands_in))
            }
        };
        let is_another = |principal: PrincipalId| match subject {
            Subject::Secret { principal: Some(named), .. } => named != principal,
            Subject::Login { user: LoginUser::Number(user), .. } => i64::from(user) != principal.0 >> 32,
            Subject::Login { user: LoginUser::Actor(actor), .. } => {
                principal.0 >> 32 == 0 || i64::from(actor) != principal.0 & 0xffff_ffff
            }
            _ => false,
        };
        if credential.is_some_and(|row| self.ended_principals.contains(&row.principal)) {
            return Decision::Refuse(Refusal::PrincipalRevoked);
        }
        if self.ended_keys.contains(&key) {
            return Decision::Refuse(Refusal::CredentialRevoked);
        }
        let Some(credential) = credential else { return Decision::Refuse(Refusal::CredentialUnknown) };
        if credential.revoked {
            return Decision::Refuse(Refusal::CredentialRevoked);
        }
        if is_another(credential.principal) {
            return Decision::Refuse(Refusal::PrincipalMismatch);
        }
        if expired(credential.expires_at) || expired(until) {
            return Decision::Refuse(Refusal::CredentialExpired);
        }
        let Some(device) = self.devices.iter().find(|row| Some(row.uuid) == query.device) else {
            return Decision::Refuse(Refusal::DeviceUnknown);
        };

        let names_device = |grant: &&Grant| match grant.scope {
            Scope::Any => true,
            Scope::Fleet(fleet) => device.fleet == Some(fleet),
            Scope::Device(id) => device.id == id,
        };
        let revoked = |grant: &Grant| grant.revoked || self.ended_grants.contains(&grant.id);
        let principal = match subject {
            Subject::Login { acts_as: Some(other), .. } => other,
            _ => credential.principal,
        };
        let in_token = match subject {
            Subject::Bearer { id: principal, ports, .. } => {
                let (id, scope) = (GrantId::IN_TOKEN, Scope::Any);
                Some(Grant { id, principal, scope, ports, expires_at: None, revoked: false })
            }
            _ => None,
        };
        let own: Vec<&Grant> = self
            .grants
            .iter()
            .filter(|row| row.principal == principal)
            .chain(&in_token)
            .filter(names_device)
            .collect();
        let fits: Vec<&Grant> = own
            .iter()
            .copied()
            .filter(|row| (row.ports.min()..=row.ports.max()).contains(&query.port))
            .collect();
        let mut live: Vec<&Grant> =
            fits.iter().copied().filter(|row| !revoked(row) && !expired(row.expires_at)).collect();
        live.sort_by_key(|row| (std::cmp::Reverse(row.expires_at.map_or(i64::MAX, |end| end.0)), row.id));
        let Some(grant) = live.first() else {
            return Decision::Refuse(if fits.iter().any(|row| revoked(row)) {
                Refusal::GrantRevoked
            } else if !fits.is_empty() {
                Refusal::GrantExpired
            } else if !own.is_empty() {
                Refusal::PortNotGranted
            } else {
                Refusal::NoGrant
            });
        };

        let elsewhere = node.is_some() && device.node.is_some() && device.node.as_deref() != node;
        match device.address {
            _ if device.disputed => Decision::Refuse(Refusal::DeviceDisputed),
            _ if elsewhere => Decision::Refuse(Refusal::DeviceElsewhere),
            Some(address) if device.online => Decision::Allow(Route {
                address,
                port: query.port,
                credential: credential.key.credential_id(),
                principal,
                device: device.id,
                grant: grant.id,
                generation: Generation(self.generation),
                expires_at: [credential.expires_at, grant.expires_at, until].into_iter().flatten().min(),
            }),
            _ => Decision::Refuse(Refusal::DeviceOffline),
        }
    }
}

#[derive(Clone, Debug)]
struct Rows {
    credentials: Vec<Credential>,
    grants: Vec<Grant>,
    devices: Vec<Device>,
}

#[derive(Clone, Debug)]
enum Step {
    /// A delta: becomes a snapshot and revocations.
    Apply(Vec<Change>),
    /// Revocations that overtake the snapshot.
    Revoke(Vec<Change>),
    Build(Rows),
}

/// Number of different things that the rows are about. A small world makes rows collide, a large one makes
/// tables grow.
#[derive(Clone, Copy)]
struct World {
    ids: i64,
    principals: i64,
}

impl World {
    fn principal(self) -> impl Strategy<Value = PrincipalId> {
        (0..self.principals).prop_map(PrincipalId)
    }

    fn fleet(self) -> impl Strategy<Value = FleetId> {
        (0..FLEETS).prop_map(FleetId)
    }

    fn device_id(self) -> impl Strategy<Value = DeviceId> {
        (0..self.ids).prop_map(DeviceId)
    }

    /// Groups of three share the eight bytes by which rows are found.
    fn key(self) -> impl Strategy<Value = KeyHash> {
        (0..self.ids).prop_map(|number| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(number / 3).to_be_bytes());
            bytes[24..].copy_from_slice(&number.to_be_bytes());
            KeyHash::from_bytes(bytes)
        })
    }

    fn uuid(self) -> impl Strategy<Value = DeviceUuid> {
        (0..self.ids).prop_map(|number| {
            let digits = if number % 2 == 0 { 32 } else { 62 };
            DeviceUuid::parse(&format!("{number:0digits$x}")).expect("32 or 62 hex digits")
        })
    }

    fn credential(self) -> impl Strategy<Value = Credential> {
        (self.key(), self.principal(), expiry(), rarely()).prop_map(
            |(key, principal, expires_at, revoked)| Credential { key, principal, expires_at, revoked },
        )
    }

    fn grant(self) -> impl Strategy<Value = Grant> {
        let scope = prop_oneof![
            1 => Just(Scope::Any),
            2 => self.fleet().prop_map(Scope::Fleet),
            4 => self.device_id().prop_map(Scope::Device),
        ];
        let ports = select(vec![(1, u16::MAX), (22, 22), (22, 80), (80, 443)])
            .prop_map(|(min, max)| PortRange::new(min, max).expect("a valid range"));
        (0..self.ids, self.principal(), scope, ports, expiry(), rarely()).prop_map(
            |(id, principal, scope, ports, expires_at, revoked)| Grant {
                id: GrantId(id),
                principal,
                scope,
                ports,
                expires_at,
                revoked,
            },
        )
    }

    fn device(self) -> impl Strategy<Value = Device> {
        let address = select(vec![None, Some(1), Some(2), Some(3)])
            .prop_map(|end| end.map(|end| IpAddr::from(Ipv4Addr::new(10, 0, 0, end))));
        let node = select(vec![None, Some("a"), Some("b")]).prop_map(|name| name.map(Box::from));
        let fleet = prop::option::of(self.fleet());
        (self.device_id(), self.uuid(), fleet, address, node, rarely(), rarely()).prop_map(
            |(id, uuid, fleet, address, node, offline, disputed)| Device {
                id,
                uuid,
                fleet,
                address,
                node,
                online: !offline,
                disputed,
            },
        )
    }

    fn change(self) -> impl Strategy<Value = Change> {
        prop_oneof![
            20 => self.credential().prop_map(Change::Credential),
            1 => self.key().prop_map(Change::CredentialGone),
            40 => self.grant().prop_map(Change::Grant),
            2 => (0..self.ids).prop_map(|id| Change::GrantGone(GrantId(id))),
            20 => self.device().prop_map(Change::Device),
            1 => self.device_id().prop_map(Change::DeviceGone),
            1 => (0..self.principals * self.ids).prop_map(|id| Change::PrincipalGone(PrincipalId(id))),
        ]
    }

    fn rows(self, rows_max: usize) -> impl Strategy<Value = Rows> {
        let credentials = prop::collection::vec(self.credential(), 0..rows_max);
        let grants = prop::collection::vec(self.grant(), 0..rows_max * 2);
        let devices = prop::collection::vec(self.device(), 0..rows_max);
        (credentials, grants, devices).prop_map(|(credentials, grants, devices)| Rows {
            credentials,
            grants,
            devices,
        })
    }

    /// A full build, and what comes after it.
    fn steps(self, built_max: usize, rows_max: usize, steps_max: usize) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => prop::collection::vec(self.change(), 0..rows_max).prop_map(Step::Apply),
            1 => prop::collection::vec(self.change(), 0..3).prop_map(Step::Revoke),
            1 => self.rows(rows_max).prop_map(Step::Build),
        ];
        (self.rows(built_max), prop::collection::vec(step, 0..steps_max)).prop_map(|(first, mut steps)| {
            steps.insert(0, Step::Build(first));
            steps
        })
    }

    fn query(self) -> impl Strategy<Value = Query> {
        let subject = prop::option::weighted(0.98, self.subject());
        let device = prop::option::weighted(0.98, self.uuid());
        (subject, device, select(vec![22, 80, 443, 8080])).prop_map(|(subject, device, port)| Query {
            subject,
            device,
            port,
        })
    }

    fn subject(self) -> impl Strategy<Value = Subject> {
        let until = || (0..30_i64).prop_map(UnixMillis);
        prop_oneof![
            4 => self.key().prop_map(Subject::Key),
            2 => (self.principal(), self.key(), until())
                .prop_map(|(id, token, until)| Subject::Principal { id, token, until }),
            2 => (self.key(), prop::option::of(self.principal()), until())
                .prop_map(|(key, principal, until)| Subject::Secret { key, principal, until }),
            2 => (self.key(), self.login_user(), prop::option::of(self.principal()), until())
                .prop_map(|(key, user, acts_as, until)| Subject::Login { key, user, acts_as, until }),
            1 => (self.principal(), self.key(), select(vec![22, 80]), until())
                .prop_map(|(id, token, port, until)| {
                    let ports = PortRange::new(port, port).expect("a valid range");
                    Subject::Bearer { id, token, ports, until }
                }),
        ]
    }

    /// Principals of this test have numbers below 2^32, so that 0 is their user's.
    fn login_user(self) -> impl Strategy<Value = LoginUser> {
        prop_oneof![
            6 => Just(LoginUser::Number(0)),
            1 => Just(LoginUser::Number(1)),
            1 => self.principal().prop_map(|id| LoginUser::Actor(id.0 as u32)),
        ]
    }
}

fn expiry() -> impl Strategy<Value = Option<UnixMillis>> {
    prop::option::of((0..30_i64).prop_map(UnixMillis))
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.05)
}

/// The cache and the model, at one moment.
#[derive(Clone)]
struct Moment {
    snapshot: Snapshot,
    revocations: Revocations,
    model: Model,
}

impl Moment {
    fn start() -> Self {
        Self {
            snapshot: Snapshot::build(Generation(0), vec![], vec![], vec![]),
            revocations: Revocations::default(),
            model: Model::default(),
        }
    }

    fn after(&self, step: &Step) -> Self {
        let mut next = self.clone();
        next.model.generation += 1;
        let generation = Generation(next.model.generation);
        match step {
            Step::Apply(changes) => {
                next.snapshot = self.snapshot.apply(generation, changes);
                next.model.apply(changes);
            }
            Step::Build(rows) => {
                next.snapshot = Snapshot::build(
                    generation,
                    rows.credentials.clone(),
                    rows.grants.clone(),
                    rows.devices.clone(),
                );
                next.model.replace_all(rows);
            }
            Step::Revoke(_) => next.model.generation -= 1,
        }
        if let Step::Apply(changes) | Step::Revoke(changes) = step {
            next.model.revoke(changes);
            if let Some(revocations) = self.revocations.with(changes) {
                next.revocations = revocations;
            }
        }
        next
    }

    fn expect_agreement(&self, queries: &[Query]) -> Result<(), TestCaseError> {
        let model = &self.model;
        let counts = RowCounts {
            credentials: model.credentials.len(),
            grants: model.grants.len(),
            devices: model.devices.len(),
        };
        prop_assert_eq!(self.snapshot.row_counts(), counts);
        prop_assert_eq!(self.snapshot.generation(), Generation(model.generation));
        for (node, now) in [(None, 0), (Some("a"), 10), (Some("b"), 20)] {
            let context = DecisionContext { revocations: &self.revocations, node, now: UnixMillis(now) };
            let mut together = Vec::new();
            self.snapshot.decide_all(queries, context, |decision| together.push(decision));
            prop_assert_eq!(together.len(), queries.len());
            for (query, together) in queries.iter().zip(together) {
                let decision = self.snapshot.decide(query, context);
                prop_assert_eq!(&decision, &model.decide(query, node, context.now), "{:?} {:?}", query, node);
                prop_assert_eq!(together, decision, "among others, {:?} {:?}", query, node);
            }
        }
        Ok(())
    }
}

fn expect_agreement_throughout(steps: &[Step], queries: &[Query]) -> Result<(), TestCaseError> {
    let mut moments = vec![Moment::start()];
    for step in steps {
        let next = moments[moments.len() - 1].after(step);
        next.expect_agreement(queries)?;
        moments.push(next);
    }
    // Every earlier moment still decides as it did, whatever was built upon it.
    moments.iter().try_for_each(|moment| moment.expect_agreement(queries))
}

const FLEETS: i64 = 3;

const SMALL: World = World { ids: 6, principals: 3 };

/// Starts small and comes to thousands of rows per relation, so that tables are laid out anew on the way.
const LARGE: World = World { ids: 3_000, principals: 20 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_cache_decides_like_plain_lists(
        steps in SMALL.steps(16, 16, 8),
        queries in prop::collection::vec(SMALL.query(), 60),
    ) {
        expect_agreement_throughout(&steps, &queries)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn a_large_cache_decides_like_plain_lists(
        steps in LARGE.steps(500, 20_000, 4),
        queries in prop::collection::vec(LARGE.query(), 300),
    ) {
        expect_agreement_throughout(&steps, &queries)?;
    }
}
