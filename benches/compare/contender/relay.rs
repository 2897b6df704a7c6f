//! A relay as a child process: pinned, heard, and ended with its value.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sluicegate::sys::cpu::Cpu;
use tempfile::TempDir;

use crate::generator::MeasureError;
use crate::process::Snapshot;

/// A running relay. Dropped, it is ended, with every process that it started.
pub struct Relay {
    child: Child,
    /// Its configuration and what it says; gone with it.
    folder: TempDir,
}

/// A relay that is yet to be started.
pub(super) struct Launch {
    /// The relay's alone.
    pub folder: TempDir,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The port on loopback that it will listen on.
    pub port: u16,
    pub cpu: Cpu,
}

/// A relay did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no folder, file or port for it: {0}")]
    Prepare(#[from] io::Error),
    #[error(transparent)]
    Look(#[from] MeasureError),
    #[error("setpriv of util-linux, which starts it, cannot be started: {0}")]
    Spawn(io::Error),
    #[error("it ended by itself ({status}); it said: {said}")]
    Ended { status: ExitStatus, said: String },
    #[error("it accepts nothing on port {port} after {PATIENCE:?}; it said: {said}")]
    Deaf { port: u16, said: String },
}

impl Launch {
    /// A folder and a port for a relay that still needs its command.
    pub fn prepare(cpu: Cpu) -> Result<Self, StartError> {
        let folder = tempfile::Builder::new().prefix("sluicegate-compare-").tempdir()?;
        Ok(Self { folder, command: Vec::new(), port: free_port()?, cpu })
    }

    /// Puts a file into the relay's folder, and tells its whole path.
    pub fn write(&self, name: &str, text: &str) -> Result<String, StartError> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Starts it, and waits until it accepts connections.
    pub fn start(self) -> Result<Relay, StartError> {
        let output = File::create(self.folder.path().join(OUTPUT))?;
        let child = Command::new("setpriv")
            // Whatever ends the comparison ends its relays.
            .args(["--pdeathsig", "TERM", "taskset", "--cpu-list", &self.cpu.0.to_string()])
            .args(&self.command)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C is for the comparison, which then ends its relays in order.
            .process_group(0)
            .spawn()
            .map_err(StartError::Spawn)?;
        let address = self.address();
        let mut relay = Relay { child, folder: self.folder };
        let give_up_at = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if let Some((status, said)) = relay.ended() {
                return Err(StartError::Ended { status, said });
            }
            if Instant::now() > give_up_at {
                return Err(StartError::Deaf { port: address.port(), said: relay.said() });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(relay)
    }
}

impl Relay {
    /// Exit status and output of a relay that has ended by itself.
    pub fn ended(&mut self) -> Option<(ExitStatus, String)> {
        let status = self.child.try_wait().ok().flatten()?;
        Some((status, self.said()))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All of its memory that is resident, once it has come to rest.
    pub(super) fn rss_at_rest_kib(&self) -> Result<f64, StartError> {
        std::thread::sleep(SETTLE);
        let snapshot = Snapshot::of(Some(self.id()))?;
        Ok(snapshot.map_or(0.0, |snapshot| snapshot.rss_kib as f64))
    }

    /// The end of what it printed, in one line.
    pub fn said(&self) -> String {
        tail(&self.folder.path().join(OUTPUT))
    }

    fn signal(&self, signal: Signal) {
        // Its process group has its number. Nobody is left to be told where this fails.
        let _gone_already = killpg(Pid::from_raw(self.child.id().cast_signed()), signal);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let kill_at = Instant::now() + TERM_PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < kill_at {
            std::thread::sleep(LOOK_INTERVAL);
        }
        // Also for children that outlived it.
        self.signal(Signal::SIGKILL);
        let _ended = self.child.wait();
    }
}

/// One that nobody listens on now. Somebody may before the relay does, which then says so.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "nothing".to_owned(),
        count => lines[count.saturating_sub(LINES_TOLD)..].join("; "),
    }
}

const OUTPUT: &str = "output.log";

/// Lines of a relay's output that an error shows.
const LINES_TOLD: usize = 6;

/// Longest time from start to the first accepted connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time between SIGTERM and SIGKILL.
const TERM_PATIENCE: Duration = Duration::from_secs(2);

/// Pause in which a relay that already accepts finishes its start.
const SETTLE: Duration = Duration::from_millis(500);

const LOOK_INTERVAL: Duration = Duration::from_millis(2);
