//! One connection to a server, driven on the calling thread.
//!
//! Built on the asynchronous driver and not on its blocking face, because that one waits for an answer for
//! as long as the socket lives, and a server that stops in the middle of one keeps its socket alive. Here
//! every wait has a deadline.

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

/// See the module. Ends its connection when it is dropped.
pub(super) struct Session {
    client: Client,
    tls: MakeRustlsConnect,
    /// One for each notification; closed when the connection has ended.
    notifications: mpsc::Receiver<()>,
    /// For the server to begin an answer, or to go on with one.
    patience: Duration,
    /// `None` only while this is dropped.
    runtime: Option<Runtime>,
}

/// What comes of listening to a server.
pub(super) enum Heard {
    Notification,
    Nothing,
    /// The connection has ended.
    End,
    /// Whoever listens is to stop.
    Stop,
}

/// Why a call on a session came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    Postgres(tokio_postgres::Error),
    /// No answer for that long.
    Silent(Duration),
    /// This process could not make what it takes to speak to a server.
    Machine(std::io::Error),
}

pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Session {
    /// Connects as `config` says, in at most `connect_patience` from the first packet to the end of the
    /// login.
    pub(super) fn open(
        config: &tokio_postgres::Config,
        tls: &MakeRustlsConnect,
        connect_patience: Duration,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Machine)?;
        let connecting = async { timeout(connect_patience, config.connect(tls.clone())).await };
        let (client, mut connection) = match runtime.block_on(connecting) {
            Ok(Ok(connected)) => connected,
            outcome => {
                // A name may still be looked up on a thread of the runtime's.
                runtime.shutdown_background();
                return Err(match outcome {
                    Ok(Err(error)) => Failure::Postgres(error),
                    _ => Failure::Silent(connect_patience),
                });
            }
        };
        let (sender, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
        runtime.spawn(async move {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                match message {
                    // A full queue says what one more would say.
                    Ok(AsyncMessage::Notification(_)) => drop(sender.try_send(())),
                    Ok(AsyncMessage::Notice(notice)) => {
                        tracing::debug!("the server says: {}", notice.message());
                    }
                    Ok(_) => {}
                    // Whoever waits for an answer is told; nobody else needs to know.
                    Err(_) => break,
                }
            }
        });
        Ok(Self { client, tls: tls.clone(), notifications, patience, runtime: Some(runtime) })
    }

    /// Runs statements that have no parameters and give no rows.
    pub(super) fn batch(&self, sql: &str) -> Result<(), Failure> {
        self.run(self.client.batch_execute(sql))
    }

    pub(super) fn prepare(&self, sql: &str) -> Result<Statement, Failure> {
        self.run(self.client.prepare(sql))
    }

    /// How many rows it changed.
    pub(super) fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Failure> {
        self.run(self.client.execute(sql, params))
    }

    pub(super) fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Failure> {
        self.run(self.client.query(sql, params))
    }

    pub(super) fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, Failure> {
        self.run(self.client.query_one(sql, params))
    }

    pub(super) fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, Failure> {
        self.run(self.client.query_opt(sql, params))
    }

    /// As [`Session::query_one`], of a statement that was prepared.
    pub(super) fn prepared_one(&self, statement: &Statement, params: Params<'_>) -> Result<Row, Failure> {
        self.run(self.client.query_one(statement, params))
    }

    /// Gives each row to `take` as it comes, so that no more than the driver's buffer is held.
    pub(super) fn for_each(
        &self,
        statement: &Statement,
        params: Params<'_>,
        mut take: impl FnMut(&Row),
    ) -> Result<(), Failure> {
        self.block_on(async {
            let params = params.iter().map(|param| *param as &dyn ToSql);
            let rows = self.in_time(self.client.query_raw(statement, params)).await?;
            let mut rows = pin!(rows);
            while let Some(row) = self.in_time(async { rows.next().await.transpose() }).await? {
                take(&row);
            }
            Ok(())
        })
    }

    /// Waits for a notification, for `patience`, and until `stopped` changes.
    pub(super) fn listen(&mut self, patience: Duration, stopped: &mut watch::Receiver<()>) -> Heard {
        let notifications = &mut self.notifications;
        let runtime = self.runtime.as_ref().expect("it is there until the session is dropped");
        runtime.block_on(async {
            let heard = pin!(timeout(patience, notifications.recv()));
            match select(heard, pin!(stopped.changed())).await {
                Either::Left((Ok(Some(())), _)) => Heard::Notification,
                Either::Left((Ok(None), _)) => Heard::End,
                Either::Left((Err(_elapsed), _)) => Heard::Nothing,
                Either::Right(_) => Heard::Stop,
            }
        })
    }

    fn run<T>(&self, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failure> {
        self.block_on(self.in_time(answer))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        match timeout(self.patience, answer).await {
            Ok(answer) => answer.map_err(Failure::Postgres),
            Err(_elapsed) => Err(Failure::Silent(self.patience)),
        }
    }

    /// A statement that is given up is cancelled too, as well as that can be done: it would go on and hold
    /// what it holds, for nobody.
    fn block_on<T>(&self, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let runtime = self.runtime.as_ref().expect("it is there until the session is dropped");
        runtime.block_on(async {
            let answer = answer.await;
            if matches!(answer, Err(Failure::Silent(_))) {
                let token = self.client.cancel_token();
                drop(timeout(CANCEL_PATIENCE, token.cancel_query(self.tls.clone())).await);
            }
            answer
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not to wait for a thread that looks a name up.
            runtime.shutdown_background();
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

/// Unread notifications that a session keeps; more have nothing to add.
const NOTIFICATIONS_MAX: usize = 8;

/// For a request to cancel what did not answer, over a connection of its own.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);
