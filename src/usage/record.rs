//! The use of one interval as a file's content: postcard, and its CRC-32 behind it.

use serde::{Deserialize, Serialize};

use crate::authz::{CredentialId, DeviceId, DeviceUuid, PrincipalId, UnixMillis};
use crate::telemetry::{UsageKey, UsageRow, UsageSums, UsageTable};

/// The use of one interval.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct UsageRecord {
    pub from: UnixMillis,
    pub to: UnixMillis,
    pub table: UsageTable,
}

#[derive(Serialize, Deserialize)]
struct StoredRecord {
    from: i64,
    to: i64,
    others: UsageSums,
    rows: Vec<StoredRow>,
}

/// A row with the bytes of what is text for people: some 50 bytes instead of 100.
#[derive(Serialize, Deserialize)]
struct StoredRow {
    principal: i64,
    credential: Option<[u8; 8]>,
    device: i64,
    /// Empty where it is not known.
    uuid: Vec<u8>,
    sums: UsageSums,
}

impl UsageRecord {
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let rows = self.table.rows().map(StoredRow::from).collect();
        let stored = StoredRecord { from: self.from.0, to: self.to.0, others: self.table.others(), rows };
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_stdvec(&stored)?);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a record; `None` for one that is damaged, or of a version that this one does not know.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(content).to_le_bytes() != *checksum {
            return None;
        }
        let (&VERSION, stored) = content.split_first()? else { return None };
        let StoredRecord { from, to, others, rows } = postcard::from_bytes(stored).ok()?;
        let mut table = UsageTable::with_room_for(rows.len());
        rows.into_iter().for_each(|row| table.add(&row.into()));
        table.add_others(&others);
        Some(Self { from: UnixMillis(from), to: UnixMillis(to), table })
    }
}

impl From<UsageRow> for StoredRow {
    fn from(UsageRow { key, uuid, sums }: UsageRow) -> Self {
        Self {
            principal: key.principal.0,
            credential: key.credential.map(CredentialId::to_bytes),
            device: key.device.0,
            uuid: uuid.map(|uuid| uuid.as_bytes().to_vec()).unwrap_or_default(),
            sums,
        }
    }
}

impl From<StoredRow> for UsageRow {
    fn from(stored: StoredRow) -> Self {
        let StoredRow { principal, credential, device, uuid, sums } = stored;
        let key = UsageKey {
            principal: PrincipalId(principal),
            credential: credential.map(CredentialId::from_bytes),
            device: DeviceId(device),
        };
        Self { key, uuid: DeviceUuid::from_bytes(&uuid), sums }
    }
}

/// Version of the format, which is its first byte.
const VERSION: u8 = 1;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record of the interval that ends at `to`, in which each of `devices` got `bytes`.
    pub fn record(from: i64, to: i64, devices: i64, bytes: u64) -> UsageRecord {
        let mut table = UsageTable::default();
        for device in 0..devices {
            let credential = Some(CredentialId::from_bytes([7; 8]));
            let key = UsageKey { principal: PrincipalId(device % 2), credential, device: DeviceId(device) };
            let sums = UsageSums { bytes_up: bytes, opened: 1, tunnel_ms: 9, ..UsageSums::default() };
            let uuid = DeviceUuid::parse(&format!("{device:032x}"));
            table.add(&UsageRow { key, uuid, sums });
        }
        table.add_others(&UsageSums { bytes_down: 3, ..UsageSums::default() });
        UsageRecord { from: UnixMillis(from), to: UnixMillis(to), table }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record(1_000, 2_000, 50, u64::MAX);
        assert_eq!(UsageRecord::decode(&record.encode().unwrap()), Some(record));
    }

    #[test]
    fn a_damaged_record_is_none() {
        let bytes = record(1_000, 2_000, 3, 77).encode().unwrap();
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x10;
            assert_eq!(UsageRecord::decode(&damaged), None, "byte {place}");
            assert_eq!(UsageRecord::decode(&bytes[..place]), None, "{place} bytes");
        }
    }
}
