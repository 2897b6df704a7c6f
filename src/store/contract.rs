//! The contract between a store and the relay: which columns each relation has, in which order, of which
//! type. Checked where a query is prepared, before any row is read.

use std::fmt;

use super::Relation;

/// A column that a relation must have.
struct Column {
    name: &'static str,
    /// Any of these will do.
    kinds: &'static [Kind],
    nullability: Nullability,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nullability {
    Nullable,
    NotNull,
}

/// The type of a column, as PostgreSQL calls it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Bytea,
    Inet,
    Int4,
    Int8,
    Text,
    Timestamptz,
}

/// A column that a query gives.
pub(super) struct Given<'a> {
    pub(super) name: &'a str,
    /// As PostgreSQL calls it; `None` where the store knows types of values only, not of columns.
    pub(super) kind: Option<&'a str>,
}

/// How a query breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mismatch {
    Name { relation: Relation, place: usize, found: String, wanted: &'static str },
    Kind { relation: Relation, column: &'static str, found: String, wanted: String },
    Missing { relation: Relation, column: &'static str, wanted: String },
    Surplus { relation: Relation, place: usize, found: String, wanted: usize },
}

/// Compares what a query for `relation` gives with what the contract wants, and tells the first difference.
pub(super) fn check(relation: Relation, given: &[Given<'_>]) -> Result<(), Mismatch> {
    let wanted = columns(relation);
    for (place, column) in wanted.iter().enumerate() {
        let kinds = || {
            let names: Vec<_> = column.kinds.iter().map(|kind| kind.name()).collect();
            names.join(" or ")
        };
        let Some(given) = given.get(place) else {
            return Err(Mismatch::Missing { relation, column: column.name, wanted: kinds() });
        };
        if given.name != column.name {
            let (found, wanted) = (given.name.to_owned(), column.name);
            return Err(Mismatch::Name { relation, place: place + 1, found, wanted });
        }
        match given.kind {
            Some(found) if column.kinds.iter().all(|kind| kind.name() != found) => {
                let (column, found) = (column.name, found.to_owned());
                return Err(Mismatch::Kind { relation, column, found, wanted: kinds() });
            }
            _ => {}
        }
    }
    match given.get(wanted.len()) {
        Some(surplus) => {
            let (place, found) = (wanted.len() + 1, surplus.name.to_owned());
            Err(Mismatch::Surplus { relation, place, found, wanted: wanted.len() })
        }
        None => Ok(()),
    }
}

/// The columns of `relation` in which a null is a bad value: their places, from 0, and names.
pub(super) fn not_null(relation: Relation) -> impl Iterator<Item = (usize, &'static str)> {
    let columns = columns(relation).iter().enumerate();
    columns
        .filter(|(_, column)| column.nullability == Nullability::NotNull)
        .map(|(place, column)| (place, column.name))
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { relation, place, found, wanted } => {
                let relation = relation.name();
                write!(f, "column {place} of {relation} is `{}`, wanted is `{wanted}`", found.escape_debug())
            }
            Self::Kind { relation, column, found, wanted } => {
                write!(f, "{}.{column} is {found}, wanted is {wanted}", relation.name())
            }
            Self::Missing { relation, column, wanted } => {
                write!(f, "{}.{column} is missing, wanted is {wanted}", relation.name())
            }
            Self::Surplus { relation, place, found, wanted } => {
                let (relation, found) = (relation.name(), found.escape_debug());
                write!(f, "column {place} of {relation} is `{found}`, wanted are {wanted} columns")
            }
        }
    }
}

impl Kind {
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

const fn columns(relation: Relation) -> &'static [Column] {
    match relation {
        Relation::Credentials => &CREDENTIALS,
        Relation::Grants => &GRANTS,
        Relation::Devices => &DEVICES,
    }
}

const fn column(name: &'static str, kinds: &'static [Kind]) -> Column {
    Column { name, kinds, nullability: Nullability::NotNull }
}

const fn nullable(name: &'static str, kinds: &'static [Kind]) -> Column {
    Column { name, kinds, nullability: Nullability::Nullable }
}

const CREDENTIALS: [Column; 4] = [
    column("key_sha256", &[Kind::Bytea]),
    column("principal", &[Kind::Int8]),
    nullable("expires_at", &[Kind::Timestamptz]),
    column("revoked", &[Kind::Bool]),
];

const GRANTS: [Column; 8] = [
    column("grant_id", &[Kind::Int8]),
    column("principal", &[Kind::Int8]),
    column("scope", &[Kind::Text]),
    nullable("target", &[Kind::Int8]),
    column("port_min", &[Kind::Int4]),
    column("port_max", &[Kind::Int4]),
    nullable("expires_at", &[Kind::Timestamptz]),
    column("revoked", &[Kind::Bool]),
];

const DEVICES: [Column; 6] = [
    column("device", &[Kind::Int8]),
    column("uuid", &[Kind::Text]),
    nullable("fleet", &[Kind::Int8]),
    nullable("address", &[Kind::Text, Kind::Inet]),
    nullable("node", &[Kind::Text]),
    column("online", &[Kind::Bool]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(given: &[(&str, &str)]) -> Result<(), String> {
        let given: Vec<_> = given
            .iter()
            .map(|(name, kind)| Given { name, kind: (!kind.is_empty()).then_some(*kind) })
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
    fn each_difference_is_told_with_what_was_found_and_wanted() {
        let mut renamed = GOOD;
        renamed[4].0 = "vpn\nnode";
        let mut retyped = GOOD;
        retyped[3].1 = "int4";
        let mut swapped = GOOD;
        swapped.swap(3, 4);
        let mut more = GOOD.to_vec();
        more.push(("extra", "text"));
        for (given, told) in [
            (&renamed[..], "column 5 of devices is `vpn\\nnode`, wanted is `node`"),
            (&retyped, "devices.address is int4, wanted is text or inet"),
            (&swapped, "column 4 of devices is `node`, wanted is `address`"),
            (&GOOD[..5], "devices.online is missing, wanted is bool"),
            (&more, "column 7 of devices is `extra`, wanted are 6 columns"),
        ] {
            assert_eq!(checked(given), Err(told.to_owned()));
        }
    }
}
