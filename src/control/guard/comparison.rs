//! Where a whole answer differs from what is in force.
//!
//! This takes a look at every row, so it runs beside the control thread, on a snapshot. What changed in between is in
//! the guard's list of touched rows and is looked at again.

use std::sync::Arc;

use super::LiveRows;
use super::row::AnyRow;
use crate::authz::{DeviceId, Generation, GrantId, KeyHash, Snapshot, UnixMillis};
use crate::store::{Position, Quarantined, Relation, RelationRows, RowKey};

/// A relation as the store has it at a position. Rows that do not decode or are there twice are in `quarantined`.
pub(in crate::control) struct WholeAnswer {
    pub(in crate::control) relation: Relation,
    pub(in crate::control) rows: RelationRows,
    pub(in crate::control) quarantined: Vec<Quarantined>,
    pub(in crate::control) position: Position,
}

/// The state that an answer is compared with.
pub(in crate::control) struct ComparisonBase {
    pub(super) in_force: Option<Arc<Snapshot>>,
    /// Place in the guard's list of touched rows, and how often that was begun anew.
    pub(super) touched: usize,
    pub(super) epoch: u64,
    pub(super) live: LiveRows,
    pub(super) now: UnixMillis,
}

/// A whole answer and where it differs.
pub(in crate::control) struct ComparedAnswer {
    pub(in crate::control) relation: Relation,
    /// The answer's rows; `None` where they are as before.
    pub(super) answer: Option<Arc<Snapshot>>,
    pub(super) quarantined: Vec<Quarantined>,
    pub(super) position: Position,
    /// `None` where nothing was in force to compare with.
    pub(super) differing: Option<DifferingKeys>,
    pub(super) touched: usize,
    pub(super) epoch: u64,
    /// Number of live rows of the base when the comparison began, as counted then and as kept until then.
    pub(super) live: (LiveRows, LiveRows),
}

/// Keys of rows that differ, in as little memory as they can have: all rows of a relation may.
pub(super) enum DifferingKeys {
    Credentials(Vec<KeyHash>),
    Grants(Vec<GrantId>),
    Devices(Vec<DeviceId>),
}

impl WholeAnswer {
    /// Compares the answer with `base`. Takes time in proportion to the number of rows.
    pub(in crate::control) fn compare(self, base: ComparisonBase) -> ComparedAnswer {
        let Self { relation, rows, quarantined, position } = self;
        let ComparisonBase { in_force, touched, epoch, live, now } = base;
        let answer = snapshot_of(rows).map(Arc::new);
        let in_force = in_force.filter(|_| answer.is_some());
        let counted = in_force.as_deref().map(|in_force| LiveRows::of(in_force, now));
        let differing = in_force.zip(answer.as_ref()).map(|(in_force, answer)| {
            let mut differing = DifferingKeys::new(relation);
            differences(relation, &in_force, answer, |key, _, _| differing.push(&key));
            differing
        });
        let live = (counted.unwrap_or(live), live);
        ComparedAnswer { relation, answer, quarantined, position, differing, touched, epoch, live }
    }
}

impl DifferingKeys {
    const fn new(relation: Relation) -> Self {
        match relation {
            Relation::Credentials => Self::Credentials(Vec::new()),
            Relation::Grants => Self::Grants(Vec::new()),
            Relation::Devices => Self::Devices(Vec::new()),
        }
    }

    fn push(&mut self, key: &RowKey) {
        match (self, key) {
            (Self::Credentials(keys), RowKey::Credential(key)) => keys.push(*key),
            (Self::Grants(keys), RowKey::Grant(id)) => keys.push(*id),
            (Self::Devices(keys), RowKey::Device(id)) => keys.push(*id),
            _ => {}
        }
    }

    /// Takes out up to `rows_max` keys.
    pub(super) fn take(&mut self, rows_max: usize) -> Vec<RowKey> {
        fn last<K>(keys: &mut Vec<K>, rows_max: usize, name: impl Fn(K) -> RowKey) -> Vec<RowKey> {
            keys.drain(keys.len().saturating_sub(rows_max)..).map(name).collect()
        }
        match self {
            Self::Credentials(keys) => last(keys, rows_max, RowKey::Credential),
            Self::Grants(keys) => last(keys, rows_max, RowKey::Grant),
            Self::Devices(keys) => last(keys, rows_max, RowKey::Device),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        match self {
            Self::Credentials(keys) => keys.is_empty(),
            Self::Grants(keys) => keys.is_empty(),
            Self::Devices(keys) => keys.is_empty(),
        }
    }
}

/// Puts the rows of a relation into a snapshot of their own; `None` where they are as before.
fn snapshot_of(rows: RelationRows) -> Option<Snapshot> {
    let generation = Generation(0);
    Some(match rows {
        RelationRows::Credentials(rows) => Snapshot::build(generation, rows, Vec::new(), Vec::new()),
        RelationRows::Grants(rows) => Snapshot::build(generation, Vec::new(), rows, Vec::new()),
        RelationRows::Devices(rows) => Snapshot::build(generation, Vec::new(), Vec::new(), rows),
        RelationRows::Unchanged => return None,
    })
}

/// Shows each row of `relation` in which `after` differs from `before` to `visit`.
pub(super) fn differences(
    relation: Relation,
    before: &Snapshot,
    after: &Snapshot,
    mut visit: impl FnMut(RowKey, Option<AnyRow>, Option<AnyRow>),
) {
    match relation {
        Relation::Credentials => {
            for row in before.credentials() {
                let is = after.credential(&row.key);
                if is.as_ref() != Some(&row) {
                    let was = AnyRow::Credential(row);
                    visit(was.key(), Some(was), is.map(AnyRow::Credential));
                }
            }
            for row in after.credentials().filter(|row| before.credential(&row.key).is_none()) {
                visit(RowKey::Credential(row.key), None, Some(AnyRow::Credential(row)));
            }
        }
        Relation::Grants => {
            for row in before.grants() {
                let is = after.grant(row.id);
                if is.as_ref() != Some(&row) {
                    visit(RowKey::Grant(row.id), Some(AnyRow::Grant(row)), is.map(AnyRow::Grant));
                }
            }
            for row in after.grants().filter(|row| before.grant(row.id).is_none()) {
                visit(RowKey::Grant(row.id), None, Some(AnyRow::Grant(row)));
            }
        }
        Relation::Devices => {
            for row in before.devices() {
                let is = after.device(row.id);
                if is.as_ref() != Some(&row) {
                    visit(RowKey::Device(row.id), Some(AnyRow::Device(row)), is.map(AnyRow::Device));
                }
            }
            for row in after.devices().filter(|row| before.device(row.id).is_none()) {
                visit(RowKey::Device(row.id), None, Some(AnyRow::Device(row)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Change, Device, DeviceUuid, Grant, PortRange, PrincipalId, Scope};
    use crate::config::Config;
    use crate::control::guard::Guard;
    use crate::control::guard::answers::{TOUCHED_MAX, Touch};
    use crate::store::{StoreId, Word};

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const GRANTS: i64 = 30_000;

    fn grant(id: i64) -> Grant {
        Grant {
            id: GrantId(id),
            principal: PrincipalId(id),
            scope: Scope::Any,
            ports: PortRange::new(22, 22).unwrap(),
            expires_at: None,
            revoked: false,
        }
    }

    fn device(id: i64, address: u8) -> Device {
        Device {
            id: DeviceId(id),
            uuid: DeviceUuid::parse(&format!("{id:032x}")).unwrap(),
            fleet: None,
            address: format!("10.0.0.{address}").parse().ok(),
            node: None,
            online: true,
            disputed: false,
        }
    }

    fn position(log: u64) -> Position {
        Position { store: StoreId([1; 16]), timeline: 0, log, mark: 0 }
    }

    fn devices() -> RelationRows {
        RelationRows::Devices((1..=9).map(|id| device(id, id as u8)).collect())
    }

    fn whole(relation: Relation, rows: RelationRows) -> WholeAnswer {
        WholeAnswer { relation, rows, quarantined: Vec::new(), position: position(2) }
    }

    fn guard() -> Guard {
        let mut guard = Guard::new(&Config::default());
        for (relation, rows) in [
            (Relation::Credentials, RelationRows::Credentials(Vec::new())),
            (Relation::Grants, RelationRows::Grants((1..=GRANTS).map(grant).collect())),
            (Relation::Devices, devices()),
        ] {
            guard.follow(relation, true);
            guard.answer(relation, rows, Vec::new(), position(1), NOW);
        }
        guard
    }

    fn address(guard: &Guard, id: i64) -> String {
        let device = guard.in_force().unwrap().device(DeviceId(id)).unwrap();
        device.address.unwrap().to_string()
    }

    #[test]
    fn a_device_that_leaves_the_nodes_table_while_an_answer_is_compared_is_where_the_store_has_it() {
        let mut guard = guard();
        // The answer was laid over a table that still had device 3, at a new address.
        let rows = RelationRows::Devices(
            (1..=9).map(|id| device(id, if id == 3 { 44 } else { id as u8 })).collect(),
        );
        let compared = whole(Relation::Devices, rows).compare(guard.begin_comparison(NOW));
        guard.left_tables(vec![device(3, 33)], NOW);
        assert_eq!(address(&guard, 3), "10.0.0.33");
        assert!(guard.judge_at_once(compared, NOW).is_some());
        assert_eq!(address(&guard, 3), "10.0.0.33");
    }

    #[test]
    fn words_come_in_between_while_a_mass_is_sorted() {
        let mut guard = guard();
        let compared = whole(Relation::Grants, RelationRows::Grants(vec![grant(1), grant(2)]));
        let compared = compared.compare(guard.begin_comparison(NOW));
        let mut sorting = guard.begin_sorting(compared, NOW);
        assert!(!guard.sort_some(&mut sorting, NOW), "there is more than one turn takes");

        let end = Word::Row(Change::Grant(Grant { revoked: true, ..grant(2) }));
        let gone = Word::Row(Change::GrantGone(GrantId(GRANTS)));
        guard.words(vec![end, gone], Vec::new(), position(3), NOW);
        assert!(guard.in_force().unwrap().grant(GrantId(2)).unwrap().revoked);
        assert!(guard.in_force().unwrap().grant(GrantId(GRANTS)).is_none());

        while !guard.sort_some(&mut sorting, NOW) {}
        guard.finish(sorting, NOW).unwrap();
        let in_force = guard.in_force().unwrap();
        assert!(in_force.grant(GrantId(2)).unwrap().revoked, "the answer is from before the word");
        assert!(in_force.grant(GrantId(GRANTS)).is_none());
        let held = guard.status().holds;
        assert_eq!(held[0].rows as i64, GRANTS - 3, "{held:?}");
    }

    #[test]
    fn an_answer_during_whose_comparison_too_much_changed_is_read_again() {
        let mut guard = guard();
        let compared = whole(Relation::Devices, devices()).compare(guard.begin_comparison(NOW));
        (0..=TOUCHED_MAX).for_each(|_| guard.touched.add(&RowKey::Device(DeviceId(1)), Touch::Row));
        assert!(guard.judge_at_once(compared, NOW).is_none());
        let compared = whole(Relation::Devices, devices()).compare(guard.begin_comparison(NOW));
        assert!(guard.judge_at_once(compared, NOW).is_some());
    }
}
