//! A store as a relay reads it: all relations at once, and what has changed since.

use std::time::{Duration, Instant};

use sluicegate::authz::{Change, Credential, Device, Grant};
use sluicegate::config::{self, Authz};
use sluicegate::store::{
    self, KnownPosition, Quarantined, Relation, RelationRows, RowKey, StoreError, StoreReader, Word, Words,
};

/// One reader of everything.
pub struct StoreView {
    pub reader: Box<dyn StoreReader>,
    /// Time between two whole reads of a store without an outbox.
    reread_every: Duration,
    read_at: Option<Instant>,
    rows: Rows,
    /// Time since when the oldest of the last changes could have been read.
    pub readable_since: Option<Instant>,
}

/// The rows of all relations that decoded, and the keys of those that did not.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub credentials: Vec<Credential>,
    pub grants: Vec<Grant>,
    pub devices: Vec<Device>,
    pub quarantined: Vec<Quarantined>,
    /// Rows that say that they are revoked, and do not decode.
    pub ended: Vec<RowKey>,
}

/// What a store says that it did not say before.
#[derive(Debug)]
pub enum Changes {
    Nothing,
    Some {
        changes: Vec<Change>,
        quarantined: Vec<Quarantined>,
    },
    /// All rows of a store without an outbox. They differ from those of the read before.
    All(Rows),
    Behind,
}

impl StoreView {
    pub fn new(store: &config::Store, authz: &Authz) -> Self {
        let reader = store::reader(store, authz, KnownPosition::default());
        Self {
            reader,
            reread_every: authz.reread,
            read_at: None,
            rows: Rows::default(),
            readable_since: None,
        }
    }

    /// Reads everything. Changes are read from here on.
    pub fn read_all(&mut self) -> Result<Rows, StoreError> {
        self.reader.read_words()?;
        self.read_relations().map(|_| self.rows.clone())
    }

    /// Reads what has changed since the last read.
    pub fn read_changes(&mut self) -> Result<Changes, StoreError> {
        if !self.reader.follows_outbox() {
            if self.read_at.is_some_and(|at| at.elapsed() < self.reread_every) {
                return Ok(Changes::Nothing);
            }
            let is_new = self.read_relations()?;
            return Ok(if is_new { Changes::All(self.rows.clone()) } else { Changes::Nothing });
        }
        let answer = self.reader.read_words()?;
        self.readable_since = answer.readable_since;
        Ok(match answer.words {
            Words::Nothing => Changes::Nothing,
            Words::Behind => Changes::Behind,
            Words::Some { words, quarantined } => {
                let changes: Vec<_> = words.into_iter().filter_map(change).collect();
                if changes.is_empty() && quarantined.is_empty() {
                    return Ok(Changes::Nothing);
                }
                Changes::Some { changes, quarantined }
            }
        })
    }

    /// Reads the relations; true unless all are as they were.
    fn read_relations(&mut self) -> Result<bool, StoreError> {
        let mut is_new = false;
        let (mut quarantined, mut ended) = (Vec::new(), Vec::new());
        for relation in Relation::ALL {
            let answer = self.reader.read_relation(relation)?;
            is_new |= !matches!(answer.rows, RelationRows::Unchanged);
            match answer.rows {
                RelationRows::Credentials(rows) => self.rows.credentials = rows,
                RelationRows::Grants(rows) => self.rows.grants = rows,
                RelationRows::Devices(rows) => self.rows.devices = rows,
                RelationRows::Unchanged => {}
            }
            quarantined.extend(answer.quarantined);
            ended.extend(answer.ended);
        }
        (self.rows.quarantined, self.rows.ended) = (quarantined, ended);
        self.read_at = Some(Instant::now());
        Ok(is_new)
    }
}

/// The change that a word says; `None` where it says that something is as ever.
fn change(word: Word) -> Option<Change> {
    match word {
        Word::Row(change) => Some(change),
        Word::Ended(RowKey::Credential(key)) => Some(Change::CredentialGone(key)),
        Word::Ended(RowKey::Grant(id)) => Some(Change::GrantGone(id)),
        Word::Ended(RowKey::Device(id)) => Some(Change::DeviceGone(id)),
        Word::PrincipalEnded(id) => Some(Change::PrincipalGone(id)),
        Word::Ended(RowKey::Unreadable { .. }) | Word::Live(_) | Word::PrincipalLive(_) => None,
    }
}
