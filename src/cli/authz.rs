//! `sluicegate authz`: what the guard holds, what that would change, and what to do about it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use serde_json::Value;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError, OutputFormat, rfc3339};
use crate::admin::{CandidateQueries, routes};
use crate::authz::UnixMillis;
use crate::config::RelationQuery;
use crate::store::Relation;

#[derive(Clone, Debug, Subcommand)]
pub enum AuthzCommand {
    /// Say what decides, whether the guard holds something back, and why.
    Status,
    /// List what would change if what the store says were published; with --candidate, what other queries
    /// would change if they were taken over, and whether the guard would let them. Exit code 1 says that it
    /// would not.
    Diff {
        /// A file with a SELECT to take the place of the one for RELATION (credentials, grants or devices). Both
        /// run in one transaction of the store. A file that is named as its relation, such as devices.sql, needs
        /// no RELATION=.
        #[arg(long, value_name = "[RELATION=]FILE")]
        candidate: Vec<CandidateFile>,
    },
    /// Publish what the guard holds, in spite of it. Written to the audit log.
    Accept,
    /// Go back to what decided before the last publication, and stay there until `accept`. What was revoked
    /// stays revoked. Written to the audit log.
    Rollback,
}

pub fn run(command: AuthzCommand, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    let facts = match &command {
        AuthzCommand::Status => relay.get(routes::AUTHZ_STATUS),
        AuthzCommand::Diff { candidate } if candidate.is_empty() => relay.get(routes::AUTHZ_DIFF),
        AuthzCommand::Diff { candidate } => relay.post_json(routes::AUTHZ_COMPARE, &queries(candidate)?),
        AuthzCommand::Accept => relay.post(routes::AUTHZ_ACCEPT),
        AuthzCommand::Rollback => relay.post(routes::AUTHZ_ROLLBACK),
    }?;
    let text = match command {
        AuthzCommand::Status => status_text(&facts),
        AuthzCommand::Diff { ref candidate } if candidate.is_empty() => diff_text(&facts),
        AuthzCommand::Diff { .. } => return print_comparison(facts, output),
        AuthzCommand::Accept => format!(
            "published {} changed rows as generation {}, which rule {} had held",
            facts["rows"],
            facts["generation"],
            word(&facts["rule"])
        ),
        AuthzCommand::Rollback => {
            format!("went back from generation {} to {}", facts["from"], facts["to"])
        }
    };
    CommandAnswer::done(text, facts).print(output)
}

/// A file that holds a query, and which.
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
            None => {
                Err(format!("`{name}` is no relation; write credentials=FILE, grants=FILE or devices=FILE"))
            }
        }
    }
}

fn queries(candidate: &[CandidateFile]) -> Result<CandidateQueries, CommandError> {
    let mut queries = CandidateQueries::default();
    for CandidateFile { relation, file } in candidate {
        let place = match relation {
            Relation::Credentials => &mut queries.credentials,
            Relation::Grants => &mut queries.grants,
            Relation::Devices => &mut queries.devices,
        };
        let query = RelationQuery::try_from(file.clone()).map_err(CommandError::failed)?;
        if place.replace(query.sql).is_some() {
            return Err(CommandError::failed(format!(
                "there are two queries for {}; name one",
                relation.name()
            )));
        }
    }
    Ok(queries)
}

/// Fails where the guard would.
fn print_comparison(facts: Value, output: OutputFormat) -> Result<(), CommandError> {
    let hold = &facts["hold"];
    let refused = (!hold.is_null()).then(|| {
        let examples = hold["examples"].as_array().into_iter().flatten();
        let examples: String = examples.map(|example| format!("\n  such as {}", word(example))).collect();
        format!("{}{examples}", word(&hold["figures"]))
    });
    let rule = word(&hold["rule"]).to_owned();
    let verdict = match &refused {
        Some(figures) => format!("guard: would REFUSE them by rule {rule}\n  {figures}"),
        None => "guard: would take them over".to_owned(),
    };
    CommandAnswer::done(format!("{}\n{verdict}", diff_text(&facts)), facts).print(output)?;
    match refused {
        Some(_) => Err(CommandError::failed(format!("the guard would refuse these queries by rule {rule}"))),
        None => Ok(()),
    }
}

fn status_text(facts: &Value) -> String {
    let rows = &facts["rows"];
    let time = |at: &Value| rfc3339(UnixMillis(at.as_i64().unwrap_or_default()));
    let mut lines = vec![
        match facts["generation"].as_u64() {
            Some(generation) => format!("in force: generation {generation}"),
            None => "in force: nothing, so that nothing is decided".to_owned(),
        },
        format!(
            "rows: {} credentials, {} grants, {} devices",
            rows["credentials"], rows["grants"], rows["devices"]
        ),
        format!("store: {}, last heard {}", word(&facts["store"]), time(&facts["confirmed_at"])),
    ];
    if let Some(error) = facts["last_error"].as_str() {
        lines.push(format!("store cannot be read: {error}"));
    }
    match &facts["hold"] {
        Value::Null => lines.push("guard: holds nothing".to_owned()),
        hold => {
            lines.push(format!(
                "guard: HOLDS by rule {} since {}",
                word(&hold["rule"]),
                time(&hold["since"])
            ));
            lines.push(format!("  {}", word(&hold["figures"])));
            let examples = hold["examples"].as_array().into_iter().flatten();
            lines.extend(examples.map(|example| format!("  such as {}", word(example))));
            lines.push("  `sluicegate authz diff` lists what is held, `accept` publishes it".to_owned());
        }
    }
    for (name, text) in [
        ("quarantined", "rows do not decode; their last good versions are in force"),
        ("absences_waiting", "rows were absent from one read, and stay until a second confirms it"),
        ("regressions", "refusals so far that the generation before would not have given"),
        ("rollbacks", "rollbacks so far"),
    ] {
        match facts[name].as_u64() {
            Some(0) | None => {}
            Some(count) => lines.push(format!("{count} {text}")),
        }
    }
    let warnings = facts["warnings"].as_array().into_iter().flatten();
    lines.extend(warnings.map(|remark| word(remark).to_owned()));
    lines.join("\n")
}

fn diff_text(facts: &Value) -> String {
    let mut lines = Vec::new();
    let mut total = 0;
    for relation in ["credentials", "grants", "devices"] {
        let counts = &facts[relation];
        let count = |name: &str| counts[name].as_u64().unwrap_or_default();
        let (gone, new, changed) = (count("gone"), count("new"), count("changed"));
        total += gone + new + changed;
        lines.push(format!("{relation}: {gone} gone, {new} new, {changed} changed"));
    }
    lines.push(format!("devices that could no longer be dialled: {}", facts["devices_unlocated"]));
    let rows = facts["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    for row in rows {
        let name = format!("{} {}", word(&row["relation"]), word(&row["row"]));
        lines.push(match (row["before"].as_str(), row["after"].as_str()) {
            (Some(before), Some(after)) => format!("~ {name}: {before} -> {after}"),
            (Some(before), None) => format!("- {name}: {before}"),
            (None, after) => format!("+ {name}: {}", after.unwrap_or_default()),
        });
    }
    let unlisted = total.saturating_sub(rows.len() as u64);
    if unlisted > 0 {
        lines.push(format!("and {unlisted} more"));
    }
    lines.join("\n")
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
