//! Finds a server among the hosts of a URL and opens a session to it.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

use super::session::{PostgresSession, SessionError};
use super::state::ServerState;
use super::{PostgresName, tls};
use crate::config::postgres::{POSTGRES_PORT, TargetSession};
use crate::config::{PostgresUrl, SECRET_FILE_BYTES_MAX, Store, read_bounded};
use crate::store::StoreError;

/// Opens sessions to a store.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) name: PostgresName,
    url: PostgresUrl,
    password_file: Option<PathBuf>,
    connect_timeout: Duration,
    statement_timeout: Duration,
}

/// Purpose of a session.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// The server refuses any change that a query tries.
    Read,
    Write,
}

/// An open session and the server that it leads to.
pub(super) struct Connected {
    pub(super) session: PostgresSession,
    pub(super) host: usize,
    pub(super) state: ServerState,
}

impl Connector {
    pub(super) fn new(url: &PostgresUrl, store: &Store) -> Self {
        Self {
            name: PostgresName(url.to_string()),
            url: url.clone(),
            password_file: store.password_file.clone(),
            connect_timeout: url.driver().get_connect_timeout().copied().unwrap_or(store.connect_timeout),
            statement_timeout: store.statement_timeout,
        }
    }

    pub(super) fn target(&self) -> TargetSession {
        self.url.target
    }

    /// True if there is more than one host.
    pub(super) fn has_choice(&self) -> bool {
        self.hosts() > 1
    }

    /// Opens a session to the first host that answers, suits `target` and is at most `lag_max` behind. If all are
    /// behind, it opens one to the host that is least behind.
    pub(super) fn connect(
        &self,
        target: TargetSession,
        access: Access,
        lag_max: Duration,
    ) -> Result<Connected, StoreError> {
        let mut refusals = Vec::new();
        let mut behind: Option<Connected> = None;
        let fallback = (target == TargetSession::PreferStandby).then_some(TargetSession::Any);
        for target in std::iter::once(target).chain(fallback) {
            for host in 0..self.hosts() {
                match self.connect_to(host, target, access) {
                    Ok(connected) if connected.state.lag <= lag_max => return Ok(connected),
                    Ok(connected) => {
                        if behind.as_ref().is_none_or(|best| connected.state.lag < best.state.lag) {
                            behind = Some(connected);
                        }
                    }
                    Err(error) => refusals.push((host, error)),
                }
            }
        }
        behind.ok_or_else(|| self.refusal(refusals))
    }

    /// Opens a session to `host`, however far it is behind. Where standbys are preferred, a primary will do, too.
    pub(super) fn connect_to_one(
        &self,
        host: usize,
        target: TargetSession,
        access: Access,
    ) -> Result<Connected, StoreError> {
        let target = if target == TargetSession::PreferStandby { TargetSession::Any } else { target };
        self.connect_to(host, target, access)
    }

    /// Name of a host for log lines.
    pub(super) fn host_name(&self, host: usize) -> String {
        let driver = self.url.driver();
        let port = self.port(host);
        match (driver.get_hosts().get(host), driver.get_hostaddrs().get(host)) {
            (Some(Host::Tcp(name)), _) => format!("{name}:{port}"),
            (Some(Host::Unix(path)), _) => format!("{}:{port}", path.display()),
            (None, Some(address)) => format!("{address}:{port}"),
            (None, None) => format!("host {host}"),
        }
    }

    fn hosts(&self) -> usize {
        self.url.driver().get_hosts().len().max(self.url.driver().get_hostaddrs().len())
    }

    /// Opens a session to `host` if it suits `target`.
    fn connect_to(
        &self,
        host: usize,
        target: TargetSession,
        access: Access,
    ) -> Result<Connected, StoreError> {
        let error = |error: SessionError| self.name.error(error);
        let tls = tls::connector(&self.url.tls).map_err(|error| self.name.tls(error))?;
        let config = self.driver_config(host)?;
        let session = PostgresSession::open(&config, &tls, self.connect_timeout, self.statement_timeout)
            .map_err(error)?;
        let state = ServerState::query(&session).map_err(error)?;
        if !state.suits(target) {
            let what = if state.is_standby { "a standby" } else { "a primary" };
            let detail = format!("is {what}, which target_session_attrs does not want");
            return Err(self.name.unreachable(detail));
        }
        let read_only = match access {
            Access::Read => "on",
            Access::Write => "off",
        };
        session
            .batch(&format!(
                "SET statement_timeout = {}; SET lock_timeout = {}; \
                 SET idle_in_transaction_session_timeout = {}; SET default_transaction_read_only = {read_only}",
                self.statement_timeout.as_millis(),
                LOCK_TIMEOUT.as_millis(),
                IDLE_IN_TRANSACTION_TIMEOUT.as_millis(),
            ))
            .map_err(error)?;
        fix_search_path(&session).map_err(error)?;
        Ok(Connected { session, host, state })
    }

    /// The driver's configuration for one host, with the timeouts that notice a dead one.
    fn driver_config(&self, host: usize) -> Result<tokio_postgres::Config, StoreError> {
        let url = self.url.driver();
        let mut config = tokio_postgres::Config::new();
        config.user(url.get_user().unwrap_or_default());
        config.dbname(url.get_dbname().or(url.get_user()).unwrap_or_default());
        config.application_name(url.get_application_name().unwrap_or(APPLICATION_NAME));
        if let Some(options) = url.get_options() {
            config.options(options);
        }
        if let Some(password) = self.password()? {
            config.password(password);
        }
        let mut ssl_mode = tls::driver_mode(self.url.tls.mode);
        match url.get_hosts().get(host) {
            Some(Host::Tcp(name)) => {
                config.host(name);
            }
            Some(Host::Unix(path)) => {
                config.host_path(path);
                // libpq does the same: nobody is between the ends of a local socket.
                ssl_mode = SslMode::Disable;
            }
            None => {}
        }
        if let Some(address) = url.get_hostaddrs().get(host) {
            config.hostaddr(*address);
        }
        config.port(self.port(host));
        config.ssl_mode(ssl_mode);
        config.ssl_negotiation(url.get_ssl_negotiation());
        config.channel_binding(url.get_channel_binding());
        config.connect_timeout(self.connect_timeout);
        config.keepalives(true);
        config.keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL);
        config.keepalives_retries(KEEPALIVE_RETRIES);
        config.tcp_user_timeout(self.statement_timeout);
        Ok(config)
    }

    /// The password from the file, else from the URL, else from the environment. It is read each time, so that it can
    /// be changed.
    fn password(&self) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(path) = &self.password_file {
            let password = read_bounded(path, SECRET_FILE_BYTES_MAX).map_err(|error| {
                StoreError::PasswordFile { path: path.display().to_string(), detail: error.to_string() }
            })?;
            return Ok(Some(password.trim_ascii_end().to_vec()));
        }
        let from_url = self.url.driver().get_password().map(<[u8]>::to_vec);
        Ok(from_url.or_else(|| std::env::var_os("PGPASSWORD").map(|password| password.into_encoded_bytes())))
    }

    /// Port of a host. As with libpq, the URL has one port for each host, or one for all.
    fn port(&self, host: usize) -> u16 {
        let ports = self.url.driver().get_ports();
        ports.get(host).or(ports.last()).copied().unwrap_or(POSTGRES_PORT)
    }

    /// The error if no host will do. It names each host if there are several.
    fn refusal(&self, mut refusals: Vec<(usize, StoreError)>) -> StoreError {
        if refusals.len() == 1
            && let Some((_, refusal)) = refusals.pop()
        {
            return refusal;
        }
        let details: Vec<_> = refusals
            .into_iter()
            .map(|(host, refusal)| format!("{}: {}", self.host_name(host), refusal.detail()))
            .collect();
        self.name.unreachable(details.join("; "))
    }
}

/// Takes `"$user"` out of the session's search path, and puts temporary tables behind all others. A schema that is named
/// like the role would otherwise come first, and its tables would stand for those that the queries mean.
fn fix_search_path(session: &PostgresSession) -> Result<(), SessionError> {
    let path: String = session.query_one("SELECT current_setting('search_path')", &[])?.try_get(0)?;
    session.query("SELECT set_config('search_path', $1, false)", &[&without_user(&path)]).map(drop)
}

/// `path` without `"$user"`, and with `pg_temp` at its end.
fn without_user(path: &str) -> String {
    let mut is_quoted = false;
    let schemas = path.split(|letter| {
        is_quoted ^= letter == '"';
        letter == ',' && !is_quoted
    });
    let kept =
        schemas.map(str::trim).filter(|schema| !["", "$user", "\"$user\"", "pg_temp"].contains(schema));
    kept.chain(["pg_temp"]).collect::<Vec<_>>().join(", ")
}

/// Name of this node in the server's own lists, unless the URL has another.
const APPLICATION_NAME: &str = "sluicegate";

/// Longest wait for a table whose form somebody is changing. A read waits for no other lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest life of a transaction whose node has stopped in the middle of a read. Its snapshot must not keep the server from
/// vacuuming.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Idle time before the first keepalive. With the two values below, a connection that a firewall forgot is noticed
/// within half a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::without_user;

    #[test]
    fn a_schema_named_like_the_role_leaves_the_search_path() {
        for (path, expected) in [
            ("\"$user\", public", "public, pg_temp"),
            ("\"$user\"", "pg_temp"),
            ("", "pg_temp"),
            ("rights,$user", "rights, pg_temp"),
            ("pg_temp, \"a,b\", \"c\"\"$user\"", "\"a,b\", \"c\"\"$user\", pg_temp"),
        ] {
            assert_eq!(without_user(path), expected, "{path}");
        }
    }
}
