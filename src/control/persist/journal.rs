//! The journal: what has ended since the snapshot was written, and when the store was last heard.
//!
//! Records are all of one size, so that nothing in the file says where the next one begins: a last one that
//! is too short was torn off by a power cut and is none, and one that is whole and wrong is damage.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{FILE_MODE, Folder, KeptError};
use crate::authz::{Change, GrantId, KeyHash, PrincipalId, UnixMillis};

/// The journal that is being written.
pub(super) struct EndsJournal {
    file: File,
    is_synced: bool,
}

/// The contents of a journal.
#[derive(Default)]
pub(super) struct Records {
    pub ends: Vec<Change>,
    /// The last time that the store was heard; zero where none is noted.
    pub confirmed_at: UnixMillis,
}

impl EndsJournal {
    /// Begins a new journal. What the present one holds is kept beside it, until a snapshot holds it too.
    pub(super) fn rotate(folder: &Folder) -> io::Result<Self> {
        let (present, old) = (folder.journal(), folder.old_journal());
        // Added to what is there: the snapshot that should hold it was not written.
        let mut kept = read_bytes(&old)?;
        // A torn end goes, so that more can follow.
        kept.truncate(kept.len() / RECORD_BYTES * RECORD_BYTES);
        kept.append(&mut read_bytes(&present)?);
        let beside = old.with_extension("new");
        let mut file =
            File::options().create(true).write(true).truncate(true).mode(FILE_MODE).open(&beside)?;
        file.write_all(&kept)?;
        file.sync_all()?;
        std::fs::rename(&beside, &old)?;
        let file = File::options().create(true).write(true).truncate(true).mode(FILE_MODE).open(present)?;
        Ok(Self { file, is_synced: true })
    }

    pub(super) fn append_ends(&mut self, ends: &[Change]) -> io::Result<()> {
        let bytes: Vec<u8> = ends.iter().filter_map(end).flatten().collect();
        self.is_synced &= bytes.is_empty();
        self.file.write_all(&bytes)
    }

    pub(super) fn append_confirmation(&mut self, at: UnixMillis) -> io::Result<()> {
        self.file.write_all(&record(CONFIRMED, &at.0.to_le_bytes()))
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if !self.is_synced {
            self.file.sync_data()?;
            self.is_synced = true;
        }
        Ok(())
    }
}

/// Reads the journal at `path`; where there is none, it says nothing.
pub(super) fn read(path: &Path) -> Result<Records, KeptError> {
    let name = || path.display().to_string();
    let bytes = read_bytes(path).map_err(|source| KeptError::Unreadable { path: name(), source })?;
    let mut records = Records::default();
    let (whole, _torn) = bytes.as_chunks::<RECORD_BYTES>();
    for record in whole {
        if !records.apply(record) {
            return Err(KeptError::Damaged {
                path: name(),
                detail: "a record is not what its checksum says",
            });
        }
    }
    Ok(records)
}

impl Records {
    /// Applies a record. Returns whether it is whole and of a known kind.
    fn apply(&mut self, record: &[u8; RECORD_BYTES]) -> bool {
        let (body, checksum) = record.split_at(RECORD_BYTES - 4);
        if crc32fast::hash(body).to_le_bytes() != checksum {
            return false;
        }
        let mut key = [0; 32];
        key.copy_from_slice(&body[1..33]);
        let mut number = [0; 8];
        number.copy_from_slice(&body[1..9]);
        let number = i64::from_le_bytes(number);
        match body[0] {
            CREDENTIAL => self.ends.push(Change::CredentialGone(KeyHash::from_bytes(key))),
            GRANT => self.ends.push(Change::GrantGone(GrantId(number))),
            PRINCIPAL => self.ends.push(Change::PrincipalGone(PrincipalId(number))),
            CONFIRMED => self.confirmed_at = self.confirmed_at.max(UnixMillis(number)),
            _ => return false,
        }
        true
    }
}

/// `None` for a change that ends nothing.
fn end(change: &Change) -> Option<[u8; RECORD_BYTES]> {
    match change {
        Change::CredentialGone(key) => Some(record(CREDENTIAL, key.as_bytes())),
        Change::GrantGone(id) => Some(record(GRANT, &id.0.to_le_bytes())),
        Change::PrincipalGone(id) => Some(record(PRINCIPAL, &id.0.to_le_bytes())),
        _ => None,
    }
}

/// Size of a record: its kind, up to 32 bytes of content, and a CRC-32 of both.
fn record(kind: u8, value: &[u8]) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[0] = kind;
    record[1..=value.len()].copy_from_slice(value);
    let checksum = crc32fast::hash(&record[..RECORD_BYTES - 4]);
    record[RECORD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    record
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome,
    }
}

/// A kind, a key, and a checksum.
const RECORD_BYTES: usize = 40;

/// Kinds of records. None is 0, which is what a file system may leave of what was not written.
const CREDENTIAL: u8 = 1;
const GRANT: u8 = 2;
const PRINCIPAL: u8 = 3;
const CONFIRMED: u8 = 4;
