//! The contract between a store and the relay: the columns of each relation, their order and their types. It is checked
//! when a query is prepared, before any row is read. Relation `ended`, which is optional, has columns as well.

use std::fmt;

use super::Relation;

/// A column that a relation must have.
struct ColumnRule {
    name: &'static str,
    /// Types that are allowed.
    kinds: &'static [ColumnType],
    nullability: Nullability,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nullability {
    Nullable,
    NotNull,
}

/// Type of a column, by its name in PostgreSQL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ColumnType {
    Bool,
    Bytea,
    Inet,
    Int4,
    Int8,
    Text,
    Timestamptz,
}

/// A column that a query gives.
pub(super) struct GivenColumn<'a> {
    pub(super) name: &'a str,
    /// Type by its name in PostgreSQL. `None` for a store that has types for values and not for columns.
    pub(super) kind: Option<&'a str>,
}

/// A column of the contract as others see it: documents and tests derive their columns from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContractColumn {
    pub name: &'static str,
    /// The type that the column usually has, by its name in PostgreSQL.
    pub type_name: &'static str,
    pub is_nullable: bool,
}

/// The first difference between a query and the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContractMismatch {
    Name { relation: &'static str, place: usize, found: String, wanted: &'static str },
    Type { relation: &'static str, column: &'static str, found: String, wanted: String },
    Missing { relation: &'static str, column: &'static str, wanted: String },
    Surplus { relation: &'static str, place: usize, found: String, wanted: usize },
}

/// Compares the columns that a query for `relation` gives with those of the contract. Returns the first difference.
pub(super) fn check(relation: Relation, given: &[GivenColumn<'_>]) -> Result<(), ContractMismatch> {
    check_columns(relation.name(), columns(relation), given)
}

/// Compares the columns that the query for relation `ended` gives with those of the contract.
pub(super) fn check_ended(given: &[GivenColumn<'_>]) -> Result<(), ContractMismatch> {
    check_columns(ENDED_NAME, &ENDED, given)
}

fn check_columns(
    relation: &'static str,
    wanted: &'static [ColumnRule],
    given: &[GivenColumn<'_>],
) -> Result<(), ContractMismatch> {
    for (place, column) in wanted.iter().enumerate() {
        let kinds = || {
            let names: Vec<_> = column.kinds.iter().map(|kind| kind.name()).collect();
            names.join(" or ")
        };
        let Some(given) = given.get(place) else {
            return Err(ContractMismatch::Missing { relation, column: column.name, wanted: kinds() });
        };
        if given.name != column.name {
            let (found, wanted) = (given.name.to_owned(), column.name);
            return Err(ContractMismatch::Name { relation, place: place + 1, found, wanted });
        }
        match given.kind {
            Some(found) if column.kinds.iter().all(|kind| kind.name() != found) => {
                let (column, found) = (column.name, found.to_owned());
                return Err(ContractMismatch::Type { relation, column, found, wanted: kinds() });
            }
            _ => {}
        }
    }
    match given.get(wanted.len()) {
        Some(surplus) => {
            let (place, found) = (wanted.len() + 1, surplus.name.to_owned());
            Err(ContractMismatch::Surplus { relation, place, found, wanted: wanted.len() })
        }
        None => Ok(()),
    }
}

/// The columns of `relation`, in their order.
pub fn contract_columns(relation: Relation) -> impl Iterator<Item = ContractColumn> {
    columns(relation).iter().map(|column| ContractColumn {
        name: column.name,
        type_name: column.kinds[0].name(),
        is_nullable: column.nullability == Nullability::Nullable,
    })
}

/// The columns of `relation` in which a null is a bad value: their indexes, from 0, and names.
pub(super) fn not_null(relation: Relation) -> impl Iterator<Item = (usize, &'static str)> {
    let columns = columns(relation).iter().enumerate();
    columns
        .filter(|(_, column)| column.nullability == Nullability::NotNull)
        .map(|(place, column)| (place, column.name))
}

impl fmt::Display for ContractMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { relation, place, found, wanted } => {
                write!(f, "column {place} of {relation} is `{}`, wanted is `{wanted}`", found.escape_debug())
            }
            Self::Type { relation, column, found, wanted } => {
                write!(f, "{relation}.{column} is {found}, wanted is {wanted}")
            }
            Self::Missing { relation, column, wanted } => {
                write!(f, "{relation}.{column} is missing, wanted is {wanted}")
            }
            Self::Surplus { relation, place, found, wanted } => {
                let found = found.escape_debug();
                write!(f, "column {place} of {relation} is `{found}`, wanted are {wanted} columns")
            }
        }
    }
}

impl ColumnType {
    const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Bytea => "bytea",
            Self::Inet => "inet",
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Text => "text",
            Self::Timestamptz => "timestamptz",
        }
    }
}

const fn columns(relation: Relation) -> &'static [ColumnRule] {
    match relation {
        Relation::Credentials => &CREDENTIALS,
        Relation::Grants => &GRANTS,
        Relation::Devices => &DEVICES,
    }
}

const fn column(name: &'static str, kinds: &'static [ColumnType]) -> ColumnRule {
    ColumnRule { name, kinds, nullability: Nullability::NotNull }
}

const fn nullable(name: &'static str, kinds: &'static [ColumnType]) -> ColumnRule {
    ColumnRule { name, kinds, nullability: Nullability::Nullable }
}

const CREDENTIALS: [ColumnRule; 4] = [
    column("key_sha256", &[ColumnType::Bytea]),
    column("principal", &[ColumnType::Int8]),
    nullable("expires_at", &[ColumnType::Timestamptz]),
    column("revoked", &[ColumnType::Bool]),
];

const GRANTS: [ColumnRule; 8] = [
    column("grant_id", &[ColumnType::Int8]),
    column("principal", &[ColumnType::Int8]),
    column("scope", &[ColumnType::Text]),
    nullable("target", &[ColumnType::Int8]),
    column("port_min", &[ColumnType::Int4]),
    column("port_max", &[ColumnType::Int4]),
    nullable("expires_at", &[ColumnType::Timestamptz]),
    column("revoked", &[ColumnType::Bool]),
];

const DEVICES: [ColumnRule; 6] = [
    column("device", &[ColumnType::Int8]),
    column("uuid", &[ColumnType::Text]),
    nullable("fleet", &[ColumnType::Int8]),
    nullable("address", &[ColumnType::Text, ColumnType::Inet]),
    nullable("node", &[ColumnType::Text]),
    column("online", &[ColumnType::Bool]),
];

/// Name of the optional relation that says explicitly what has ended.
pub(super) const ENDED_NAME: &str = "ended";

const ENDED: [ColumnRule; 3] = [
    column("relation", &[ColumnType::Text]),
    column("id", &[ColumnType::Text, ColumnType::Bytea, ColumnType::Int8]),
    column("ended_at", &[ColumnType::Timestamptz]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(given: &[(&str, &str)]) -> Result<(), String> {
        let given: Vec<_> = given
            .iter()
            .map(|(name, kind)| GivenColumn { name, kind: (!kind.is_empty()).then_some(*kind) })
            .collect();
        check(Relation::Devices, &given).map_err(|mismatch| mismatch.to_string())
    }

    const GOOD: [(&str, &str); 6] = [
        ("device", "int8"),
        ("uuid", "text"),
        ("fleet", "int8"),
        ("address", "inet"),
        ("node", "text"),
        ("online", "bool"),
    ];

    #[test]
    fn what_the_contract_says_passes_with_either_type_of_address() {
        assert_eq!(checked(&GOOD), Ok(()));
        let mut other = GOOD;
        other[3].1 = "text";
        assert_eq!(checked(&other), Ok(()));
        assert_eq!(checked(&GOOD.map(|(name, _)| (name, ""))), Ok(()), "a store without types of columns");
    }

    #[test]
    fn each_difference_names_what_was_found_and_wanted() {
        let mut renamed = GOOD;
        renamed[4].0 = "vpn\nnode";
        let mut retyped = GOOD;
        retyped[3].1 = "int4";
        let mut swapped = GOOD;
        swapped.swap(3, 4);
        let mut more = GOOD.to_vec();
        more.push(("extra", "text"));
        for (given, expected) in [
            (&renamed[..], "column 5 of devices is `vpn\\nnode`, wanted is `node`"),
            (&retyped, "devices.address is int4, wanted is text or inet"),
            (&swapped, "column 4 of devices is `node`, wanted is `address`"),
            (&GOOD[..5], "devices.online is missing, wanted is bool"),
            (&more, "column 7 of devices is `extra`, wanted are 6 columns"),
        ] {
            assert_eq!(checked(given), Err(expected.to_owned()));
        }
    }
    #[test]
    fn ended_has_a_relation_an_id_of_any_type_of_key_and_a_time() {
        let checked = |given: [(&str, &str); 3]| {
            let given = given.map(|(name, kind)| GivenColumn { name, kind: Some(kind) });
            check_ended(&given).map_err(|mismatch| mismatch.to_string())
        };
        for kind in ["text", "bytea", "int8"] {
            assert_eq!(checked([("relation", "text"), ("id", kind), ("ended_at", "timestamptz")]), Ok(()));
        }
        let mismatch = checked([("relation", "text"), ("id", "inet"), ("ended_at", "timestamptz")]);
        assert_eq!(mismatch, Err("ended.id is inet, wanted is text or bytea or int8".to_owned()));
    }
}
