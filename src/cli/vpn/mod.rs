//! `sluicegate vpn`: what a VPN server calls, so that its devices' addresses are known.

mod address_file;
mod event;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::CommandError;
use address_file::AddressFile;
use event::{EventError, VpnEvent};

#[derive(Debug, Subcommand)]
pub enum VpnCommand {
    /// Keep a file of addresses, as OpenVPN's client-connect, client-disconnect, learn-address and up script.
    OpenvpnHook(HookArgs),
}

#[derive(Debug, Args)]
pub struct HookArgs {
    /// The file to keep, which `file:FILE` in the relay's vpn.addresses follows. Beside it are FILE.lock and, for a
    /// moment, FILE.new.
    #[arg(long, value_name = "FILE")]
    addresses: PathBuf,
    /// Let clients in whose common name is no device's uuid, and write nothing of them.
    #[arg(long)]
    ignore_unknown: bool,
    /// Wait so long for another one that writes the file; OpenVPN does nothing else meanwhile. Then the client is
    /// let in all the same, and its address is not written.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// What OpenVPN adds by itself.
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
    match AddressFile::change(&args.addresses, args.patience, |address_file| address_file.apply(event)) {
        Ok(()) => Ok(()),
        // To fail would be to shut the client out, for a fault of ours.
        Err(error) if error.is_passing() => {
            eprintln!("sluicegate: {error}");
            Ok(())
        }
        Err(error) => Err(CommandError::failed(error)),
    }
}
