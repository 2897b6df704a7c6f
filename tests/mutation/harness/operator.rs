//! Faults of a query, as SQL: what a column becomes in the rows that a fault touches, and which rows come or go.
//!
//! They are derived from the contract's columns. An operator that makes no sense for a column gives nothing.

use std::fmt;

use sluicegate::store::{ContractColumn, Relation};

use super::store::StoreKind;

/// A way in which a query goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operator {
    /// The rows are missing: a condition too many, an inner join that finds nothing.
    Drop,
    /// The rows are there twice.
    FanOut,
    /// The rows are there twice, once as they were before: a join with a log.
    FanOutOld,
    /// The rows are there once more under another number, for the next principal.
    FanOutNext,
    Null,
    Flip,
    /// Two neighbouring rows have each other's values.
    Swap,
    /// Each row has the next one's value.
    Shift,
    /// All rows have the first one's value.
    Constant,
    /// The number of a row in another table.
    OtherNumber,
    /// The value gives more.
    Widen,
    /// The value gives less.
    Narrow,
    /// A value of another type.
    Cast,
    /// The last letter or byte is missing.
    Truncate,
    /// The time is three hours late.
    ZoneLate,
    /// The time is three hours early.
    ZoneEarly,
}

/// The rows that a fault touches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    One,
    Percent(u8),
}

/// A fault of one relation's query.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mutator {
    pub relation: Relation,
    /// `None` where rows as a whole come or go.
    pub column: Option<&'static str>,
    pub operator: Operator,
}

impl Operator {
    const OF_ROWS: [Self; 4] = [Self::Drop, Self::FanOut, Self::FanOutOld, Self::FanOutNext];
    const OF_COLUMNS: [Self; 12] = [
        Self::Null,
        Self::Flip,
        Self::Swap,
        Self::Shift,
        Self::Constant,
        Self::OtherNumber,
        Self::Widen,
        Self::Narrow,
        Self::Cast,
        Self::Truncate,
        Self::ZoneLate,
        Self::ZoneEarly,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::FanOut => "fan-out",
            Self::FanOutOld => "fan-out-old",
            Self::FanOutNext => "fan-out-next",
            Self::Null => "null",
            Self::Flip => "flip",
            Self::Swap => "swap",
            Self::Shift => "shift",
            Self::Constant => "constant",
            Self::OtherNumber => "other-number",
            Self::Widen => "widen",
            Self::Narrow => "narrow",
            Self::Cast => "cast",
            Self::Truncate => "truncate",
            Self::ZoneLate => "zone-late",
            Self::ZoneEarly => "zone-early",
        }
    }
}

impl Mutator {
    /// All that there are: each operator on each column where it makes sense.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for relation in Relation::ALL {
            let of_rows = Operator::OF_ROWS.map(|operator| Self { relation, column: None, operator });
            let has_next = |mutator: &Self| {
                mutator.operator != Operator::FanOutNext || mutator.relation == Relation::Grants
            };
            all.extend(of_rows.into_iter().filter(has_next));
            for column in sluicegate::store::contract_columns(relation) {
                let of_column = Operator::OF_COLUMNS.map(|operator| Self {
                    relation,
                    column: Some(column.name),
                    operator,
                });
                all.extend(
                    of_column.into_iter().filter(|mutator| !mutator.values(StoreKind::Sqlite).is_empty()),
                );
            }
        }
        all
    }

    /// The condition on the number `n` of a row by which the fault touches it.
    pub fn touches(&self, part: Part) -> String {
        let n = if self.operator == Operator::Swap { "(n - n % 2)" } else { "n" };
        match part {
            Part::One => format!("{n} = 2"),
            Part::Percent(percent @ 0..100) => format!("({n} * 37) % 101 < {percent}"),
            Part::Percent(_) => "1 = 1".to_owned(),
        }
    }

    /// The columns that change in touched rows, and what they become. Empty where the operator makes no sense.
    pub fn values(&self, store: StoreKind) -> Vec<(&'static str, String)> {
        let Some(name) = self.column else { return Vec::new() };
        let column = sluicegate::store::contract_columns(self.relation)
            .find(|column| column.name == name)
            .expect("a column of the contract");
        let window = "OVER (ORDER BY n)";
        let value = match (self.operator, column.type_name) {
            (Operator::Null, kind) => format!("CAST(NULL AS {})", store.type_name(kind)),
            (Operator::Flip, "bool") => format!("NOT {name}"),
            (Operator::Swap, _) => format!(
                "CASE WHEN n % 2 = 0 THEN COALESCE(lead({name}) {window}, {name})
                    ELSE COALESCE(lag({name}) {window}, {name}) END"
            ),
            (Operator::Shift, _) => {
                format!("COALESCE(lead({name}) {window}, first_value({name}) {window})")
            }
            (Operator::Constant, _) => format!("first_value({name}) {window}"),
            (Operator::OtherNumber, "int8") => match (self.relation, name) {
                (Relation::Grants, "principal" | "target") => "grant_id".to_owned(),
                (Relation::Credentials, "principal") => "n + 1".to_owned(),
                (Relation::Devices, "fleet") => "device".to_owned(),
                _ => "n + 1000000".to_owned(),
            },
            (Operator::Widen | Operator::Narrow, _) => return self.more_or_less(&column, store),
            (Operator::Cast, _) => store.cast(name, column.type_name),
            (Operator::Truncate, "text") => format!("substr({name}, 1, length({name}) - 1)"),
            (Operator::Truncate, "bytea") => format!("substr({name}, 1, 31)"),
            (Operator::ZoneLate, "timestamptz") => store.later(name, 3 * 3600),
            (Operator::ZoneEarly, "timestamptz") => store.later(name, -3 * 3600),
            _ => return Vec::new(),
        };
        vec![(column.name, value)]
    }

    /// Columns of the second row that a touched row brings with it; `None` where it brings none.
    pub fn copies(&self, store: StoreKind) -> Option<Vec<(&'static str, String)>> {
        match (self.operator, self.relation) {
            (Operator::FanOut, _) => Some(Vec::new()),
            (Operator::FanOutOld, Relation::Devices) => {
                Some(vec![("address", format!("CAST(NULL AS {})", store.type_name("text")))])
            }
            (Operator::FanOutOld, _) => Some(vec![("expires_at", store.past().to_owned())]),
            (Operator::FanOutNext, _) => Some(vec![
                ("grant_id", "grant_id + 1000000".to_owned()),
                ("principal", "COALESCE(lead(principal) OVER (ORDER BY n), principal)".to_owned()),
            ]),
            _ => None,
        }
    }

    fn more_or_less(&self, column: &ContractColumn, store: StoreKind) -> Vec<(&'static str, String)> {
        let is_more = self.operator == Operator::Widen;
        let own_device = "CASE WHEN scope = 'device' THEN target ELSE n % 4 + 1 END";
        let null = |kind| format!("CAST(NULL AS {})", store.type_name(kind));
        let value = match (column.name, is_more) {
            ("expires_at", true) => null("timestamptz"),
            ("expires_at", false) => store.past().to_owned(),
            ("revoked", is_more) => store.boolean(!is_more).to_owned(),
            ("online", is_more) => store.boolean(is_more).to_owned(),
            ("port_min", true) => "1".to_owned(),
            ("port_min", false) => "port_max - 2".to_owned(),
            ("port_max", true) => "65535".to_owned(),
            ("port_max", false) => "port_min + 2".to_owned(),
            ("scope", true) => return vec![("scope", "'any'".to_owned()), ("target", null("int8"))],
            ("scope", false) => {
                return vec![("scope", "'device'".to_owned()), ("target", own_device.to_owned())];
            }
            _ => return Vec::new(),
        };
        vec![(column.name, value)]
    }
}

impl Part {
    pub const ALL: [Self; 6] = [
        Self::One,
        Self::Percent(1),
        Self::Percent(10),
        Self::Percent(30),
        Self::Percent(60),
        Self::Percent(100),
    ];

    /// This part in so many steps, each with the rows of the one before.
    pub fn steps(self, steps: u8) -> Vec<Self> {
        match self {
            Self::One => vec![self],
            Self::Percent(percent) => {
                let at = |step| (u16::from(percent) * u16::from(step)).div_ceil(u16::from(steps)) as u8;
                let mut parts: Vec<_> = (1..=steps).map(at).collect();
                parts.dedup();
                parts.into_iter().map(Self::Percent).collect()
            }
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("one"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl fmt::Display for Mutator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            Some(column) => write!(f, "{}.{column} {}", self.relation.name(), self.operator.name()),
            None => write!(f, "{} {}", self.relation.name(), self.operator.name()),
        }
    }
}
