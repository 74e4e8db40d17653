//! `rynd perplexity`: how well the model predicts a text, computed as llama.cpp's llama-perplexity does.
//!
//! The text is cut into chunks of the context; each starts afresh, with BOS in place of its first token where the
//! vocabulary adds one, and only its second half is scored, so that every scored token has seen at least half a context.
//! The figure after +- is the standard error of the mean negative log-likelihood, times the perplexity. The logits of a
//! run can be saved, and another run of the same tokens compared with them: what quantisation did to the predictions.

use std::fs::File;
use std::io::{BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use super::input::TextFlags;
use super::load::{self, ComputeFlags, ModelArg};
use super::terminal;
use super::{interrupt, numbers};
use crate::engine::{Engine, EngineConfig, EngineError, Session, Wanted};
use crate::files::Unfinished;
use crate::quantize::divergence::{Report, TokenScore, score};
use crate::quantize::reference_logits::{Evaluated, LogitsReader, LogitsWriter};
use crate::tokenizer::Encode;

/// Measure how well the model predicts a text
///
/// Chunks, BOS, what is scored and the +- figure are those of llama.cpp's llama-perplexity, so the numbers compare; so
/// does the file of logits, which either program writes and reads.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd perplexity model.gguf -f wiki.test.raw
  rynd perplexity model.gguf -f code.py -c 2048 --chunks 8 -v
  cat src/*.rs | rynd perplexity model.gguf --kv q8_0 --json

What quantisation costs, beside the original:
  rynd perplexity model-BF16.gguf -f code.py --save-logits code.logits
  rynd perplexity model-Q4_K_M.gguf --kl-divergence code.logits")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    text: TextFlags,
    /// Tokens of a chunk
    #[arg(short, long, value_name = "TOKENS", default_value = "512", value_parser = load::at_least_one())]
    ctx: usize,
    /// Stop after this many chunks
    #[arg(long, value_name = "N", value_parser = load::at_least_one())]
    chunks: Option<usize>,
    /// Write the logits of all scored tokens to this file, two bytes a logit
    #[arg(long, value_name = "FILE")]
    save_logits: Option<PathBuf>,
    /// Compare with the logits in this file; the text is that of the file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file", "ctx", "save_logits"])]
    kl_divergence: Option<PathBuf>,
    /// Print the estimate after every chunk, on stderr
    #[arg(short, long)]
    verbose: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Worker threads [default: the cores that this process may use]
    #[arg(short, long, value_name = "N", value_parser = load::thread_count)]
    threads: Option<usize>,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.kl_divergence {
        Some(path) => compare(arguments, path)?,
        None => evaluate(arguments)?,
    }
    Ok(if interrupt::asked() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

fn load(arguments: &Arguments, context: usize) -> Result<Engine> {
    let config = arguments.compute.config();
    arguments.model.load(&EngineConfig {
        threads: arguments.threads,
        context: Some(context),
        // A batch's logits are (batch, vocab): no more than the scored half is ever wanted at once.
        batch: config.batch.min(context / 2),
        most_batch: None,
        ..config
    })
}

/// The perplexity of a text, whose logits may be saved.
fn evaluate(arguments: &Arguments) -> Result<()> {
    // What can not be written is told before the work.
    let mut file = arguments.save_logits.as_deref().map(create).transpose()?;
    let text = arguments.text.read_prompt()?;
    let n = arguments.ctx;
    if n < 4 {
        bail!("-c {n} is too small: a chunk needs at least 4 tokens, and 512 is usual");
    }
    let mut engine = load(arguments, n)?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    let mut ids = tokenizer.encode(&text, Encode { add_special: true, parse_special: false });
    if ids.len() < n {
        bail!("the text has {} tokens, less than one chunk of {n}; give a longer text or a smaller -c", ids.len());
    }
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        ids.iter_mut().step_by(n).for_each(|id| *id = bos);
    }
    let chunks = (ids.len() / n).min(arguments.chunks.unwrap_or(usize::MAX));
    ids.truncate(chunks * n);
    let what = Evaluated { context: n, vocab: engine.plan().vocab, tokens: ids.clone() };
    let begin = |file| LogitsWriter::new(file, what).with_context(|| saving(arguments));
    let mut saved = file.take().map(begin).transpose()?;
    interrupt::watch()?;
    let bar = ProgressBar::new(chunks as u64).with_style(style());
    let mut score = Score::default();
    let mut session = Session::new();
    let mut done = 0;
    for (i, chunk) in ids.chunks_exact(n).enumerate() {
        let mut losses = vec![]; // (rows)
        let mut failed = Ok(());
        let whole = run_chunk(&mut engine, &mut session, chunk, |targets, logits| {
            let rows = logits.par_chunks_exact(logits.len() / targets.len());
            let new: Vec<f64> = rows.zip(targets).map(|(row, &id)| negative_log_likelihood(row, id)).collect();
            losses.extend(new);
            if let Some(writer) = &mut saved {
                failed = writer.write(logits);
            }
            if failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        failed.with_context(|| saving(arguments))?;
        if !whole {
            break;
        }
        done += 1;
        losses.iter().for_each(|&loss| score.add(loss));
        bar.set_message(format!("PPL {:.4}", score.perplexity()));
        bar.inc(1);
        if arguments.verbose {
            let (ppl, error) = (score.perplexity(), score.error());
            bar.suspend(|| writeln!(terminal::stderr(), "chunk {} of {chunks}: PPL = {ppl:.4} +/- {error:.5}", i + 1))?;
        }
        if interrupt::asked() {
            break;
        }
    }
    bar.finish_and_clear();
    if let Some(writer) = saved {
        if done < chunks {
            writeln!(terminal::stderr(), "rynd: interrupted; the logits are not saved")?;
        } else {
            let file = writer.finish().with_context(|| saving(arguments))?;
            file.publish().with_context(|| saving(arguments))?;
        }
    }
    print(arguments, &score, chunks)
}

fn saving(arguments: &Arguments) -> String {
    let path = arguments.save_logits.as_deref().unwrap_or(Path::new(""));
    format!("can not save the logits in {}; check the free space of the disk", path.display())
}

fn create(path: &Path) -> Result<Unfinished> {
    let context = || format!("can not create {}; check that the folder exists and is writable", path.display());
    Unfinished::create(path).with_context(context)
}

/// How far the model's predictions are from those that were saved.
fn compare(arguments: &Arguments, path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("can not read {}", path.display()))?;
    let damaged = || path.display().to_string();
    let mut reader = LogitsReader::new(BufReader::with_capacity(1 << 20, file)).with_context(damaged)?;
    let mut what = reader.evaluated().clone();
    let n = what.context;
    let mut engine = load(arguments, n)?;
    let vocab = engine.plan().vocab;
    if vocab != what.vocab {
        bail!(
            "{}: these are logits over {} tokens, and the model has {vocab}; compare models of one vocabulary",
            path.display(),
            what.vocab
        );
    }
    let tokenizer = load::tokenizer(engine.gguf())?;
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        what.tokens.iter_mut().step_by(n).for_each(|id| *id = bos);
    }
    let chunks = what.chunks().min(arguments.chunks.unwrap_or(usize::MAX));
    interrupt::watch()?;
    let bar = ProgressBar::new(chunks as u64).with_style(style());
    let mut scores: Vec<TokenScore> = vec![];
    let mut session = Session::new();
    for (i, chunk) in what.tokens.chunks_exact(n).take(chunks).enumerate() {
        let Some(base) = reader.next_chunk().with_context(damaged)? else { break };
        let mut new: Vec<TokenScore> = vec![];
        let whole = run_chunk(&mut engine, &mut session, chunk, |targets, logits| {
            let base = &base[new.len()..new.len() + targets.len()];
            let rows = logits.par_chunks_exact(vocab).zip(base).zip(targets);
            let rows: Vec<TokenScore> = rows.map(|((row, base), &target)| score(row, *base, target)).collect();
            new.extend(rows);
            ControlFlow::Continue(())
        })?;
        if !whole {
            break;
        }
        scores.extend(new);
        bar.inc(1);
        if let Some(report) = Report::new(&scores).filter(|_| arguments.verbose) {
            let (ppl, kld, top) = (report.perplexity, report.kld.mean, 100.0 * report.same_top.value);
            let line = format!("chunk {} of {chunks}: PPL {ppl:.4}, KLD {kld:.6}, same top {top:.2} %", i + 1);
            bar.suspend(|| writeln!(terminal::stderr(), "{line}"))?;
        }
        if interrupt::asked() {
            break;
        }
    }
    bar.finish_and_clear();
    let Some(report) = Report::new(&scores) else { bail!("interrupted before the first chunk was scored") };
    let mut out = terminal::stdout();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_value(report)?)?;
    } else {
        writeln!(out, "{report}")?;
    }
    Ok(())
}

/// Runs a chunk on a fresh timeline. `see` gets, batch by batch, the tokens that the second half's rows should predict
/// and the rows' logits (targets, vocab). False when the user or `see` broke off before the end.
fn run_chunk(
    engine: &mut Engine,
    session: &mut Session,
    ids: &[u32],
    mut see: impl FnMut(&[u32], &[f32]) -> ControlFlow<()>,
) -> Result<bool> {
    let first = ids.len() / 2;
    let asked = || if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    session.clear();
    // Position i predicts token i + 1, so the last token is never run.
    let head = session.extend(engine, &ids[..first], Wanted::Last, |_, _| asked());
    let (mut seen, mut stopped) = (0, false);
    let result = head.and_then(|()| {
        session.extend(engine, &ids[first..ids.len() - 1], Wanted::All, |done, logits| {
            let flow = see(&ids[first + 1 + seen..first + 1 + done], logits);
            seen = done;
            stopped = flow.is_break();
            if stopped { flow } else { asked() }
        })
    });
    match result {
        Err(EngineError::Interrupted) => Ok(false),
        other => other.map(|()| !stopped).map_err(Into::into),
    }
}

/// `-ln softmax(logits)[id]`, in f64.
fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    sum.ln() - f64::from(logits[id as usize] - max)
}

/// Sums over the scored tokens.
#[derive(Debug, Default)]
struct Score {
    tokens: usize,
    sum: f64,
    squares: f64,
}

impl Score {
    fn add(&mut self, loss: f64) {
        self.tokens += 1;
        self.sum += loss;
        self.squares += loss * loss;
    }

    fn perplexity(&self) -> f64 {
        (self.sum / self.tokens as f64).exp()
    }

    /// The standard error of the mean loss, carried to the perplexity by its derivative.
    fn error(&self) -> f64 {
        let n = self.tokens as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        (variance / (n - 1.0)).sqrt() * self.perplexity()
    }
}

fn print(arguments: &Arguments, score: &Score, chunks: usize) -> Result<()> {
    if score.tokens == 0 {
        bail!("interrupted before the first chunk was scored");
    }
    let mut out = terminal::stdout();
    let (ppl, error) = (score.perplexity(), score.error());
    if arguments.json {
        let value = serde_json::json!({
            "perplexity": ppl,
            "error": error,
            "scored_tokens": score.tokens,
            "chunks": score.tokens / (arguments.ctx - 1 - arguments.ctx / 2),
            "chunk_tokens": arguments.ctx,
        });
        writeln!(out, "{value}")?;
    } else {
        let scored = numbers::count(score.tokens as u64);
        writeln!(out, "PPL = {ppl:.4} +/- {error:.5} ({scored} tokens scored, {chunks} chunks of {})", arguments.ctx)?;
    }
    Ok(())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {pos}/{len} chunks, {eta} left, {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_guess_has_the_vocabulary_as_its_perplexity_and_no_error() {
        let mut score = Score::default();
        for id in 0..8 {
            score.add(negative_log_likelihood(&[3.5; 16], id));
        }
        assert!((score.perplexity() - 16.0).abs() < 1e-9);
        assert!(score.error() < 1e-6);
    }

    #[test]
    fn the_error_is_that_of_the_mean_carried_to_the_perplexity() {
        let mut score = Score::default();
        [1.0, 3.0].into_iter().for_each(|loss| score.add(loss));
        // Population variance 1, over n - 1 = 1.
        assert!((score.error() - 2.0_f64.exp()).abs() < 1e-9);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        assert!(negative_log_likelihood(&[1e30, 0.0], 0).abs() < 1e-12);
        assert!(negative_log_likelihood(&[-1e4, -1e4 + 1.0], 1) > 0.3);
    }
}
