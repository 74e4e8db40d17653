//! `rynd run`: one prompt in, its continuation out, as it comes.
//!
//! Stdout carries the text (or the ids) and nothing else, so that it can be piped and compared; a newline is added only
//! where a terminal shows it.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::input::{self, TextFlags};
use super::load::{self, EngineFlags, ModelArg};
use super::memory::Memory;
use super::sampling::SamplingFlags;
use super::{interrupt, numbers, reuse, terminal};
use crate::chat::Message;
use crate::engine::Engine;
use crate::generate::{Event, Finish, Limits, Summary, generate};
use crate::tokenizer::{Encode, Tokenizer};

/// Answer or continue one prompt
///
/// The prompt goes through the model's chat template where the file has one, and as it is with --raw.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd run model.gguf -p 'Write a Rust function that reverses a string.'
  git diff | rynd run model.gguf --system 'Review this patch.' --stats
  rynd run model.gguf --raw -p 'def fib(n):' -n 64 --stop $'\\n\\n' --temp 0
  rynd run model.gguf --ids 1,2,3 --print-ids -n 24 --temp 0")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    text: TextFlags,
    /// Give the text to the model as it is, not through its chat template
    #[arg(long)]
    raw: bool,
    /// System message in front of the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Token ids instead of a text
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "raw", "system"])]
    ids: Option<String>,
    /// Read '<|im_end|>' and the like in the prompt as the tokens they name, not as text (always with --raw)
    #[arg(long, conflicts_with = "ids")]
    parse_special: bool,
    /// Tokens to generate, at most [default: the rest of the context]
    #[arg(short = 'n', long, value_name = "TOKENS", value_parser = load::at_least_one())]
    tokens: Option<usize>,
    /// A text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the model's end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Print the generated token ids instead of their text
    #[arg(long)]
    print_ids: bool,
    /// Print speed and memory on stderr at the end
    #[arg(short = 'v', long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let text = match &arguments.ids {
        Some(_) => String::new(),
        None => arguments.text.read_prompt()?,
    };
    let mut engine = arguments.model.load(&arguments.engine.config())?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    arguments.engine.keep_on_disk(&mut engine, &tokenizer);
    let prompt = match &arguments.ids {
        Some(ids) => input::ids(ids)?,
        None => prompt_ids(arguments, &engine, &tokenizer, &text)?,
    };
    let sampler = arguments.sampling.sampler(engine.plan().vocab)?;
    let limits = Limits { tokens: arguments.tokens, stop: arguments.stop.clone(), ignore_end: arguments.ignore_eos };
    interrupt::watch()?;
    let mut output = Output::new(arguments.print_ids);
    let mut progress = Progress::new(engine.batch());
    let summary = generate(&mut engine, &tokenizer, sampler, &prompt, &limits, |event| match event {
        _ if interrupt::asked() => ControlFlow::Break(()),
        Event::Prefill { done, total } => progress.show(done, total),
        Event::Token(id) => output.token(id),
        Event::Text(text) => output.text(text),
    })?;
    output.finish()?;
    let interrupted = summary.finish == Finish::Interrupted;
    if arguments.stats || interrupted {
        print_stats(&engine, &tokenizer, &summary)?;
    }
    Ok(if interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// The ids of the prompt, through the template unless the user or the file has none.
fn prompt_ids(arguments: &Arguments, engine: &Engine, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let template = if arguments.raw { None } else { load::chat_template(engine.gguf())? };
    let Some(template) = template else {
        if arguments.system.is_some() {
            bail!(
                "{} has no chat template, so --system has no place; put the text into the prompt",
                engine.gguf().path().display()
            );
        }
        let parse_special = arguments.raw || arguments.parse_special;
        return Ok(tokenizer.encode(text, Encode { add_special: true, parse_special }));
    };
    let system = arguments.system.iter().map(|text| Message::system(text));
    let messages: Vec<Message> = system.chain([Message::user(text)]).collect();
    let prompt = load::prompt(&template, tokenizer, &messages, arguments.parse_special);
    Ok(engine.encode_prompt(tokenizer, &prompt.context("the chat template failed; --raw goes without it")?))
}

/// Writes what is generated and remembers the first failure: generation is only told to stop.
struct Output {
    out: terminal::Clean<io::StdoutLock<'static>>,
    ids: bool,
    written: bool,
    ends_with_newline: bool,
    failure: Option<io::Error>,
}

impl Output {
    fn new(ids: bool) -> Output {
        Output { out: terminal::stdout(), ids, written: false, ends_with_newline: true, failure: None }
    }

    fn token(&mut self, id: u32) -> ControlFlow<()> {
        if !self.ids {
            return ControlFlow::Continue(());
        }
        let space = if self.written { " " } else { "" };
        self.write(&format!("{space}{id}"))
    }

    fn text(&mut self, text: &str) -> ControlFlow<()> {
        if self.ids { ControlFlow::Continue(()) } else { self.write(text) }
    }

    fn write(&mut self, text: &str) -> ControlFlow<()> {
        self.written = true;
        self.ends_with_newline = text.ends_with('\n');
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.failure = Some(e);
                ControlFlow::Break(())
            }
        }
    }

    fn finish(mut self) -> io::Result<()> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if !self.ends_with_newline && (self.ids || io::stdout().is_terminal()) {
            writeln!(self.out)?;
        }
        self.out.flush()
    }
}

/// A bar on a terminal's stderr while a prompt of several batches is computed.
struct Progress {
    batch: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(batch: usize) -> Progress {
        Progress { batch, bar: None }
    }

    fn show(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        if total > self.batch {
            let bar = self.bar.get_or_insert_with(|| ProgressBar::new(total as u64).with_style(style()));
            bar.set_position(done as u64);
            if done == total {
                bar.finish_and_clear();
            }
        }
        ControlFlow::Continue(())
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("prompt {bar:30} {pos}/{len} tokens, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Speed and memory, on stderr.
fn print_stats(engine: &Engine, tokenizer: &Tokenizer, summary: &Summary) -> io::Result<()> {
    let computed = summary.prompt_tokens - summary.cached_tokens;
    // The first token comes with the prompt; an end token was computed for, but is no part of the answer.
    let runs = match summary.finish {
        Finish::End => summary.generated_tokens,
        Finish::Stop | Finish::Length | Finish::Interrupted => summary.generated_tokens.saturating_sub(1),
    };
    let why = match summary.finish {
        Finish::End => "end of text",
        Finish::Stop => "stop text",
        Finish::Length => "length",
        Finish::Interrupted => "interrupted",
    };
    let mut err = terminal::stderr();
    writeln!(
        err,
        "prompt    {} in {}, {:.1} tok/s",
        reuse::tokens(summary),
        numbers::duration(summary.prefill),
        numbers::rate(computed, summary.prefill)
    )?;
    if let Some(parted) = reuse::parted(summary, tokenizer) {
        writeln!(err, "          {parted}")?;
    }
    writeln!(
        err,
        "generated {} tokens ({why}) in {}, {:.1} tok/s",
        summary.generated_tokens,
        numbers::duration(summary.decode),
        numbers::rate(runs, summary.decode)
    )?;
    if let Some(memory) = Memory::now() {
        writeln!(
            err,
            "memory    {} resident: {} of the model's file, {} of our own",
            numbers::bytes(memory.resident_bytes),
            numbers::bytes(memory.file_bytes),
            numbers::bytes(memory.anonymous_bytes)
        )?;
    }
    if let Some(report) = engine.expert_report() {
        writeln!(err, "experts   {report}")?;
    }
    if let Some(tier) = engine.tier_counters() {
        writeln!(
            err,
            "experts   {} of {} fit in {}; {:.1}% of {} were there, {} read from disk, {:.2} s waited for",
            tier.slots,
            tier.experts,
            numbers::bytes(tier.slot_bytes),
            100.0 * (1.0 - tier.read as f64 / tier.wanted.max(1) as f64),
            tier.wanted,
            numbers::bytes(tier.bytes_read),
            tier.waited_seconds
        )?;
    }
    Ok(())
}
