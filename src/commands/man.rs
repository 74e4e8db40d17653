//! `rynd man`: the manual page of the program or of one command, as roff on stdout.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

/// Print a manual page
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd man > ~/.local/share/man/man1/rynd.1
  rynd man run | man -l -")]
pub struct Arguments {
    /// The command; without it, the page of the whole program
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = super::Cli::command();
    command.build();
    if let Some(name) = &arguments.command {
        let found = command.find_subcommand(name).cloned();
        command = found.with_context(|| format!("there is no command '{name}'; 'rynd help' lists them"))?;
    }
    let mut page = vec![];
    clap_mangen::Man::new(command).render(&mut page)?;
    std::io::stdout().lock().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}
