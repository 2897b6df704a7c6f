//! What others may ask of the control thread: what is held, to accept it, to go back.
//!
//! Asked through a bounded queue and answered between two reads, so that nothing here needs a lock.

use std::borrow::Cow;

use crossbeam::channel::Sender;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::guard::{Changed, Difference, Hold, Rule};
use super::hold::HoldStatus;
use crate::authz::{Credential, Device, Generation, Grant, Scope};
use crate::config::{Config, Queries};
use crate::store::{Relation, RowKey, StoreError};

/// A way to ask, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    pub(super) queue: Sender<Request>,
}

/// A request, and the sender for its reply.
pub(super) enum Request {
    Diff(oneshot::Sender<Result<DiffReport, GuardCommandError>>),
    Accept(oneshot::Sender<Result<AcceptedHold, GuardCommandError>>),
    RollBack(oneshot::Sender<Result<RolledBack, GuardCommandError>>),
    /// Asks what these queries would change in place of the ones that they replace.
    Compare(Queries, oneshot::Sender<Result<DiffReport, QueriesError>>),
    Reload(Box<Config>, oneshot::Sender<Result<(), QueriesError>>),
}

/// Reason why a command failed; each text ends in what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuardCommandError {
    #[error("nothing is held: what the store says is in force")]
    NothingHeld,
    #[error("there is nothing to accept: the store breaks the contract; mend the query or the schema")]
    NoCandidate,
    #[error("there is nothing to go back to: no publication is on probation any more")]
    NoHistory,
    #[error("nothing is in force yet; `sluicegate authz status` says why")]
    NothingInForce,
    #[error("the control thread is busy; try again")]
    Busy,
    #[error("the control thread has ended; restart the relay")]
    Gone,
}

/// Reason why queries were not compared, or not applied; each text ends in what to do.
#[derive(Debug, thiserror::Error)]
pub enum QueriesError {
    #[error(transparent)]
    Command(#[from] GuardCommandError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the guard refuses the changed queries by {0}; `sluicegate authz diff --candidate` lists what they change"
    )]
    Refused(Hold),
}

/// The result of `authz accept`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptedHold {
    /// Rule that held it.
    pub rule: Rule,
    pub figures: String,
    /// Rows that changed by it.
    pub rows: usize,
    pub generation: Generation,
}

/// The result of `authz rollback`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RolledBack {
    pub from: Generation,
    pub to: Generation,
}

/// The changes that a publication of the store's answer would make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiffReport {
    pub hold: Option<HoldStatus>,
    pub credentials: DiffCounts,
    pub grants: DiffCounts,
    pub devices: DiffCounts,
    /// Devices that can be dialled and no longer could.
    pub devices_unlocated: usize,
    /// Rows that differ, at most [`DIFF_ROWS_MAX`].
    pub rows: Vec<DiffRow>,
}

#[derive(Clone, Copy, Default, Debug, Serialize, Deserialize)]
pub struct DiffCounts {
    pub gone: usize,
    pub new: usize,
    pub changed: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiffRow {
    pub relation: Cow<'static, str>,
    /// Name of the row, as in listings.
    pub row: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl Commands {
    pub async fn diff(&self) -> Result<DiffReport, GuardCommandError> {
        self.request(Request::Diff).await
    }

    pub async fn accept(&self) -> Result<AcceptedHold, GuardCommandError> {
        self.request(Request::Accept).await
    }

    pub async fn roll_back(&self) -> Result<RolledBack, GuardCommandError> {
        self.request(Request::RollBack).await
    }

    /// Returns what `candidate` would change, and whether the guard would hold it. Relations that it does not name
    /// keep their queries.
    pub async fn compare(&self, candidate: Queries) -> Result<DiffReport, QueriesError> {
        self.request(|answer| Request::Compare(candidate, answer)).await
    }

    /// Takes over what of `config` concerns the control thread, all of it or nothing. Waits for the answer, and
    /// so is not for an asynchronous caller.
    pub fn reload(&self, config: Config) -> Result<(), QueriesError> {
        self.send(|answer| Request::Reload(Box::new(config), answer))?
            .blocking_recv()
            .unwrap_or_else(|_| Err(GuardCommandError::Gone.into()))
    }

    async fn request<T, E: From<GuardCommandError>>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Request,
    ) -> Result<T, E> {
        self.send(request)?.await.unwrap_or(Err(GuardCommandError::Gone.into()))
    }

    fn send<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, GuardCommandError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(request(answer)).map_err(|error| {
            if error.is_full() { GuardCommandError::Busy } else { GuardCommandError::Gone }
        })?;
        Ok(answered)
    }
}

impl DiffReport {
    pub(super) fn of(difference: &Difference, hold: Option<HoldStatus>, node: Option<&str>) -> Self {
        let Difference { credentials, grants, devices } = difference;
        let is_located =
            |device: &Option<Device>| device.as_ref().is_some_and(|row| row.location(node).is_some());
        let unlocated = devices.iter().filter(|row| is_located(&row.before) && !is_located(&row.after));
        let key_of_credential = |row: &Credential| RowKey::Credential(row.key);
        let rows = diff_rows(credentials, key_of_credential, show_credential)
            .chain(diff_rows(grants, |row| RowKey::Grant(row.id), show_grant))
            .chain(diff_rows(devices, |row| RowKey::Device(row.id), show_device));
        Self {
            hold,
            credentials: DiffCounts::of(credentials),
            grants: DiffCounts::of(grants),
            devices: DiffCounts::of(devices),
            devices_unlocated: unlocated.count(),
            rows: rows.take(DIFF_ROWS_MAX).collect(),
        }
    }

    pub fn by_relation(&self) -> [(&'static str, DiffCounts); 3] {
        [
            (Relation::Credentials.name(), self.credentials),
            (Relation::Grants.name(), self.grants),
            (Relation::Devices.name(), self.devices),
        ]
    }
}

impl DiffCounts {
    fn of<R>(rows: &[Changed<R>]) -> Self {
        let mut counts = Self::default();
        for row in rows {
            match (&row.before, &row.after) {
                (Some(_), Some(_)) => counts.changed += 1,
                (None, _) => counts.new += 1,
                (_, None) => counts.gone += 1,
            }
        }
        counts
    }

    pub const fn total(self) -> usize {
        self.gone + self.new + self.changed
    }
}

fn diff_rows<'a, R>(
    rows: &'a [Changed<R>],
    key: impl Fn(&R) -> RowKey + 'a,
    show: fn(&R) -> String,
) -> impl Iterator<Item = DiffRow> + 'a {
    rows.iter().filter_map(move |row| {
        let key = key(row.after.as_ref().or(row.before.as_ref())?);
        let (relation, shown) = (key.relation().name(), key.to_string());
        let row_name = shown.strip_prefix(relation).unwrap_or(&shown).trim().to_owned();
        Some(DiffRow {
            relation: relation.into(),
            row: row_name,
            before: row.before.as_ref().map(show),
            after: row.after.as_ref().map(show),
        })
    })
}

fn show_credential(row: &Credential) -> String {
    format!("principal {}{}", row.principal.0, show_end(row.expires_at.map(|end| end.0), row.revoked))
}

fn show_grant(row: &Grant) -> String {
    let scope = match row.scope {
        Scope::Any => "any device".to_owned(),
        Scope::Fleet(id) => format!("fleet {}", id.0),
        Scope::Device(id) => format!("device {}", id.0),
    };
    let end = show_end(row.expires_at.map(|end| end.0), row.revoked);
    format!("principal {}, {scope}, ports {}-{}{end}", row.principal.0, row.ports.min(), row.ports.max())
}

fn show_device(row: &Device) -> String {
    let address = row.address.map_or("no address".to_owned(), |address| address.to_string());
    let fleet = row.fleet.map(|fleet| format!(", fleet {}", fleet.0)).unwrap_or_default();
    let node = row.node.as_ref().map(|node| format!(", on {node}")).unwrap_or_default();
    let online = if row.online { "" } else { ", offline" };
    format!("{} at {address}{fleet}{node}{online}", row.uuid)
}

fn show_end(expires_at_ms: Option<i64>, revoked: bool) -> String {
    let end = expires_at_ms.map(|end| format!(", until {end} ms")).unwrap_or_default();
    if revoked { format!("{end}, revoked") } else { end }
}

/// Rows that a report lists. Counts are of all.
pub const DIFF_ROWS_MAX: usize = 1_000;

/// Requests that wait for the control thread.
pub(super) const REQUESTS_MAX: usize = 8;
