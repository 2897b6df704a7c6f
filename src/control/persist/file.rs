//! The snapshot file: a magic line that names the version, rows and revocations, and a SHA-256 of it all.
//!
//! Written beside its place and moved there, so that a crash leaves the old one. Read twice: first for the
//! checksum, and only then for what it says.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FILE_MODE, Folder, Kept, KeptError, Origin, ReadBy};
use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, FleetId, Generation, Grant, GrantId, KeyHash,
    PortRange, PrincipalId, Revocations, Scope, Snapshot, UnixMillis, View,
};
use crate::store::QueriesDigest;

/// Writes `view` into the folder, all of it or nothing.
pub(super) fn write(
    folder: &Folder,
    origin: &Origin,
    view: &View,
    confirmed_at: UnixMillis,
) -> io::Result<()> {
    let place = folder.snapshot();
    let beside = place.with_extension("new");
    let file = File::options().create(true).write(true).truncate(true).mode(FILE_MODE).open(&beside)?;
    let mut writer = Hashing { inner: BufWriter::with_capacity(BUFFER_BYTES, file), hash: Sha256::new() };
    writer.write_all(MAGIC)?;
    write_view(&mut writer, origin, view, confirmed_at)?;
    let Hashing { mut inner, hash } = writer;
    inner.write_all(&hash.finalize())?;
    inner.flush()?;
    inner.get_ref().sync_all()?;
    std::fs::rename(&beside, &place)?;
    File::open(&folder.path)?.sync_all()
}

/// Reads what was kept of the store; `None` where there is no file.
pub(super) fn read(path: &Path, origin: &Origin) -> Result<Option<Kept>, KeptError> {
    let name = || path.display().to_string();
    let unreadable = |source| KeptError::Unreadable { path: name(), source };
    let damaged = |detail| KeptError::Damaged { path: name(), detail };
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
        let ours = magic.starts_with(MAGIC.split_at(MAGIC_NAME_BYTES).0);
        return Err(if ours {
            KeptError::Version { path: name() }
        } else {
            damaged("its beginning is not ours")
        });
    }
    file.rewind().map_err(unreadable)?;
    if !has_its_checksum(&file).map_err(unreadable)? {
        return Err(damaged("its checksum is not what it holds"));
    }
    file.rewind().map_err(unreadable)?;
    let mut reader = Reader::new(&file).map_err(unreadable)?;
    let header: Header = reader.next().ok_or_else(|| damaged("its header does not decode"))?;
    if header.store != origin.store {
        let (found, wanted) = (header.store, origin.store.clone());
        return Err(KeptError::Store { path: name(), found, wanted });
    }
    let read_by = if header.queries == origin.queries { ReadBy::TheseQueries } else { ReadBy::OtherQueries };
    reader.kept(&header, read_by).map(Some).ok_or_else(|| damaged("a row does not decode"))
}

#[derive(Serialize, Deserialize)]
struct Header {
    store: String,
    queries: QueriesDigest,
    generation: u64,
    confirmed_at: i64,
    credentials: u64,
    grants: u64,
    devices: u64,
    ends: u64,
}

/// `key, principal, expires_at, revoked`
type CredentialFields = ([u8; 32], i64, Option<i64>, bool);

/// `id, principal, scope, port_min, port_max, expires_at, revoked`
type GrantFields = (i64, i64, ScopeFields, u16, u16, Option<i64>, bool);

/// `id, uuid, fleet, address, node, online`
type DeviceFields = (i64, String, Option<i64>, Option<IpAddr>, Option<String>, bool);

#[derive(Serialize, Deserialize)]
enum ScopeFields {
    Any,
    Fleet(i64),
    Device(i64),
}

/// Revocations.
#[derive(Serialize, Deserialize)]
enum EndFields {
    Credential([u8; 32]),
    Grant(i64),
    Principal(i64),
}

fn write_view(
    writer: &mut impl Write,
    origin: &Origin,
    view: &View,
    confirmed_at: UnixMillis,
) -> io::Result<()> {
    let View { snapshot, revocations, .. } = view;
    let counts = snapshot.row_counts();
    let header = Header {
        store: origin.store.clone(),
        queries: origin.queries,
        generation: snapshot.generation().0,
        confirmed_at: confirmed_at.0,
        credentials: counts.credentials as u64,
        grants: counts.grants as u64,
        devices: counts.devices as u64,
        ends: revocations.iter().count() as u64,
    };
    put(writer, &header)?;
    snapshot.credentials().try_for_each(|row| put(writer, &credential_fields(&row)))?;
    snapshot.grants().try_for_each(|row| put(writer, &grant_fields(&row)))?;
    snapshot.devices().try_for_each(|row| put(writer, &device_fields(row)))?;
    revocations.iter().filter_map(|end| EndFields::of(&end)).try_for_each(|end| put(writer, &end))
}

fn put(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    postcard::to_io(value, writer).map(drop).map_err(io::Error::other)
}

fn credential_fields(row: &Credential) -> CredentialFields {
    (*row.key.as_bytes(), row.principal.0, row.expires_at.map(|end| end.0), row.revoked)
}

fn grant_fields(row: &Grant) -> GrantFields {
    let scope = match row.scope {
        Scope::Any => ScopeFields::Any,
        Scope::Fleet(id) => ScopeFields::Fleet(id.0),
        Scope::Device(id) => ScopeFields::Device(id.0),
    };
    let expires_at = row.expires_at.map(|end| end.0);
    (row.id.0, row.principal.0, scope, row.ports.min(), row.ports.max(), expires_at, row.revoked)
}

fn device_fields(row: Device) -> DeviceFields {
    let node = row.node.map(String::from);
    (row.id.0, row.uuid.to_string(), row.fleet.map(|fleet| fleet.0), row.address, node, row.online)
}

fn credential((key, principal, expires_at, revoked): CredentialFields) -> Credential {
    Credential {
        key: KeyHash::from_bytes(key),
        principal: PrincipalId(principal),
        expires_at: expires_at.map(UnixMillis),
        revoked,
    }
}

fn grant((id, principal, scope, min, max, expires_at, revoked): GrantFields) -> Option<Grant> {
    let scope = match scope {
        ScopeFields::Any => Scope::Any,
        ScopeFields::Fleet(id) => Scope::Fleet(FleetId(id)),
        ScopeFields::Device(id) => Scope::Device(DeviceId(id)),
    };
    let (ports, expires_at) = (PortRange::new(min, max)?, expires_at.map(UnixMillis));
    Some(Grant { id: GrantId(id), principal: PrincipalId(principal), scope, ports, expires_at, revoked })
}

fn device((id, uuid, fleet, address, node, online): DeviceFields) -> Option<Device> {
    let (uuid, fleet) = (DeviceUuid::parse(&uuid)?, fleet.map(FleetId));
    Some(Device {
        id: DeviceId(id),
        uuid,
        fleet,
        address,
        node: node.map(Box::from),
        online,
        disputed: false,
    })
}

impl EndFields {
    /// `None` for a change that ends nothing.
    fn of(change: &Change) -> Option<Self> {
        match change {
            Change::CredentialGone(key) => Some(Self::Credential(*key.as_bytes())),
            Change::GrantGone(id) => Some(Self::Grant(id.0)),
            Change::PrincipalGone(id) => Some(Self::Principal(id.0)),
            _ => None,
        }
    }

    fn change(self) -> Change {
        match self {
            Self::Credential(key) => Change::CredentialGone(KeyHash::from_bytes(key)),
            Self::Grant(id) => Change::GrantGone(GrantId(id)),
            Self::Principal(id) => Change::PrincipalGone(PrincipalId(id)),
        }
    }
}

/// Decodes one value after the other.
struct Reader<'a> {
    /// `None` after a failure.
    source: Option<BufReader<&'a File>>,
    /// Size of what a value holds beside its fields.
    scratch: Box<[u8]>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        let mut source = BufReader::with_capacity(BUFFER_BYTES, file);
        source.read_exact(&mut [0; MAGIC.len()])?;
        Ok(Self { source: Some(source), scratch: vec![0; VALUE_BYTES_MAX].into() })
    }

    fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let source = self.source.take()?;
        let (value, (source, _)) = postcard::from_io((source, &mut self.scratch[..])).ok()?;
        self.source = Some(source);
        Some(value)
    }

    fn rows<F: DeserializeOwned, T>(
        &mut self,
        count: u64,
        decode: impl Fn(F) -> Option<T>,
    ) -> Option<Vec<T>> {
        (0..count).map(|_| decode(self.next()?)).collect()
    }

    fn kept(&mut self, header: &Header, read_by: ReadBy) -> Option<Kept> {
        let credentials = self.rows(header.credentials, |fields| Some(credential(fields)))?;
        let grants = self.rows(header.grants, grant)?;
        let devices = self.rows(header.devices, device)?;
        let ends: Vec<Change> = self.rows(header.ends, |end: EndFields| Some(end.change()))?;
        let none = Revocations::default();
        Some(Kept {
            snapshot: Snapshot::build(Generation(header.generation), credentials, grants, devices),
            revocations: none.with(&ends).unwrap_or(none),
            confirmed_at: UnixMillis(header.confirmed_at),
            read_by,
        })
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
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
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
const MAGIC: &[u8; 23] = b"sluicegate snapshot v2\n";

/// Length of the part of the magic that every version shares.
const MAGIC_NAME_BYTES: usize = 19;

const CHECKSUM_BYTES: usize = 32;

const BUFFER_BYTES: usize = 256 * 1024;

/// Largest size of one row or of the header: nothing else bounds a store's description or a node's name.
const VALUE_BYTES_MAX: usize = 16 * 1024;
