//! Whom an OpenVPN server on this machine has connected: asked at its management socket, or read in its status file.
//!
//! A common name is a device's uuid. A status that has its end is the truth, also where it names nobody: the server
//! has said so. A server that is away says nothing, and takes no address away until it is back.

mod connection;
mod management;
mod status;
mod status_file;

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use super::PresenceSource;
use super::mailbox::Update;
use super::table::PresenceTable;
use crate::authz::DeviceUuid;
use management::Management;
use status_file::StatusFile;

/// See the module.
pub(super) struct OpenVpn {
    path: PathBuf,
    /// `None` while there has been nothing at the path.
    way: Option<Way>,
    is_first_look: bool,
    table: PresenceTable,
}

/// How the server is asked.
enum Way {
    Management(Management),
    StatusFile(StatusFile),
}

impl OpenVpn {
    pub(super) fn new(path: PathBuf) -> Self {
        let table = PresenceTable::new(path.display().to_string());
        Self { path, way: None, is_first_look: true, table }
    }

    /// The way that the path can be followed by: it may be another kind of thing than it was.
    fn way(&mut self) -> Result<&mut Way, String> {
        let kind = std::fs::metadata(&self.path).map(|metadata| metadata.file_type());
        match (kind, &self.way) {
            (Ok(kind), Some(Way::Management(_))) if kind.is_socket() => {}
            (Ok(kind), Some(Way::StatusFile(_))) if kind.is_file() => {}
            (Ok(kind), _) if kind.is_socket() => {
                self.way = Some(Way::Management(Management::start(self.path.clone())?));
            }
            (Ok(kind), _) if kind.is_file() => {
                self.way = Some(Way::StatusFile(StatusFile::new(self.path.clone())));
            }
            (Ok(_), _) => return Err("it is neither a management socket nor a status file".to_owned()),
            // The connection can be there for longer than its name, and tells itself when it is lost.
            (Err(_), Some(Way::Management(_))) => {}
            (Err(error), _) => return Err(error.to_string()),
        }
        self.way.as_mut().ok_or_else(|| "there is nothing".to_owned())
    }
}

impl PresenceSource for OpenVpn {
    fn look(&mut self) -> Vec<DeviceUuid> {
        // Only who begins waits, and would else begin with no device online.
        let patience = if self.is_first_look { FIRST_ANSWER_PATIENCE } else { Duration::ZERO };
        self.is_first_look = false;
        let news = match self.way() {
            Ok(Way::Management(management)) => management.news(patience),
            Ok(Way::StatusFile(file)) => file.look(patience),
            Err(trouble) => Update::Trouble(trouble),
        };
        self.table.hear(news)
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

/// For the first answer of a server that accepts connections.
const FIRST_ANSWER_PATIENCE: Duration = Duration::from_secs(2);
