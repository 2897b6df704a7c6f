//! A store file in a folder of its own, with principal `alice`, who is number 1.

use std::path::PathBuf;

use rusqlite::Connection;
use sluicegate::authz::{GrantId, KeyHash, PortRange};
use sluicegate::store::admin::{Admin, GrantTarget};
use sluicegate::store::sqlite;

/// See the module.
pub struct StoreFile {
    pub folder: tempfile::TempDir,
    pub admin: Admin,
}

impl StoreFile {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        sqlite::init(&path).unwrap();
        let mut admin = sqlite::open(&path).unwrap();
        admin.add_principal("alice").unwrap();
        Self { folder, admin }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    /// A connection as a person with the sqlite3 shell has it: the schema's checks can be turned off.
    pub fn by_hand(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        connection
    }

    pub fn grant_any(&mut self) -> GrantId {
        self.admin.add_grant("alice", &GrantTarget::Any, PortRange::ANY, None).unwrap()
    }

    /// Issues a token to alice.
    pub fn issue(&mut self) -> KeyHash {
        KeyHash::of_token(self.admin.issue_token("alice", None, None).unwrap().token.as_bytes())
    }
}
