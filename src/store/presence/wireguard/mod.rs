//! The devices that are there on a WireGuard interface, by the age of their peer's latest WireGuard handshake.
//!
//! A thread runs `wg show INTERFACE dump` every few seconds. The output has keys in it, and is never shown.

pub(super) mod dump;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::address_list::AddressList;
use super::file;
use super::mailbox::Mailbox;
use super::table::PresenceTable;
use super::{Patience, PresenceSource};
use crate::authz::DeviceUuid;
use crate::config::{AddressSource, Vpn};
use crate::sys::launcher::{self, ProgramCall, wait_within};
use crate::sys::service_thread::{ServiceThread, StopSignal};
use dump::{DumpReader, PeerDevices};

/// A source that is a WireGuard interface. Its thread ends soon after this is dropped; nobody waits for that.
pub(super) struct WireGuard {
    latest: Arc<Mailbox>,
    table: PresenceTable,
    _thread: ServiceThread,
}

/// State of the thread.
struct WireGuardFollower {
    interface: String,
    call: ProgramCall,
    peers: PathBuf,
    max_age: Duration,
    latest: Arc<Mailbox>,
}

impl WireGuard {
    pub(super) fn new(interface: &str, vpn: &Vpn) -> Self {
        let latest = Arc::new(Mailbox::default());
        let follower = WireGuardFollower {
            interface: interface.to_owned(),
            call: call(interface, vpn),
            peers: vpn.wireguard_peers.clone().unwrap_or_default(),
            max_age: vpn.wireguard_max_age,
            latest: Arc::clone(&latest),
        };
        let thread = ServiceThread::start_detached("wireguard", move |stop| follower.run(&stop));
        let thread = thread.unwrap_or_else(|error| {
            latest.put_failure(format!("there is no thread to follow it with ({error})"));
            ServiceThread::default()
        });
        Self { latest, table: PresenceTable::new(format!("wireguard:{interface}")), _thread: thread }
    }
}

impl PresenceSource for WireGuard {
    fn poll(&mut self, patience: Patience) -> Vec<DeviceUuid> {
        let timeout = patience.within(COMMAND_TIMEOUT);
        self.table.apply(self.latest.poll(timeout))
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

impl WireGuardFollower {
    fn run(self, stop: &StopSignal) {
        loop {
            match self.query() {
                Ok(list) => self.latest.put(list),
                Err(failure) => self.latest.put_failure(failure),
            }
            if stop.is_stopped_within(QUERY_EVERY) {
                return;
            }
        }
    }

    fn query(&self) -> Result<AddressList, String> {
        let (peers, _) =
            file::read(&self.peers).map_err(|error| format!("{}: {error}", self.peers.display()))?;
        let peers = PeerDevices::parse(&peers, &self.peers.display().to_string());
        let printed = self.output().map_err(|error| {
            format!("`{} show {} dump` failed: {error}", self.call.file.display(), self.interface)
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let reader = DumpReader { name: format!("wireguard:{}", self.interface), now, max_age: self.max_age };
        Ok(reader.read(&printed, peers))
    }

    fn output(&self) -> io::Result<String> {
        if let Some(launcher) = launcher::in_use() {
            return read_from_start(launcher.output_of(&self.call, COMMAND_TIMEOUT)?);
        }
        // This is a file, since a full pipe would have to be read with a deadline.
        let output = tempfile::tempfile()?;
        let mut command = self.call.command();
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(output.try_clone()?);
        let status = wait_within(command.spawn()?, COMMAND_TIMEOUT)?;
        if !status.success() {
            return Err(io::Error::other(format!("{status}; does the relay have CAP_NET_ADMIN?")));
        }
        read_from_start(output)
    }
}

/// The commands of all WireGuard interfaces in `vpn`, for the launcher.
pub fn calls(vpn: &Vpn) -> Vec<ProgramCall> {
    let interfaces = vpn.addresses.iter().filter_map(|source| match source {
        AddressSource::WireGuard(interface) => Some(interface),
        _ => None,
    });
    interfaces.map(|interface| call(interface, vpn)).collect()
}

fn call(interface: &str, vpn: &Vpn) -> ProgramCall {
    let arguments = ["show", interface, "dump"].map(OsString::from).to_vec();
    let file = vpn.wireguard_command.clone().into();
    ProgramCall { file, name: None, arguments, set: Vec::new(), unset: Vec::new() }
}

fn read_from_start(mut output: File) -> io::Result<String> {
    io::Seek::rewind(&mut output)?;
    let mut text = String::new();
    output.take(DUMP_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > DUMP_BYTES_MAX {
        // Half of it would say that the other half of the devices is gone.
        return Err(io::Error::other(format!("it printed more than {DUMP_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Time between two runs of the command.
const QUERY_EVERY: Duration = Duration::from_secs(2);

/// Longest run of the command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Size limit of the output. A peer takes some 200 bytes.
const DUMP_BYTES_MAX: u64 = 64 * 1024 * 1024;
