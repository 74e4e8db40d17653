//! `rynd experts`: what a model's router picks, and how well a part of the experts would do in fast memory.

mod html;
mod record;
mod replay;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::experts::Trace;

/// Record, look at and replay what the router of a mixture-of-experts model picks
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd experts record MODEL -f src/main.rs -o rust.trace.gz
  rynd experts show rust.trace.gz
  rynd experts show rust=rust.trace.gz python=python.trace.gz --html experts.html
  rynd experts replay rust.trace.gz --vram 10%,20%,40%
  rynd experts replay rust.trace.gz --vram 24G --ram 64G --policy crf-gate,lru,belady --json")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Record(Box<record::Arguments>),
    Show(show::Arguments),
    Replay(replay::Arguments),
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Record(arguments) => record::run(arguments),
        Command::Show(arguments) => show::run(arguments),
        Command::Replay(arguments) => replay::run(arguments),
    }
}

/// Reads a trace; one of a text that was only read counts as generated.
fn read_trace(path: &Path) -> Result<Trace> {
    let bytes = std::fs::read(path).with_context(|| format!("can not read {}", path.display()))?;
    Ok(Trace::parse(&bytes).with_context(|| path.display().to_string())?.as_decode())
}
