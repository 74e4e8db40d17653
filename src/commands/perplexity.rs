//! `rynd perplexity`: how well the model predicts a text, computed as llama.cpp's llama-perplexity does.
//!
//! The text is cut into chunks of the context; each starts afresh, with BOS in place of its first token where the
//! vocabulary adds one, and only its second half is scored, so that every scored token has seen at least half a context.
//! The figure after +- is the standard error of the mean negative log-likelihood, times the perplexity.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use super::input::TextFlags;
use super::load::{self, ComputeFlags, ModelArg};
use super::{interrupt, numbers};
use crate::engine::{Engine, EngineConfig, EngineError, Session, Wanted};
use crate::tokenizer::Encode;

/// Measure how well the model predicts a text
///
/// Chunks, BOS, what is scored and the +- figure are those of llama.cpp's llama-perplexity, so the numbers compare.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd perplexity model.gguf -f wiki.test.raw
  rynd perplexity model.gguf -f code.py -c 2048 --chunks 8 -v
  cat src/*.rs | rynd perplexity model.gguf --kv q8_0 --json")]
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
    /// Print the estimate after every chunk, on stderr
    #[arg(short, long)]
    verbose: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Worker threads [default: the physical cores]
    #[arg(short, long, value_name = "N", value_parser = load::at_least_one())]
    threads: Option<usize>,
    #[command(flatten)]
    compute: ComputeFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let text = arguments.text.read_prompt()?;
    let n = arguments.ctx;
    if n < 4 {
        bail!("-c {n} is too small: a chunk needs at least 4 tokens, and 512 is usual");
    }
    let config = EngineConfig {
        threads: arguments.threads,
        context: Some(n),
        // A batch's logits are (batch, vocab): no more than the scored half is ever wanted at once.
        batch: arguments.compute.batch.min(n / 2),
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
    let bar = ProgressBar::new(chunks as u64).with_style(style());
    let mut score = Score::default();
    let mut session = Session::new();
    for (i, chunk) in ids.chunks_exact(n).take(chunks).enumerate() {
        if !score_chunk(&mut engine, &mut session, chunk, &mut score)? {
            break;
        }
        bar.set_message(format!("PPL {:.4}", score.perplexity()));
        bar.inc(1);
        if arguments.verbose {
            let (ppl, error) = (score.perplexity(), score.error());
            bar.suspend(|| writeln!(std::io::stderr(), "chunk {} of {chunks}: PPL = {ppl:.4} +/- {error:.5}", i + 1))?;
        }
    }
    bar.finish_and_clear();
    print(arguments, &score, chunks)?;
    Ok(if interrupt::asked() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// Adds the second half of a chunk to the score; false when the user broke off, the score then is as before.
fn score_chunk(engine: &mut Engine, session: &mut Session, ids: &[u32], score: &mut Score) -> Result<bool> {
    let first = ids.len() / 2;
    let go_on = || if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    session.clear(engine);
    let mut losses = vec![]; // (ids.len() - 1 - first)
    // Position i predicts token i + 1, so the last token is never run.
    let head = session.extend(engine, &ids[..first], Wanted::Last, |_, _| go_on());
    let result = head.and_then(|()| {
        session.extend(engine, &ids[first..ids.len() - 1], Wanted::All, |done, logits| {
            let targets = &ids[first + 1 + losses.len()..first + 1 + done];
            let vocab = logits.len() / targets.len();
            let new: Vec<f64> = logits
                .par_chunks_exact(vocab)
                .zip(targets)
                .map(|(row, &id)| negative_log_likelihood(row, id))
                .collect();
            losses.extend(new);
            go_on()
        })
    });
    match result {
        Err(EngineError::Interrupted) => return Ok(false),
        other => other?,
    }
    losses.iter().for_each(|&loss| score.add(loss));
    Ok(!interrupt::asked())
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
    let mut out = std::io::stdout().lock();
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
