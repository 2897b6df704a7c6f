//! `sluicegate sessions`: lists the sessions of a running relay, or ends one.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, OutputFormat, print};
use super::principal_names::PrincipalNames;
use super::watch::{self, SessionFilter, SortKey, ago, bytes, rate, sort};
use crate::admin::api::{SessionInfo, SessionListing};
use crate::admin::routes;
use crate::authz::UnixMillis;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SessionsArgs {
    #[command(subcommand)]
    command: Option<SessionsCommand>,
    #[command(flatten)]
    filter: SessionFilter,
    /// Order of the list.
    #[arg(long, value_name = "KEY", default_value = "age")]
    sort: SortKey,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SessionsCommand {
    /// End a session; both sides get a reset. The audit log records it.
    Kill {
        /// Id of the session, as in `sluicegate sessions` and the audit log.
        id: u64,
    },
}

pub fn run(args: &SessionsArgs, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    match args.command {
        Some(SessionsCommand::Kill { id }) => {
            let ended = relay.post(&routes::session_end(&id.to_string()))?;
            CommandAnswer::done(format!("ended session {id}"), ended.json).print(output)
        }
        None => list(args, &relay, &PrincipalNames::read(&loaded.config), output),
    }
}

fn list(
    args: &SessionsArgs,
    relay: &AdminClient,
    names: &PrincipalNames,
    output: OutputFormat,
) -> Result<(), CommandError> {
    let principal = args.filter.principal.as_deref().map(|wanted| {
        names.find(wanted).ok_or_else(|| {
            CommandError::failed(format!(
                "no principal is named `{wanted}`; `sluicegate principal list` shows them all"
            ))
        })
    });
    let principal = principal.transpose()?;
    if args.sort == SortKey::Rate {
        // The relay computes rates from two lists.
        relay.sessions()?;
        std::thread::sleep(RATE_PERIOD);
    }
    let SessionListing { mut sessions, left_out } = relay.sessions()?;
    sessions.retain(|session| args.filter.fits(session, principal));
    sort(&mut sessions, args.sort);
    // The relay may not have read the names yet.
    for session in &mut sessions {
        let name = session.principal.and_then(|id| names.name(id)).map(str::to_owned);
        session.principal_name = name.or(session.principal_name.take());
    }
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

fn table(sessions: &[SessionInfo]) -> AnswerTable {
    let now = UnixMillis::now();
    let rows = sessions.iter().map(|session| {
        vec![
            Cell::from(session.id.to_string()),
            Cell::from(watch::client(session)),
            Cell::from(watch::principal(session)),
            Cell::from(session.credential.map(|credential| credential.to_string())),
            Cell::from(watch::target(session)),
            Cell::from(session.state.to_string()),
            Cell::from(ago(now, session.since)),
            Cell::from(bytes(session.bytes_up)),
            Cell::from(bytes(session.bytes_down)),
            Cell::from(rate(session.rate_up)),
            Cell::from(rate(session.rate_down)),
            Cell::from(watch::paths(session)),
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

/// Time between the two lists that rates are computed from. Longer than the relay serves one list again.
const RATE_PERIOD: Duration = Duration::from_millis(500);
