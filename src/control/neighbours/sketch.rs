//! A relation's count and checksums, by which two nodes compare what they have without any row.
//!
//! Each row falls into one of 1,024 buckets by its key, and adds a hash of its contents to the bucket's sum. Places of
//! devices are left out, since they change all the time.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use crate::authz::{Credential, Device, Grant, Scope, UnixMillis};

/// See the module. 4 KiB.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::control) struct RelationSketch {
    rows: u64,
    sums: Box<[u32; BUCKETS]>,
}

/// A row's bucket and the hash that it adds there.
struct RowDigest {
    bucket: usize,
    hash: u32,
}

impl RelationSketch {
    pub(in crate::control) fn rows(&self) -> usize {
        usize::try_from(self.rows).unwrap_or(usize::MAX)
    }

    /// Adds a credential. Leave out those that have ended.
    pub(in crate::control) fn add_credential(&mut self, row: &Credential) {
        self.add(RowDigest::of_credential(row));
    }

    /// Adds a grant. Leave out those that have ended.
    pub(in crate::control) fn add_grant(&mut self, row: &Grant) {
        self.add(RowDigest::of_grant(row));
    }

    pub(in crate::control) fn add_device(&mut self, row: &Device) {
        self.add(RowDigest::of_device(row));
    }

    /// The number of rows that differ, at least. Exact while few do; a thousand times as many as there are buckets look
    /// like some 7,000, or like the difference of the counts if that is more.
    pub(in crate::control) fn difference(&self, other: &Self) -> u64 {
        let differing =
            self.sums.iter().zip(other.sums.iter()).filter(|(ours, theirs)| ours != theirs).count();
        let buckets = BUCKETS as f64;
        // Several rows fall into one bucket; this is the most likely number of them.
        let equal = (BUCKETS - differing).max(1) as f64;
        let rows = (buckets * (buckets / equal).ln()).round() as u64;
        rows.max(differing as u64).max(self.rows.abs_diff(other.rows))
    }

    /// True if the two sketches disagree on the device's bucket, so that its row may be among those that differ.
    pub(in crate::control) fn doubts_device(&self, row: &Device, other: &Self) -> bool {
        self.doubts(RowDigest::of_device(row), other)
    }

    pub(in crate::control) fn doubts_credential(&self, row: &Credential, other: &Self) -> bool {
        self.doubts(RowDigest::of_credential(row), other)
    }

    pub(in crate::control) fn doubts_grant(&self, row: &Grant, other: &Self) -> bool {
        self.doubts(RowDigest::of_grant(row), other)
    }

    fn doubts(&self, RowDigest { bucket, .. }: RowDigest, other: &Self) -> bool {
        self.sums[bucket] != other.sums[bucket]
    }

    fn add(&mut self, RowDigest { bucket, hash }: RowDigest) {
        self.rows = self.rows.saturating_add(1);
        self.sums[bucket] = self.sums[bucket].wrapping_add(hash);
    }
}

impl RowDigest {
    fn of_credential(row: &Credential) -> Self {
        let Credential { key, principal, expires_at, .. } = row;
        Self::of(key.as_bytes(), &[principal.0, end(*expires_at)])
    }

    fn of_grant(row: &Grant) -> Self {
        let (kind, target) = match row.scope {
            Scope::Any => (0, 0),
            Scope::Fleet(fleet) => (1, fleet.0),
            Scope::Device(device) => (2, device.0),
        };
        let ports = i64::from(row.ports.min()) << 16 | i64::from(row.ports.max());
        Self::of(&row.id.0.to_le_bytes(), &[row.principal.0, kind, target, ports, end(row.expires_at)])
    }

    fn of_device(row: &Device) -> Self {
        let fleet = row.fleet.map_or([0, 0], |fleet| [1, fleet.0]);
        Self::of(row.uuid.as_bytes(), &[row.id.0, fleet[0], fleet[1]])
    }

    fn of(key: &[u8], contents: &[i64]) -> Self {
        let bucket = u16::from_le_bytes(first(Sha256::digest(key).as_slice())) as usize % BUCKETS;
        let mut digest = Sha256::new_with_prefix(key);
        contents.iter().for_each(|number| digest.update(number.to_le_bytes()));
        Self { bucket, hash: u32::from_le_bytes(first(digest.finalize().as_slice())) }
    }
}

impl Default for RelationSketch {
    fn default() -> Self {
        Self { rows: 0, sums: Box::new([0; BUCKETS]) }
    }
}

impl std::fmt::Debug for RelationSketch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelationSketch({} rows)", self.rows)
    }
}

impl Serialize for RelationSketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sums: Vec<u8> = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        (self.rows, sums).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RelationSketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (rows, bytes) = <(u64, Vec<u8>)>::deserialize(deserializer)?;
        let (sums, rest) = bytes.as_chunks::<4>();
        if sums.len() != BUCKETS || !rest.is_empty() {
            return Err(de::Error::custom("a sketch of another number of buckets"));
        }
        Ok(Self { rows, sums: Box::new(std::array::from_fn(|bucket| u32::from_le_bytes(sums[bucket]))) })
    }
}

fn end(at: Option<UnixMillis>) -> i64 {
    at.map_or(i64::MIN, |at| at.0)
}

/// The first bytes of a hash, which is longer.
fn first<const N: usize>(hash: &[u8]) -> [u8; N] {
    hash.first_chunk().copied().unwrap_or([0; N])
}

/// Buckets of a sketch: differences of a few rows among a million are told from the budget of 500.
const BUCKETS: usize = 1_024;
