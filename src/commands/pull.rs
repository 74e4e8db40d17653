//! `rynd pull`: fetches a model into the cache, with progress on stderr and the path of its first file on stdout.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::terminal;
use super::{interrupt, obtain};
use crate::catalog::Catalog;

/// Fetch a model into the cache
///
/// Sources are tried in order and every failure is told. What an interrupted pull left is used by the next one; a file
/// gets its final name only after its sha256 was verified.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rynd pull                                                the default model
  rynd pull qwen3-coder-30b                                a short name; 'rynd list' shows all
  rynd pull hf:Qwen/Qwen2.5-Coder-3B-Instruct-GGUF         a repository, its Q4_K_M files
  rynd pull hf:unsloth/Qwen3-Coder-Next-GGUF:UD-IQ4_XS     another quantisation
  rynd pull hf:owner/repo@revision:folder/model.gguf       one file of one revision

Environment:
  HF_TOKEN       for private and gated repositories
  HF_ENDPOINT    a mirror of the Hugging Face hub
  HTTPS_PROXY    a proxy, NO_PROXY for exceptions
  RYND_HOME      where models and configuration are kept")]
pub struct Arguments {
    /// A short name, or hf:owner/repo[@revision][:QUANT or FILE.gguf]
    model: Option<String>,
    /// Parallel connections for one file
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let catalog = Catalog::open()?;
    let model = catalog.find(arguments.model.as_deref().unwrap_or(catalog.default_model()))?;
    interrupt::watch()?;
    match obtain::fetch(&catalog, &model, Some(arguments.connections.into())) {
        Ok(resolved) => {
            writeln!(terminal::stdout(), "{}", resolved.path().display())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if obtain::is_interruption(&error) => {
            writeln!(terminal::stderr(), "rynd: {error:#}")?;
            Ok(ExitCode::from(interrupt::EXIT_CODE))
        }
        Err(error) => Err(error),
    }
}
