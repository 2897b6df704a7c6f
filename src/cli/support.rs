//! Helpers for tests of store commands.

use std::fmt::Display;

use clap::{Command, Subcommand};

use crate::config::{self, StoreUrl};
use crate::store::admin::Admin;

/// An empty store in a folder of its own.
pub(super) struct TestStore {
    pub(super) folder: tempfile::TempDir,
    pub(super) admin: Admin,
}

impl TestStore {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let store = config::Store { url: StoreUrl::Sqlite(path), ..config::Store::default() };
        Admin::init(&store).unwrap();
        let admin = Admin::open(&store).unwrap();
        Self { folder, admin }
    }
}

/// Parses `line` as a command. Fails with the message of clap.
pub(super) fn parse<C: Subcommand>(line: &str) -> Result<C, String> {
    let command = C::augment_subcommands(Command::new("test").no_binary_name(true));
    let matches = command.try_get_matches_from(line.split_whitespace()).map_err(|error| error.to_string())?;
    C::from_arg_matches(&matches).map_err(|error| error.to_string())
}

/// The error text that a person would read.
pub(super) fn refusal<T>(result: Result<T, impl Display>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}
