//! Credentials, found by the first bytes of their key.

use hashbrown::HashSet;

use super::packed_end::PackedEnd;
use super::{Edit, Identified, LastWords, pack_all};
use crate::authz::table::{KeyHasher, Row, Sought, Table};
use crate::authz::{Credential, CredentialId, KeyHash, PrincipalId, UnixMillis};

#[derive(Clone)]
pub(in crate::authz) struct Credentials {
    packed: Table<PackedCredential>,
    whole: Table<Credential>,
}

impl Credentials {
    pub(in crate::authz) fn sized_for(rows: usize, hasher: KeyHasher) -> Self {
        Self { packed: Table::sized_for(rows, hasher.clone()), whole: Table::sized_for(0, hasher) }
    }

    pub(in crate::authz) fn edit(&mut self, edits: Vec<Edit<Credential>>) {
        let LastWords { put, removed } = LastWords::of(edits);
        // A new version may be packed where the old one was not.
        let keys: HashSet<KeyHash> = put.iter().map(|row| row.key).chain(removed).collect();
        let suspects: Vec<_> = keys.iter().map(|key| self.packed.digest(key.credential_id())).collect();
        let (packed, whole) = pack_all(put, PackedCredential::pack);
        self.packed.replace(packed, suspects.clone(), |row| keys.contains(&row.key));
        self.whole.replace(whole, suspects, |row| keys.contains(&row.key));
    }

    /// Has the credential with `key` fetched.
    #[inline]
    pub(in crate::authz) fn seek<'a>(&'a self, key: &'a KeyHash) -> SoughtCredential<'a> {
        SoughtCredential { credentials: self, key, packed: self.packed.seek(key.credential_id()) }
    }

    #[cold]
    fn whole(&self, key: &KeyHash) -> Option<HeldCredential> {
        let whole = self.whole.rows(key.credential_id()).find(|row| row.key.matches(key))?;
        Some(HeldCredential {
            principal: whole.principal,
            expires_at: whole.expires_at,
            revoked: whole.revoked,
        })
    }

    pub(in crate::authz) fn called(&self, id: CredentialId) -> Option<Credential> {
        let packed = self.packed.rows(id).next().map(PackedCredential::unpack);
        packed.or_else(|| self.whole.rows(id).next().copied())
    }

    pub(in crate::authz) fn iter(&self) -> impl Iterator<Item = Credential> {
        self.packed.iter().map(PackedCredential::unpack).chain(self.whole.iter().copied())
    }

    pub(in crate::authz) fn len(&self) -> usize {
        self.packed.len() + self.whole.len()
    }
}

/// A credential on its way from memory.
pub(in crate::authz) struct SoughtCredential<'a> {
    credentials: &'a Credentials,
    key: &'a KeyHash,
    packed: Sought<'a, PackedCredential>,
}

/// The fields of a credential, beside its key.
pub(in crate::authz) struct HeldCredential {
    pub(in crate::authz) principal: PrincipalId,
    pub(in crate::authz) expires_at: Option<UnixMillis>,
    pub(in crate::authz) revoked: bool,
}

impl SoughtCredential<'_> {
    #[inline]
    pub(in crate::authz) fn get(&self) -> Option<HeldCredential> {
        let Self { credentials, key, packed } = self;
        match packed.rows().find(|row| row.key.matches(key)) {
            Some(credential) => Some(credential.held()),
            None if credentials.whole.is_empty() => None,
            None => credentials.whole(key),
        }
    }
}

#[derive(Clone, Copy)]
struct PackedCredential {
    key: KeyHash,
    principal: u32,
    expires_at: PackedEnd,
    revoked: bool,
}

impl PackedCredential {
    fn pack(credential: &Credential) -> Option<Self> {
        Some(Self {
            key: credential.key,
            principal: credential.principal.0.try_into().ok()?,
            expires_at: PackedEnd::pack(credential.expires_at)?,
            revoked: credential.revoked,
        })
    }

    fn unpack(&self) -> Credential {
        let HeldCredential { principal, expires_at, revoked } = self.held();
        Credential { key: self.key, principal, expires_at, revoked }
    }

    #[inline]
    fn held(&self) -> HeldCredential {
        HeldCredential {
            principal: PrincipalId(self.principal.into()),
            expires_at: self.expires_at.unpack(),
            revoked: self.revoked,
        }
    }
}

impl Row for PackedCredential {
    type Key = CredentialId;
    type Rank = KeyHash;

    fn key(&self) -> CredentialId {
        self.key.credential_id()
    }

    fn rank(&self) -> KeyHash {
        self.key
    }
}

impl Row for Credential {
    type Key = CredentialId;
    type Rank = KeyHash;

    fn key(&self) -> CredentialId {
        self.key.credential_id()
    }

    fn rank(&self) -> KeyHash {
        self.key
    }
}

impl Identified for Credential {
    type Id = KeyHash;

    fn id(&self) -> KeyHash {
        self.key
    }
}

const _: () = assert!(size_of::<PackedCredential>() == 44);
