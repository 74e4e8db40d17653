//! `rynd completions`: the shell's completion script on stdout.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd completions bash > ~/.local/share/bash-completion/completions/rynd
  rynd completions fish > ~/.config/fish/completions/rynd.fish")]
pub struct Arguments {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    // Into memory first: the generator panics when its writer fails, as a closed pipe does.
    let mut script = vec![];
    clap_complete::generate(arguments.shell, &mut super::Cli::command(), "rynd", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
