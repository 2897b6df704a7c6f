//! Stores without an outbox: read whole on a period, and told only where they say something new.

use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use super::{Changes, Rows};

/// When a store is read next, and what it said last.
pub(super) struct Rereading {
    every: Duration,
    /// `None` before the first read.
    last: Option<Last>,
    hashers: [RandomState; 2],
}

struct Last {
    at: Instant,
    fingerprint: Fingerprint,
}

/// Of all rows, in whatever order: a store gives none unless it is asked to, and need not keep to it.
type Fingerprint = [u64; 2];

impl Rereading {
    pub(super) fn new(every: Duration) -> Self {
        Self { every, last: None, hashers: [RandomState::new(), RandomState::new()] }
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.as_ref().is_none_or(|last| last.at.elapsed() >= self.every)
    }

    /// Remembers what was read.
    pub(super) fn note(&mut self, rows: &Rows) {
        self.last = Some(Last { at: Instant::now(), fingerprint: self.fingerprint(rows) });
    }

    /// What a read that was due comes to, against the one before.
    pub(super) fn changes(&mut self, rows: Rows) -> Changes {
        let before = self.last.as_ref().map(|last| last.fingerprint);
        self.note(&rows);
        let now = self.last.as_ref().map(|last| last.fingerprint);
        if now == before { Changes::Nothing } else { Changes::All(rows) }
    }

    fn fingerprint(&self, rows: &Rows) -> Fingerprint {
        let Rows { credentials, grants, devices, quarantined, ended } = rows;
        let mut sum = Fingerprint::default();
        let mut add = |each: &dyn Fn(&RandomState) -> u64| {
            for (sum, hasher) in sum.iter_mut().zip(&self.hashers) {
                *sum = sum.wrapping_add(each(hasher));
            }
        };
        for row in credentials {
            add(&|hasher| tagged(hasher, 0, row));
        }
        for row in grants {
            add(&|hasher| tagged(hasher, 1, row));
        }
        for row in devices {
            add(&|hasher| tagged(hasher, 2, row));
        }
        for row in quarantined {
            add(&|hasher| tagged(hasher, 3, row));
        }
        for end in ended {
            add(&|hasher| tagged(hasher, 4, end));
        }
        sum
    }
}

fn tagged(hasher: &RandomState, kind: u8, row: impl Hash) -> u64 {
    hasher.hash_one((kind, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Device, DeviceId, DeviceUuid, GrantId};
    use crate::store::{Quarantined, RowKey};

    fn device(id: i64) -> Device {
        let uuid = DeviceUuid::parse(&format!("{id:032x}")).unwrap();
        Device { id: DeviceId(id), uuid, fleet: None, address: None, node: None, online: true }
    }

    fn rows(devices: &[i64]) -> Rows {
        Rows { devices: devices.iter().copied().map(device).collect(), ..Rows::default() }
    }

    #[test]
    fn only_what_differs_is_news_in_whatever_order_it_comes() {
        let mut rereading = Rereading::new(Duration::from_secs(60));
        assert!(rereading.is_due());
        let mut is_news = |rows: Rows| matches!(rereading.changes(rows), Changes::All(_));
        assert!(is_news(rows(&[1, 2])));
        assert!(!is_news(rows(&[2, 1])));
        assert!(is_news(rows(&[1, 2, 2])), "a row that came twice");
        assert!(is_news(rows(&[1])));
        let offline = || {
            let mut rows = rows(&[1]);
            rows.devices[0].online = false;
            rows
        };
        assert!(is_news(offline()));
        let with_bad_row = || {
            let mut rows = offline();
            rows.quarantined.push(Quarantined { key: RowKey::Grant(GrantId(1)), reason: "bad".to_owned() });
            rows
        };
        assert!(is_news(with_bad_row()));
        assert!(!is_news(with_bad_row()));
        assert!(is_news(rows(&[])));
        assert!(!rereading.is_due());
    }
}
