//! The journals: what came into force since the state was written.
//!
//! A state names the place in a journal from which it is continued. A journal that has become long is continued by
//! one with the next number, which names its predecessor, and goes once a state names a later one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::KeptError;
use super::folder::{Folder, remove, writing};
use super::frames::{FRAME_OVERHEAD, FrameRead, FrameReader, frame};
use super::record::{JournalEntry, encode};

/// Random name of a journal, by which a state and the next journal recognise it.
pub(super) type JournalId = [u8; 16];

/// A place in a journal: what comes after it is not in the state that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct JournalPlace {
    pub number: u64,
    pub id: JournalId,
    pub offset: u64,
}

/// The journal that is being written.
pub(super) struct JournalFile {
    file: File,
    number: u64,
    id: JournalId,
    /// Length without what was written in part.
    bytes: u64,
    /// Space on the disk that is reserved, so that a full disk does not stop the next records.
    reserved: u64,
    is_synced: bool,
}

#[derive(Serialize, Deserialize)]
struct JournalHeader {
    number: u64,
    id: JournalId,
    previous: Option<JournalId>,
}

/// The entries of a journal and of those that continue it.
pub(super) struct JournalReader<'a> {
    folder: &'a Folder,
    frames: FrameReader<File>,
    /// Number of the journal that the state names.
    first: u64,
    /// Number of the current one.
    number: u64,
    id: JournalId,
    /// Length of the journals before the current one.
    older_bytes: u64,
}

/// The place where journals end, to be written on from there.
pub(super) struct JournalEnd {
    pub place: JournalPlace,
    /// Number of the journal that the state names.
    pub first: u64,
    /// Length of all of them.
    pub bytes: u64,
}

impl JournalFile {
    /// Begins the journal of this number. One that is there is overwritten.
    pub(super) fn begin(folder: &Folder, number: u64, previous: Option<JournalId>) -> io::Result<Self> {
        let mut id = JournalId::default();
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let path = folder.journal(number);
        let begun = Self::write_header(&path, &JournalHeader { number, id, previous });
        let begun = begun.and_then(|written| folder.sync().map(|()| written));
        if begun.is_err() {
            // The error that is reported is the first one.
            let _still_there = remove(&path);
        }
        let (file, bytes) = begun?;
        Ok(Self { file, number, id, bytes, reserved: 0, is_synced: true }.with_reserve())
    }

    fn write_header(path: &Path, header: &JournalHeader) -> io::Result<(File, u64)> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(frame(&encode(header).ok_or_else(|| io::Error::other("the header does not encode"))?));
        let mut file = writing().write(true).truncate(true).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        Ok((file, bytes.len() as u64))
    }

    /// Goes on with a journal from `end`, without what a crash tore off.
    pub(super) fn resume(folder: &Folder, end: &JournalEnd) -> io::Result<Self> {
        let JournalPlace { number, id, offset } = end.place;
        let mut file = File::options().write(true).open(folder.journal(number))?;
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        file.sync_all()?;
        Ok(Self { file, number, id, bytes: offset, reserved: 0, is_synced: true }.with_reserve())
    }

    /// Writes entries, all or none.
    pub(super) fn append(&mut self, contents: &[Vec<u8>]) -> io::Result<()> {
        let bytes: Vec<u8> = contents.iter().flat_map(|content| frame(content)).collect();
        if let Err(error) = self.file.write_all(&bytes) {
            // What was written in part is cut off, or the next entry would not be found behind it.
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::Start(self.bytes))?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        self.is_synced = false;
        if self.bytes > self.reserved {
            self.reserve();
        }
        Ok(())
    }

    /// Makes all of it outlive a power cut, before another journal continues it.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.is_synced = true;
        Ok(())
    }

    /// A handle of the file, to be synced on another thread; `None` where that was asked for already.
    pub(super) fn unsynced(&mut self) -> Option<io::Result<File>> {
        let is_synced = std::mem::replace(&mut self.is_synced, true);
        (!is_synced).then(|| self.handle())
    }

    /// A handle of the file.
    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(super) const fn place(&self) -> JournalPlace {
        JournalPlace { number: self.number, id: self.id, offset: self.bytes }
    }

    fn with_reserve(mut self) -> Self {
        self.reserve();
        self
    }

    /// Reserves space behind the end. Without it, on a full disk or a file system that cannot, writing tries its luck.
    fn reserve(&mut self) {
        let (Ok(offset), Ok(len)) = (i64::try_from(self.bytes), i64::try_from(RESERVE_BYTES)) else { return };
        let _luck = fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len);
        self.reserved = self.bytes + RESERVE_BYTES;
    }
}

impl<'a> JournalReader<'a> {
    /// Begins at the place that a state names.
    pub(super) fn new(folder: &'a Folder, place: JournalPlace) -> Result<Self, KeptError> {
        let path = folder.journal(place.number);
        let damaged = |detail| KeptError::Damaged { path: path.display().to_string(), detail };
        let opened = open(&path, place.offset)?;
        let Some((header, frames)) = opened else {
            return Err(damaged("the state needs it, and it is missing or cut short"));
        };
        if header.id != place.id || header.number != place.number {
            return Err(damaged("it does not belong to the state"));
        }
        let (first, number, id) = (place.number, place.number, place.id);
        Ok(Self { folder, frames, first, number, id, older_bytes: 0 })
    }

    /// The next entry; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<JournalEntry>, KeptError> {
        loop {
            let path = self.folder.journal(self.number);
            let name = || path.display().to_string();
            let damaged = |detail| KeptError::Damaged { path: name(), detail };
            let read = self.frames.next().map_err(|source| KeptError::Unreadable { path: name(), source })?;
            match read {
                FrameRead::Content(content) => {
                    let entry = postcard::from_bytes(&content);
                    return entry.map(Some).map_err(|_| damaged("an entry does not decode"));
                }
                FrameRead::Damaged => return Err(damaged("an entry is not what its checksum says")),
                FrameRead::End if !self.goes_on()? => return Ok(None),
                FrameRead::End => {}
            }
        }
    }

    pub(super) const fn end(&self) -> JournalEnd {
        let place = JournalPlace { number: self.number, id: self.id, offset: self.frames.offset() };
        JournalEnd { place, first: self.first, bytes: self.older_bytes + place.offset }
    }

    /// Moves on to the journal that continues this one. Returns whether there is one.
    fn goes_on(&mut self) -> Result<bool, KeptError> {
        let number = self.number.saturating_add(1);
        match open(&self.folder.journal(number), 0)? {
            Some((header, frames)) if header.previous == Some(self.id) && header.number == number => {
                self.older_bytes += self.frames.offset();
                (self.number, self.id, self.frames) = (number, header.id, frames);
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Opens a journal behind its header, or at `offset` if that is further. `None` if there is none, or if a crash came
/// while it was begun, or if it does not reach to `offset`.
fn open(path: &Path, offset: u64) -> Result<Option<(JournalHeader, FrameReader<File>)>, KeptError> {
    let unreadable = |source| KeptError::Unreadable { path: path.display().to_string(), source };
    let damaged = |detail| KeptError::Damaged { path: path.display().to_string(), detail };
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes < (MAGIC.len() + FRAME_OVERHEAD) as u64 || bytes < offset {
        return Ok(None);
    }
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic).map_err(unreadable)?;
    if magic != *MAGIC {
        return Err(damaged("its beginning is not ours"));
    }
    let handle = file.try_clone().map_err(unreadable)?;
    let mut frames = FrameReader::new(file, bytes, MAGIC.len() as u64).map_err(unreadable)?;
    let header = match frames.next().map_err(unreadable)? {
        FrameRead::Content(content) => {
            postcard::from_bytes(&content).map_err(|_| damaged("its header does not decode"))?
        }
        FrameRead::End => return Ok(None),
        FrameRead::Damaged => return Err(damaged("its header is not what its checksum says")),
    };
    let frames = match offset > frames.offset() {
        true => FrameReader::new(handle, bytes, offset).map_err(unreadable)?,
        false => frames,
    };
    Ok(Some((header, frames)))
}

/// Magic bytes, with the version of the format.
const MAGIC: &[u8; 22] = b"sluicegate journal v3\n";

/// Space that is reserved for the next entries of a journal: some thousand ends.
const RESERVE_BYTES: u64 = 256 * 1024;
