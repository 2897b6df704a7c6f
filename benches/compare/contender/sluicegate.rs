//! sluicegate itself, as it comes and with each way of forwarding: the real binary, a store, CONNECT and a
//! decision about each tunnel.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use serde_json::Value;
use sluicegate::sys::cpu::Cpu;
use tempfile::TempDir;

use super::relay::Launch;
use super::{Contender, Facts, Missing, Relay, StartError, Started, output_of};
use crate::generator::{Opening, Target};
use crate::plan::Extent;
use crate::works::{Direction, Work};

pub(super) struct Sluicegate {
    site: Rc<Site>,
    forwarding: Forwarding,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Forwarding {
    Auto,
    Copy,
    Splice,
    RingSplice,
}

/// A store with one principal, who may reach one device: the backend.
struct Site {
    folder: TempDir,
    token: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("no folder for a store: {0}")]
    Folder(std::io::Error),
    #[error("`{PROGRAM}` cannot be started: {0}")]
    Spawn(std::io::Error),
    #[error("`sluicegate {arguments}` failed: {said}")]
    Command { arguments: String, said: String },
}

/// One for each way of forwarding, over one store.
pub(super) fn all() -> Result<Vec<Sluicegate>, SiteError> {
    let site = Rc::new(Site::fill()?);
    let ways = [Forwarding::Auto, Forwarding::Copy, Forwarding::Splice, Forwarding::RingSplice];
    Ok(ways.map(|forwarding| Sluicegate { site: Rc::clone(&site), forwarding }).into())
}

impl Contender for Sluicegate {
    fn name(&self) -> &'static str {
        match self.forwarding {
            Forwarding::Auto => "sluicegate",
            Forwarding::Copy => "sluicegate-copy",
            Forwarding::Splice => "sluicegate-splice",
            Forwarding::RingSplice => "sluicegate-ring-splice",
        }
    }

    fn facts(&self) -> Result<Facts, Missing> {
        let version = output_of(Path::new(PROGRAM), &["--version"])?;
        let version = format!("{}{}", version.trim(), commit());
        let settings = format!("engine.threads = 1, engine.forwarding = \"{}\"", self.forwarding.key());
        Ok(Facts { version, settings })
    }

    /// The ways that `auto` chooses from say something about bulk only, and the same in each direction.
    fn joins(&self, work: Work, extent: Extent) -> bool {
        let is_down = matches!(work, Work::Bulk { direction: Direction::Down, .. });
        self.forwarding == Forwarding::Auto || (is_down && extent == Extent::Full)
    }

    fn start(&self, work: Work, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError> {
        debug_assert!(backend.ip().is_loopback(), "the device's address is loopback's");
        // Its table of sessions is made at the start. Only a smaller one shows what that takes.
        let smallest_kib = match work {
            Work::Idle { .. } => Some(self.launch(SESSIONS_FEW, cpu)?.1.rss_at_rest_kib()?),
            _ => None,
        };
        let (address, relay) = self.launch(SESSIONS, cpu)?;
        let rss_ahead_kib = match smallest_kib {
            Some(smallest_kib) => {
                (relay.rss_at_rest_kib()? - smallest_kib) / f64::from(SESSIONS - SESSIONS_FEW)
            }
            None => 0.0,
        };
        let opening = Opening::Connect { uuid: DEVICE.to_owned(), token: self.site.token.clone() };
        Ok(Started { target: Target { address, opening }, relay: Some(relay), rss_ahead_kib })
    }
}

impl Sluicegate {
    fn launch(&self, sessions: u32, cpu: Cpu) -> Result<(SocketAddr, Relay), StartError> {
        let mut launch = Launch::prepare(cpu)?;
        let address = launch.address();
        let config = launch.write("sluicegate.toml", &self.config(launch.port, sessions))?;
        launch.command = [PROGRAM, "run", "--config", &config].map(str::to_owned).to_vec();
        Ok((address, launch.start()?))
    }

    fn config(&self, port: u16, sessions: u32) -> String {
        format!(
            r#"listen = [{{ address = "127.0.0.1:{port}" }}]
            store.url = "{store}"
            engine = {{ threads = 1, forwarding = "{forwarding}" }}
            vpn.allow = ["127.0.0.0/8"]
            admin.address = "127.0.0.1:0"
            timeouts.drain = "100ms"
            log.level = "warn"
            [limits]
            sessions = {sessions}
            sessions_per_principal = {sessions}
            sessions_per_device = {sessions}
            "#,
            store = self.site.store(),
            forwarding = self.forwarding.key(),
        )
    }
}

impl Forwarding {
    /// The value in the configuration.
    fn key(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::RingSplice => "ring-splice",
        }
    }
}

impl Site {
    fn fill() -> Result<Self, SiteError> {
        let folder = tempfile::Builder::new().prefix("sluicegate-compare-").tempdir();
        let mut site = Self { folder: folder.map_err(SiteError::Folder)?, token: String::new() };
        site.run(&["store", "init"])?;
        site.run(&["principal", "add", PRINCIPAL])?;
        let issued = site.run(&["token", "issue", PRINCIPAL])?;
        site.token = issued["token"].as_str().unwrap_or_default().to_owned();
        site.run(&["device", "add", DEVICE, "--address", "127.0.0.1"])?;
        site.run(&["grant", "add", PRINCIPAL, "--any"])?;
        Ok(site)
    }

    fn run(&self, arguments: &[&str]) -> Result<Value, SiteError> {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .args(["--json", "--store", &self.store()])
            .stdin(Stdio::null())
            .output()
            .map_err(SiteError::Spawn)?;
        let answer = output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten();
        answer.ok_or_else(|| SiteError::Command {
            arguments: arguments.join(" "),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn store(&self) -> String {
        format!("sqlite:{}/store.db", self.folder.path().display())
    }
}

/// The commit of the checkout, where git is installed.
fn commit() -> String {
    let described = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match described {
        Ok(output) if output.status.success() => {
            format!(" ({})", String::from_utf8_lossy(&output.stdout).trim())
        }
        _ => String::new(),
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluicegate");

/// Sessions allowed, more than the 5,000 of the idle work.
const SESSIONS: u32 = 6_000;

/// Next to nothing beside [`SESSIONS`].
const SESSIONS_FEW: u32 = 1;

const PRINCIPAL: &str = "compare";
const DEVICE: &str = "00112233445566778899aabbccddeeff";
