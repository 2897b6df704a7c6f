//! Ways into the state and the journal on disk, for the targets in `fuzz/`.

use std::collections::BTreeSet;
use std::io::{self, Cursor};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::folder::Folder;
use super::frames::{FrameRead, FrameReader, frame};
use super::journal::JournalReader;
use super::record::{JournalEntry, encode};
use super::{KeptBeside, KeptError, Persistence, restore, state_file};
use crate::authz::{
    Credential, Device, DeviceId, DeviceUuid, End, Generation, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Revocations, Scope, Snapshot, View,
};
use crate::config::Config;
use crate::control::persist::JournalRecord;
use crate::store::queries_digest;

/// A folder with a state.
pub struct StateFolder(Folder);

/// What a start finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Restored {
    Nothing,
    /// The ends that count, and whether steps are missing.
    Kept {
        ends: BTreeSet<String>,
        has_gap: bool,
    },
    /// A file that is damaged, foreign or of another version.
    Unusable(String),
    /// A file that could not be read.
    Unreadable(String),
}

/// What the records of a journal say about ends, in their order: lifted, then ended.
pub type EndSteps = Vec<(Vec<String>, Vec<String>)>;

impl StateFolder {
    /// Writes a state with a few rows, and returns the bytes of the state and of its journal.
    pub fn new(path: &Path) -> io::Result<(Self, [Vec<u8>; 2])> {
        let mut process = process(path);
        let _none = process.load();
        let none = Revocations::default();
        let revocations = Arc::new(none.with_ends([End::Principal(PrincipalId(9))]).unwrap_or(none));
        let view = View { snapshot: Arc::new(rows()), revocations, previous: None };
        process.keep(&view, KeptBeside { memory: b"memory".to_vec(), ..KeptBeside::default() });
        process.finish_saving();
        let folder = Folder { path: path.to_owned() };
        let bytes = [std::fs::read(folder.state())?, std::fs::read(folder.journal(1))?];
        Ok((Self(folder), bytes))
    }

    /// Replaces both files.
    pub fn write(&self, state: &[u8], journal: &[u8]) -> io::Result<()> {
        std::fs::write(self.0.state(), state)?;
        std::fs::write(self.0.journal(1), journal)
    }

    /// Reads both files as a start does, and writes nothing.
    pub fn restored(&self) -> Restored {
        match restore::restore(&self.0, &process(&self.0.path).origin) {
            Ok(None) => Restored::Nothing,
            Ok(Some(kept)) => Restored::Kept {
                ends: kept.revocations.ends().map(|end| format!("{end:?}")).collect(),
                has_gap: kept.has_gap,
            },
            Err(error @ (KeptError::Unreadable { .. } | KeptError::Permissions { .. })) => {
                Restored::Unreadable(error.to_string())
            }
            Err(error) => Restored::Unusable(error.to_string()),
        }
    }

    /// Goes on with the journal as a start does, and records one more end. Returns the end.
    pub fn record_end(&self) -> String {
        let end = End::Principal(PrincipalId(4711));
        let mut process = process(&self.0.path);
        if process.load().is_ok() {
            process.record(&JournalRecord { ended: vec![end], ..JournalRecord::default() });
        }
        format!("{end:?}")
    }

    /// What the whole entries of the journal say about ends; `None` where it is not the state's.
    pub fn end_steps(&self) -> Option<EndSteps> {
        let origin = process(&self.0.path).origin.clone();
        let place = restore::journal_end(&self.0, &origin).ok()??.place;
        let state = state_file::open(&self.0).ok()??;
        let mut journal = JournalReader::new(&self.0, state.header.journal).ok()?;
        let mut steps = EndSteps::new();
        while let Some(entry) = journal.next().ok()? {
            let JournalEntry::Record(fields) = entry else { continue };
            let (record, _) = fields.record()?;
            let names = |ends: &[End]| ends.iter().map(|end| format!("{end:?}")).collect();
            steps.push((names(&record.lifted), names(&record.ended)));
        }
        (journal.end().place == place).then_some(steps)
    }
}

/// A state file with this content, and with the checksum that it must have.
pub fn sealed_state(content: &[u8]) -> Vec<u8> {
    let bytes = [state_file::MAGIC, content].concat();
    let checksum = Sha256::digest(&bytes);
    [&bytes[..], &checksum[..]].concat()
}

/// The content of a state file.
pub fn state_content(file: &[u8]) -> &[u8] {
    file.get(state_file::MAGIC.len()..file.len().saturating_sub(32)).unwrap_or_default()
}

/// The frame of a journal's entry.
pub fn framed(content: &[u8]) -> Vec<u8> {
    frame(content)
}

/// Reads frames; the last value is true where they end without damage.
pub fn unframed(bytes: &[u8]) -> io::Result<(Vec<Vec<u8>>, bool)> {
    let mut reader = FrameReader::new(Cursor::new(bytes), bytes.len() as u64, 0)?;
    let mut contents = Vec::new();
    loop {
        match reader.next()? {
            FrameRead::Content(content) => contents.push(content),
            FrameRead::End => return Ok((contents, true)),
            FrameRead::Damaged => return Ok((contents, false)),
        }
    }
}

/// Decodes an entry and encodes it again; `None` where it does not decode.
pub fn reencoded_entry(content: &[u8]) -> Option<Vec<u8>> {
    encode(&postcard::from_bytes::<JournalEntry>(content).ok()?)
}

/// Contents of a journal's entries, as this version writes them.
pub fn entries() -> Vec<Vec<u8>> {
    let row = GrantId(1);
    let grant = rows().grant(row);
    let ended: Vec<End> = grant.iter().map(End::of_grant).chain([End::Principal(PrincipalId(2))]).collect();
    let record = JournalRecord {
        generation: Some(Generation(2)),
        inferred: vec![crate::authz::Change::GrantGone(row)],
        words: grant.into_iter().map(crate::authz::Change::Grant).collect(),
        ended: ended.clone(),
        memory: Some(b"memory".to_vec()),
        ..JournalRecord::default()
    };
    let lifting = JournalRecord { lifted: ended, ..JournalRecord::default() };
    let mut entries = record.contents(crate::authz::UnixMillis(5)).unwrap_or_default();
    entries.extend(lifting.contents(crate::authz::UnixMillis(6)).unwrap_or_default());
    entries.extend(encode(&JournalEntry::Gap));
    entries.extend(encode(&JournalEntry::Times { confirmed_at: 1, seen_at: 2 }));
    entries
}

fn process(path: &Path) -> Persistence {
    let config = Config::default();
    Persistence::new(path, "sqlite:/fuzz".to_owned(), queries_digest(&config.store, &config.authz))
}

fn rows() -> Snapshot {
    let principal = PrincipalId(1);
    let credential =
        Credential { key: KeyHash::of_token(b"token"), principal, expires_at: None, revoked: false };
    let grant = |id, scope| Grant {
        id: GrantId(id),
        principal,
        scope,
        ports: PortRange::ANY,
        expires_at: None,
        revoked: false,
    };
    let device = DeviceUuid::parse("0123456789abcdef0123456789abcdef").map(|uuid| Device {
        id: DeviceId(1),
        uuid,
        fleet: None,
        address: Some([10, 8, 0, 2].into()),
        node: Some("node".into()),
        online: true,
        disputed: false,
    });
    let grants = vec![grant(1, Scope::Any), grant(2, Scope::Device(DeviceId(1)))];
    Snapshot::build(Generation(1), vec![credential], grants, device.into_iter().collect())
}
