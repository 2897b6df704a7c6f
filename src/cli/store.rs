//! `sluicegate store`: creates or migrates a store.

use clap::Subcommand;
use serde_json::json;

use super::output::{CommandAnswer, CommandError, StoreContext};
use crate::config::StoreUrl;
use crate::store::Initialised;
use crate::store::admin::Admin;

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Create the store, or migrate it to the schema of this version.
    Init,
}

pub fn run(command: StoreCommand, context: &StoreContext) -> Result<(), CommandError> {
    let StoreCommand::Init = command;
    let outcome = match Admin::init(&context.store)? {
        Initialised::Created => "created",
        Initialised::Migrated { .. } => "migrated",
        Initialised::UpToDate => "up-to-date",
    };
    let (key, place) = match &context.store.url {
        StoreUrl::Sqlite(path) => ("path", path.display().to_string()),
        StoreUrl::Postgres(url) => ("url", url.to_string()),
    };
    let text = format!("the store {place} is {}", outcome.replace('-', " "));
    CommandAnswer::done(text, json!({ key: place, "outcome": outcome })).print(context.output)
}
