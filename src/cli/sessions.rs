//! `sluicegate sessions`: who is connected to what on a running relay, and the end of one of them.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, OutputFormat, print};
use super::watch::{Filter, Session, SessionList, SortKey, ago, bytes, rate, sort};
use crate::admin::routes;
use crate::authz::UnixMillis;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SessionsArgs {
    #[command(subcommand)]
    command: Option<SessionsCommand>,
    #[command(flatten)]
    filter: Filter,
    /// What goes first.
    #[arg(long, value_name = "KEY", default_value = "age")]
    sort: SortKey,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SessionsCommand {
    /// End a session: both sides get a reset. Written to the audit log.
    Kill {
        /// As `sluicegate sessions` and the audit log name it.
        id: u64,
    },
}

pub fn run(args: &SessionsArgs, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    match args.command {
        Some(SessionsCommand::Kill { id }) => {
            let facts = relay.post(&routes::session_end(&id.to_string()))?;
            CommandAnswer::done(format!("ended session {id}"), facts).print(output)
        }
        None => list(args, &relay, output),
    }
}

fn list(args: &SessionsArgs, relay: &AdminClient, output: OutputFormat) -> Result<(), CommandError> {
    if args.sort == SortKey::Rate {
        // A rate is what lies between two lists.
        SessionList::read(relay)?;
        std::thread::sleep(BETWEEN);
    }
    let SessionList { mut sessions, left_out } = SessionList::read(relay)?;
    sessions.retain(|session| args.filter.fits(session));
    sort(&mut sessions, args.sort);
    if left_out > 0 {
        eprintln!("{left_out} sessions began while the list was made, and are not on it");
    }
    match output {
        OutputFormat::Json => {
            let json = serde_json::to_value(&sessions).map_err(CommandError::failed)?;
            print(&format!("{json:#}\n"))
        }
        OutputFormat::Text => CommandAnswer::Table(table(&sessions)).print(output),
    }
}

fn table(sessions: &[Session]) -> AnswerTable {
    let now = UnixMillis::now().0;
    let rows = sessions.iter().map(|session| {
        vec![
            Cell::from(session.id.clone()),
            Cell::from(session.client.clone()),
            session.principal.map_or(Cell::Empty, Cell::Number),
            Cell::from(session.credential.clone()),
            Cell::from(session.target()),
            Cell::from(session.state.clone()),
            Cell::from(ago(now, session.since)),
            Cell::from(bytes(session.bytes_up)),
            Cell::from(bytes(session.bytes_down)),
            Cell::from(rate(session.rate_up)),
            Cell::from(rate(session.rate_down)),
            Cell::from(session.paths()),
        ]
    });
    let columns = &[
        "id",
        "client",
        "principal",
        "credential",
        "device",
        "state",
        "age",
        "up",
        "down",
        "up/s",
        "down/s",
        "path",
    ];
    AnswerTable { columns, rows: rows.collect() }
}

/// Longer than the relay keeps a list for others.
const BETWEEN: Duration = Duration::from_millis(500);
