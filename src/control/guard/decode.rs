//! Rule `decode`: rows that do not decode are few.
//!
//! Each is quarantined and keeps its last good version, whatever this rule says. Many of them are no longer
//! bad rows, but a bad query.

use super::{Candidate, Hold, Rule};
use crate::config::Allowance;

pub(super) fn check(candidate: &Candidate<'_>, allowed: Allowance) -> Result<(), Hold> {
    let counts = candidate.store.row_counts();
    let total = counts.credentials + counts.grants + counts.devices;
    if !allowed.is_exceeded_by(candidate.bad_rows, total) {
        return Ok(());
    }
    let examples = candidate.bad_examples.iter().map(|row| format!("{}: {}", row.key, row.reason));
    let figures = format!("{} rows of about {total} do not decode", candidate.bad_rows);
    Err(Hold::new(Rule::Decode, candidate.bad_rows, figures, examples))
}
