//! The state file: a magic line that names the version, a header, rows, ends and memory, and a SHA-256 of it all.
//!
//! Written beside its place and moved there, so that a crash leaves the old one. Read twice: first for the
//! checksum, and only then for what it says.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::{Folder, remove, writing};
use super::journal::JournalPlace;
use super::row_fields::{
    CredentialFields, DeviceFields, EndFields, GrantFields, credential, credential_fields, device,
    device_fields, grant, grant_fields,
};
use super::{KeptBeside, KeptError};
use crate::authz::{End, Generation, Revocations, RowCounts, Snapshot, SnapshotBuilder, UnixMillis};
use crate::store::{Bookmark, Position, QueriesDigest};

/// Everything that a state file holds.
pub(super) struct StateContents<'a> {
    pub store: &'a str,
    pub queries: QueriesDigest,
    pub confirmed_at: UnixMillis,
    pub seen_at: UnixMillis,
    pub journal: JournalPlace,
    pub snapshot: &'a Snapshot,
    pub revocations: &'a Revocations,
    pub beside: &'a KeptBeside,
}

/// The first value of a state file.
#[derive(Serialize, Deserialize)]
pub(super) struct StateHeader {
    pub store: String,
    pub queries: QueriesDigest,
    pub generation: u64,
    pub confirmed_at: i64,
    pub seen_at: i64,
    pub position: Option<Position>,
    pub journal: JournalPlace,
    credentials: u64,
    grants: u64,
    devices: u64,
    ends: u64,
    bookmark_bytes: Option<u64>,
    memory_bytes: u64,
}

impl StateHeader {
    /// Bytes that the rows take at least, so that room is made for no more rows than a file can have.
    fn row_bytes_min(&self) -> u128 {
        let rows = [
            (self.credentials, CREDENTIAL_BYTES_MIN),
            (self.grants, GRANT_BYTES_MIN),
            (self.devices, DEVICE_BYTES_MIN),
        ];
        rows.into_iter().map(|(rows, bytes)| u128::from(rows) * bytes).sum()
    }
}

/// What a state file holds beside its header.
pub(super) struct StateRows {
    pub snapshot: Snapshot,
    pub ends: Vec<End>,
    pub bookmark: Option<Bookmark>,
    pub memory: Vec<u8>,
}

/// Writes a state beside its place. What was written in part is removed, for the space that it takes.
pub(super) fn write(folder: &Folder, contents: &StateContents<'_>) -> io::Result<()> {
    let path = folder.new_state();
    let written = writing().write(true).truncate(true).open(&path).and_then(|file| {
        let buffered = BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut writer = HashingWriter { inner: buffered, hash: Sha256::new() };
        writer.write_all(MAGIC)?;
        write_contents(&mut writer, contents)?;
        let HashingWriter { mut inner, hash } = writer;
        inner.write_all(&hash.finalize())?;
        inner.flush()?;
        inner.get_ref().sync_all()
    });
    if written.is_err() {
        // The error that is reported is the first one.
        let _still_there = remove(&path);
    }
    written
}

/// Opens the state; `None` where there is none. The checksum is not compared yet.
pub(super) fn open(folder: &Folder) -> Result<Option<StateReader>, KeptError> {
    let path = folder.state().display().to_string();
    let unreadable = |source| KeptError::Unreadable { path: path.clone(), source };
    let damaged = |detail| KeptError::Damaged { path: path.clone(), detail };
    let mut file = match File::open(folder.state()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    if file.metadata().map_err(unreadable)?.len() == 0 {
        // Emptied, where it could not be removed.
        return Ok(None);
    }
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
        let ours = magic.starts_with(MAGIC.split_at(MAGIC_NAME_BYTES).0);
        return Err(if ours { KeptError::Version { path } } else { damaged("its beginning is not ours") });
    }
    let source = BufReader::with_capacity(BUFFER_BYTES, file.try_clone().map_err(unreadable)?);
    let mut values = ValueReader { source: Some(source), scratch: vec![0; VALUE_BYTES_MAX].into() };
    let header = values.next().ok_or_else(|| damaged("its header does not decode"))?;
    Ok(Some(StateReader { path, file, header, values }))
}

/// A state file that is being read.
pub(super) struct StateReader {
    path: String,
    file: File,
    pub header: StateHeader,
    values: ValueReader,
}

impl StateReader {
    /// Compares the checksum and reads everything.
    pub(super) fn rows(mut self) -> Result<(StateHeader, StateRows), KeptError> {
        let unreadable = |source| KeptError::Unreadable { path: self.path.clone(), source };
        let damaged = |detail| KeptError::Damaged { path: self.path.clone(), detail };
        self.file.rewind().map_err(unreadable)?;
        if !has_its_checksum(&self.file).map_err(unreadable)? {
            return Err(damaged("its checksum is not what it holds"));
        }
        self.values.rewind().map_err(unreadable)?;
        // From here on the header is known to be what was written.
        let header: StateHeader = self.values.next().ok_or_else(|| damaged("its header does not decode"))?;
        if header.row_bytes_min() > u128::from(self.file.metadata().map_err(unreadable)?.len()) {
            return Err(damaged("its header counts more rows than it has"));
        }
        let rows = self.values.rows(&header).ok_or_else(|| damaged("a row does not decode"))?;
        Ok((header, rows))
    }
}

fn write_contents(writer: &mut impl Write, contents: &StateContents<'_>) -> io::Result<()> {
    let StateContents { snapshot, revocations, beside, .. } = contents;
    let counts = snapshot.row_counts();
    let header = StateHeader {
        store: contents.store.to_owned(),
        queries: contents.queries,
        generation: snapshot.generation().0,
        confirmed_at: contents.confirmed_at.0,
        seen_at: contents.seen_at.0,
        position: beside.position,
        journal: contents.journal,
        credentials: counts.credentials as u64,
        grants: counts.grants as u64,
        devices: counts.devices as u64,
        ends: revocations.len() as u64,
        bookmark_bytes: beside.bookmark.as_ref().map(|bookmark| bookmark.0.len() as u64),
        memory_bytes: beside.memory.len() as u64,
    };
    put(writer, &header)?;
    snapshot.credentials().try_for_each(|row| put(writer, &credential_fields(&row)))?;
    snapshot.grants().try_for_each(|row| put(writer, &grant_fields(&row)))?;
    snapshot.devices().try_for_each(|row| put(writer, &device_fields(&row)))?;
    revocations.ends().try_for_each(|end| put(writer, &EndFields::of(&end)))?;
    writer.write_all(beside.bookmark.as_ref().map_or(&[], |bookmark| &bookmark.0))?;
    writer.write_all(&beside.memory)
}

fn put(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    postcard::to_io(value, writer).map(drop).map_err(io::Error::other)
}

/// Decodes one value after the other.
struct ValueReader {
    /// `None` after a failure.
    source: Option<BufReader<File>>,
    /// Memory for what a value holds beside its fields.
    scratch: Box<[u8]>,
}

impl ValueReader {
    /// Goes back to the first value.
    fn rewind(&mut self) -> io::Result<()> {
        let Some(source) = &mut self.source else { return Err(io::Error::other("it was not read")) };
        source.seek(io::SeekFrom::Start(MAGIC.len() as u64)).map(drop)
    }

    fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let source = self.source.take()?;
        let (value, (source, _)) = postcard::from_io((source, &mut self.scratch[..])).ok()?;
        self.source = Some(source);
        Some(value)
    }

    fn rows(&mut self, header: &StateHeader) -> Option<StateRows> {
        let count = |rows: u64| usize::try_from(rows).ok();
        let counts = RowCounts {
            credentials: count(header.credentials)?,
            grants: count(header.grants)?,
            devices: count(header.devices)?,
        };
        let mut builder = SnapshotBuilder::new(Generation(header.generation), counts);
        for _ in 0..counts.credentials {
            builder.credential(credential(self.next::<CredentialFields>()?));
        }
        for _ in 0..counts.grants {
            builder.grant(grant(self.next::<GrantFields>()?)?);
        }
        for _ in 0..counts.devices {
            builder.device(device(self.next::<DeviceFields>()?)?);
        }
        let ends = (0..header.ends).map(|_| Some(self.next::<EndFields>()?.end())).collect::<Option<_>>()?;
        let bookmark = match header.bookmark_bytes {
            Some(bytes) => Some(Bookmark(self.bytes(bytes)?)),
            None => None,
        };
        let memory = self.bytes(header.memory_bytes)?;
        Some(StateRows { snapshot: builder.finish(), ends, bookmark, memory })
    }

    /// Reads so many bytes as they are. The checksum has shown that the file has them.
    fn bytes(&mut self, count: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.source.as_mut()?.take(count).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 == count).then_some(bytes)
    }
}

/// Returns whether the last bytes are the hash of all bytes before.
fn has_its_checksum(mut file: &File) -> io::Result<bool> {
    let Some(mut left) = file.metadata()?.len().checked_sub(CHECKSUM_BYTES as u64) else { return Ok(false) };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..wanted])?;
        hash.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    file.read_exact(&mut checksum)?;
    Ok(hash.finalize()[..] == checksum)
}

/// Hashes what it passes on.
struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Magic bytes, with the version of the format.
pub(super) const MAGIC: &[u8; 23] = b"sluicegate snapshot v3\n";

/// Length of the part of the magic that every version shares.
const MAGIC_NAME_BYTES: usize = 19;

const CHECKSUM_BYTES: usize = 32;

/// Bytes of the smallest row of each kind: a key or a uuid where it has one, and a byte for each other field.
const CREDENTIAL_BYTES_MIN: u128 = 32 + 3;
const GRANT_BYTES_MIN: u128 = 7;
const DEVICE_BYTES_MIN: u128 = 33 + 5;

/// Memory of a reading or a writing, whatever the number of rows.
const BUFFER_BYTES: usize = 256 * 1024;

/// Largest size of one row or of the header: nothing else bounds a store's description or a node's name.
const VALUE_BYTES_MAX: usize = 16 * 1024;
