//! The status file that an OpenVPN server writes over again and again, in place and line by line.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::status::Status;
use crate::store::presence::file::{self, Stamp};
use crate::store::presence::mailbox::Update;

/// See the module.
pub(super) struct StatusFile {
    path: PathBuf,
    /// How it looked when it was last read whole.
    seen: Option<Stamp>,
}

impl StatusFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Reads the file if it has changed since, unless it is being written; waits so long for the end of that.
    pub(super) fn look(&mut self, patience: Duration) -> Update {
        let give_up_at = Instant::now() + patience;
        loop {
            match self.look_once() {
                Update::Nothing if Instant::now() < give_up_at => std::thread::sleep(WRITTEN_LOOK),
                news => return news,
            }
        }
    }

    fn look_once(&mut self) -> Update {
        match self.read_if_changed() {
            Ok(news) => news,
            Err(error) => {
                self.seen = None;
                Update::Trouble(error.to_string())
            }
        }
    }

    fn read_if_changed(&mut self) -> std::io::Result<Update> {
        let metadata = std::fs::metadata(&self.path)?;
        let stamp = Stamp::of(&metadata);
        if self.seen == Some(stamp) {
            let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
            return Ok(match age > SILENCE_MAX {
                true => Update::Trouble(format!(
                    "it has not been written for more than {} s",
                    SILENCE_MAX.as_secs()
                )),
                false => Update::Nothing,
            });
        }
        // Half of it may be new, and the rest old: the next look reads it.
        if !stamp.is_settled() {
            return Ok(Update::Nothing);
        }
        let (text, before) = file::read(&self.path)?;
        let after = Stamp::of(&std::fs::metadata(&self.path)?);
        if before != stamp || after != stamp {
            return Ok(Update::Nothing);
        }
        self.seen = Some(stamp);
        Ok(match Status::parse(&text, self.path.display().to_string()) {
            Ok(lines) => Update::Lines(Box::new(lines)),
            // A server that starts empties it before it has anything to say.
            Err(error) if text.is_empty() => Update::Trouble(format!("it is empty ({error})")),
            Err(error) => Update::Trouble(error.to_string()),
        })
    }
}

/// Of a server that is there. OpenVPN writes its file every minute where it is not told otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// Between two looks at a file that is being written.
const WRITTEN_LOOK: Duration = Duration::from_millis(10);
