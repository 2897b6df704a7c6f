//! A second relay, which loses its store, gets it back, and then drains.

use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::DemoError;
use super::answer::{DRAINING, ESTABLISHED, Expected, RelayReply, UNDECIDED};
use super::client::{DemoClient, DemoTarget};
use super::echo::{exchange, open_echo};
use super::rights::{PERSON, device, user_ports};
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::{DemoWorld, config};
use crate::config::{Authz, Config, EngineConfig};
use crate::engine::ServicePhase;
use crate::node::Node;
use crate::store::admin::GrantTarget;
use crate::store::sqlite;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) -> Result<(), DemoError> {
    steps.section("A second relay that loses its store");
    let store = SecondStore::write(world)?;
    let node = Node::start(small(&store.path))?;
    let relay = SecondRelay { client: DemoClient { relay: node.client_addresses()[0] }, store: &store };
    match open_echo(relay.client, store.target, &store.token) {
        Err(failure) => steps.record("a tunnel", Err(failure)),
        Ok(mut tunnel) => {
            steps.record("right after the store is gone", relay.lose_store());
            steps.record("after authz.max_stale", relay.request_until(UNDECIDED, ESTABLISHED));
            steps.record("an open tunnel meanwhile", still_echoes(&mut tunnel));
            steps.record("with the store back", relay.regain_store());
            node.engine().set_phase(ServicePhase::Draining);
            steps.record("draining", relay.request_until(DRAINING, ESTABLISHED));
            steps.record("an open tunnel while it drains", still_echoes(&mut tunnel));
        }
    }
    node.stop();
    Ok(())
}

/// The store of the second relay, with the echo device and one token.
struct SecondStore {
    path: PathBuf,
    target: DemoTarget,
    token: String,
}

impl SecondStore {
    fn write(world: &DemoWorld) -> Result<Self, DemoError> {
        let path = world.folder().join("second.db");
        let echo = world.echo_address();
        let device = device("echo", echo.ip(), None)?;
        sqlite::init(&path)?;
        let mut admin = sqlite::open(&path)?;
        admin.add_principal(PERSON)?;
        admin.add_device(&device)?;
        admin.add_grant(PERSON, &GrantTarget::Device(device.uuid), user_ports(), None)?;
        let token = admin.issue_token(PERSON, None, None)?.token;
        Ok(Self { path, target: DemoTarget { uuid: device.uuid, port: echo.port() }, token })
    }

    fn away(&self) -> PathBuf {
        self.path.with_extension("away")
    }
}

/// Client of the second relay.
struct SecondRelay<'a> {
    client: DemoClient,
    store: &'a SecondStore,
}

impl SecondRelay<'_> {
    /// Moves the store away. The last snapshot stays in force for a while.
    fn lose_store(&self) -> Result<String, DemoFailure> {
        std::fs::rename(&self.store.path, self.store.away()).expecting("a store that can be moved")?;
        let answer = self.request().expecting(ESTABLISHED)?;
        ESTABLISHED.check(&answer)?;
        Ok(format!("{}; its last snapshot decides", answer.status_line()))
    }

    fn regain_store(&self) -> Result<String, DemoFailure> {
        std::fs::rename(self.store.away(), &self.store.path).expecting("a store that can be moved")?;
        self.request_until(ESTABLISHED, UNDECIDED)
    }

    /// Requests tunnels until the reply is `expected`. Every reply before must be `meanwhile`: a missing store must
    /// not look like a missing right.
    fn request_until(&self, expected: Expected, meanwhile: Expected) -> Result<String, DemoFailure> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let answer = self.request().expecting(expected)?;
            match expected.check(&answer) {
                Ok(()) => return Ok(answer.to_columns()),
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(_) => meanwhile.check(&answer)?,
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn request(&self) -> io::Result<RelayReply> {
        let request = self.store.target.connect(Some(&self.store.token));
        self.client.request(&request).map(|(_, answer)| answer)
    }
}

fn still_echoes(tunnel: &mut TcpStream) -> Result<String, DemoFailure> {
    exchange(tunnel, 1)?;
    Ok("still echoes".to_owned())
}

fn small(store: &Path) -> Config {
    Config {
        engine: EngineConfig { threads: 1, ..EngineConfig::default() },
        authz: Authz { max_stale: MAX_STALE, ..Authz::default() },
        ..config(store.to_owned())
    }
}

/// Short enough to wait for, and long compared with `authz.refresh`, the interval between two polls of the store.
const MAX_STALE: Duration = Duration::from_secs(1);

/// Time limit for a change to take effect.
const TIMEOUT: Duration = Duration::from_secs(10);
