//! Queries in files, to compare with those that a relay reads by.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::admin::api::CandidateQueries;
use crate::cli::output::CommandError;
use crate::config::RelationQuery;
use crate::store::Relation;

/// A file with a query, and the relation that the query is for.
#[derive(Clone, Debug)]
pub struct CandidateFile {
    relation: Relation,
    file: PathBuf,
}

impl FromStr for CandidateFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) => (name, PathBuf::from(file)),
            None => {
                let stem = Path::new(text).file_stem().and_then(|stem| stem.to_str());
                (stem.unwrap_or_default(), PathBuf::from(text))
            }
        };
        match Relation::named(name) {
            Some(relation) => Ok(Self { relation, file }),
            None => Err(format!(
                "`{name}` is not a relation; write credentials=FILE, grants=FILE or devices=FILE"
            )),
        }
    }
}

/// Reads the files.
pub(super) fn queries(candidate: Vec<CandidateFile>) -> Result<CandidateQueries, CommandError> {
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
