//! `sluicegate drain`: takes a running relay out of service for a while, and back.

use std::time::Duration;

use clap::Args;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError, OutputFormat, rfc3339};
use crate::admin::api::{DrainBegun, DrainEnded, DrainRequest};
use crate::admin::routes;

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Serve new clients again after this time, such as 10m. Without it: on --cancel, or after a restart.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Option<Duration>,
    /// Serve new clients again.
    #[arg(long, conflicts_with = "lasts")]
    cancel: bool,
}

pub(super) fn run(args: &DrainArgs, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    if args.cancel {
        let document = relay.post(routes::DRAIN_CANCEL)?;
        let DrainEnded { was_draining } = document.read()?;
        let text = if was_draining { "new clients are served again" } else { "the relay did not drain" };
        return CommandAnswer::done(text, document.json).print(output);
    }
    let document = relay.post_json(routes::DRAIN, &DrainRequest { lasts: args.lasts })?;
    let DrainBegun { lame_duck, until } = document.read()?;
    let until = match until {
        Some(until) => format!("all are served again from {}", rfc3339(until)),
        None => "`sluicegate drain --cancel` serves them again".to_owned(),
    };
    let lame_duck = humantime::format_duration(lame_duck);
    let text = format!(
        "/readyz says 503 now, and new clients are served for {lame_duck} more; then they are refused, and open \
         tunnels go on; {until}"
    );
    CommandAnswer::done(text, document.json).print(output)
}
