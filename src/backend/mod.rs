//! What an executor of plan steps is: it holds slots and caches, and runs ranges of steps over a batch of tokens.
//!
//! Only the environment changes between runs. A backend knows nothing of architectures: the plan tells it everything.

mod picks;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

pub use picks::{PickLog, Picks};

use crate::experts::disk::DiskError;
use crate::plan::Slot;

/// One token of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    /// Index into `Env::seqs`.
    pub seq: u32,
    pub pos: u32,
}

/// What the tokens of a sequence are computed for. Said by whoever makes the run: nothing below guesses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// They are read: a prompt, or what was cached and is computed again.
    Prompt,
    /// They were chosen, and the next one is to be.
    Decode,
    /// They were guessed, and are to be verified.
    Draft,
}

/// In a page table: no page holds these positions, and no token of the run sees them.
pub const NO_PAGE: u32 = u32::MAX;

/// The recurrent state that a sequence reads, and the one it leaves behind: never the same, so that a run that fails has
/// changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateStep {
    /// `None` before the first token: a state of zeros.
    pub from: Option<u32>,
    pub to: u32,
}

/// One sequence of a run. Tables of several sequences may name the same pages where no token of the run is stored.
#[derive(Clone, Copy, Debug)]
pub struct Seq<'a> {
    /// By page group of the plan: the cache page of each `PAGE_TOKENS` positions, in order, or `NO_PAGE`.
    pub tables: &'a [&'a [u32]],
    /// Where the plan has states.
    pub state: Option<StateStep>,
    pub phase: Phase,
}

/// What changes between runs. Tokens of one sequence are neighbours, by rising position.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    pub tokens: &'a [Token], // (t)
    /// Rows of `tokens` whose logits are wanted, rising: (r).
    pub rows: &'a [u32],
    pub seqs: &'a [Seq<'a>],
    /// Set from outside, a long run breaks off between two layers.
    pub stop: Option<&'a AtomicBool>,
}

/// Among the ids that a router picked: another executor computes this expert.
pub const ELSEWHERE: u32 = u32::MAX;

impl<'a> Seq<'a> {
    /// A sequence without states.
    pub fn new(tables: &'a [&'a [u32]], phase: Phase) -> Seq<'a> {
        Seq { tables, state: None, phase }
    }
}

impl<'a> Env<'a> {
    /// A run that nobody stops.
    pub fn new(tokens: &'a [Token], rows: &'a [u32], seqs: &'a [Seq<'a>]) -> Env<'a> {
        Env { tokens, rows, seqs, stop: None }
    }

    /// Whether somebody wants the run to break off.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// What a token of the run is computed for.
    pub fn phase(&self, token: usize) -> Phase {
        self.seqs[self.tokens[token].seq as usize].phase
    }

    /// Tokens of the run that belong to a prompt.
    pub fn prompt_tokens(&self) -> usize {
        (0..self.tokens.len()).filter(|&token| self.phase(token) == Phase::Prompt).count()
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("token id {id} is outside the vocabulary of {vocab}; the text was tokenized for another model")]
    UnknownToken { id: u32, vocab: usize },
    #[error("{what} needs {bytes} bytes of memory, which this machine refused; use a smaller -c or -b")]
    OutOfMemory { what: String, bytes: usize },
    #[error("{0}")]
    Device(String),
    /// A device is gone or has no memory left: what it held can not be relied on.
    #[error("{0}")]
    Lost(String),
    /// `Env::stop` was set; nothing has changed.
    #[error("interrupted")]
    Stopped,
    /// An expert could not be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// How cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KvFormat {
    F32,
    #[default]
    F16,
    /// Blocks of 32 int8 with an f16 scale: 8.5 bits a value.
    Q8_0,
}

impl KvFormat {
    /// The format that the cache of a run really has: exact runs keep f32, whatever was asked for.
    pub fn of_run(self, exact: bool) -> KvFormat {
        if exact { KvFormat::F32 } else { self }
    }

    /// Bytes of one cached value, scales included.
    pub fn bytes_per_value(self) -> f64 {
        match self {
            KvFormat::F32 => 4.0,
            KvFormat::F16 => 2.0,
            KvFormat::Q8_0 => 34.0 / 32.0,
        }
    }
}

impl std::str::FromStr for KvFormat {
    type Err = String;

    fn from_str(s: &str) -> Result<KvFormat, String> {
        match s.to_ascii_lowercase().as_str() {
            "f32" => Ok(KvFormat::F32),
            "f16" => Ok(KvFormat::F16),
            "q8_0" => Ok(KvFormat::Q8_0),
            _ => Err(format!("unknown cache type '{s}'; known: f32, f16, q8_0")),
        }
    }
}

/// Runs steps of one plan.
pub trait Backend: Send {
    /// Runs these steps for the tokens of `env`.
    fn run(&mut self, steps: Range<usize>, env: &Env) -> Result<(), BackendError>;

    /// Runs these steps, which end in `logits`, and finds the largest logit of each wanted row: its id, ties to the lower
    /// one, or `None` where a logit is not finite. An executor that can keeps the logits to itself.
    fn run_best(
        &mut self,
        steps: Range<usize>,
        env: &Env,
        logits: (Slot, usize),    // and their number
        best: &mut [Option<u32>], // (r)
    ) -> Result<(), BackendError> {
        self.run(steps, env)?;
        let (slot, vocab) = logits;
        let mut values = vec![0.0; best.len() * vocab];
        self.read(slot, &mut values)?;
        for (best, row) in best.iter_mut().zip(values.chunks_exact(vocab.max(1))) {
            *best = largest(row);
        }
        Ok(())
    }

    /// Copies the first `out.len() / width` rows of a slot to the host.
    fn read(&mut self, slot: Slot, out: &mut [f32]) -> Result<(), BackendError>;

    /// Overwrites the first rows of a slot from the host.
    fn write(&mut self, slot: Slot, rows: &[f32]) -> Result<(), BackendError>;

    /// As `read`, for a slot of u32.
    fn read_u32(&mut self, slot: Slot, out: &mut [u32]) -> Result<(), BackendError>;

    /// As `write`, for a slot of u32.
    fn write_u32(&mut self, slot: Slot, rows: &[u32]) -> Result<(), BackendError>;

    /// Copies a cache page of a page group to another, in every layer that this backend holds.
    fn copy_page(&mut self, group: usize, from: u32, to: u32) -> Result<(), BackendError>;

    /// Bytes of one page of a group, as `save_page` gives it.
    fn page_bytes(&self, group: usize) -> usize;

    /// Appends a page of a group, in the layers that run here, as this executor lays it out.
    fn save_page(&mut self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<(), BackendError>;

    /// Overwrites a page of a group with what `save_page` gave.
    fn load_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), BackendError>;

    /// Bytes of a recurrent state, of the layers that run here.
    fn state_bytes(&self) -> usize {
        0
    }

    /// Appends a recurrent state.
    fn save_state(&mut self, state: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        let _ = (state, out);
        Ok(())
    }

    /// Overwrites a recurrent state with what `save_state` gave.
    fn load_state(&mut self, state: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let _ = (state, bytes);
        Ok(())
    }
}

/// The index of the largest value, ties to the lower one; `None` when one is not finite.
pub fn largest(values: &[f32]) -> Option<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &value) in values.iter().enumerate() {
        if !value.is_finite() {
            return None;
        }
        if value > best.1 {
            best = (i as u32, value);
        }
    }
    (!values.is_empty()).then_some(best.0)
}
