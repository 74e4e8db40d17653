//! `rynd quantize`: a model in another precision, chosen tensor by tensor.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use regex_automata::meta::Regex;
use rynd_quant::Format;

use super::terminal;
use super::{interrupt, load, numbers};
use crate::cores;
use crate::quantize::kind::is_quantizable;
use crate::quantize::{self, FileType, Imatrix, Job, Options, QuantizeError, Recipe, Source};
use crate::sizes;

/// Write a model in another precision
///
/// IN is a GGUF (of a split one any part) or a folder with a Hugging Face checkpoint (config.json, safetensors and the
/// tokenizer's files), which is converted on the way. The recipes are those of llama.cpp's llama-quantize. Memory does
/// not grow with the model, and OUT gets its name when it is complete.
#[derive(Debug, clap::Args)]
#[command(override_usage = "rynd quantize [OPTIONS] <IN> [OUT] <TYPE>", after_help = after_help())]
pub struct Arguments {
    /// IN, a GGUF file or a checkpoint folder; OUT, the file to write, which --dry-run can do without; and TYPE, such as
    /// Q4_K_M
    #[arg(value_name = "IN OUT TYPE", required = true)]
    names: Vec<PathBuf>,
    /// The importance matrix, of rynd imatrix or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Tensors whose name matches get this format; may be repeated, the first match counts
    #[arg(long, value_name = "REGEX=FORMAT", value_parser = tensor_type)]
    tensor_type: Vec<TensorType>,
    /// Format of the output matrix
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    output_tensor_type: Option<Format>,
    /// Format of the token embedding
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    token_embedding_type: Option<Format>,
    /// One format for all matrices
    #[arg(long)]
    pure: bool,
    /// Quantise tensors again that are quantised already; costs quality
    #[arg(long)]
    allow_requantize: bool,
    /// Split the output into files of at most this size, such as 50G (10^9 bytes each) or 50GiB (2^30)
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse_some)]
    split_max_size: Option<u64>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Worker threads [default: the cores that this process may use]
    #[arg(short, long, value_name = "N", value_parser = load::thread_count)]
    threads: Option<usize>,
}

fn after_help() -> String {
    format!(
        "\
Types:
  {}

Examples:
  rynd quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M
  rynd quantize Qwen3-Coder-30B-A3B-Instruct/ coder.gguf IQ3_XXS --imatrix coder.imatrix --split-max-size 10G
  rynd quantize model-BF16.gguf --dry-run Q4_K_M --tensor-type ffn_down=q6_k",
        FileType::names()
    )
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (input, output, name) = match &arguments.names[..] {
        [input, name] => (input, None, name),
        [input, output, name] => (input, Some(output), name),
        names => bail!("{} names were given, and IN, OUT and TYPE are wanted; see 'rynd quantize --help'", names.len()),
    };
    let file_type = file_type(&name.to_string_lossy())?;
    let options = options(arguments, file_type)?;
    let job = Job::new(Source::open(input)?, &options)?;
    check_named(arguments, input, &job)?;
    if arguments.dry_run {
        print_plan(&job)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(output) = output else { bail!("there is no name for the output; give it between IN and TYPE") };
    report_importance(&options, &job)?;
    interrupt::watch()?;
    let bar = ProgressBar::new(job.source.bytes()).with_style(style());
    let start = Instant::now();
    let threads = cores::threads(arguments.threads);
    let result = quantize::quantize(&job, threads, output, |progress| {
        bar.set_position(progress.bytes);
        bar.set_message(terminal::harmless(progress.tensor).into_owned());
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    match result {
        Err(QuantizeError::Interrupted) => {
            writeln!(terminal::stderr(), "rynd: {}", QuantizeError::Interrupted)?;
            return Ok(ExitCode::from(interrupt::EXIT_CODE));
        }
        other => other?,
    }
    let rate = numbers::rate(job.source.bytes() as usize, start.elapsed()) as u64;
    writeln!(
        terminal::stderr(),
        "{}: {} in {}, {}/s of input",
        output.display(),
        summary(&job),
        numbers::duration(start.elapsed()),
        numbers::bytes(rate),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &Arguments, file_type: &'static FileType) -> Result<Options> {
    let imatrix = match &arguments.imatrix {
        Some(path) => Some((Imatrix::read(path)?, path.clone())),
        None => None,
    };
    Ok(Options {
        recipe: Recipe {
            file_type,
            pure: arguments.pure,
            output: arguments.output_tensor_type,
            embedding: arguments.token_embedding_type,
            overrides: arguments.tensor_type.iter().map(|named| (named.pattern.clone(), named.format)).collect(),
            weighted: imatrix.is_some(),
        },
        imatrix,
        allow_requantize: arguments.allow_requantize,
        split_bytes: arguments.split_max_size,
    })
}

/// An order that nothing follows is a slip of the pen.
fn check_named(arguments: &Arguments, input: &Path, job: &Job) -> Result<()> {
    let matrices = || job.source.tensors.iter().filter(|tensor| is_quantizable(&tensor.name, &tensor.shape));
    for named in &arguments.tensor_type {
        if !matrices().any(|tensor| named.pattern.is_match(&tensor.name)) {
            let (argument, input) = (&named.argument, input.display());
            bail!("--tensor-type {argument} matches no weight matrix of {input}; --dry-run without it lists them");
        }
    }
    Ok(())
}

/// Says where an importance matrix has nothing to say.
fn report_importance(options: &Options, job: &Job) -> Result<()> {
    let Some((imatrix, path)) = &options.imatrix else { return Ok(()) };
    let mut err = terminal::stderr();
    let unreached: usize = imatrix.unreached().map(|(_, unreached, _)| unreached).sum();
    if unreached > 0 {
        writeln!(
            err,
            "rynd: note: {unreached} expert matrices were never reached by the text of {}; their columns count alike",
            path.display()
        )?;
    }
    let plain: Vec<&str> = job
        .tensors()
        .filter(|(tensor, target)| {
            target.format.is_quantized() && target.format != tensor.format && target.importance.is_none()
        })
        .map(|(tensor, _)| tensor.name.as_str())
        .collect();
    if let Some(first) = plain.first() {
        writeln!(err, "rynd: note: {} tensors are not in {}, the first is '{first}'", plain.len(), path.display())?;
    }
    Ok(())
}

fn summary(job: &Job) -> String {
    let bits = job.bytes() as f64 * 8.0 / job.weights() as f64;
    format!("{} -> {}, {bits:.2} bits a weight", numbers::bytes(job.source.bytes()), numbers::bytes(job.bytes()))
}

fn print_plan(job: &Job) -> Result<()> {
    let mut out = terminal::stdout();
    let width = job.tensors().map(|(tensor, _)| tensor.name.len()).max().unwrap_or(0);
    for (no, shard) in job.shards.windows(2).enumerate() {
        if job.shards.len() > 2 {
            writeln!(out, "file {} of {}", no + 1, job.shards.len() - 1)?;
        }
        for (tensor, target) in job.tensors().skip(shard[0]).take(shard[1] - shard[0]) {
            let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
            writeln!(
                out,
                "{:width$}  {shape:>20}  {:>7} -> {:<7}  {:>7} -> {}",
                tensor.name,
                tensor.format.name(),
                target.format.name(),
                numbers::bytes(tensor.bytes()),
                numbers::bytes(target.bytes),
            )?;
        }
    }
    writeln!(out, "total: {} tensors, {}", job.targets.len(), summary(job))?;
    if let Some(refusal) = job.refusal() {
        writeln!(out, "as it stands it would be refused: {refusal}")?;
    }
    Ok(())
}

fn file_type(name: &str) -> Result<&'static FileType, QuantizeError> {
    FileType::from_name(name).ok_or_else(|| QuantizeError::UnknownType { name: name.to_owned() })
}

fn format(name: &str) -> Result<Format, QuantizeError> {
    let format = Format::from_name(name).filter(|format| format.has_encoder());
    format.ok_or_else(|| QuantizeError::UnknownFormat { name: name.to_owned() })
}

/// An order for the tensors whose name matches.
#[derive(Clone, Debug)]
struct TensorType {
    argument: String,
    pattern: Regex,
    format: Format,
}

fn tensor_type(argument: &str) -> Result<TensorType> {
    let (pattern, name) = argument.rsplit_once('=').context("it should read REGEX=FORMAT, such as ffn_down=q6_k")?;
    let pattern = Regex::new(pattern).with_context(|| format!("'{pattern}' is no regular expression"))?;
    Ok(TensorType { argument: argument.to_owned(), pattern, format: format(name)? })
}

fn style() -> ProgressStyle {
    let template = "{bar:30} {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left, {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
