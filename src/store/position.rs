//! Where in a store's history an answer stands, so that an older answer, or one of another store, is told from a newer.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Place of an answer in the history of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Identity of the store. A copy that goes its own way keeps it, a new store has another one.
    pub store: StoreId,
    /// History of the store: PostgreSQL's timeline, which a promotion changes. SQLite has one, 0.
    pub timeline: u64,
    /// Progress within the history: PostgreSQL's log position, the number of SQLite's newest outbox row.
    pub log: u64,
    /// Fingerprint of the store at `log`, by which a source recognises it again; 0 where there is none.
    pub mark: u64,
}

/// Identity of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreId(pub [u8; 16]);

/// Relation of an answer to the newest one that was believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The answer has everything that the newest one had. Also where nothing was believed before.
    Newer,
    /// The answer may lack something that was known: a standby is behind, or the store was restored.
    Older,
    /// The store is another one, or has another history than the one that was followed.
    Elsewhere,
}

/// The newest position that was believed. Shared by all readers of a store; the control thread writes it.
#[derive(Clone, Default)]
pub struct KnownPosition {
    position: Arc<Mutex<Option<Position>>>,
    /// Place among the hosts of the store of the one that words come from, which all readers prefer. The reader of the
    /// words writes it. `None` where they cannot be read.
    words_host: Arc<Mutex<Option<usize>>>,
}

impl KnownPosition {
    pub fn get(&self) -> Option<Position> {
        *self.position.lock()
    }

    /// Moves on to `position`. One that is no newer in the same history changes nothing.
    pub fn advance(&self, position: Position) {
        let mut known = self.position.lock();
        let is_newer = known.is_none_or(|known| {
            known.store != position.store || (known.timeline, known.log) <= (position.timeline, position.log)
        });
        if is_newer {
            *known = Some(position);
        }
    }

    /// Believes `position` whatever was known: a person has accepted another store or another history.
    pub fn replace(&self, position: Option<Position>) {
        *self.position.lock() = position;
    }

    pub(super) fn words_host(&self) -> Option<usize> {
        *self.words_host.lock()
    }

    pub(super) fn set_words_host(&self, host: Option<usize>) {
        *self.words_host.lock() = host;
    }
}
