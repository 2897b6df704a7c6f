//! `sluicegate generate`: writes files for packages that are made from the definition of the command line.

use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};
use clap_complete::{Shell, generate_to};

use super::CommandLine;
use super::manual;
use super::output::CommandError;

#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// Write manual pages: one per command, and the one of the configuration, sluicegate.toml(5).
    Man {
        /// Folder to write to; it must exist.
        folder: PathBuf,
    },
    /// Write completions for bash, zsh and fish.
    Completions {
        /// Folder to write to; it must exist.
        folder: PathBuf,
    },
}

pub fn run(command: GenerateCommand) -> Result<(), CommandError> {
    let written = match &command {
        GenerateCommand::Man { folder } => manual::pages(CommandLine::command()).and_then(|pages| {
            pages.iter().try_for_each(|page| std::fs::write(folder.join(&page.file), &page.roff))
        }),
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
