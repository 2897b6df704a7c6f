//! The status file that an OpenVPN server writes again and again, in place and line by line.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::status::OpenVpnStatus;
use crate::store::presence::file::{self, FileStamp};
use crate::store::presence::mailbox::PresenceUpdate;

pub(super) struct StatusFile {
    path: PathBuf,
    /// Stamp of the last complete read.
    seen: Option<FileStamp>,
}

impl StatusFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Reads the file if it has changed since, and is not being written. This waits for the end of a write for at most
    /// `timeout`.
    pub(super) fn poll(&mut self, timeout: Duration) -> PresenceUpdate {
        let give_up_at = Instant::now() + timeout;
        loop {
            match self.read_once() {
                PresenceUpdate::Nothing if Instant::now() < give_up_at => {
                    std::thread::sleep(WRITE_CHECK_EVERY)
                }
                update => return update,
            }
        }
    }

    fn read_once(&mut self) -> PresenceUpdate {
        match self.read_if_changed() {
            Ok(update) => update,
            Err(error) => {
                self.seen = None;
                PresenceUpdate::Failed(error.to_string())
            }
        }
    }

    fn read_if_changed(&mut self) -> std::io::Result<PresenceUpdate> {
        let metadata = std::fs::metadata(&self.path)?;
        let stamp = FileStamp::of(&metadata);
        if self.seen == Some(stamp) {
            let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
            return Ok(match age > SILENCE_MAX {
                true => PresenceUpdate::Failed(format!(
                    "it has not been written for more than {} s",
                    SILENCE_MAX.as_secs()
                )),
                false => PresenceUpdate::Nothing,
            });
        }
        // Half of the file may be new, and the rest old. The next poll reads it.
        if !stamp.is_settled() {
            return Ok(PresenceUpdate::Nothing);
        }
        let (text, before) = file::read(&self.path)?;
        let after = FileStamp::of(&std::fs::metadata(&self.path)?);
        if before != stamp || after != stamp {
            return Ok(PresenceUpdate::Nothing);
        }
        self.seen = Some(stamp);
        Ok(match OpenVpnStatus::parse(&text, self.path.display().to_string()) {
            Ok(list) => PresenceUpdate::Addresses(Box::new(list)),
            // A server that starts empties the file before it writes to it.
            Err(error) if text.is_empty() => PresenceUpdate::Failed(format!("it is empty ({error})")),
            Err(error) => PresenceUpdate::Failed(error.to_string()),
        })
    }
}

/// Time without a write after which the server counts as away. By default OpenVPN writes its file every minute.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// Time between two checks of a file that is being written.
const WRITE_CHECK_EVERY: Duration = Duration::from_millis(10);
