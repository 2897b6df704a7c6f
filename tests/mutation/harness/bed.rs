//! A database with an installation's rights, and the ways to break and mend what a relay reads from it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sluicegate::config::{Queries, RelationQuery};
use sluicegate::store::Relation;
use tempfile::TempDir;

use super::operator::{Mutator, Operator, Part};
use super::rights::{Installation, Rights, RightsRow};
use super::store::{AnswerRow, Connected, StoreKind, cells};
use crate::support::{Cluster, Database, init_store};

/// What a relay reads from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ground {
    /// Tables of an operator's own, behind views that the relay's queries read. There is no outbox.
    Foreign,
    /// The same, with a table of rows that have ended, which a fourth query reads.
    ForeignEnded,
    /// The reference schema. A view takes the place of a table, so that answers are wrong while the outbox goes on.
    Reference,
    /// The reference schema. Statements change the rows themselves, and the outbox records it.
    Statements,
}

/// A database that cases use one after another.
pub struct Bed {
    pub ground: Ground,
    pub installation: Installation,
    folder: TempDir,
    store: BedStore,
}

enum BedStore {
    /// A file that each case copies.
    Sqlite(PathBuf),
    Postgres(Database<'static>),
}

/// A database for one case.
pub struct Scene<'a> {
    bed: &'a Bed,
    folder: TempDir,
    connected: Connected,
    fault: Option<Fault>,
}

#[derive(Clone, Copy)]
pub struct Fault {
    pub mutator: Mutator,
    pub part: Part,
    pub slow: Option<Duration>,
}

/// A way to end one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndStyle {
    Delete,
    Revoke,
    Expire,
}

impl Ground {
    pub const ALL: [Self; 4] = [Self::Foreign, Self::ForeignEnded, Self::Reference, Self::Statements];

    /// True where the tables are the operator's own.
    pub const fn is_foreign(self) -> bool {
        matches!(self, Self::Foreign | Self::ForeignEnded)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::ForeignEnded => "foreign-ended",
            Self::Reference => "reference",
            Self::Statements => "statements",
        }
    }

    /// True where the fault can be brought about here.
    pub fn expresses(self, mutator: &Mutator) -> bool {
        match (self, mutator.operator, mutator.column) {
            (Self::Foreign | Self::ForeignEnded, ..) => true,
            // The schema's own columns have their types, and its flag is a time, which is null or not.
            (Self::Reference, Operator::Cast, _) => false,
            (Self::Reference, Operator::Null, Some("revoked")) => false,
            (Self::Reference, ..) => true,
            (Self::Statements, Operator::Drop, _) => true,
            (Self::Statements, Operator::Narrow, Some("revoked" | "expires_at" | "port_max")) => true,
            (Self::Statements, ..) => false,
        }
    }
}

impl Bed {
    /// `None` where PostgreSQL is not installed.
    pub fn new(store: StoreKind, ground: Ground, installation: Installation) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let store = match store {
            StoreKind::Sqlite => {
                init_store(&format!("sqlite:{}", path.display())).unwrap();
                BedStore::Sqlite(path)
            }
            StoreKind::Postgres => BedStore::Postgres(Cluster::shared()?.database()),
        };
        let bed = Self { ground, installation, folder, store };
        bed.connect(&bed.folder.path().join("store.db")).run(&bed.filling());
        Some(bed)
    }

    pub const fn kind(&self) -> StoreKind {
        match &self.store {
            BedStore::Sqlite(_) => StoreKind::Sqlite,
            BedStore::Postgres(_) => StoreKind::Postgres,
        }
    }

    /// The database as it was at first.
    pub fn scene(&self) -> Scene<'_> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        if let BedStore::Sqlite(template) = &self.store {
            std::fs::copy(template, &path).unwrap();
        }
        let mut connected = self.connect(&path);
        if let BedStore::Postgres(_) = &self.store {
            connected.run(&self.resetting());
        }
        Scene { bed: self, folder, connected, fault: None }
    }

    fn connect(&self, path: &Path) -> Connected {
        match &self.store {
            BedStore::Sqlite(_) => Connected::sqlite(path),
            BedStore::Postgres(database) => {
                let mut client = database.client();
                let path = if self.ground.is_foreign() { "public" } else { "sluicegate, public" };
                client.batch_execute(&format!("SET search_path = {path}")).unwrap();
                Connected::Postgres(client)
            }
        }
    }

    fn filling(&self) -> String {
        let rights = self.installation.rights();
        let mut sql = String::new();
        for relation in Relation::ALL {
            let (name, kind) = (relation.name(), self.kind());
            let columns: Vec<_> = sluicegate::store::contract_columns(relation).collect();
            let typed =
                columns.iter().map(|column| format!("{} {}", column.name, kind.type_name(column.type_name)));
            sql += &format!(
                "CREATE TABLE truth_{name} (n INTEGER PRIMARY KEY, {});",
                typed.collect::<Vec<_>>().join(", ")
            );
            for (n, row) in self.numbered(&rights, relation) {
                let values = cells(row).into_iter().zip(&columns);
                let values = values.map(|(cell, column)| kind.literal(&cell, column.type_name));
                sql += &format!(
                    "INSERT INTO truth_{name} VALUES ({n}, {});",
                    values.collect::<Vec<_>>().join(", ")
                );
            }
        }
        if self.ground.is_foreign() {
            for relation in Relation::ALL {
                let name = relation.name();
                sql += &format!("CREATE TABLE pristine_{name} AS SELECT * FROM truth_{name};");
                sql += &self.view(relation, None);
            }
            sql += &format!(
                "CREATE TABLE ended_rows (relation text, id text, ended_at {});",
                self.kind().type_name("timestamptz")
            );
            if let BedStore::Postgres(database) = &self.store {
                sql += &format!("GRANT SELECT ON ended_rows TO {};", database.relay());
            }
            return sql;
        }
        sql += "INSERT INTO fleets (name) SELECT 'fleet ' || fleet
            FROM (SELECT DISTINCT fleet FROM truth_devices ORDER BY fleet) AS fleets;";
        let (now, overriding, inet) = match self.kind() {
            StoreKind::Sqlite => ("0", "", "address"),
            StoreKind::Postgres => ("now()", "OVERRIDING SYSTEM VALUE", "CAST(address AS inet)"),
        };
        sql += &format!(
            "INSERT INTO principals (id, name, created_at) {overriding}
                SELECT principal, 'p' || principal, {now} FROM truth_credentials;
            INSERT INTO credentials (id, key_sha256, principal, created_at, expires_at, revoked_at) {overriding}
                SELECT n + 1, key_sha256, principal, {now}, expires_at, CASE WHEN revoked THEN {now} END FROM truth_credentials;
            INSERT INTO devices (id, uuid, fleet, address, node, online, created_at) {overriding}
                SELECT device, uuid, fleet, {inet}, node, online, {now} FROM truth_devices;
            INSERT INTO grants (id, principal, scope, target, port_min, port_max, created_at, expires_at, revoked_at) {overriding}
                SELECT grant_id, principal, scope, target, port_min, port_max, {now}, expires_at,
                    CASE WHEN revoked THEN {now} END FROM truth_grants;"
        );
        for relation in Relation::ALL {
            let name = relation.name();
            sql += &format!("DROP TABLE truth_{name}; CREATE TABLE pristine_{name} AS SELECT * FROM {name};");
        }
        sql
    }

    /// The rows of a relation with their numbers, from 0.
    fn numbered<'r>(&self, rights: &'r Rights, relation: Relation) -> Vec<(usize, &'r RightsRow)> {
        let rows = match relation {
            Relation::Devices => self.installation.devices,
            _ => self.installation.rows(),
        };
        let key = |n| match relation {
            Relation::Credentials => RightsRow::Credential(self.installation.credential(n)).key(),
            Relation::Grants => RightsRow::Grant(self.installation.grant(n)).key(),
            Relation::Devices => RightsRow::Device(self.installation.device(n)).key(),
        };
        (0..rows).map(|n| (n, rights.get(key(n)).unwrap())).collect()
    }

    /// Puts back what a case has changed; PostgreSQL alone.
    fn resetting(&self) -> String {
        let mut sql = String::from("SET LOCAL session_replication_role = replica;");
        if self.ground.is_foreign() {
            sql += "DELETE FROM ended_rows;";
        }
        if self.ground.is_foreign() {
            for relation in Relation::ALL {
                let name = relation.name();
                sql += &format!(
                    "DELETE FROM truth_{name}; INSERT INTO truth_{name} SELECT * FROM pristine_{name};"
                );
                sql += &self.view(relation, None);
            }
            return sql;
        }
        // The triggers run whatever the session says, and what was granted on a device ends with it: all rows go first.
        for name in Relation::ALL.map(Relation::name) {
            sql += &format!(
                "DO $$ BEGIN IF to_regclass('sluicegate.{name}_table') IS NOT NULL THEN
                    DROP VIEW {name}; ALTER TABLE {name}_table RENAME TO {name}; END IF; END $$;"
            );
        }
        sql += "DELETE FROM devices; DELETE FROM grants; DELETE FROM credentials; DELETE FROM changes;";
        for name in Relation::ALL.map(Relation::name) {
            sql += &format!("INSERT INTO {name} OVERRIDING SYSTEM VALUE SELECT * FROM pristine_{name};");
        }
        sql
    }

    /// Statements that make what the relay reads, whole or with a fault in it.
    fn view(&self, relation: Relation, fault: Option<&Fault>) -> String {
        let name = relation.name();
        let select = match self.ground {
            Ground::Foreign | Ground::ForeignEnded => self.select(relation, fault, ""),
            _ => {
                let passed = match relation {
                    Relation::Credentials => ", n, label, created_at, ended_at",
                    Relation::Grants => ", created_at, ended_at",
                    Relation::Devices => ", name, created_at, located_at",
                };
                let columns = self.schema_columns(relation);
                format!("SELECT {columns} FROM ({}) AS shown", self.select(relation, fault, passed))
            }
        };
        let slow = fault.and_then(|fault| fault.slow);
        let select = match slow {
            Some(time) => format!("SELECT * FROM ({select}) AS quick WHERE {}", self.kind().slow(time)),
            None => select,
        };
        let view = match self.ground {
            Ground::Foreign | Ground::ForeignEnded => format!("served_{name}"),
            _ => name.to_owned(),
        };
        let mut sql = format!("DROP VIEW IF EXISTS {view}; CREATE VIEW {view} AS {select};");
        if let BedStore::Postgres(database) = &self.store {
            sql += &format!("GRANT SELECT ON {view} TO {};", database.relay());
            if self.ground == Ground::Reference && relation == Relation::Grants {
                // Triggers on other tables revoke grants by this name: those of a device that goes. The fault is in what is
                // read, so a target that the view makes up must not have another grant revoked in truth.
                sql += "CREATE OR REPLACE FUNCTION public.revoke_grant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                        UPDATE sluicegate.grants_table AS held SET revoked_at = NEW.revoked_at
                            WHERE id = NEW.id AND (scope <> 'device'
                                OR NOT EXISTS (SELECT FROM sluicegate.devices WHERE devices.id = held.target));
                        RETURN NEW; END $$;
                    CREATE TRIGGER grants_revoked INSTEAD OF UPDATE ON grants
                        FOR EACH ROW EXECUTE FUNCTION public.revoke_grant();";
            }
        }
        sql
    }

    /// The columns of the reference schema's table, from those of the contract.
    fn schema_columns(&self, relation: Relation) -> String {
        let columns = match relation {
            Relation::Credentials => {
                "n + 1 AS id, key_sha256, principal, label, created_at, expires_at,
                    CASE WHEN revoked THEN COALESCE(ended_at, created_at) END AS revoked_at"
            }
            Relation::Grants => {
                "grant_id AS id, principal, scope, target, port_min, port_max, created_at, expires_at,
                    CASE WHEN revoked THEN COALESCE(ended_at, created_at) END AS revoked_at"
            }
            Relation::Devices => {
                "device AS id, uuid, name, fleet, ADDRESS AS address, node, online, created_at, located_at"
            }
        };
        columns.replace(
            "ADDRESS",
            match self.kind() {
                StoreKind::Sqlite => "address",
                StoreKind::Postgres => "CAST(address AS inet)",
            },
        )
    }

    /// The true rows with their numbers `n`, from 0, in the columns of the contract and some that pass by.
    fn base(&self, relation: Relation) -> String {
        let name = relation.name();
        match (self.ground, relation) {
            (Ground::Foreign | Ground::ForeignEnded, _) => format!("truth_{name}"),
            (_, Relation::Credentials) => "(SELECT id - 1 AS n, key_sha256, principal, expires_at,
                    revoked_at IS NOT NULL AS revoked, label, created_at, revoked_at AS ended_at FROM credentials_table)"
                .to_owned(),
            (_, Relation::Grants) => "(SELECT id - 1 AS n, id AS grant_id, principal, scope, target, port_min, port_max,
                    expires_at, revoked_at IS NOT NULL AS revoked, created_at, revoked_at AS ended_at FROM grants_table)"
                .to_owned(),
            (_, Relation::Devices) => {
                let address = match self.kind() {
                    StoreKind::Sqlite => "address",
                    StoreKind::Postgres => "host(address) AS address",
                };
                format!(
                    "(SELECT id - 1 AS n, id AS device, uuid, name, fleet, {address}, node, online, created_at, located_at
                        FROM devices_table)"
                )
            }
        }
    }

    /// A query with the contract's columns, whole or with a fault in it, and the columns of `passed`.
    fn select(&self, relation: Relation, fault: Option<&Fault>, passed: &str) -> String {
        let base = self.base(relation);
        let fault = fault.filter(|fault| fault.mutator.relation == relation);
        let touches = fault.map(|fault| fault.mutator.touches(fault.part));
        let columns = |changed: &[(&'static str, String)], is_everywhere: bool| {
            let columns = sluicegate::store::contract_columns(relation).map(|column| {
                let name = column.name;
                match changed.iter().find(|(changed, _)| *changed == name) {
                    None => name.to_owned(),
                    Some((_, value)) if is_everywhere => format!("{value} AS {name}"),
                    Some((_, value)) => {
                        let touches = touches.as_deref().unwrap_or_default();
                        format!("CASE WHEN {touches} THEN {value} ELSE {name} END AS {name}")
                    }
                }
            });
            columns.collect::<Vec<_>>().join(", ") + passed
        };
        let kind = self.kind();
        let Some(Fault { mutator, .. }) = fault else {
            return format!("SELECT {} FROM {base} AS truth", columns(&[], false));
        };
        let touches = touches.as_deref().unwrap_or_default();
        if mutator.operator == Operator::Drop {
            return format!("SELECT {} FROM {base} AS truth WHERE NOT ({touches})", columns(&[], false));
        }
        if let Some(copies) = mutator.copies(kind) {
            let (once, copy) = (columns(&[], false), columns(&copies, true));
            return format!(
                "SELECT {once} FROM {base} AS truth UNION ALL SELECT {copy} FROM {base} AS truth WHERE {touches}"
            );
        }
        // A column of PostgreSQL has one type for all rows.
        let is_everywhere = mutator.operator == Operator::Cast && kind == StoreKind::Postgres;
        format!("SELECT {} FROM {base} AS truth", columns(&mutator.values(kind), is_everywhere))
    }
}

impl Scene<'_> {
    pub fn url(&self) -> String {
        match &self.bed.store {
            BedStore::Sqlite(_) => format!("sqlite:{}", self.folder.path().join("store.db").display()),
            BedStore::Postgres(database) => database.relay_url(),
        }
    }

    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn queries(&self) -> Queries {
        let query = |relation: Relation| {
            let columns = sluicegate::store::contract_columns(relation).map(|column| column.name);
            let columns = columns.collect::<Vec<_>>().join(", ");
            let name = relation.name();
            let sql = format!("SELECT {columns} FROM served_{name}");
            Some(RelationQuery { file: name.into(), sql })
        };
        match self.bed.ground {
            Ground::Foreign | Ground::ForeignEnded => Queries {
                credentials: query(Relation::Credentials),
                grants: query(Relation::Grants),
                devices: query(Relation::Devices),
                ended: (self.bed.ground == Ground::ForeignEnded).then(|| RelationQuery {
                    file: "ended".into(),
                    sql: "SELECT relation, id, ended_at FROM ended_rows".to_owned(),
                }),
            },
            _ => Queries::default(),
        }
    }

    /// Brings the fault about, in place of the one that is there. Returns what a query gives now, as soon as one runs;
    /// `None` where it fails.
    pub fn inject(&mut self, fault: Fault) -> Option<Vec<AnswerRow>> {
        let relation = fault.mutator.relation;
        let name = relation.name();
        match self.bed.ground {
            Ground::Foreign | Ground::ForeignEnded => {
                self.connected.run(&self.bed.view(relation, Some(&fault)))
            }
            Ground::Reference => {
                let rename = match self.fault {
                    None => format!("ALTER TABLE {name} RENAME TO {name}_table;"),
                    Some(_) => String::new(),
                };
                self.connected.run(&(rename + &self.bed.view(relation, Some(&fault))));
            }
            Ground::Statements => {
                let statement = self.statement(&fault);
                self.connected.run(&statement);
            }
        }
        self.fault = Some(fault);
        self.answer(relation)
    }

    /// What a query of the relation gives now; `None` where it fails.
    pub fn answer(&mut self, relation: Relation) -> Option<Vec<AnswerRow>> {
        let fault = self.fault.filter(|fault| fault.mutator.relation == relation);
        let is_broken = fault.is_some_and(|fault| {
            fault.mutator.operator == Operator::Cast && self.bed.kind() == StoreKind::Postgres
        });
        if is_broken {
            return None;
        }
        let is_view = self.bed.ground == Ground::Reference && fault.is_some();
        let of_view = fault.as_ref().filter(|_| self.bed.ground != Ground::Statements);
        let mut select = self.bed.select(relation, of_view, "");
        if !is_view {
            select = select.replace(&format!("{}_table", relation.name()), relation.name());
        }
        if !self.bed.ground.is_foreign() && relation != Relation::Devices {
            select =
                format!("SELECT * FROM ({select}) AS shown WHERE principal IN (SELECT id FROM principals)");
        }
        self.connected.answer(relation, &select)
    }

    /// Puts everything right, except for rows that were ended.
    pub fn mend(&mut self, ended: &[(Relation, usize)]) {
        let Some(fault) = self.fault.take() else { return };
        let relation = fault.mutator.relation;
        let name = relation.name();
        match self.bed.ground {
            Ground::Foreign | Ground::ForeignEnded => self.connected.run(&self.bed.view(relation, None)),
            Ground::Reference => {
                self.connected.run(&format!("DROP VIEW {name}; ALTER TABLE {name}_table RENAME TO {name};"))
            }
            Ground::Statements => {
                let mut relations = vec![relation];
                // What was granted on a device ended with it.
                relations.extend((relation == Relation::Devices).then_some(Relation::Grants));
                let overriding = match self.bed.kind() {
                    StoreKind::Sqlite => "",
                    StoreKind::Postgres => "OVERRIDING SYSTEM VALUE",
                };
                let sql = relations.into_iter().map(|relation| {
                    let name = relation.name();
                    let kept = ended.iter().filter_map(|(of, n)| match (*of, relation) {
                        (of, relation) if of == relation => Some(format!("AND id <> {}", n + 1)),
                        (Relation::Devices, Relation::Grants) => {
                            Some(format!("AND NOT (scope = 'device' AND COALESCE(target, 0) = {})", n + 1))
                        }
                        _ => None,
                    });
                    let kept = kept.collect::<Vec<_>>().join(" ");
                    let differs = differing(relation);
                    format!(
                        "DELETE FROM {name} WHERE EXISTS (SELECT 1 FROM pristine_{name} AS pristine
                            WHERE pristine.id = {name}.id AND ({differs})) {kept};
                        INSERT INTO {name} {overriding} SELECT * FROM pristine_{name}
                            WHERE id NOT IN (SELECT id FROM {name}) {kept};"
                    )
                });
                let sql: String = sql.collect();
                self.connected.run(&sql);
            }
        }
    }

    /// Ends row `n` of a relation by one statement.
    pub fn end(&mut self, relation: Relation, n: usize, style: EndStyle) {
        let is_view = self.fault.is_some_and(|fault| fault.mutator.relation == relation);
        let (table, key) = match self.bed.ground {
            Ground::Foreign | Ground::ForeignEnded => {
                (format!("truth_{}", relation.name()), format!("n = {n}"))
            }
            Ground::Reference if is_view => (format!("{}_table", relation.name()), format!("id = {}", n + 1)),
            _ => (relation.name().to_owned(), format!("id = {}", n + 1)),
        };
        let past = self.bed.kind().past();
        let statement = match (style, relation, self.bed.ground) {
            (EndStyle::Delete, ..) | (_, Relation::Devices, _) => format!("DELETE FROM {table} WHERE {key}"),
            (EndStyle::Expire, ..) => format!("UPDATE {table} SET expires_at = {past} WHERE {key}"),
            (EndStyle::Revoke, _, Ground::Foreign | Ground::ForeignEnded) => {
                format!("UPDATE {table} SET revoked = {} WHERE {key}", self.bed.kind().boolean(true))
            }
            (EndStyle::Revoke, ..) => format!("UPDATE {table} SET revoked_at = {past} WHERE {key}"),
        };
        let recorded = match self.bed.ground {
            Ground::ForeignEnded => self.ended_row(relation, n),
            _ => String::new(),
        };
        self.connected.run(&format!("{statement}; {recorded}"));
    }

    /// The statement that records the end of row `n` in the table of ended rows.
    fn ended_row(&self, relation: Relation, n: usize) -> String {
        let id = match relation {
            Relation::Credentials => hex::encode(self.bed.installation.credential(n).key.as_bytes()),
            _ => (n + 1).to_string(),
        };
        let now = match self.bed.kind() {
            StoreKind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            StoreKind::Postgres => "now()",
        };
        format!("INSERT INTO ended_rows VALUES ('{}', '{id}', {now})", relation.name())
    }

    fn statement(&self, fault: &Fault) -> String {
        let Fault { mutator, part, .. } = fault;
        let name = mutator.relation.name();
        let touches = mutator.touches(*part).replace('n', "(id - 1)");
        match (mutator.operator, mutator.column) {
            (Operator::Drop, _) => format!("DELETE FROM {name} WHERE {touches}"),
            (_, Some("revoked")) => {
                format!(
                    "UPDATE {name} SET revoked_at = {} WHERE {touches} AND revoked_at IS NULL",
                    self.bed.kind().past()
                )
            }
            _ => {
                let values = mutator.values(self.bed.kind());
                let set = values.iter().map(|(column, value)| format!("{column} = {value}"));
                format!("UPDATE {name} SET {} WHERE {touches}", set.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// The condition by which a row of the reference schema is not `pristine` any more.
const fn differing(relation: Relation) -> &'static str {
    match relation {
        Relation::Credentials => {
            "(pristine.revoked_at IS NULL) <> (credentials.revoked_at IS NULL)
                OR COALESCE(pristine.expires_at, pristine.created_at) <> COALESCE(credentials.expires_at, credentials.created_at)"
        }
        Relation::Grants => {
            "(pristine.revoked_at IS NULL) <> (grants.revoked_at IS NULL)
                OR COALESCE(pristine.expires_at, pristine.created_at) <> COALESCE(grants.expires_at, grants.created_at)
                OR pristine.port_max <> grants.port_max"
        }
        Relation::Devices => "pristine.online <> devices.online",
    }
}
