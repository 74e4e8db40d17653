//! The commands, one file each: arguments in, calls to the layers above, text out.
//!
//! Only here (and in `main.rs`) is anything printed, through `terminal`, which lets no file's text drive the terminal. Results
//! go to stdout; progress, statistics and errors to stderr, progress only where stderr is a terminal. A command returns its
//! exit code, so that an interrupted one can say 130.

mod bandwidth;
mod bench;
mod budget;
mod cache;
mod chat;
mod complete;
mod completions;
mod counters;
mod devices;
mod gpu;
mod eval;
mod experts;
mod imatrix;
mod input;
mod inspect;
mod interrupt;
mod list;
mod load;
mod logits;
mod lsp;
mod man;
mod memory;
mod npy;
mod numbers;
mod obtain;
mod perplexity;
mod plan;
mod plan_gpus;
mod plan_what_if;
mod pull;
mod quantize;
mod reuse;
mod rm;
mod run;
mod sampling;
mod steps;
mod terminal;
mod tokenize;
mod trace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// A quantised GGUF runtime for workstations.
#[derive(Debug, Parser)]
#[command(name = "rynd", version, about, max_term_width = 100)]
#[command(after_help = "\
Environment:
  RYND_HOME   where fetched models and the configuration are kept
  RYND_SIMD   caps the instruction set: scalar, avx2, avx512 or neon

Sizes: K, M, G and T are powers of 1000, KiB, MiB, GiB and TiB of 1024; tokens: K is 1024.

Run 'rynd COMMAND --help' for a command's options and examples.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Chat(chat::Arguments),
    Run(run::Arguments),
    Complete(complete::Arguments),
    Pull(pull::Arguments),
    List(list::Arguments),
    Rm(rm::Arguments),
    Cache(cache::Arguments),
    Inspect(inspect::Arguments),
    Devices(devices::Arguments),
    Plan(plan::Arguments),
    Bench(bench::Arguments),
    Perplexity(perplexity::Arguments),
    Eval(eval::Arguments),
    Quantize(quantize::Arguments),
    Imatrix(imatrix::Arguments),
    Experts(experts::Arguments),
    Logits(logits::Arguments),
    Tokenize(tokenize::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<ExitCode> {
    rynd_quant::Kernels::from_env()?;
    crate::engine::quiet_drivers();
    match cli.command {
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Complete(arguments) => complete::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Cache(arguments) => cache::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Devices(arguments) => devices::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Perplexity(arguments) => perplexity::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Quantize(arguments) => quantize::run(&arguments),
        Command::Imatrix(arguments) => imatrix::run(&arguments),
        Command::Experts(arguments) => experts::run(&arguments),
        Command::Logits(arguments) => logits::run(&arguments),
        Command::Tokenize(arguments) => tokenize::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

pub use interrupt::EXIT_CODE as INTERRUPTED;
pub use obtain::is_interruption;
pub use terminal::stderr;

/// Whether the error is only that nobody reads our output any more (`rynd run ... | head -1`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}
