//! A second relay, small and short-lived: its store goes away and comes back, then it drains.

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
use crate::node::Node;
use crate::store::admin::GrantTarget;
use crate::store::sqlite;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) -> Result<(), DemoError> {
    steps.section("A second relay, whose store goes away");
    let store = SecondStore::write(world)?;
    let node = Node::start(small(&store.path))?;
    let subject = SecondRelay { client: DemoClient { relay: node.client_addresses()[0] }, store: &store };
    match open_echo(subject.client, store.target, &store.token) {
        Err(failure) => steps.record("a tunnel", Err(failure)),
        Ok(mut tunnel) => {
            steps.record("right after it went", subject.lose_store());
            steps.record("later than authz.max_stale", subject.ask_until(UNDECIDED, ESTABLISHED));
            steps.record("an open tunnel meanwhile", still_echoes(&mut tunnel));
            steps.record("with its store back", subject.regain_store());
            node.engine().drain();
            steps.record("draining", subject.ask_until(DRAINING, ESTABLISHED));
            steps.record("an open tunnel while it drains", still_echoes(&mut tunnel));
        }
    }
    node.stop();
    Ok(())
}

/// A store of its own, which knows the echo device and one token.
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

/// Asks the second relay.
struct SecondRelay<'a> {
    client: DemoClient,
    store: &'a SecondStore,
}

impl SecondRelay<'_> {
    /// The last snapshot stays in force for a while.
    fn lose_store(&self) -> Result<String, DemoFailure> {
        std::fs::rename(&self.store.path, self.store.away()).expecting("a store that can be moved")?;
        let answer = self.ask().expecting(ESTABLISHED)?;
        ESTABLISHED.check(&answer)?;
        Ok(format!("{}; its last snapshot decides", answer.status_line()))
    }

    fn regain_store(&self) -> Result<String, DemoFailure> {
        std::fs::rename(self.store.away(), &self.store.path).expecting("a store that can be moved")?;
        self.ask_until(ESTABLISHED, UNDECIDED)
    }

    /// Asks for tunnels until the answer is `expected`, and takes nothing but `meanwhile` before: a store
    /// that is gone is no reason to tell anybody that a right is.
    fn ask_until(&self, expected: Expected, meanwhile: Expected) -> Result<String, DemoFailure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask().expecting(expected)?;
            match expected.check(&answer) {
                Ok(()) => return Ok(answer.to_columns()),
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(_) => meanwhile.check(&answer)?,
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(&self) -> io::Result<RelayReply> {
        let request = self.store.target.connect(Some(&self.store.token));
        self.client.ask(&request).map(|(_, answer)| answer)
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

/// Short, so that it can be waited for; long beside `authz.refresh`, after which a store is asked again.
const MAX_STALE: Duration = Duration::from_secs(1);

/// For what takes a little while to come about.
const PATIENCE: Duration = Duration::from_secs(10);
