//! `rynd imatrix`: which columns of a model's weights matter, measured over a text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::load::{self, ComputeFlags, ModelArg};
use super::terminal;
use super::{input, interrupt};
use crate::engine::{EngineConfig, EngineError};
use crate::gguf::Writer;
use crate::quantize::{Imatrix, collect};
use crate::tokenizer::Encode;

/// Measure which columns of the weights matter, for rynd quantize --imatrix
///
/// The model reads a text; the squares of what goes into each matrix are summed up by column, and by expert. The text
/// should be like what the model will be used for. The file is llama.cpp's format, and either program reads it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd imatrix model-BF16.gguf -f calibration.txt -o model.imatrix.gguf
  rynd imatrix model-Q8_0.gguf -f code.txt -o code.imatrix.gguf --chunks 200")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    /// The text ('-' is standard input)
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens of a chunk
    #[arg(short, long, value_name = "TOKENS", default_value = "512", value_parser = load::at_least_one())]
    ctx: usize,
    /// Stop after this many chunks
    #[arg(long, value_name = "N", value_parser = load::at_least_one())]
    chunks: Option<usize>,
    /// Measure the output matrix too
    #[arg(long)]
    process_output: bool,
    /// Worker threads [default: the cores that this process may use]
    #[arg(short, long, value_name = "N", value_parser = load::thread_count)]
    threads: Option<usize>,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    // What can not be written is told before the work.
    let output = Writer::create(&arguments.output)?;
    let text =
        if arguments.file.as_os_str() == "-" { input::read_stdin()? } else { input::read_file(&arguments.file)? };
    let n = arguments.ctx;
    let config = EngineConfig {
        threads: arguments.threads,
        context: Some(n),
        observe_inputs: true,
        ..arguments.compute.config()
    };
    let mut engine = arguments.model.load(&config)?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    let mut ids = tokenizer.encode(&text, Encode { add_special: true, parse_special: false });
    if ids.len() < n {
        bail!("the text has {} tokens, less than one chunk of {n}; give a longer text or a smaller -c", ids.len());
    }
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        ids.iter_mut().step_by(n).for_each(|id| *id = bos);
    }
    let chunks = (ids.len() / n).min(arguments.chunks.unwrap_or(usize::MAX));
    interrupt::watch()?;
    let bar = ProgressBar::new((chunks * n) as u64).with_style(style());
    let mut done = 0;
    for chunk in ids.chunks_exact(n).take(chunks) {
        let read = collect::read_chunk(&mut engine, chunk, |tokens, _| {
            bar.set_position((done * n + tokens) as u64);
            if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match read {
            // The sums hold a part of this chunk; it counts by its tokens, as all others do.
            Err(EngineError::Interrupted) => break,
            other => other?,
        }
        done += 1;
        if interrupt::asked() {
            break;
        }
    }
    bar.finish_and_clear();
    if done == 0 {
        writeln!(terminal::stderr(), "rynd: interrupted; nothing was written")?;
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    let dataset = arguments.file.display().to_string();
    let head = arguments.process_output;
    let imatrix = collect::collected(&engine, vec![dataset], done as u32, n as u32, head);
    imatrix.write_to(output)?;
    report(arguments, &imatrix, done, chunks)?;
    Ok(if done < chunks { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// What was measured, and which experts the text never reached.
fn report(arguments: &Arguments, imatrix: &Imatrix, done: usize, chunks: usize) -> Result<()> {
    let mut err = terminal::stderr();
    let (n, path) = (arguments.ctx, arguments.output.display());
    writeln!(err, "{path}: {} tensors, {done} of {chunks} chunks of {n} tokens", imatrix.entries.len())?;
    for (name, unreached, experts) in imatrix.unreached() {
        writeln!(err, "rynd: note: the text never reached {unreached} of {experts} experts of '{name}'")?;
    }
    if imatrix.unreached().next().is_some() {
        writeln!(err, "rynd: note: columns of unreached experts will count alike; a longer or more varied text helps")?;
    }
    Ok(())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
