//! One connection to a server, driven on the calling thread.
//!
//! This uses the asynchronous driver and not its blocking one. The blocking driver waits for an answer for as long as
//! the socket lives, and a server that stops in the middle of an answer keeps its socket alive. Here every wait has a
//! deadline.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A session on a server. It ends its connection when it is dropped.
pub(super) struct PostgresSession {
    client: Client,
    tls: MakeRustlsConnect,
    /// Gets one message for each notification. It is closed when the connection has ended.
    notifications: mpsc::Receiver<()>,
    /// Longest wait for the server to begin an answer, or to continue one.
    answer_timeout: Duration,
    /// `None` only while this is dropped.
    runtime: Option<Runtime>,
}

/// Result of listening to a server.
pub(super) enum ListenResult {
    Notification,
    Nothing,
    /// The connection has ended.
    Closed,
    /// The listening thread has to stop.
    Stop,
}

/// Error of a call on a session.
#[derive(Debug)]
pub(super) enum SessionError {
    /// The server or the driver failed.
    Driver(tokio_postgres::Error),
    /// The server gave no answer for that long.
    NoAnswer(Duration),
    /// The system did not give the runtime that a session needs.
    Runtime(std::io::Error),
}

pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl PostgresSession {
    /// Connects as `config` says. The time from the first packet to the end of the login is at most
    /// `connect_timeout`.
    pub(super) fn open(
        config: &tokio_postgres::Config,
        tls: &MakeRustlsConnect,
        connect_timeout: Duration,
        answer_timeout: Duration,
    ) -> Result<Self, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SessionError::Runtime)?;
        let connecting = async { timeout(connect_timeout, config.connect(tls.clone())).await };
        let (client, mut connection) = match runtime.block_on(connecting) {
            Ok(Ok(connected)) => connected,
            outcome => {
                // A thread of the runtime may still be resolving a name.
                runtime.shutdown_background();
                return Err(match outcome {
                    Ok(Err(error)) => SessionError::Driver(error),
                    _ => SessionError::NoAnswer(connect_timeout),
                });
            }
        };
        let (sender, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
        runtime.spawn(async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    // A full queue holds notifications already.
                    Ok(AsyncMessage::Notification(_)) => drop(sender.try_send(())),
                    Ok(AsyncMessage::Notice(notice)) => {
                        tracing::debug!("the server says: {}", notice.message());
                    }
                    Ok(_) => {}
                    // The driver reports this to the call that waits for an answer.
                    Err(_) => break,
                }
            }
        });
        Ok(Self { client, tls: tls.clone(), notifications, answer_timeout, runtime: Some(runtime) })
    }

    /// Runs statements that have no parameters and give no rows.
    pub(super) fn batch(&self, sql: &str) -> Result<(), SessionError> {
        self.run(self.client.batch_execute(sql))
    }

    pub(super) fn prepare(&self, sql: &str) -> Result<Statement, SessionError> {
        self.run(self.client.prepare(sql))
    }

    /// Runs a statement and returns the number of rows that it changed.
    pub(super) fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, SessionError> {
        self.run(self.client.execute(sql, params))
    }

    pub(super) fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, SessionError> {
        self.run(self.client.query(sql, params))
    }

    pub(super) fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, SessionError> {
        self.run(self.client.query_one(sql, params))
    }

    pub(super) fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, SessionError> {
        self.run(self.client.query_opt(sql, params))
    }

    /// Runs a prepared statement that gives one row.
    pub(super) fn prepared_one(
        &self,
        statement: &Statement,
        params: Params<'_>,
    ) -> Result<Row, SessionError> {
        self.run(self.client.query_one(statement, params))
    }

    /// Gives each row to `on_row` as it comes, so that no more than the driver's buffer is held.
    pub(super) fn for_each(
        &self,
        statement: &Statement,
        params: Params<'_>,
        mut on_row: impl FnMut(&Row),
    ) -> Result<(), SessionError> {
        self.block_on(async {
            let params = params.iter().map(|param| *param as &dyn ToSql);
            let rows = self.in_time(self.client.query_raw(statement, params)).await?;
            let mut rows = pin!(rows);
            while let Some(row) = self.in_time(async { rows.next().await.transpose() }).await? {
                on_row(&row);
            }
            Ok(())
        })
    }

    /// Waits for a notification, for at most `wait` and until `stopped` changes.
    pub(super) fn listen(&mut self, wait: Duration, stopped: &mut watch::Receiver<()>) -> ListenResult {
        let notifications = &mut self.notifications;
        let runtime = self.runtime.as_ref().expect("it is there until the session is dropped");
        runtime.block_on(async {
            let received = pin!(timeout(wait, notifications.recv()));
            match select(received, pin!(stopped.changed())).await {
                Either::Left((Ok(Some(())), _)) => ListenResult::Notification,
                Either::Left((Ok(None), _)) => ListenResult::Closed,
                Either::Left((Err(_elapsed), _)) => ListenResult::Nothing,
                Either::Right(_) => ListenResult::Stop,
            }
        })
    }

    fn run<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SessionError> {
        self.block_on(self.in_time(answer))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SessionError> {
        match timeout(self.answer_timeout, answer).await {
            Ok(answer) => answer.map_err(SessionError::Driver),
            Err(_elapsed) => Err(SessionError::NoAnswer(self.answer_timeout)),
        }
    }

    /// Runs `answer` to its end. A statement that gets no answer in time is cancelled on the server as well as that can
    /// be done, or it would continue and keep its locks.
    fn block_on<T>(&self, answer: impl Future<Output = Result<T, SessionError>>) -> Result<T, SessionError> {
        let runtime = self.runtime.as_ref().expect("it is there until the session is dropped");
        runtime.block_on(async {
            let answer = answer.await;
            if matches!(answer, Err(SessionError::NoAnswer(_))) {
                let token = self.client.cancel_token();
                drop(timeout(CANCEL_TIMEOUT, token.cancel_query(self.tls.clone())).await);
            }
            answer
        })
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // This does not wait for a thread that resolves a name.
            runtime.shutdown_background();
        }
    }
}

impl From<tokio_postgres::Error> for SessionError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Driver(error)
    }
}

/// Unread notifications that a session keeps. More of them would add nothing.
const NOTIFICATIONS_MAX: usize = 8;

/// Longest wait for a request to cancel a statement, which has a connection of its own.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
