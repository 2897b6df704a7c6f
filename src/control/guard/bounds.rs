//! Rule `bounds`: each relation has about as many rows as the operator knows it to have.

use super::{Candidate, Hold, Rule, by_relation};
use crate::config::Bounds;

pub(super) fn check(candidate: &Candidate<'_>, bounds: &Bounds) -> Result<(), Hold> {
    let bounds = [bounds.credentials, bounds.grants, bounds.devices];
    for ((relation, rows), bound) in by_relation(candidate.store.row_counts()).into_iter().zip(bounds) {
        let name = relation.name();
        if let Some(min) = bound.min.filter(|min| rows < *min) {
            let figures = format!("{name} has {rows} rows; authz.guard.bounds.{name}.min is {min}");
            return Err(Hold::new(Rule::Bounds, min - rows, figures, NO_EXAMPLES));
        }
        if let Some(max) = bound.max.filter(|max| rows > *max) {
            let figures = format!("{name} has {rows} rows; authz.guard.bounds.{name}.max is {max}");
            return Err(Hold::new(Rule::Bounds, rows - max, figures, NO_EXAMPLES));
        }
    }
    Ok(())
}

const NO_EXAMPLES: [&str; 0] = [];
