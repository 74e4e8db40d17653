//! `rynd experts record`: a text through a model, and what the router picked for each of its tokens.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::commands::input::TextFlags;
use crate::commands::interrupt;
use crate::commands::load::{self, EngineFlags, ModelArg};
use crate::commands::sampling::SamplingFlags;
use crate::commands::terminal;
use crate::engine::{EngineConfig, EngineError, Session, Wanted};
use crate::generate::{Finish, Limits, generate};
use crate::tokenizer::Encode;

/// Record what the router picks for a text
///
/// The text is read as it is, in stretches of the context's length; with -n it is then continued. Any other command that
/// runs a model records with --trace.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd experts record model.gguf -f src/main.rs -o rust.trace.gz
  rynd experts record model.gguf -p 'def fib(n):' -n 128 -o fib.trace.gz")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    text: TextFlags,
    /// The trace to write; compressed when its name ends in .gz
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens to generate after the text
    #[arg(short = 'n', long, value_name = "TOKENS", default_value = "0")]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let text = arguments.text.read_prompt()?;
    let config = EngineConfig { trace: Some(arguments.output.clone()), ..arguments.engine.config() };
    let mut engine = arguments.model.load(&config)?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    let ids = tokenizer.encode(&text, Encode { add_special: true, parse_special: false });
    interrupt::watch()?;
    let most = engine.context().saturating_sub(arguments.tokens).max(1);
    if arguments.tokens > 0 && ids.len() > most {
        bail!("the text has {} tokens, which leaves no room for {} more; raise -c", ids.len(), arguments.tokens);
    }
    let bar = ProgressBar::new((ids.len() + arguments.tokens) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let go_on = || if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let mut interrupted = false;
    if arguments.tokens > 0 {
        let sampler = arguments.sampling.sampler(engine.plan().vocab)?;
        let limits = Limits { tokens: Some(arguments.tokens), ..Limits::default() };
        let summary = generate(&mut engine, &tokenizer, sampler, &ids, &limits, |_| {
            bar.inc(1);
            go_on()
        })?;
        interrupted = summary.finish == Finish::Interrupted;
    } else {
        for (i, stretch) in ids.chunks(most).enumerate() {
            let mut session = Session::new();
            let read = session.extend(&mut engine, stretch, Wanted::Last, |done, _| {
                bar.set_position((i * most + done) as u64);
                go_on()
            });
            interrupted = matches!(read, Err(EngineError::Interrupted)) || interrupt::asked();
            if !interrupted {
                read?;
            }
            session.clear();
            if interrupted {
                break;
            }
        }
    }
    bar.finish_and_clear();
    engine.finish_trace()?;
    writeln!(terminal::stderr(), "{}: {} tokens of text", arguments.output.display(), ids.len())?;
    Ok(if interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}
