//! The parts of the incident: devices, a store whose views can slip, and a relay that reads rights by these views.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::slips::{DEVICES, View};
use crate::admin::api::SourceStatus;
use crate::admin::routes;
use crate::authz::{CredentialId, DeviceUuid};
use crate::cli::admin_client::AdminClient;
use crate::cli::demo::DemoError;
use crate::cli::demo::client::{DemoClient, DemoTarget};
use crate::cli::demo::devices::DemoDevice;
use crate::cli::demo::rights::{PERSON, device, user_ports};
use crate::cli::demo::steps::{DemoFailure, Expecting};
use crate::cli::demo::world::config;
use crate::config::{Admin, Authz, Config, EngineConfig, Queries, RelationQuery};
use crate::node::Node;
use crate::store::admin::{GrantTarget, IssuedToken};
use crate::store::sqlite;

/// A relay whose query for devices and for grants is on a view each.
pub(super) struct Installation {
    pub client: DemoClient,
    pub echo: DemoTarget,
    pub pages: [PageDevice; 2],
    /// Token that stays good.
    pub token: String,
    /// Token that is revoked while the guard holds.
    pub leaver: Leaver,
    node: Node,
    admin: Admin,
    store: PathBuf,
    _listeners: Vec<DemoDevice>,
}

/// A device that shows which one it is.
pub(super) struct PageDevice {
    pub target: DemoTarget,
    pub page: String,
}

/// A token and the name by which it is revoked.
pub(super) struct Leaver {
    pub token: String,
    pub credential: CredentialId,
}

impl Installation {
    pub fn start(folder: &Path) -> Result<Self, DemoError> {
        let store = folder.join("incident.db");
        sqlite::init(&store)?;
        let mut rights = sqlite::open(&store)?;
        let listening = |source| DemoError::SetUp { what: "device", source };
        let echo = DemoDevice::echo(address(0)).map_err(listening)?;
        let page = |name: &str| format!("I am {name}, and no other device.\n");
        let first = DemoDevice::web(address(1), page("lamp")).map_err(listening)?;
        // The same port, so that a tunnel to the wrong device would get a page as well.
        let port = first.address().port();
        let second =
            DemoDevice::web_on(SocketAddr::from((address(2), port)), page("pump")).map_err(listening)?;

        rights.add_principal(PERSON)?;
        let mut uuids: Vec<DeviceUuid> = Vec::new();
        for number in 0..DEVICES {
            let device = device(&format!("device-{number}"), address(number).into(), None)?;
            rights.add_device(&device)?;
            rights.add_grant(PERSON, &GrantTarget::Device(device.uuid), user_ports(), None)?;
            uuids.push(device.uuid);
        }
        let IssuedToken { token, .. } = rights.issue_token(PERSON, Some("stays"), None)?;
        let leaver = rights.issue_token(PERSON, Some("leaves"), None)?;
        for view in View::ALL {
            execute(&store, &view.replacement(view.true_query())).map_err(DemoError::View)?;
        }

        let admin = Admin { socket: Some(folder.join("incident.sock")), ..config(store.clone()).admin };
        let node = Node::start(Config {
            engine: EngineConfig { threads: 1, ..EngineConfig::default() },
            authz: Authz { reread: REREAD, queries: queries(), ..Authz::default() },
            admin: admin.clone(),
            ..config(store.clone())
        })?;
        let pages = [("lamp", 1), ("pump", 2)].map(|(name, number)| PageDevice {
            target: DemoTarget { uuid: uuids[number], port },
            page: page(name),
        });
        Ok(Self {
            client: DemoClient { relay: node.client_addresses()[0] },
            echo: DemoTarget { uuid: uuids[0], port: echo.address().port() },
            pages,
            token,
            leaver: Leaver { token: leaver.token, credential: leaver.credential },
            node,
            admin,
            store,
            _listeners: vec![echo, first, second],
        })
    }

    pub fn stop(self) {
        self.node.stop();
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.node.admin_address()
    }

    /// Replaces the query behind `view`, as a deployment does.
    pub fn deploy(&self, view: View, query: &str) -> Result<(), DemoFailure> {
        let failure = |error| DemoFailure::new("a view that can be replaced", error);
        execute(&self.store, &view.replacement(query)).map_err(failure)
    }

    pub fn revoke_leaver(&self) -> Result<(), DemoFailure> {
        let failure = |error: crate::store::admin::AdminError| DemoFailure::new("a revocation", error);
        let mut store = sqlite::open(&self.store).map_err(|error| failure(error.into()))?;
        store.revoke_credential(&self.leaver.credential.to_string()).map(drop).map_err(failure)
    }

    /// The answer that `sluicegate authz status` prints.
    pub fn status(&self) -> Result<SourceStatus, DemoFailure> {
        let status = || AdminClient::of(&self.admin)?.get(routes::AUTHZ_STATUS)?.read();
        status().map_err(|error| DemoFailure::new("an answer of authz status", error))
    }

    /// The tunnel's end `page` over a new tunnel.
    pub fn page_of(&self, device: &PageDevice) -> Result<String, DemoFailure> {
        let stream = self.client.open(device.target, &self.token)?;
        crate::cli::demo::page::fetch(stream).expecting("the device's page")
    }
}

fn execute(store: &Path, sql: &str) -> rusqlite::Result<()> {
    let connection = Connection::open(store)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(sql)
}

fn queries() -> Queries {
    let of = |view: View| {
        let (file, sql) = (format!("{view}.sql").into(), format!("SELECT * FROM {view}"));
        Some(RelationQuery { file, sql })
    };
    Queries { devices: of(View::Devices), grants: of(View::Grants), ..Queries::default() }
}

/// Each device has an address of its own.
const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 2, 1 + number)
}

/// Short, so that the demo does not wait. The default is 10 s.
const REREAD: Duration = Duration::from_millis(100);

/// Time that a change of a view waits for the relay's reads.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
