//! The file of addresses that the hooks keep.
//!
//! One hook at a time changes the file, and replaces it by a rename, so that a reader never sees half of it. The
//! file is not flushed to disk: after a power cut, no device is connected any more.

use std::fs::{File, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::event::VpnEvent;
use crate::authz::DeviceUuid;

/// Lines of `uuid address`. Other lines stay as they are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AddressTable {
    lines: Vec<AddressLine>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AddressTableError {
    #[error("{} cannot be changed ({error}){remedy}", path.display())]
    File { path: PathBuf, error: io::Error, remedy: &'static str },
    #[error(
        "{} was locked by another process for {}; the device is not known until it connects again",
        path.display(),
        humantime::format_duration(*patience)
    )]
    Locked { path: PathBuf, patience: Duration },
}

#[derive(Debug, PartialEq, Eq)]
enum AddressLine {
    Device {
        uuid: DeviceUuid,
        address: IpAddr,
    },
    /// Any other line, such as a comment.
    Other(String),
}

impl AddressTable {
    /// Reads the file, applies `change`, and replaces the file if its text has changed.
    pub(super) fn change(
        path: &Path,
        patience: Duration,
        change: impl FnOnce(&mut Self),
    ) -> Result<(), AddressTableError> {
        let failed = |error| AddressTableError::file(path, error);
        let _locked = lock(path, patience)?;
        let (before, permissions) = match std::fs::read(path) {
            Ok(bytes) => (bytes, std::fs::metadata(path).map_err(failed)?.permissions()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                (Vec::new(), Permissions::from_mode(FILE_MODE))
            }
            Err(error) => return Err(failed(error)),
        };
        let mut address_table = Self::parse(&String::from_utf8_lossy(&before));
        change(&mut address_table);
        let after = address_table.to_text();
        if after.as_bytes() == before {
            return Ok(());
        }
        let new = beside(path, ".new");
        let write = || {
            let mut file = File::create(&new)?;
            file.set_permissions(permissions)?;
            file.write_all(after.as_bytes())?;
            std::fs::rename(&new, path)
        };
        write().map_err(failed)
    }

    pub(super) fn apply(&mut self, event: VpnEvent) {
        match event {
            VpnEvent::Came { uuid, address }
                if self.lines.contains(&AddressLine::Device { uuid, address }) => {}
            VpnEvent::Came { uuid, address } => {
                // The device that had the address before has lost it.
                self.keep_devices(|kept, at| kept != uuid && at != address);
                self.lines.push(AddressLine::Device { uuid, address });
            }
            VpnEvent::Left { uuid, addresses } => {
                // The device may have reconnected from another address before its old connection timed out.
                self.keep_devices(|kept, at| {
                    kept != uuid || !(addresses.is_empty() || addresses.contains(&at))
                });
            }
            VpnEvent::Freed { address } => self.keep_devices(|_, at| at != address),
            VpnEvent::Began => self.keep_devices(|_, _| false),
            VpnEvent::Other => {}
        }
    }

    fn keep_devices(&mut self, is_kept: impl Fn(DeviceUuid, IpAddr) -> bool) {
        self.lines.retain(|line| match line {
            AddressLine::Device { uuid, address } => is_kept(*uuid, *address),
            AddressLine::Other(_) => true,
        });
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| line.trim() != EMPTY_LINE);
        Self { lines: lines.map(AddressLine::parse).collect() }
    }

    fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.lines.len() * LINE_BYTES);
        for line in &self.lines {
            match line {
                AddressLine::Device { uuid, address } => text.push_str(&format!("{uuid} {address}")),
                AddressLine::Other(line) => text.push_str(line),
            }
            text.push('\n');
        }
        if !self.lines.iter().any(|line| matches!(line, AddressLine::Device { .. })) {
            text.push_str(EMPTY_LINE);
            text.push('\n');
        }
        text
    }
}

impl AddressTableError {
    /// Tests whether the next attempt may succeed.
    pub(super) const fn is_passing(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    fn file(path: &Path, error: io::Error) -> Self {
        let remedy = match error.kind() {
            ErrorKind::NotFound => "; is its folder there?",
            ErrorKind::PermissionDenied => "; the user that OpenVPN runs as must be able to write its folder",
            _ => "",
        };
        Self::File { path: path.to_owned(), error, remedy }
    }
}

impl AddressLine {
    fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let (uuid, address) = (words.next().and_then(DeviceUuid::parse), words.next());
        match (uuid, address.and_then(|address| address.parse().ok()), words.next()) {
            (Some(uuid), Some(address), None) => Self::Device { uuid, address },
            _ => Self::Other(line.to_owned()),
        }
    }
}

/// Locks the file until the lock is dropped or the process ends.
fn lock(path: &Path, patience: Duration) -> Result<File, AddressTableError> {
    let lock = beside(path, ".lock");
    let failed = |error| AddressTableError::file(&lock, error);
    let file = File::options().write(true).create(true).truncate(false).open(&lock).map_err(failed)?;
    let give_up_at = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up_at => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(AddressTableError::Locked { path: path.to_owned(), patience });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Line that says that there is no device. An empty file says nothing.
const EMPTY_LINE: &str = "nobody";

/// Mode of a new file. Addresses of a VPN are no secret on its server.
const FILE_MODE: u32 = 0o644;

/// Length of a line with a short uuid and an IPv4 address.
const LINE_BYTES: usize = 48;

/// Pause between two attempts to lock. A hook holds the lock for about a millisecond.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn uuid(text: &str) -> DeviceUuid {
        DeviceUuid::parse(text).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn came(device: &str, at: &str) -> VpnEvent {
        VpnEvent::Came { uuid: uuid(device), address: address(at) }
    }

    fn after(text: &str, events: Vec<VpnEvent>) -> String {
        let mut address_table = AddressTable::parse(text);
        events.into_iter().for_each(|event| address_table.apply(event));
        address_table.to_text()
    }

    #[test]
    fn a_device_has_one_line_and_an_address_one_device() {
        let text = after("", vec![came(A, "10.8.0.2"), came(B, "10.8.0.3"), came(A, "10.8.0.4")]);
        assert_eq!(text, format!("{B} 10.8.0.3\n{A} 10.8.0.4\n"));
        assert_eq!(after(&text, vec![came(B, "10.8.0.4")]), format!("{B} 10.8.0.4\n"));
    }

    #[test]
    fn who_left_is_gone_unless_it_has_come_back_elsewhere() {
        let text = format!("{A} 10.8.0.2\n{B} 10.8.0.3\n");
        let left = |addresses| VpnEvent::Left { uuid: uuid(A), addresses };
        assert_eq!(after(&text, vec![left(vec![address("10.8.0.2")])]), format!("{B} 10.8.0.3\n"));
        assert_eq!(after(&text, vec![left(Vec::new())]), format!("{B} 10.8.0.3\n"));
        assert_eq!(after(&text, vec![left(vec![address("10.8.0.9")])]), text);
    }

    #[test]
    fn an_empty_vpn_is_said_to_be_empty() {
        let freed = VpnEvent::Freed { address: address("10.8.0.2") };
        assert_eq!(after(&format!("{A} 10.8.0.2\n"), vec![freed]), "nobody\n");
        assert_eq!(after(&format!("{A} 10.8.0.2\n{B} 10.8.0.3\n"), vec![VpnEvent::Began]), "nobody\n");
        assert_eq!(after("nobody\n", vec![came(A, "10.8.0.2")]), format!("{A} 10.8.0.2\n"));
    }

    #[test]
    fn what_is_no_line_of_a_device_stays() {
        let text = format!("# by hand\n{A} 10.8.0.2 # too\nzz 10.8.0.9\n");
        assert_eq!(after(&text, vec![came(B, "10.8.0.3")]), format!("{text}{B} 10.8.0.3\n"));
    }

    #[test]
    fn a_lock_that_is_held_is_waited_for_no_longer_than_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses");
        let held = lock(&path, Duration::ZERO).unwrap();
        let change = |patience| {
            AddressTable::change(&path, patience, |address_table| address_table.apply(came(A, "10.8.0.2")))
        };
        let error = change(Duration::from_millis(20)).unwrap_err();
        assert!(error.is_passing() && error.to_string().contains("was locked by another process for 20ms"));
        assert!(!path.exists());
        drop(held);
        change(Duration::ZERO).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{A} 10.8.0.2\n"));
    }

    #[test]
    fn who_may_read_the_file_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        AddressTable::change(&path, Duration::ZERO, |address_table| address_table.apply(came(A, "10.8.0.2")))
            .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
