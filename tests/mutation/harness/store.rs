//! The two kinds of stores, in the words that operators and beds need.

use std::path::Path;
use std::time::Duration;

use postgres::Client;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sluicegate::authz::{
    Credential, Device, DeviceId, DeviceUuid, FleetId, Grant, GrantId, KeyHash, PortRange, PrincipalId,
    Scope, UnixMillis,
};
use sluicegate::store::Relation;

use super::rights::{RightsKey, RightsRow};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StoreKind {
    Sqlite,
    Postgres,
}

/// A connection by which the harness writes.
pub enum Connected {
    Sqlite(Connection),
    Postgres(Client),
}

/// A value as a query gives it.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// A row of an answer: what it says, or, where it does not decode, its key if that does.
pub type AnswerRow = Result<RightsRow, Option<RightsKey>>;

impl StoreKind {
    pub const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// The store's name for a type of PostgreSQL.
    pub fn type_name(self, kind: &'static str) -> &'static str {
        match (self, kind) {
            (Self::Postgres, kind) => kind,
            (Self::Sqlite, "text") => "TEXT",
            (Self::Sqlite, "bytea") => "BLOB",
            (Self::Sqlite, _) => "INTEGER",
        }
    }

    pub const fn boolean(self, value: bool) -> &'static str {
        match (self, value) {
            (Self::Postgres, true) => "true",
            (Self::Postgres, false) => "false",
            (Self::Sqlite, true) => "1",
            (Self::Sqlite, false) => "0",
        }
    }

    /// A time that has passed long ago.
    pub const fn past(self) -> &'static str {
        match self {
            Self::Postgres => "timestamptz '2020-01-01'",
            Self::Sqlite => "1577836800000",
        }
    }

    pub fn later(self, time: &str, seconds: i64) -> String {
        match self {
            Self::Postgres => format!("{time} + interval '{seconds} seconds'"),
            Self::Sqlite => format!("{time} + {seconds} * 1000"),
        }
    }

    /// The value in another type.
    pub fn cast(self, column: &str, kind: &str) -> String {
        match (self, kind) {
            (Self::Postgres, "text") => format!("convert_to({column}, 'UTF8')"),
            (Self::Postgres, "bytea") => format!("encode({column}, 'hex')"),
            (Self::Sqlite, "text") => format!("CAST({column} AS BLOB)"),
            (Self::Sqlite, "bytea") => format!("hex({column})"),
            _ => format!("CAST({column} AS text)"),
        }
    }

    /// A condition that is true after `time`. Evaluated once for each run of a query.
    pub fn slow(self, time: Duration) -> String {
        match self {
            Self::Postgres => format!("(SELECT count(*) FROM pg_sleep({})) > 0", time.as_secs_f64()),
            Self::Sqlite => {
                let steps = (time.as_secs_f64() * SQLITE_STEPS_PER_SECOND) as u64;
                format!(
                    "(WITH RECURSIVE steps (step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM steps WHERE step < {steps})
                        SELECT count(*) FROM steps) > 0"
                )
            }
        }
    }

    pub fn literal(self, cell: &Cell, kind: &str) -> String {
        match (self, cell, kind) {
            (_, Cell::Null, _) => "NULL".to_owned(),
            (Self::Postgres, Cell::Integer(value), "bool") => (*value == 1).to_string(),
            (Self::Postgres, Cell::Integer(value), "timestamptz") => {
                format!("to_timestamp({value} / 1000.0)")
            }
            (_, Cell::Integer(value), _) => value.to_string(),
            (_, Cell::Text(text), _) => format!("'{text}'"),
            (Self::Postgres, Cell::Bytes(bytes), _) => format!("'\\x{}'", hex::encode(bytes)),
            (Self::Sqlite, Cell::Bytes(bytes), _) => format!("x'{}'", hex::encode(bytes)),
        }
    }

    /// An expression that reads a column as a [`Cell`]; PostgreSQL gives every one as text.
    fn shown(self, column: &str, kind: &str) -> String {
        match (self, kind) {
            (Self::Sqlite, _) => column.to_owned(),
            (Self::Postgres, "bool") => format!("CASE {column} WHEN true THEN '1' WHEN false THEN '0' END"),
            (Self::Postgres, "bytea") => format!("encode({column}, 'hex')"),
            (Self::Postgres, "timestamptz") => {
                format!("CAST(CAST(extract(epoch FROM {column}) * 1000 AS bigint) AS text)")
            }
            (Self::Postgres, _) => format!("CAST({column} AS text)"),
        }
    }
}

impl Connected {
    pub fn sqlite(path: &Path) -> Self {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        Self::Sqlite(connection)
    }

    pub const fn kind(&self) -> StoreKind {
        match self {
            Self::Sqlite(_) => StoreKind::Sqlite,
            Self::Postgres(_) => StoreKind::Postgres,
        }
    }

    /// Runs statements in one transaction.
    pub fn run(&mut self, statements: &str) {
        let statements = format!("BEGIN; {statements}; COMMIT");
        let result = match self {
            Self::Sqlite(connection) => connection.execute_batch(&statements).map_err(|e| e.to_string()),
            Self::Postgres(client) => client.batch_execute(&statements).map_err(|e| format!("{e:?}")),
        };
        if let Err(error) = result {
            panic!("{error}: {}", statements.chars().take(2000).collect::<String>());
        }
    }

    /// The rows of a query that has the columns of `relation`; `None` where it fails.
    pub fn answer(&mut self, relation: Relation, select: &str) -> Option<Vec<AnswerRow>> {
        let kind = self.kind();
        let columns: Vec<_> = sluicegate::store::contract_columns(relation).collect();
        let shown: Vec<_> = columns.iter().map(|column| kind.shown(column.name, column.type_name)).collect();
        let sql = format!("SELECT {} FROM ({select}) AS served", shown.join(", "));
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare(&sql).ok()?;
                let mut rows = statement.query([]).ok()?;
                let mut answer = Vec::new();
                while let Some(row) = rows.next().ok()? {
                    let cells = (0..columns.len()).map(|index| sqlite_cell(row.get_ref(index).unwrap()));
                    answer.push(decoded(relation, &cells.collect::<Vec<_>>()));
                }
                Some(answer)
            }
            Self::Postgres(client) => {
                let rows = client.query(&sql, &[]).ok()?;
                let row = |row: &postgres::Row| {
                    let cells = columns.iter().enumerate().map(|(index, column)| {
                        row.get::<_, Option<String>>(index)
                            .map_or(Cell::Null, |text| postgres_cell(text, column.type_name))
                    });
                    decoded(relation, &cells.collect::<Vec<_>>())
                };
                Some(rows.iter().map(row).collect())
            }
        }
    }
}

fn sqlite_cell(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(integer) => Cell::Integer(integer),
        // No column of the contract has it.
        ValueRef::Real(real) => Cell::Text(real.to_string()),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
    }
}

fn postgres_cell(text: String, kind: &str) -> Cell {
    match kind {
        "text" => Cell::Text(text),
        "bytea" => Cell::Bytes(hex::decode(text).unwrap()),
        _ => Cell::Integer(text.parse().unwrap()),
    }
}

/// The cells of a row, in the order of the contract.
pub fn cells(row: &RightsRow) -> Vec<Cell> {
    let integer = |value: Option<i64>| value.map_or(Cell::Null, Cell::Integer);
    let text = |value: Option<String>| value.map_or(Cell::Null, Cell::Text);
    let time = |value: Option<UnixMillis>| integer(value.map(|time| time.0));
    match row {
        RightsRow::Credential(row) => vec![
            Cell::Bytes(row.key.as_bytes().to_vec()),
            Cell::Integer(row.principal.0),
            time(row.expires_at),
            Cell::Integer(row.revoked.into()),
        ],
        RightsRow::Grant(row) => {
            let (scope, target) = match row.scope {
                Scope::Any => ("any", None),
                Scope::Fleet(fleet) => ("fleet", Some(fleet.0)),
                Scope::Device(device) => ("device", Some(device.0)),
            };
            vec![
                Cell::Integer(row.id.0),
                Cell::Integer(row.principal.0),
                Cell::Text(scope.to_owned()),
                integer(target),
                Cell::Integer(row.ports.min().into()),
                Cell::Integer(row.ports.max().into()),
                time(row.expires_at),
                Cell::Integer(row.revoked.into()),
            ]
        }
        RightsRow::Device(row) => vec![
            Cell::Integer(row.id.0),
            Cell::Text(row.uuid.to_string()),
            integer(row.fleet.map(|fleet| fleet.0)),
            text(row.address.map(|address| address.to_string())),
            text(row.node.as_deref().map(str::to_owned)),
            Cell::Integer(row.online.into()),
        ],
    }
}

fn decoded(relation: Relation, cells: &[Cell]) -> AnswerRow {
    match relation {
        Relation::Credentials => {
            let Cell::Bytes(bytes) = &cells[0] else { return Err(None) };
            let key = KeyHash::from_bytes(bytes.as_slice().try_into().map_err(|_| None)?);
            let decode = || {
                Some(RightsRow::Credential(Credential {
                    key,
                    principal: PrincipalId(integer(&cells[1])?),
                    expires_at: nullable(&cells[2], integer)?.map(UnixMillis),
                    revoked: boolean(&cells[3])?,
                }))
            };
            decode().ok_or(Some(RightsKey::Credential(key)))
        }
        Relation::Grants => {
            let id = GrantId(integer(&cells[0]).ok_or(None)?);
            let port = |cell| u16::try_from(integer(cell)?).ok();
            let decode = || {
                let scope = match (text(&cells[2])?, nullable(&cells[3], integer)?) {
                    ("any", None) => Scope::Any,
                    ("fleet", Some(fleet)) => Scope::Fleet(FleetId(fleet)),
                    ("device", Some(device)) => Scope::Device(DeviceId(device)),
                    _ => return None,
                };
                Some(RightsRow::Grant(Grant {
                    id,
                    principal: PrincipalId(integer(&cells[1])?),
                    scope,
                    ports: PortRange::new(port(&cells[4])?, port(&cells[5])?)?,
                    expires_at: nullable(&cells[6], integer)?.map(UnixMillis),
                    revoked: boolean(&cells[7])?,
                }))
            };
            decode().ok_or(Some(RightsKey::Grant(id)))
        }
        Relation::Devices => {
            let id = DeviceId(integer(&cells[0]).ok_or(None)?);
            let decode = || {
                let node = nullable(&cells[4], text)?;
                Some(RightsRow::Device(Device {
                    id,
                    uuid: DeviceUuid::parse(text(&cells[1])?)?,
                    fleet: nullable(&cells[2], integer)?.map(FleetId),
                    address: nullable(&cells[3], text)?
                        .map(|text| text.parse().ok())
                        .map_or(Some(None), |a| a.map(Some))?,
                    node: if node == Some("") { return None } else { node.map(Into::into) },
                    online: boolean(&cells[5])?,
                    disputed: false,
                }))
            };
            decode().ok_or(Some(RightsKey::Device(id)))
        }
    }
}

fn integer(cell: &Cell) -> Option<i64> {
    match cell {
        Cell::Integer(value) => Some(*value),
        _ => None,
    }
}

fn boolean(cell: &Cell) -> Option<bool> {
    integer(cell).filter(|value| matches!(value, 0 | 1)).map(|value| value == 1)
}

fn text(cell: &Cell) -> Option<&str> {
    match cell {
        Cell::Text(text) => Some(text),
        _ => None,
    }
}

/// `None` where a cell is neither null nor what `decode` wants.
fn nullable<'a, T>(cell: &'a Cell, decode: impl Fn(&'a Cell) -> Option<T>) -> Option<Option<T>> {
    match cell {
        Cell::Null => Some(None),
        cell => decode(cell).map(Some),
    }
}

/// Steps of a recursive query that an unoptimized SQLite makes in a second, roughly.
const SQLITE_STEPS_PER_SECOND: f64 = 1_000_000.0;
