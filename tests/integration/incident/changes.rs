//! What can become of a query that passed its review: changes of the incident's shape, as statements on the
//! views that a relay's queries read.

use std::fmt;

use super::installation::{Relation, Size};

/// One change to one relation's view.
#[derive(Clone, Copy)]
pub struct Change {
    pub kind: Kind,
    pub relation: Relation,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    PredicateOnId,
    InvertedFlag,
    JoinFansOut,
    EmptyAnswer,
    HalfTheRows,
    Nulls,
    SwappedColumns,
    TextForNumber,
    PermissionLost,
    Timeout,
    StaleReplica,
}

/// Evidence that a changed query really ran.
pub enum Proof {
    /// The server's log says so with each run.
    Server(String),
    /// It never runs: preparing it is enough for the relay to tell what is wrong with it.
    Relay(&'static str),
}

/// The rule or error that catches a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaughtBy {
    /// The guard holds by this rule.
    Rule(String),
    /// Bad rows are set aside, few enough to need no hold; their last good versions stay.
    Quarantine,
    /// The store is told to have failed, and the last good snapshot stays.
    Outage,
}

impl Change {
    pub fn all() -> impl Iterator<Item = Self> {
        let relations = |kind| Relation::ALL.map(|relation| Self { kind, relation });
        Kind::ALL.into_iter().flat_map(relations)
    }

    /// The statements that the author of the change would have run on the database.
    pub fn statements(self, relay: &str) -> String {
        let view = self.relation.view();
        match self.kind {
            Kind::PermissionLost => format!("REVOKE SELECT ON {view} FROM {relay}"),
            // The type of a view's column cannot be replaced.
            Kind::TextForNumber => recreated(self.relation, &self.select(), relay),
            _ => format!("CREATE OR REPLACE VIEW {view} AS {}", self.select()),
        }
    }

    /// And what mends it.
    pub fn mending(self, relay: &str) -> String {
        let (view, truth) = (self.relation.view(), self.relation.select());
        match self.kind {
            Kind::PermissionLost => format!("GRANT SELECT ON {view} TO {relay}"),
            Kind::TextForNumber => recreated(self.relation, truth, relay),
            _ => format!("CREATE OR REPLACE VIEW {view} AS {truth}"),
        }
    }

    pub fn proof(self) -> Proof {
        match self.kind {
            Kind::PermissionLost => {
                Proof::Server(format!("permission denied for view {}", self.relation.view()))
            }
            Kind::TextForNumber => Proof::Relay(match self.relation {
                Relation::Credentials => "credentials.principal is text, wanted is int8",
                Relation::Grants => "grants.principal is text, wanted is int8",
                Relation::Devices => "devices.device is text, wanted is int8",
            }),
            _ => Proof::Server(self.mark()),
        }
    }

    /// The expected catcher of the change.
    pub fn caught_by(self, size: Size) -> CaughtBy {
        use Relation::{Credentials, Devices, Grants};
        let rule = |name: &str| CaughtBy::Rule(name.to_owned());
        match (self.kind, self.relation) {
            (Kind::TextForNumber, _) => rule("contract"),
            (Kind::PermissionLost | Kind::Timeout, _) => CaughtBy::Outage,
            (Kind::JoinFansOut, _) => rule("unique"),
            (Kind::EmptyAnswer | Kind::HalfTheRows | Kind::StaleReplica, _) => rule("loss"),
            (Kind::InvertedFlag, Credentials | Grants) => rule("loss"),
            (Kind::PredicateOnId | Kind::InvertedFlag | Kind::Nulls, Devices) => rule("location"),
            // Every key becomes somebody else's.
            (Kind::PredicateOnId, Credentials) => rule("replay"),
            (Kind::PredicateOnId, Grants) if size.is_smallest() => rule("replay"),
            (Kind::PredicateOnId, Grants) => rule("loss"),
            (Kind::SwappedColumns, Credentials) => rule("loss"),
            (Kind::SwappedColumns, Grants) if size.is_smallest() => rule("replay"),
            (Kind::SwappedColumns, Grants) => rule("references"),
            (Kind::Nulls | Kind::SwappedColumns, _) if size.is_smallest() => CaughtBy::Quarantine,
            (Kind::Nulls | Kind::SwappedColumns, _) => rule("decode"),
        }
    }

    /// True if only the guard stands between the change and the clients. Before the guard, rows that do not decode are
    /// set aside, and an answer that is none changes nothing.
    pub fn is_up_to_the_guard(self) -> bool {
        match self.kind {
            kind if !kind.gives_an_answer() => false,
            Kind::Nulls => self.relation == Relation::Devices,
            Kind::SwappedColumns => self.relation != Relation::Devices,
            _ => true,
        }
    }

    /// The text that the changed query leaves in the server's log.
    fn mark(self) -> String {
        format!("changed query: {self}")
    }

    /// The changed query.
    pub fn select(self) -> String {
        let mut sql = self.relation.select().to_owned();
        for (truth, changed) in self.edits() {
            assert!(sql.contains(truth), "{self}: there is no `{truth}`");
            sql = sql.replace(truth, changed);
        }
        let seconds = if self.kind == Kind::Timeout { 600 } else { 0 };
        sql.replace("WHERE", &format!("WHERE (SELECT ran('{}', {seconds})) AND", self.mark()))
    }

    /// Replacements in the true query, as pairs of old and new text.
    fn edits(self) -> Vec<(&'static str, &'static str)> {
        use Relation::{Credentials, Devices, Grants};
        match (self.kind, self.relation) {
            (Kind::PredicateOnId, Credentials) => vec![("= api_key.person", "= api_key.id")],
            (Kind::PredicateOnId, Grants) => vec![("= permission.person", "= permission.id")],
            (Kind::PredicateOnId, Devices) => vec![("vpn.unit = unit.id", "vpn.id = unit.id")],
            (Kind::InvertedFlag, _) => vec![("IS NOT NULL AS", "IS NULL AS")],
            (Kind::JoinFansOut, Devices) => {
                vec![("vpn.address AS", "CASE WHEN NOT is_old THEN vpn.address END AS"), FANNED_OUT]
            }
            (Kind::JoinFansOut, _) => {
                vec![("NULL::timestamptz", "CASE WHEN is_old THEN timestamptz '2020-01-01' END"), FANNED_OUT]
            }
            (Kind::EmptyAnswer, Credentials) => vec![("WHERE true", "WHERE api_key.id < 0")],
            (Kind::EmptyAnswer, Grants) => vec![("WHERE true", "WHERE permission.id < 0")],
            (Kind::EmptyAnswer, Devices) => vec![("WHERE true", "WHERE unit.id < 0")],
            (Kind::HalfTheRows, Credentials) => vec![("WHERE true", "WHERE api_key.person % 2 = 0")],
            (Kind::HalfTheRows, Grants) => vec![("WHERE true", "WHERE permission.id % 2 = 0")],
            (Kind::HalfTheRows, Devices) => vec![("WHERE true", "WHERE unit.id % 2 = 0")],
            (Kind::Nulls, Credentials) => vec![("person.id AS", "NULL::int8 AS")],
            (Kind::Nulls, Grants) => vec![("permission.unit AS", "NULL::int8 AS")],
            (Kind::Nulls, Devices) => vec![("vpn.address AS", "NULL::text AS")],
            (Kind::SwappedColumns, Credentials) => vec![("api_key.hash AS", "api_key.checksum AS")],
            (Kind::SwappedColumns, Grants) => vec![
                ("person.id AS principal", "permission.unit AS principal"),
                ("permission.unit AS target", "person.id AS target"),
            ],
            (Kind::SwappedColumns, Devices) => {
                vec![
                    ("unit.uuid AS uuid", "vpn.address AS uuid"),
                    ("vpn.address AS address", "unit.uuid AS address"),
                ]
            }
            (Kind::TextForNumber, Credentials | Grants) => vec![("person.id AS", "person.id::text AS")],
            (Kind::TextForNumber, Devices) => vec![("unit.id AS", "unit.id::text AS")],
            (Kind::StaleReplica, Credentials) => vec![("FROM api_key", "FROM yesterday_api_key AS api_key")],
            (Kind::StaleReplica, Grants) => {
                vec![("FROM permission", "FROM yesterday_permission AS permission")]
            }
            (Kind::StaleReplica, Devices) => vec![("FROM unit", "FROM yesterday_unit AS unit")],
            (Kind::Timeout | Kind::PermissionLost, _) => vec![],
        }
    }
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::PredicateOnId,
        Self::InvertedFlag,
        Self::JoinFansOut,
        Self::EmptyAnswer,
        Self::HalfTheRows,
        Self::Nulls,
        Self::SwappedColumns,
        Self::TextForNumber,
        Self::PermissionLost,
        Self::Timeout,
        Self::StaleReplica,
    ];

    /// True if the change is in a query, not in the database, and may come with a restart. Only some of those that
    /// may do: each takes the time of a restart.
    pub const fn may_be_deployed(self) -> bool {
        matches!(self, Self::PredicateOnId | Self::InvertedFlag | Self::EmptyAnswer | Self::TextForNumber)
    }

    pub const fn gives_an_answer(self) -> bool {
        !matches!(self, Self::TextForNumber | Self::PermissionLost | Self::Timeout)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::PredicateOnId => "predicate compared with an id",
            Self::InvertedFlag => "inverted flag",
            Self::JoinFansOut => "join that fans out",
            Self::EmptyAnswer => "empty answer",
            Self::HalfTheRows => "half the rows",
            Self::Nulls => "NULL in a column",
            Self::SwappedColumns => "swapped columns",
            Self::TextForNumber => "text for a number",
            Self::PermissionLost => "permission lost",
            Self::Timeout => "timeout",
            Self::StaleReplica => "stale replica",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.relation.name(), self.kind.name())
    }
}

impl fmt::Display for CaughtBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => write!(f, "rule {rule}"),
            Self::Quarantine => f.write_str("quarantine"),
            Self::Outage => f.write_str("outage"),
        }
    }
}

/// Puts a view with other types in the place of the one that is there.
fn recreated(relation: Relation, select: &str, relay: &str) -> String {
    let view = relation.view();
    format!(
        "BEGIN; DROP VIEW {view}; CREATE VIEW {view} AS {select}; GRANT SELECT ON {view} TO {relay}; COMMIT"
    )
}

/// Each row twice, the second as it was before.
const FANNED_OUT: (&str, &str) =
    ("WHERE true", "CROSS JOIN (VALUES (false), (true)) AS log (is_old) WHERE true");
