//! Tests of the state on disk.

mod damage;
mod disk;
mod limits;
mod restarts;
mod slow_disk;
mod writers;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, End, Generation, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope,
};
use crate::config::Config;
use crate::store::queries_digest;

/// A folder with a state, or to be with one.
struct StateFolder {
    folder: tempfile::TempDir,
}

impl StateFolder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A process that has not loaded the state yet.
    fn process(&self) -> Persistence {
        process(&self.path())
    }

    /// A process with this state written.
    fn kept(view: &View, beside: KeptBeside) -> (Self, Persistence) {
        let folder = Self::new();
        let mut process = folder.process();
        assert!(process.load().unwrap().is_none());
        process.keep(view, beside);
        process.finish_saving();
        assert_eq!(process.trouble(), None);
        (folder, process)
    }

    fn state(&self) -> PathBuf {
        self.path().join("last-good.snapshot")
    }

    fn journal(&self) -> PathBuf {
        self.path().join("last-good.journal.1")
    }

    /// What a start would begin with; nothing is written for that.
    fn restored(&self) -> Result<Option<Kept>, KeptError> {
        restored(&self.path())
    }
}

fn process(path: &Path) -> Persistence {
    Persistence::new(path, STORE.to_owned(), digest())
}

fn restored(path: &Path) -> Result<Option<Kept>, KeptError> {
    let origin = Origin { store: STORE.to_owned(), queries: digest() };
    restore::restore(&Folder { path: path.to_owned() }, &origin)
}

fn digest() -> QueriesDigest {
    let config = Config::default();
    queries_digest(&config.store, &config.authz)
}

/// Everything that decides, as of one moment.
#[derive(Clone)]
struct InForce {
    snapshot: Snapshot,
    ends: HashSet<End>,
    memory: Vec<u8>,
    bookmark: Option<Bookmark>,
    position: Option<Position>,
}

impl InForce {
    fn new(grants: impl IntoIterator<Item = i64>) -> Self {
        let grants = grants.into_iter().map(|id| grant(id, false)).collect();
        Self {
            snapshot: Snapshot::build(Generation(1), vec![credential(1, false)], grants, vec![device(1, 1)]),
            ends: HashSet::new(),
            memory: Vec::new(),
            bookmark: None,
            position: None,
        }
    }

    fn view(&self) -> View {
        let none = Revocations::default();
        let revocations = Arc::new(none.with_ends(self.ends.iter().copied()).unwrap_or(none));
        View { snapshot: Arc::new(self.snapshot.clone()), revocations, previous: None }
    }

    fn beside(&self) -> KeptBeside {
        let Self { memory, bookmark, position, .. } = self.clone();
        KeptBeside { position, bookmark, memory }
    }

    fn apply(&mut self, record: &JournalRecord) {
        let generation = self.snapshot.generation();
        let generation = record.generation.unwrap_or(generation).max(generation);
        self.snapshot = self.snapshot.apply(generation, &[&record.inferred[..], &record.words].concat());
        record.lifted.iter().for_each(|end| _ = self.ends.remove(end));
        self.ends.extend(&record.ended);
        if let Some(memory) = &record.memory {
            self.memory.clone_from(memory);
        }
        self.bookmark = record.bookmark.clone().or(self.bookmark.take());
        self.position = record.position.or(self.position);
    }

    fn of(kept: Kept) -> Self {
        Self {
            snapshot: kept.snapshot,
            ends: kept.revocations.ends().collect(),
            memory: kept.memory,
            bookmark: kept.bookmark,
            position: kept.position,
        }
    }

    /// All of it in a form that compares.
    fn facts(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let mut rows: Vec<String> = self.snapshot.credentials().map(|row| format!("{row:?}")).collect();
        rows.extend(self.snapshot.grants().map(|row| format!("{row:?}")));
        rows.extend(self.snapshot.devices().map(|row| format!("{row:?}")));
        rows.extend(self.ends.iter().map(|end| format!("{end:?}")));
        rows.sort_unstable();
        let Self { snapshot, memory, bookmark, position, .. } = self.clone();
        (rows, snapshot.generation(), memory, bookmark, position)
    }

    fn has_grant(&self, id: i64) -> bool {
        let is_live = self.snapshot.grant(GrantId(id)).is_some_and(|grant| !grant.revoked);
        is_live && !self.ends.contains(&grant_end(id))
    }
}

fn credential(token: u8, revoked: bool) -> Credential {
    Credential { key: KeyHash::of_token(&[token]), principal: PrincipalId(1), expires_at: None, revoked }
}

fn grant(id: i64, revoked: bool) -> Grant {
    let (principal, scope, ports) = (PrincipalId(1), Scope::Device(DeviceId(id)), PortRange::ANY);
    Grant { id: GrantId(id), principal, scope, ports, expires_at: Some(UnixMillis(id)), revoked }
}

fn device(id: i64, address: u8) -> Device {
    Device {
        id: DeviceId(id),
        uuid: DeviceUuid::parse(&format!("{id:032x}")).unwrap(),
        fleet: None,
        address: Some([10, 0, 0, address].into()),
        node: Some("node".into()),
        online: true,
        disputed: false,
    }
}

/// The step by which the store deletes a grant.
fn deletion(id: i64) -> JournalRecord {
    let (words, ended) = (vec![Change::GrantGone(GrantId(id))], vec![grant_end(id)]);
    JournalRecord { words, ended, ..JournalRecord::default() }
}

fn grant_end(id: i64) -> End {
    End::of_grant(&grant(id, false))
}

fn has_grant(kept: Result<Option<Kept>, KeptError>, id: i64) -> bool {
    InForce::of(kept.unwrap().unwrap()).has_grant(id)
}

const STORE: &str = "sqlite:/test";
