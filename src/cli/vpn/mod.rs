//! `sluicegate vpn`: hooks that a VPN server runs, so that the relay knows the addresses of devices.

mod address_table;
mod event;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::CommandError;
use address_table::AddressTable;
use event::{EventError, VpnEvent};

#[derive(Debug, Subcommand)]
pub enum VpnCommand {
    /// Keep a file of device addresses. OpenVPN runs this as its client-connect, client-disconnect, learn-address
    /// and up script.
    OpenvpnHook(HookArgs),
}

#[derive(Debug, Args)]
pub struct HookArgs {
    /// File to keep; vpn.addresses of the relay names it as file:FILE. FILE.lock and, for a moment, FILE.new are
    /// beside it.
    #[arg(long, value_name = "FILE")]
    addresses: PathBuf,
    /// Let clients in whose common name is not a device uuid, and write nothing about them.
    #[arg(long)]
    ignore_unknown: bool,
    /// Time to wait for another process that writes the file; OpenVPN waits meanwhile. After it, the client is let
    /// in, and its address is not written.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Arguments that OpenVPN adds.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(command: VpnCommand) -> Result<(), CommandError> {
    let VpnCommand::OpenvpnHook(args) = command;
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let event = match VpnEvent::read(variable, &args.arguments) {
        Ok(event) => event,
        Err(EventError::Unknown { .. }) if args.ignore_unknown => return Ok(()),
        Err(error) => return Err(CommandError::failed(error)),
    };
    match AddressTable::change(&args.addresses, args.patience, |address_table| address_table.apply(event)) {
        Ok(()) => Ok(()),
        // Exit with success, or OpenVPN would refuse the client because of our problem.
        Err(error) if error.is_passing() => {
            eprintln!("sluicegate: {error}");
            Ok(())
        }
        Err(error) => Err(CommandError::failed(error)),
    }
}
