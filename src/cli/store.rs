//! `sluicegate store`: the store itself.

use clap::Subcommand;
use serde_json::json;

use super::output::{Answer, CommandError, StoreContext};
use crate::config::StoreUrl;
use crate::store::sqlite::{Admin, Initialised};

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Create the store, or bring it to the schema of this version.
    Init,
}

pub fn run(command: StoreCommand, context: &StoreContext) -> Result<(), CommandError> {
    let StoreCommand::Init = command;
    let StoreUrl::Sqlite(path) = &context.url;
    let outcome = match Admin::init(path)? {
        Initialised::Created => "created",
        Initialised::Migrated { .. } => "migrated",
        Initialised::UpToDate => "up-to-date",
    };
    let path = path.display().to_string();
    let text = format!("the store {path} is {}", outcome.replace('-', " "));
    Answer::done(text, json!({ "path": path, "outcome": outcome })).print(context.output)
}
