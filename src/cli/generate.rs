//! `sluicegate generate`, which packages are built with: what derives from the command line's own definition.

use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use clap_complete::{Shell, generate_to};

use super::CommandLine;
use super::output::CommandError;

#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// Manual pages, one per command.
    Man {
        /// An existing one.
        folder: PathBuf,
    },
    /// Completions for bash, zsh and fish.
    Completions {
        /// An existing one.
        folder: PathBuf,
    },
}

pub fn run(command: GenerateCommand) -> Result<(), CommandError> {
    let written = match &command {
        GenerateCommand::Man { folder } => clap_mangen::generate_to(CommandLine::command(), folder),
        GenerateCommand::Completions { folder } => {
            let mut shells = [Shell::Bash, Shell::Zsh, Shell::Fish].into_iter();
            let name = env!("CARGO_PKG_NAME");
            shells
                .try_for_each(|shell| generate_to(shell, &mut CommandLine::command(), name, folder).map(drop))
        }
    };
    let (GenerateCommand::Man { folder } | GenerateCommand::Completions { folder }) = command;
    written.map_err(|error| {
        CommandError::failed(format!("{} cannot be written to ({error}); is it a folder?", folder.display()))
    })
}
