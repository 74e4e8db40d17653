//! `rynd eval`: benchmarks that score a model by what its answers do.

mod answer;
mod humaneval;
mod jail;
mod results;
pub mod sandbox;
mod walls;

use std::process::ExitCode;

use anyhow::Result;

/// Score a model on a benchmark
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd eval humaneval --data HumanEval.jsonl.gz -o results.jsonl
  rynd eval humaneval qwen2.5-coder-0.5b --data HumanEval.jsonl --parallel 8 --limit 20")]
pub struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, clap::Subcommand)]
enum Benchmark {
    Humaneval(Box<humaneval::Arguments>),
    #[command(hide = true)]
    Jail(jail::Arguments),
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.benchmark {
        Benchmark::Humaneval(arguments) => humaneval::run(arguments),
        Benchmark::Jail(arguments) => jail::run(arguments),
    }
}
