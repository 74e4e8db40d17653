//! From a prompt to a stream of text: the only decode loop.
//!
//! Everything that produces text goes through the scheduler: it finds what is remembered of a prompt, computes the rest,
//! samples, turns ids into whole characters and watches for the ends. `generate` is a scheduler of one request. Nothing here
//! prints or knows of templates.

pub mod repeats;
mod scheduler;
mod stream;

use std::ops::ControlFlow;
use std::time::Duration;

pub use scheduler::{Cancel, Done, Job, PROMPT_BUDGET, Scheduler};

use crate::engine::{Engine, EngineError, Parted};
use crate::sampler::{Sampler, SamplerError};
use crate::tokenizer::Tokenizer;

/// Why generation failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
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
#[derive(Clone, Debug)]
pub struct Summary {
    pub finish: Finish,
    pub prompt_tokens: usize,
    /// Prompt tokens that were remembered.
    pub cached_tokens: usize,
    /// Of these, what was read from disk.
    pub disk_tokens: usize,
    /// Where the prompt left a conversation that was remembered.
    pub parted: Option<Parted>,
    pub generated_tokens: usize,
    /// Until the first token was known.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Continues a prompt. `on_event` may break off at any event; what was computed is remembered by the engine, for this prompt
/// and for others that begin alike.
pub fn generate(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    sampler: Sampler,
    prompt: &[u32],
    limits: &Limits,
    mut on_event: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Summary, GenerateError> {
    let mut scheduler = Scheduler::new(1);
    scheduler.add(engine, tokenizer, Job { prompt: prompt.to_vec(), sampler, limits: limits.clone() })?;
    loop {
        let done = scheduler.step(engine, tokenizer, |_, event| on_event(event))?;
        if let Some(done) = done.into_iter().next() {
            return done.result;
        }
    }
}
