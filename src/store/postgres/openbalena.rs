//! Profile `openbalena`: the queries on an openBalena database.
//!
//! That schema is not ours and has no outbox. It is read whole and compared. The queries name the tables with their
//! schema, `public`, whatever the session's `search_path` is: a role may have a schema of its own name.

use tokio_postgres::Row;

pub(super) const CREDENTIALS: &str = include_str!("openbalena/credentials.sql");

/// API keys, and the secrets that users log in by. These are read only if session tokens are accepted by them.
pub(super) const CREDENTIALS_AND_LOGINS: &str =
    concat!(include_str!("openbalena/credentials.sql"), include_str!("openbalena/logins.sql"));

pub(super) const GRANTS: &str =
    concat!(include_str!("openbalena/rights.sql"), include_str!("openbalena/grants.sql"));

/// The same grants, and those of the roles that a login can be limited to.
pub(super) const GRANTS_AND_ROLES: &str = concat!(
    include_str!("openbalena/rights.sql"),
    include_str!("openbalena/grants.sql"),
    include_str!("openbalena/roles.sql")
);

pub(super) const DEVICES: &str = include_str!("openbalena/devices.sql");

/// Permissions that grant nothing, since their filter is not understood. Columns: `permission, holders`.
pub(super) const NOT_UNDERSTOOD: &str =
    concat!(include_str!("openbalena/rights.sql"), include_str!("openbalena/not_understood.sql"));

/// Describes one row of [`NOT_UNDERSTOOD`] for a person.
pub(super) fn describe(row: &Row) -> String {
    let permission = row.try_get::<_, &str>(0).unwrap_or("a permission that is no text");
    let holders = row.try_get::<_, i64>(1).unwrap_or_default();
    let permission: String = permission.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    format!("`{permission}`, held {holders} times")
}

/// Characters of a permission's name that are shown. The name may hold a long filter.
const SHOWN_CHARS_MAX: usize = 120;
