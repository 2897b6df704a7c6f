//! `sluicegate authz`: the state of the guard, the changes that it holds, and the commands on them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;

use super::Loaded;
use super::admin_client::{AdminClient, AdminDocument};
use super::output::{CommandAnswer, CommandError, OutputFormat, rfc3339};
use crate::admin::api::{
    AcceptedHold, CandidateQueries, DiffCounts, DiffReport, DiffRow, HoldStatus, RolledBack, SourceStatus,
};
use crate::admin::routes;
use crate::config::RelationQuery;
use crate::store::Relation;

#[derive(Clone, Debug, Subcommand)]
pub enum AuthzCommand {
    /// Show which snapshot decides, whether the guard holds changes, and why.
    Status,
    /// List the changes that the guard holds. With --candidate, list what other queries would change, and whether
    /// the guard would let them pass; exit code 1 means that it would not.
    Diff {
        /// File with a SELECT that replaces the query for RELATION (credentials, grants or devices). Both queries
        /// run in one transaction of the store. RELATION= may be left out if the file is named after it, such as
        /// devices.sql.
        #[arg(long, value_name = "[RELATION=]FILE")]
        candidate: Vec<CandidateFile>,
    },
    /// Publish the changes that the guard holds. The audit log records it.
    Accept,
    /// Go back to the decisions before the last publication, and stay there until `accept`. Revocations stay in
    /// force. The audit log records it.
    Rollback,
}

pub fn run(command: AuthzCommand, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    let (text, document) = match command {
        AuthzCommand::Status => {
            let document = relay.get(routes::AUTHZ_STATUS)?;
            (status_text(&document.read()?), document)
        }
        AuthzCommand::Diff { candidate } if candidate.is_empty() => {
            let document = relay.get(routes::AUTHZ_DIFF)?;
            (diff_text(&document.read()?), document)
        }
        AuthzCommand::Diff { candidate } => {
            return print_comparison(relay.post_json(routes::AUTHZ_COMPARE, &queries(candidate)?)?, output);
        }
        AuthzCommand::Accept => {
            let document = relay.post(routes::AUTHZ_ACCEPT)?;
            let AcceptedHold { rule, rows, generation, .. } = document.read()?;
            let generation = generation.0;
            let text = format!(
                "published {rows} changed rows as generation {generation}, which rule {rule} had held"
            );
            (text, document)
        }
        AuthzCommand::Rollback => {
            let document = relay.post(routes::AUTHZ_ROLLBACK)?;
            let RolledBack { from, to } = document.read()?;
            (format!("went back from generation {} to {}", from.0, to.0), document)
        }
    };
    CommandAnswer::done(text, document.json).print(output)
}

/// A file with a query, and the relation that the query is for.
#[derive(Clone, Debug)]
pub struct CandidateFile {
    relation: Relation,
    file: PathBuf,
}

impl FromStr for CandidateFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let relation = |name: &str| {
            let known = [Relation::Credentials, Relation::Grants, Relation::Devices];
            known.into_iter().find(|relation| relation.name() == name)
        };
        let (name, file) = match text.split_once('=') {
            Some((name, file)) => (name, PathBuf::from(file)),
            None => {
                let stem = Path::new(text).file_stem().and_then(|stem| stem.to_str());
                (stem.unwrap_or_default(), PathBuf::from(text))
            }
        };
        match relation(name) {
            Some(relation) => Ok(Self { relation, file }),
            None => Err(format!(
                "`{name}` is not a relation; write credentials=FILE, grants=FILE or devices=FILE"
            )),
        }
    }
}

fn queries(candidate: Vec<CandidateFile>) -> Result<CandidateQueries, CommandError> {
    let mut queries = CandidateQueries::default();
    for CandidateFile { relation, file } in candidate {
        let place = match relation {
            Relation::Credentials => &mut queries.credentials,
            Relation::Grants => &mut queries.grants,
            Relation::Devices => &mut queries.devices,
        };
        let query = RelationQuery::try_from(file).map_err(CommandError::failed)?;
        if place.replace(query.sql).is_some() {
            return Err(CommandError::failed(format!(
                "there are two queries for {}; pass one",
                relation.name()
            )));
        }
    }
    Ok(queries)
}

/// Prints what the candidate queries would change. Fails where the guard would refuse them.
fn print_comparison(document: AdminDocument, output: OutputFormat) -> Result<(), CommandError> {
    let report: DiffReport = document.read()?;
    let verdict = match &report.hold {
        Some(HoldStatus { hold, .. }) => {
            let examples: String =
                hold.examples.iter().map(|example| format!("\n  such as {example}")).collect();
            format!("guard: would REFUSE them by rule {}\n  {}{examples}", hold.rule, hold.figures)
        }
        None => "guard: would let them pass".to_owned(),
    };
    CommandAnswer::done(format!("{}\n{verdict}", diff_text(&report)), document.json).print(output)?;
    match report.hold {
        Some(HoldStatus { hold, .. }) => {
            Err(CommandError::failed(format!("the guard would refuse these queries by rule {}", hold.rule)))
        }
        None => Ok(()),
    }
}

fn status_text(status: &SourceStatus) -> String {
    let SourceStatus { store, last_error, hold, figures } = status;
    let rows = figures.rows;
    let mut lines = vec![
        match figures.generation {
            Some(generation) => format!("in force: generation {}", generation.0),
            None => "in force: no snapshot, so nothing can be decided".to_owned(),
        },
        format!("rows: {} credentials, {} grants, {} devices", rows.credentials, rows.grants, rows.devices),
        format!("store: {store}, last heard {}", rfc3339(figures.confirmed_at)),
    ];
    if let Some(error) = last_error {
        lines.push(format!("store cannot be read: {error}"));
    }
    match hold {
        None => lines.push("guard: holds nothing".to_owned()),
        Some(HoldStatus { hold, since }) => {
            lines.push(format!("guard: HOLDS by rule {} since {}", hold.rule, rfc3339(*since)));
            lines.push(format!("  {}", hold.figures));
            lines.extend(hold.examples.iter().map(|example| format!("  such as {example}")));
            lines.push("  `sluicegate authz diff` lists what is held, `accept` publishes it".to_owned());
        }
    }
    for (count, text) in [
        (figures.quarantined as u64, "rows do not decode; their last good versions are in force"),
        (
            figures.absences_waiting as u64,
            "rows were absent from one read, and stay until a second confirms it",
        ),
        (figures.regressions, "refusals so far that the previous generation would not have given"),
        (figures.rollbacks, "rollbacks so far"),
    ] {
        if count > 0 {
            lines.push(format!("{count} {text}"));
        }
    }
    lines.extend(figures.warnings.iter().cloned());
    lines.join("\n")
}

fn diff_text(report: &DiffReport) -> String {
    let mut lines = Vec::new();
    let mut total = 0;
    for (relation, counts) in
        [("credentials", report.credentials), ("grants", report.grants), ("devices", report.devices)]
    {
        let DiffCounts { gone, new, changed } = counts;
        total += gone + new + changed;
        lines.push(format!("{relation}: {gone} gone, {new} new, {changed} changed"));
    }
    lines.push(format!("devices that could no longer be dialled: {}", report.devices_unlocated));
    for DiffRow { relation, row, before, after } in &report.rows {
        let name = format!("{relation} {row}");
        lines.push(match (before, after) {
            (Some(before), Some(after)) => format!("~ {name}: {before} -> {after}"),
            (Some(before), None) => format!("- {name}: {before}"),
            (None, after) => format!("+ {name}: {}", after.as_deref().unwrap_or_default()),
        });
    }
    let unlisted = total.saturating_sub(report.rows.len());
    if unlisted > 0 {
        lines.push(format!("and {unlisted} more"));
    }
    lines.join("\n")
}
