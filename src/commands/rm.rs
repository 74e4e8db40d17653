//! `rynd rm`: removes a model from the cache, after a yes.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::numbers;
use super::terminal;
use crate::catalog::Catalog;

/// Remove a model from the cache
///
/// Also removes what an interrupted pull left. Files outside the cache are never touched.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd rm smollm2-135m                    asks first
  rynd rm --yes hf:owner/repo:Q4_K_M      one model of a repository
  rynd rm --yes hf:owner/repo             all of that repository")]
pub struct Arguments {
    /// A short name, or hf:owner/repo[@revision][:QUANT or FILE.gguf]
    model: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let catalog = Catalog::open()?;
    let model = catalog.find(&arguments.model)?;
    let (paths, bytes) = catalog.removable(&model)?;
    if !arguments.yes && !agrees(&model.name(), paths.len(), bytes)? {
        writeln!(terminal::stderr(), "nothing was removed")?;
        return Ok(ExitCode::FAILURE);
    }
    let freed = catalog.remove(&model)?;
    writeln!(terminal::stderr(), "removed {} ({})", model.name(), numbers::bytes(freed))?;
    Ok(ExitCode::SUCCESS)
}

fn agrees(name: &str, files: usize, bytes: u64) -> Result<bool> {
    let mut stderr = terminal::stderr();
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        bail!("'rynd rm' asks before it removes, and nobody can answer here; add --yes");
    }
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    write!(stderr, "Remove {name} ({files}, {})? [y/N] ", numbers::bytes(bytes))?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
