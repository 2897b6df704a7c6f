//! A store on PostgreSQL with principal `alice`, written by an owner and read by the relay's role.

use sluicegate::authz::{DeviceUuid, GrantId, KeyHash, PortRange};
use sluicegate::config::{self, Authz, StoreUrl};
use sluicegate::store::admin::{Admin, GrantTarget, NewDevice};
use sluicegate::store::{Initialised, StoreError};

use super::{Cluster, Database, StoreView};

pub const UUID: &str = "00112233445566778899aabbccddeeff";

pub struct Rights<'a> {
    pub database: Database<'a>,
    pub admin: Admin,
}

impl<'a> Rights<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        let database = cluster.database();
        let mut admin = open_admin(&database.owner_url()).unwrap();
        admin.add_principal("alice").unwrap();
        Self { database, admin }
    }

    /// A view under the relay's role that has read nothing yet.
    pub fn source(&self) -> StoreView {
        postgres_source(&self.database.relay_url())
    }

    /// A view that has read everything there is now.
    pub fn read_source(&self) -> StoreView {
        let mut source = self.source();
        source.read_all().unwrap();
        source
    }

    pub fn by_hand(&self, statements: &str) {
        self.database.by_hand(statements);
    }

    /// Runs statements as a superuser who first drops the schema's checks, but not its triggers.
    pub fn without_checks(&self, statements: &str) {
        self.by_hand(
            "DO $$ DECLARE each record; BEGIN
                FOR each IN SELECT conname, conrelid::regclass AS of FROM pg_constraint
                    WHERE connamespace = 'sluicegate'::regnamespace AND contype IN ('c', 'f')
                LOOP
                    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', each.of, each.conname);
                END LOOP;
            END $$",
        );
        self.by_hand(statements);
    }

    pub fn add_device(&mut self, uuid: &str) {
        self.admin
            .add_device(&NewDevice {
                uuid: DeviceUuid::parse(uuid).unwrap(),
                name: None,
                fleet: None,
                address: Some("127.0.0.1".parse().unwrap()),
                node: None,
                online: true,
            })
            .unwrap();
    }

    pub fn grant_any(&mut self) -> GrantId {
        self.admin.add_grant("alice", &GrantTarget::Any, PortRange::ANY, None).unwrap()
    }

    pub fn issue(&mut self) -> KeyHash {
        let issued = self.admin.issue_token("alice", None, None).unwrap();
        KeyHash::of_token(issued.token.as_bytes())
    }
}

pub fn postgres_source(url: &str) -> StoreView {
    StoreView::new(&store_at(url), &Authz::default())
}

pub fn open_admin(url: &str) -> Result<Admin, StoreError> {
    Admin::open(&store_at(url))
}

pub fn init_store(url: &str) -> Result<Initialised, StoreError> {
    Admin::init(&store_at(url))
}

pub fn store_at(url: &str) -> config::Store {
    config::Store { url: StoreUrl::try_from(url.to_owned()).unwrap(), ..config::Store::default() }
}
