//! The keys that an outbox or relation `ended` names, and the words that come of them.

use super::value::Value;
use super::{RowKey, Word};
use crate::authz::{Change, DeviceId, GrantId, KeyHash, PrincipalId, UnixMillis};

/// The key of a row that has changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum ChangedKey {
    Principal(PrincipalId),
    Credential(KeyHash),
    Grant(GrantId),
    Device(DeviceId),
}

/// A row that the outbox names, and what it recorded of it when the row was written last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChangedRow {
    pub(super) key: ChangedKey,
    pub(super) recorded: Recorded,
}

/// What the outbox recorded of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recorded {
    /// The row is gone, or the principal removed.
    Gone,
    /// The row as it was written is in the outbox, under this number.
    Row(i64),
    /// The key alone: the table says what the row is.
    KeyOnly,
}

impl Recorded {
    /// Decodes the columns `id` and `gone` of the outbox.
    pub(super) const fn of(id: i64, gone: Option<bool>) -> Self {
        match gone {
            Some(true) => Self::Gone,
            Some(false) => Self::Row(id),
            None => Self::KeyOnly,
        }
    }
}

impl ChangedKey {
    /// Decodes a relation's name and a key; `None` where no trigger of ours wrote them.
    pub(super) fn decode(relation: &str, key: Value<'_>) -> Option<Self> {
        match (relation, key) {
            ("principals", Value::Integer(id)) => Some(Self::Principal(PrincipalId(id))),
            ("credentials", Value::Bytes(key)) => {
                key.try_into().ok().map(|key| Self::Credential(KeyHash::from_bytes(key)))
            }
            ("grants", Value::Integer(id)) => Some(Self::Grant(GrantId(id))),
            ("devices", Value::Integer(id)) => Some(Self::Device(DeviceId(id))),
            _ => None,
        }
    }

    /// The word that the row, or the principal, has ended.
    pub(super) const fn ended(self) -> Word {
        match self {
            Self::Principal(id) => Word::PrincipalEnded(id),
            Self::Credential(key) => Word::Ended(RowKey::Credential(key)),
            Self::Grant(id) => Word::Ended(RowKey::Grant(id)),
            Self::Device(id) => Word::Ended(RowKey::Device(id)),
        }
    }

    /// The word that the row, or the principal, has not ended.
    pub(super) const fn live(self) -> Word {
        match self {
            Self::Principal(id) => Word::PrincipalLive(id),
            Self::Credential(key) => Word::Live(RowKey::Credential(key)),
            Self::Grant(id) => Word::Live(RowKey::Grant(id)),
            Self::Device(id) => Word::Live(RowKey::Device(id)),
        }
    }

    /// The change where the store no longer has the row.
    pub(super) const fn gone(self) -> Change {
        match self {
            Self::Principal(id) => Change::PrincipalGone(id),
            Self::Credential(key) => Change::CredentialGone(key),
            Self::Grant(id) => Change::GrantGone(id),
            Self::Device(id) => Change::DeviceGone(id),
        }
    }
}

/// An end that the store recorded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct EndedEntry {
    pub(super) key: ChangedKey,
    pub(super) ended_at: UnixMillis,
}
