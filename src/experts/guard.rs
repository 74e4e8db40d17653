//! Never slower than without: the first tokens are computed both ways in turn, and the cache stays only if it wins.
//!
//! The guard has no clock: it is told how long each token took. Blocks of tokens alternate between the two arms, so that
//! what changes with time (clocks, a growing context, other programs) hits both alike; medians are compared. The first
//! token of each block is not counted: it finds the caches as the other arm left them.

use serde::Serialize;

/// Tokens of a block, the uncounted first one included.
const BLOCK: usize = 4;
/// Blocks of each arm.
const BLOCKS: usize = 3;
/// The cache may be slower by this part before it is switched off: medians of so few tokens differ by chance.
pub(super) const TOLERANCE: f64 = 0.03;

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Verdict {
    Undecided,
    /// Seconds a token with the cache and without it.
    Keeps {
        with: f64,
        without: f64,
    },
    SwitchedOff {
        with: f64,
        without: f64,
    },
}

/// The comparison.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    tokens: usize,
    with: Vec<f64>,
    without: Vec<f64>,
}

impl Guard {
    /// Nothing measured yet.
    pub fn new() -> Guard {
        Guard::default()
    }

    /// Whether the next token should be computed with the cache.
    pub fn wants_cache(&self) -> bool {
        match self.verdict() {
            Verdict::Undecided => (self.tokens / BLOCK).is_multiple_of(2),
            Verdict::Keeps { .. } => true,
            Verdict::SwitchedOff { .. } => false,
        }
    }

    /// A token that was computed as `wants_cache` asked took this long.
    pub fn record(&mut self, seconds: f64) {
        if self.verdict() != Verdict::Undecided {
            return;
        }
        let counted = !self.tokens.is_multiple_of(BLOCK);
        let arm = if self.wants_cache() { &mut self.with } else { &mut self.without };
        if counted {
            arm.push(seconds);
        }
        self.tokens += 1;
    }

    /// What is known so far.
    pub fn verdict(&self) -> Verdict {
        if self.tokens < 2 * BLOCK * BLOCKS {
            return Verdict::Undecided;
        }
        let (with, without) = (median(&self.with), median(&self.without));
        if with > without * (1.0 + TOLERANCE) {
            Verdict::SwitchedOff { with, without }
        } else {
            Verdict::Keeps { with, without }
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |s: &f64| s * 1e3;
        match self {
            Verdict::Undecided => write!(f, "the expert cache is being measured"),
            Verdict::Keeps { with, without } => {
                write!(f, "the expert cache stays on: {:.2} ms a token with it, {:.2} without", ms(with), ms(without))
            }
            Verdict::SwitchedOff { with, without } => write!(
                f,
                "the expert cache was switched off: {:.2} ms a token with it, {:.2} without; experts run on the CPU",
                ms(with),
                ms(without)
            ),
        }
    }
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => 0.0,
        _ if n.is_multiple_of(2) => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        _ => sorted[n / 2],
    }
}
