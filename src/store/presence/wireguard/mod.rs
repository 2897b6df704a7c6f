//! Which peers of a WireGuard interface are there, by the age of their latest handshake.
//!
//! A thread calls `wg show INTERFACE dump` now and then. What it prints has keys in it, and is never shown.

mod dump;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::PresenceSource;
use super::file;
use super::lines::Lines;
use super::mailbox::Mailbox;
use super::table::PresenceTable;
use crate::authz::DeviceUuid;
use crate::config::Vpn;
use crate::sys::service_thread::{ServiceThread, StopSignal};
use dump::{Dump, Peers};

/// See the module. The thread ends soon after this is dropped, but is not waited for.
pub(super) struct WireGuard {
    latest: Arc<Mailbox>,
    is_first_look: bool,
    table: PresenceTable,
    _thread: ServiceThread,
}

/// What the thread owns.
struct Follower {
    interface: String,
    command: PathBuf,
    peers: PathBuf,
    max_age: Duration,
    latest: Arc<Mailbox>,
}

impl WireGuard {
    pub(super) fn new(interface: &str, vpn: &Vpn) -> Self {
        let latest = Arc::new(Mailbox::default());
        let follower = Follower {
            interface: interface.to_owned(),
            command: vpn.wireguard_command.clone(),
            peers: vpn.wireguard_peers.clone().unwrap_or_default(),
            max_age: vpn.wireguard_max_age,
            latest: Arc::clone(&latest),
        };
        let thread = ServiceThread::start_detached("wireguard", move |stop| follower.run(&stop));
        let thread = thread.unwrap_or_else(|error| {
            latest.tell_trouble(format!("there is no thread to follow it with ({error})"));
            ServiceThread::default()
        });
        Self {
            latest,
            is_first_look: true,
            table: PresenceTable::new(format!("wireguard:{interface}")),
            _thread: thread,
        }
    }
}

impl PresenceSource for WireGuard {
    fn look(&mut self) -> Vec<DeviceUuid> {
        // Only who begins waits, and would else begin with no device online.
        let patience = if self.is_first_look { COMMAND_PATIENCE } else { Duration::ZERO };
        self.is_first_look = false;
        self.table.hear(self.latest.take(patience))
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

impl Follower {
    fn run(self, stop: &StopSignal) {
        loop {
            match self.ask() {
                Ok(lines) => self.latest.tell(lines),
                Err(trouble) => self.latest.tell_trouble(trouble),
            }
            if stop.is_stopped_within(ASK_EVERY) {
                return;
            }
        }
    }

    fn ask(&self) -> Result<Lines, String> {
        let (peers, _) =
            file::read(&self.peers).map_err(|error| format!("{}: {error}", self.peers.display()))?;
        let peers = Peers::parse(&peers, &self.peers.display().to_string());
        let printed = self.command().map_err(|error| {
            format!("`{} show {} dump` failed: {error}", self.command.display(), self.interface)
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let dump = Dump { name: format!("wireguard:{}", self.interface), now, max_age: self.max_age };
        Ok(dump.read(&printed, peers))
    }

    fn command(&self) -> io::Result<String> {
        // A file, since a pipe that is full would have to be read with a deadline.
        let output = tempfile::tempfile()?;
        let mut command = Command::new(&self.command);
        command.args(["show", &self.interface, "dump"]).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.stdout(output.try_clone()?).spawn()?;
        wait(child)?;
        read_from_start(output)
    }
}

fn wait(mut child: Child) -> io::Result<()> {
    let give_up_at = Instant::now() + COMMAND_PATIENCE;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(io::Error::other(format!("{status}; does the relay have CAP_NET_ADMIN?")));
            }
            None if Instant::now() < give_up_at => std::thread::sleep(COMMAND_LOOK),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other(format!("no end within {} s", COMMAND_PATIENCE.as_secs())));
            }
        }
    }
}

fn read_from_start(mut output: File) -> io::Result<String> {
    io::Seek::rewind(&mut output)?;
    let mut text = String::new();
    output.take(DUMP_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Between two calls of the command.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// For the command to end.
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at whether it has.
const COMMAND_LOOK: Duration = Duration::from_millis(5);

/// Of what it prints; some 200 for each peer.
const DUMP_BYTES_MAX: u64 = 64 * 1024 * 1024;
