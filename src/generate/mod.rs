//! From a prompt to a stream of text: the only decode loops, for one request and for many at once.
//!
//! Everything that produces text (run, chat, complete, serve) goes through `generate`: it syncs the session, samples,
//! turns ids into whole characters and watches for the ends. `Batch` does the same for requests that come and go, with
//! one run of the model for all of them. Nothing here prints or knows of templates.

mod batch;
pub mod repeats;
mod stream;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub use batch::{Batch, Done, Job};

use self::stream::Stream;
use crate::engine::{Engine, EngineError, Session, Wanted};
use crate::sampler::{Sampler, SamplerError};
use crate::tokenizer::Tokenizer;

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("{most} requests are running, as many as one run holds; finish one first or raise it with -b")]
    Busy { most: usize },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// When to end.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Tokens to generate; `None` is the rest of the context.
    pub tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Goes on after end-of-sequence tokens.
    pub ignore_end: bool,
}

/// What happens while generating.
#[derive(Debug)]
pub enum Event<'a> {
    /// After each prefill run: tokens computed and tokens to compute.
    Prefill { done: usize, total: usize },
    /// A token was chosen.
    Token(u32),
    /// Text that is final: whole characters, free of any part of a stop text.
    Text(&'a str),
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-sequence token.
    End,
    /// A stop text.
    Stop,
    /// The token limit or the end of the context.
    Length,
    /// The caller broke off.
    Interrupted,
}

/// What was done, for the user's statistics.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub finish: Finish,
    pub prompt_tokens: usize,
    /// Prompt tokens that the session already held.
    pub cached_tokens: usize,
    pub generated_tokens: usize,
    /// Until the first token was known.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Continues `prompt` in the session. `on_event` may break off at any event; the session then holds what was computed.
pub fn generate(
    engine: &mut Engine,
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    limits: &Limits,
    mut on_event: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Summary, GenerateError> {
    let start = Instant::now();
    let held = session.ids().iter().zip(prompt).take_while(|(a, b)| a == b).count();
    let mut summary = Summary {
        finish: Finish::Length,
        prompt_tokens: prompt.len(),
        cached_tokens: held.min(prompt.len().saturating_sub(1)),
        generated_tokens: 0,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
    };
    let synced = session.sync_with(engine, prompt, |done, total| on_event(Event::Prefill { done, total }));
    let logits = match synced {
        Err(EngineError::Interrupted) => {
            summary.finish = Finish::Interrupted;
            summary.prefill = start.elapsed();
            return Ok(summary);
        }
        other => other?,
    };
    prompt.iter().for_each(|&id| sampler.accept(id));
    let mut id = sampler.sample(logits)?;
    summary.prefill = start.elapsed();
    let decode_start = Instant::now();
    let mut stream = Stream::new(limits, engine.context() - prompt.len());
    summary.finish = loop {
        if let Some(finish) = stream.push(tokenizer, sampler, id, &mut on_event) {
            break finish;
        }
        let wanted = if sampler.takes_largest() { Wanted::Best } else { Wanted::Last };
        session.decode(engine, id, wanted)?;
        id = match engine.best().filter(|_| wanted == Wanted::Best) {
            Some(best) => best,
            None => sampler.sample(engine.last_logits()?)?,
        };
    };
    summary.generated_tokens = stream.tokens();
    summary.decode = decode_start.elapsed();
    Ok(summary)
}
