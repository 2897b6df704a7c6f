//! The different spellings of PostgreSQL and SQLite in statements on the reference schema.
//!
//! A statement is written once, in SQL that both know, with these marks for the rest:
//!
//! | mark | meaning |
//! |---|---|
//! | `$1` | the first parameter |
//! | `{schema}` | stands before the name of each table |
//! | `{now}` | the store's current time |
//! | `{by_bytes}` | sorts a text by its bytes |
//! | `{heartbeat_age_ms}`, `{rival_age_ms}` | milliseconds since `heartbeat_at`, since `rival_at` |
//! | `{millisecond}` | the factor that turns a number of milliseconds into a span of time |
//! | `{address}` | the type of an IP address |
//! | `{outbox_sha256}`, `{outbox_id}` | the outbox's column with the key of a credential, of another row |
//! | `{json_array_2}` | rows with a column `value`, one for each element of the JSON array `$2` |

/// The spelling of one kind of store.
pub(super) struct Dialect {
    parameter: &'static str,
    schema: &'static str,
    now: &'static str,
    by_bytes: &'static str,
    heartbeat_age_ms: &'static str,
    rival_age_ms: &'static str,
    millisecond: &'static str,
    address: &'static str,
    outbox_sha256: &'static str,
    outbox_id: &'static str,
    json_array_2: &'static str,
}

impl Dialect {
    /// Replaces the marks of `statement`, which has no `$` or brace beside them.
    pub(super) fn sql(&self, statement: &str) -> String {
        statement
            .replace('$', self.parameter)
            .replace("{schema}", self.schema)
            .replace("{now}", self.now)
            .replace("{by_bytes}", self.by_bytes)
            .replace("{heartbeat_age_ms}", self.heartbeat_age_ms)
            .replace("{rival_age_ms}", self.rival_age_ms)
            .replace("{millisecond}", self.millisecond)
            .replace("{address}", self.address)
            .replace("{outbox_sha256}", self.outbox_sha256)
            .replace("{outbox_id}", self.outbox_id)
            .replace("{json_array_2}", self.json_array_2)
    }
}

pub(super) const POSTGRES: Dialect = Dialect {
    parameter: "$",
    schema: "sluicegate.",
    now: "now()",
    by_bytes: "COLLATE \"C\"",
    heartbeat_age_ms: "CAST(EXTRACT(EPOCH FROM now() - heartbeat_at) * 1000 AS bigint)",
    rival_age_ms: "CAST(EXTRACT(EPOCH FROM now() - rival_at) * 1000 AS bigint)",
    millisecond: "interval '1 millisecond'",
    address: "inet",
    outbox_sha256: "key_sha256",
    outbox_id: "key_id",
    json_array_2: "jsonb_array_elements(CAST(CAST($2 AS text) AS jsonb)) AS element (value)",
};

/// Times are milliseconds since 1970 here; SQLite has no type for them.
pub(super) const SQLITE: Dialect = Dialect {
    parameter: "?",
    schema: "",
    now: "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
    by_bytes: "COLLATE BINARY",
    heartbeat_age_ms: "CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - heartbeat_at",
    rival_age_ms: "CAST(round(unixepoch('subsec') * 1000) AS INTEGER) - rival_at",
    millisecond: "1",
    address: "text",
    outbox_sha256: "key",
    outbox_id: "key",
    json_array_2: "json_each(?2) AS element",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_replaced_by_the_stores_spelling() {
        let statement = "UPDATE {schema}grants SET revoked_at = {now} WHERE id = $1";
        assert_eq!(POSTGRES.sql(statement), "UPDATE sluicegate.grants SET revoked_at = now() WHERE id = $1");
        assert_eq!(
            SQLITE.sql(statement),
            "UPDATE grants SET revoked_at = CAST(round(unixepoch('subsec') * 1000) AS INTEGER) WHERE id = ?1"
        );
    }
}
