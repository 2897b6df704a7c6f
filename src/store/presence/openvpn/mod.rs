//! The devices that are connected to an OpenVPN server, from its management interface or its status file.
//!
//! A common name is a device's uuid. A complete status counts even if it names nobody, since the server has said so. While
//! the server is away, its last addresses stay.

pub(super) mod connection;
pub(super) mod management;
pub(super) mod status;
mod status_file;

use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use super::mailbox::PresenceUpdate;
use super::table::PresenceTable;
use super::{Patience, PresenceSource};
use crate::authz::DeviceUuid;
use crate::config::OpenVpnInterface;
use management::ManagementSocket;
use status_file::StatusFile;

/// A source that is an OpenVPN server.
pub(super) struct OpenVpn {
    at: OpenVpnInterface,
    /// `None` while there has been nothing at the path, or no thread to follow the server.
    interface: Option<StatusInterface>,
    table: PresenceTable,
}

/// Interface that gives the server's status.
enum StatusInterface {
    Management(ManagementSocket),
    StatusFile(StatusFile),
}

impl OpenVpn {
    pub(super) fn new(at: OpenVpnInterface) -> Self {
        let table = PresenceTable::new(at.to_string());
        Self { at, interface: None, table }
    }

    /// The interface that is at the path now. It may be of another kind than before.
    fn interface(&mut self) -> Result<&mut StatusInterface, String> {
        let management = || ManagementSocket::start(self.at.clone()).map(StatusInterface::Management);
        let OpenVpnInterface::Path(path) = &self.at else {
            if self.interface.is_none() {
                self.interface = Some(management()?);
            }
            return self.interface.as_mut().ok_or_else(|| "there is nothing".to_owned());
        };
        let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
        match (kind, &self.interface) {
            (Ok(kind), Some(StatusInterface::Management(_))) if kind.is_socket() => {}
            (Ok(kind), Some(StatusInterface::StatusFile(_))) if kind.is_file() => {}
            (Ok(kind), _) if kind.is_socket() => {
                self.interface = Some(management()?);
            }
            (Ok(kind), _) if kind.is_file() => {
                self.interface = Some(StatusInterface::StatusFile(StatusFile::new(path.clone())));
            }
            (Ok(_), _) => return Err("it is neither a management socket nor a status file".to_owned()),
            // The connection may outlive its name. It reports itself when it is lost.
            (Err(_), Some(StatusInterface::Management(_))) => {}
            (Err(error), _) => return Err(error.to_string()),
        }
        self.interface.as_mut().ok_or_else(|| "there is nothing".to_owned())
    }
}

impl PresenceSource for OpenVpn {
    fn poll(&mut self, patience: Patience) -> Vec<DeviceUuid> {
        let timeout = patience.within(FIRST_ANSWER_TIMEOUT);
        let update = match self.interface() {
            Ok(StatusInterface::Management(management)) => management.poll(timeout),
            Ok(StatusInterface::StatusFile(file)) => file.poll(timeout),
            Err(failure) => PresenceUpdate::Failed(failure),
        };
        self.table.apply(update)
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

/// Longest wait for the first answer of a server that accepts connections.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
