//! `sluicegate authz`: the state of the guard, the changes that it holds, and the commands on them.

mod candidate;
mod text;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Loaded;
use super::admin_client::{AdminClient, AdminDocument};
use super::output::{CommandAnswer, CommandError, OutputFormat};
use crate::admin::api::{
    AcceptRequest, ChangeKind, ClearRequest, DiffReport, ExpectRequest, Group, RollbackRequest,
};
use crate::admin::routes;
use crate::authz::Generation;
use crate::control::api::WordKind;
use crate::store::Relation;
pub use candidate::CandidateFile;
use candidate::queries;

#[derive(Clone, Debug, Subcommand)]
pub enum AuthzCommand {
    /// Show what decides, which groups of changes the guard holds, why, and what to do.
    Status,
    /// List the changes that the guard holds, with a digest for `accept`. With --candidate, list what other queries
    /// would change, and whether the guard would let them pass; exit code 1 means that it would not.
    Diff {
        /// File with a SELECT that replaces the query for RELATION (credentials, grants or devices). Both queries
        /// run in one transaction of the store. RELATION= may be left out if the file is named after it, such as
        /// devices.sql.
        #[arg(long, value_name = "[RELATION=]FILE")]
        candidate: Vec<CandidateFile>,
    },
    /// Publish the held changes that `diff` listed. Refused if something else is held by now. The audit log records
    /// it.
    Accept {
        /// Digest that `diff` printed.
        digest: String,
        /// Group to publish alone, such as grants.absent. Without it, everything that is held is published.
        group: Option<Group>,
    },
    /// Announce a mass change, such as the end of a fleet, so that the guard lets it pass. The audit log records it.
    Expect(ExpectArgs),
    /// List the publications of late, and those that `rollback` can go back to.
    History,
    /// Undo what was inferred since a generation, and hold it until `accept`. What the store recorded as ended stays
    /// ended. The audit log records it.
    Rollback {
        /// Generation to go back to, from `history`. Without it, the last publication is undone.
        #[arg(value_parser = parse_generation)]
        generation: Option<Generation>,
    },
}

#[derive(Clone, Debug, Args)]
pub struct ExpectArgs {
    /// Relation that will change: credentials, grants or devices.
    #[arg(value_parser = parse_relation)]
    relation: Relation,
    /// Kind of the change, such as absent, ended or gained; `authz status` names the kinds that are held.
    kind: ChangeKind,
    /// Number of rows that will change, beyond the budget.
    #[arg(required_unless_present = "clear")]
    count: Option<usize>,
    /// Time within which they will, such as 15m; at most a day.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration, required_unless_present = "clear")]
    lasts: Option<Duration>,
    /// Take the announcement back.
    #[arg(long, conflicts_with_all = ["count", "lasts"])]
    clear: bool,
}

pub fn run(command: AuthzCommand, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    let (text, document) = match command {
        AuthzCommand::Status => {
            let document = relay.get(routes::AUTHZ_STATUS)?;
            (text::status(&document.read()?), document)
        }
        AuthzCommand::Diff { candidate } if candidate.is_empty() => {
            let document = relay.get(routes::AUTHZ_DIFF)?;
            (text::diff(&document.read()?), document)
        }
        AuthzCommand::Diff { candidate } => {
            return print_comparison(relay.post_json(routes::AUTHZ_COMPARE, &queries(candidate)?)?, output);
        }
        AuthzCommand::Accept { digest, group } => {
            let document = relay.post_json(routes::AUTHZ_ACCEPT, &AcceptRequest { digest, group })?;
            (text::accepted(&document.read()?), document)
        }
        AuthzCommand::Expect(ExpectArgs { relation, kind, clear: true, .. }) => {
            let group = Group { relation, kind, word: WordKind::Inferred };
            let document = relay.post_json(routes::AUTHZ_EXPECT_CLEAR, &ClearRequest { group })?;
            (text::cleared(&document.read()?), document)
        }
        AuthzCommand::Expect(ExpectArgs { relation, kind, count, lasts, .. }) => {
            let relation = relation.name().to_owned();
            let (rows, lasts) = (count.unwrap_or_default(), lasts.unwrap_or_default());
            let request = ExpectRequest { relation, kind, rows, lasts };
            let document = relay.post_json(routes::AUTHZ_EXPECT, &request)?;
            (text::expected(&document.read()?), document)
        }
        AuthzCommand::History => {
            let document = relay.get(routes::AUTHZ_HISTORY)?;
            (text::history(&document.read::<Vec<_>>()?), document)
        }
        AuthzCommand::Rollback { generation } => {
            let document = relay.post_json(routes::AUTHZ_ROLLBACK, &RollbackRequest { generation })?;
            (text::rolled_back(&document.read()?), document)
        }
    };
    CommandAnswer::done(text, document.json).print(output)
}

/// Prints what the candidate queries would change. Fails where the guard would hold some of it.
fn print_comparison(document: AdminDocument, output: OutputFormat) -> Result<(), CommandError> {
    let report: DiffReport = document.read()?;
    CommandAnswer::done(text::comparison(&report), document.json).print(output)?;
    if report.holds.is_empty() {
        return Ok(());
    }
    let subjects: Vec<String> =
        report.holds.iter().map(|held| format!("{} by rule {}", held.subject(), held.rule)).collect();
    Err(CommandError::failed(format!("the guard would hold {}", subjects.join(", "))))
}

fn parse_relation(text: &str) -> Result<Relation, String> {
    Relation::named(text).ok_or_else(|| "write credentials, grants or devices".to_owned())
}

fn parse_generation(text: &str) -> Result<Generation, String> {
    text.parse().map(Generation).map_err(|_| "a generation is a number, from `authz history`".to_owned())
}
