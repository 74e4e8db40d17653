//! Fill-in-the-middle completion: a cursor in a text, the text that belongs there.
//!
//! The engine remembers the prompts before, so that a keystroke costs the tokens it changed and what stands behind the
//! cursor. It knows files as text only; editors' protocols and printing are the commands' business.

mod ends;
mod lexer;
mod pairs;
mod prompt;
mod recent;
mod repository;
mod syntax;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use ends::Ends;
pub use recent::Recent;
pub use repository::{ContextFile, Neighbours, relevant};

use crate::engine::Engine;
use crate::generate::{Event, Finish, GenerateError, Limits, generate};
use crate::sampler::{Sampler, SamplerConfig, SamplerError};
use crate::tokenizer::Tokenizer;

/// Why there is no completion.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    #[error(
        "this model has no fill-in-the-middle tokens; use one that was trained for completion, such as \
         qwen2.5-coder-1.5b"
    )]
    NoFim,
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// What to complete.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub prefix: String,
    pub suffix: String,
    /// The open file, whose name tells the language; the prompt does not name it.
    pub file: Option<PathBuf>,
    /// The open file, as the prompt shall name it.
    pub path: Option<String>,
    /// The repository's name, used with `path` or `files`.
    pub repository: String,
    pub files: Vec<ContextFile>,
}

/// How to complete.
#[derive(Clone, Debug)]
pub struct Options {
    pub max_tokens: usize,
    /// Ends the work when it is over, with what there is.
    pub time: Option<Duration>,
    /// Prompt tokens, at most.
    pub prompt_tokens: usize,
    /// Tokens of them behind the cursor, at most. They stand behind the prefix in the prompt, so a keystroke computes
    /// all of them again.
    pub suffix_tokens: usize,
    pub sampling: SamplerConfig,
}

/// One completion.
#[derive(Clone, Debug)]
pub struct Completion {
    pub text: String,
    pub finish: Finish,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub generated_tokens: usize,
    pub elapsed: Duration,
}

/// Tokens that a prompt may have: half of a context that has no room for as many and all that may be generated.
fn prompt_room(context: usize, max_tokens: usize) -> usize {
    context.saturating_sub(max_tokens + 1).max(context / 2)
}

/// Whether a model can complete at all.
pub fn check_fim(tokenizer: &Tokenizer) -> Result<(), CompleteError> {
    prompt::build(tokenizer, &Request::default(), 0, 0).map(|_| ())
}

/// Completes a request; `cancelled` is asked at every token and prefill run.
pub fn complete(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    request: &Request,
    options: &Options,
    mut cancelled: impl FnMut() -> bool,
) -> Result<Completion, CompleteError> {
    let start = Instant::now();
    let room = prompt_room(engine.context(), options.max_tokens);
    let ids = prompt::build(tokenizer, request, options.prompt_tokens.min(room), options.suffix_tokens)?;
    let file = request.file.as_deref().or(request.path.as_deref().map(Path::new));
    let ends = Ends::new(&request.prefix, &request.suffix, file);
    let sampler = Sampler::new(options.sampling.clone())?;
    let limits = Limits { tokens: Some(options.max_tokens), ..Limits::default() };
    let mut text = String::new();
    let mut ended = false;
    let late = || options.time.is_some_and(|time| start.elapsed() > time);
    let summary = generate(engine, tokenizer, sampler, &ids, &limits, |event| {
        let mut over = cancelled();
        match event {
            // Its text is still to come.
            Event::Token(_) => {}
            Event::Prefill { .. } => over |= late(),
            Event::Text(new) => {
                text.push_str(new);
                ended = ends.find(&text).is_some();
                over |= ended || late();
            }
        }
        if over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(Completion {
        text: ends.finish(&text, summary.finish != Finish::End),
        finish: if ended { Finish::Stop } else { summary.finish },
        prompt_tokens: summary.prompt_tokens,
        cached_tokens: summary.cached_tokens,
        generated_tokens: summary.generated_tokens,
        elapsed: start.elapsed(),
    })
}
