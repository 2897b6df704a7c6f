//! The parts of the demo: a folder, a store, devices, a relay and a client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::DemoError;
use super::client::{DemoClient, DemoTarget};
use super::devices::{ClosedPort, DemoDevice, SilentPort};
use super::rights::{Addresses, DemoRights, new_uuid};
use super::steps::Steps;
use crate::authz::DeviceUuid;
use crate::config::{Admin, Audit, Config, Limits, Listen, Store, StoreUrl, Timeouts, Vpn};
use crate::node::Node;

pub(super) struct DemoWorld {
    node: Node,
    pub client: DemoClient,
    pub rights: DemoRights,
    /// Uuid without a device.
    pub unknown: DeviceUuid,
    pub page: String,
    web: DemoDevice,
    echo: DemoDevice,
    closed: ClosedPort,
    silent: SilentPort,
    folder: TempDir,
}

impl DemoWorld {
    /// Starts all parts and prints them.
    pub fn set_up(steps: &mut Steps) -> Result<Self, DemoError> {
        steps.section("Setup, on loopback and in a temporary folder");
        let folder = tempfile::Builder::new().prefix("sluicegate-demo-").tempdir();
        let folder = folder.map_err(|source| DemoError::SetUp { what: "temporary folder", source })?;
        let device = |source| DemoError::SetUp { what: "device", source };

        let page = format!("Hello from a device behind sluicegate {}.\n", crate::VERSION);
        let web = DemoDevice::web(WEB, page.clone()).map_err(device)?;
        let echo = DemoDevice::echo(ECHO).map_err(device)?;
        let closed = ClosedPort::bind(web.address().ip()).map_err(device)?;
        let silent = SilentPort::bind(echo.address().ip()).map_err(device)?;

        let store = folder.path().join(STORE);
        let addresses = Addresses { web: web.address().ip(), echo: echo.address().ip() };
        let rights = DemoRights::write(&store, &addresses)?;
        steps.record("a store", Ok(format!("SQLite, {}", store.display())));
        steps.record("principals and their rights", Ok(rights.summary.clone()));
        steps.record("a device that serves a page", Ok(format!("HTTP on {}", web.address())));
        steps.record(
            "a device that echoes",
            Ok(format!("also sends and receives bulk data, on {}", echo.address())),
        );

        let audit = Audit { path: Some(folder.path().join(AUDIT)), ..Audit::default() };
        let node = Node::start(Config { audit, ..config(store) })?;
        let client = DemoClient { relay: node.client_addresses()[0] };
        let relay = format!("clients on {}, admin on {}", client.relay, node.admin_address());
        steps.record("a relay", Ok(relay));
        Ok(Self { node, client, rights, unknown: new_uuid()?, page, web, echo, closed, silent, folder })
    }

    /// Stops the relay, then the devices, and removes the folder.
    pub fn take_down(self) -> Result<(), DemoError> {
        let Self { node, web, echo, folder, .. } = self;
        node.stop();
        drop((web, echo));
        let path = folder.path().to_owned();
        folder.close().map_err(|source| DemoError::Folder { path, source })
    }

    pub fn web(&self) -> DemoTarget {
        DemoTarget { uuid: self.rights.web, port: self.web.address().port() }
    }

    pub fn echo(&self) -> DemoTarget {
        DemoTarget { uuid: self.rights.echo, port: self.echo.address().port() }
    }

    pub fn echo_address(&self) -> SocketAddr {
        self.echo.address()
    }

    /// A port of the web device that nobody listens on.
    pub fn closed(&self) -> DemoTarget {
        DemoTarget { uuid: self.rights.web, port: self.closed.port() }
    }

    /// A port of the echo device that does not answer.
    pub fn silent(&self) -> DemoTarget {
        DemoTarget { uuid: self.rights.echo, port: self.silent.port() }
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join(STORE)
    }

    pub fn audit(&self) -> PathBuf {
        self.folder.path().join(AUDIT)
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.node.admin_address()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Configuration of a relay, with free ports, and with timeouts and limits that are low enough to reach.
pub(super) fn config(store: PathBuf) -> Config {
    Config {
        store: Store { url: StoreUrl::Sqlite(store), ..Store::default() },
        listen: vec![Listen {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            suffixes: vec!["balena".to_owned()],
            ..Listen::default()
        }],
        limits: Limits {
            sessions: 256,
            sessions_per_principal: 256,
            sessions_per_device: SESSIONS_PER_DEVICE,
            ..Limits::default()
        },
        timeouts: Timeouts { head: HEAD_TIMEOUT, connect: CONNECT_TIMEOUT, ..Timeouts::default() },
        vpn: Vpn::loopback(),
        admin: Admin { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..Admin::default() },
        ..Config::default()
    }
}

/// Low enough that the demo can reach it.
pub(super) const SESSIONS_PER_DEVICE: u32 = 16;

const HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Short, since loopback answers at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Each device has an address of its own, as in a VPN.
const WEB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const ECHO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

const STORE: &str = "store.db";
const AUDIT: &str = "audit.jsonl";
