//! How many rows may change by inference within one window, by kind and by the size of the relation.
//!
//! One law serves five rows as well as a million: it grows with the square root. A person's ordinary work stays
//! within it at every size, and at every size a mistake is bounded to a small part.
//!
//! | rows | ends | gains | moves |
//! |---|---|---|---|
//! | 1 | 1 | 3 | 1 |
//! | 5 | 2 | 3 | 2 |
//! | 40 | 4 | 7 | 14 |
//! | 300 | 9 | 18 | 36 |
//! | 5,000 | 36 | 71 | 142 |
//! | 1,000,000 | 500 | 1,000 | 2,000 |

use crate::config::{Allowance, Budgets};
use crate::control::api::{ChangeKind, Group, WordKind};

/// Returns the number of rows of `group` that may change within a window, where the relation has `rows` live ones.
pub(in crate::control) fn budget(group: Group, rows: usize, configured: &Budgets) -> usize {
    let configured = match (group.word, group.kind) {
        (WordKind::Explicit, ChangeKind::Unlocated) => configured.unlocated,
        (WordKind::Explicit, _) => configured.explicit,
        (WordKind::Inferred, kind) => match kind {
            ChangeKind::Ended => configured.ended,
            ChangeKind::Absent => configured.absent,
            ChangeKind::Narrowed => configured.narrowed,
            ChangeKind::Reassigned => configured.reassigned,
            ChangeKind::Gained => configured.gained,
            ChangeKind::Widened => configured.widened,
            ChangeKind::Moved => configured.moved,
            ChangeKind::Unlocated => configured.unlocated,
            ChangeKind::Undecodable => configured.undecodable,
            // An explicit end comes back by an explicit word alone.
            ChangeKind::Revived => return 0,
        },
    };
    match configured {
        Some(Allowance { share, rows: least }) => least.max((share * rows as f64) as usize),
        None if group.word == WordKind::Explicit && group.kind != ChangeKind::Unlocated => {
            EXPLICIT_MIN.max(rows / EXPLICIT_SHARE)
        }
        None => law(group.kind, rows),
    }
}

fn law(kind: ChangeKind, rows: usize) -> usize {
    let root = rows.isqrt() + usize::from(rows.isqrt().pow(2) < rows);
    match kind {
        ChangeKind::Ended
        | ChangeKind::Absent
        | ChangeKind::Narrowed
        | ChangeKind::Reassigned
        | ChangeKind::Undecodable => root.div_ceil(2).max(ENDS_MIN).min((rows.saturating_sub(1)) / 2).max(1),
        ChangeKind::Gained | ChangeKind::Widened => root.max(GAINS_MIN).min((rows / 2).max(GAINS_MIN)),
        ChangeKind::Moved | ChangeKind::Unlocated => (2 * root).max(MOVES_MIN).min((rows / 2).max(1)),
        ChangeKind::Revived => 0,
    }
}

/// Rows that may end in a relation of more than six, whatever its size: a few by hand.
const ENDS_MIN: usize = 3;

/// Rows that may be added to any relation.
const GAINS_MIN: usize = 3;

/// Devices that may move or go offline in an installation of more than five.
const MOVES_MIN: usize = 3;

/// Rows that may end explicitly within [`EXPLICIT_WINDOW_MS`], in any installation. Each was somebody's act.
const EXPLICIT_MIN: usize = 20;

/// Part of a relation that may end explicitly: one in ten rows.
const EXPLICIT_SHARE: usize = 10;

/// Time in which explicit ends are counted together, in ms. A statement without its condition ends thousands at once;
/// people end rights one after the other.
pub(in crate::control) const EXPLICIT_WINDOW_MS: i64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Relation;

    fn of(kind: ChangeKind, word: WordKind, rows: usize) -> usize {
        budget(Group { relation: Relation::Grants, kind, word }, rows, &Budgets::default())
    }

    #[test]
    fn a_budget_is_sensible_at_every_size() {
        let sizes = [1, 5, 40, 300, 5_000, 1_000_000];
        let ends = sizes.map(|rows| of(ChangeKind::Absent, WordKind::Inferred, rows));
        assert_eq!(ends, [1, 2, 4, 9, 36, 500]);
        let gains = sizes.map(|rows| of(ChangeKind::Gained, WordKind::Inferred, rows));
        assert_eq!(gains, [3, 3, 7, 18, 71, 1_000]);
        let moves = sizes.map(|rows| of(ChangeKind::Moved, WordKind::Inferred, rows));
        assert_eq!(moves, [1, 2, 14, 36, 142, 2_000]);
        let explicit = sizes.map(|rows| of(ChangeKind::Ended, WordKind::Explicit, rows));
        assert_eq!(explicit, [20, 20, 20, 30, 500, 100_000]);
        assert!(sizes.iter().all(|rows| of(ChangeKind::Revived, WordKind::Inferred, *rows) == 0));
    }

    #[test]
    fn no_budget_of_ends_or_moves_exceeds_half_of_a_relation() {
        for rows in 3..2_000 {
            let ends = of(ChangeKind::Ended, WordKind::Inferred, rows);
            assert!(ends * 2 < rows, "{ends} of {rows}");
            let moves = of(ChangeKind::Unlocated, WordKind::Inferred, rows);
            assert!(moves * 2 <= rows, "{moves} of {rows}");
        }
    }

    #[test]
    fn a_configured_budget_replaces_the_law() {
        let configured = Budgets { absent: Some(Allowance { share: 0.1, rows: 7 }), ..Budgets::default() };
        let group = Group { relation: Relation::Grants, kind: ChangeKind::Absent, word: WordKind::Inferred };
        assert_eq!([5, 1_000].map(|rows| budget(group, rows, &configured)), [7, 100]);
    }
}
