//! How much an expert is worth: what was picked, how often and how lately.
//!
//! The score of choice combines recency and frequency (CRF; Lee et al. 2001, "LRFU"): `s <- s * 2^(-dt/H) + 1` at every
//! pick, H counted in tokens. It is kept for experts that are not resident too: a ghost that comes back does not start from
//! nothing. All scores decay alike, so they are stored in units of a pick made now, and only that unit grows.

/// Tokens after which a pick counts half, unless another is asked for.
pub const HALF_LIFE: f64 = 32.0;

/// The unit is brought back to 1 before it leaves the range of an f64.
const LARGEST_UNIT: f64 = 1e100;

/// What a replacement policy orders experts by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ranking {
    /// Combined recency and frequency.
    Crf,
    /// The last pick.
    Lru,
    /// The number of picks, the last one breaking ties.
    Lfu,
    /// The number of picks over the tokens since the last one.
    Lfru,
    /// Chance, drawn anew for every decision.
    Random { seed: u64 },
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    crf: f64, // in picks made at the epoch
    count: u32,
    token: u64,
    step: u64,
}

/// Scores of all experts of a model, resident or not.
#[derive(Clone, Debug)]
pub struct Scores {
    half_life: f64,
    unit: f64,
    token: u64,
    step: u64,
    entries: Vec<Entry>,
}

impl Scores {
    /// Nothing picked yet; `half_life` in tokens.
    pub fn new(entries: usize, half_life: f64) -> Scores {
        Scores { half_life, unit: 1.0, token: 0, step: 0, entries: vec![Entry::default(); entries] }
    }

    /// An expert was picked in the current layer step.
    pub fn touch(&mut self, entry: usize) {
        let e = &mut self.entries[entry];
        e.crf += self.unit;
        e.count += 1;
        e.token = self.token;
        e.step = self.step;
    }

    /// A layer's picks are complete.
    pub fn end_step(&mut self) {
        self.step += 1;
    }

    /// A token went through all layers. `tick` is the part of a token that the clock moves on: below 1 for prompt tokens,
    /// which come by the hundred and should be remembered together.
    pub fn end_token(&mut self, tick: f64) {
        self.token += 1;
        self.unit *= (tick / self.half_life).exp2();
        if self.unit > LARGEST_UNIT {
            self.entries.iter_mut().for_each(|e| e.crf /= self.unit);
            self.unit = 1.0;
        }
    }

    /// The combined score, in picks made now.
    pub fn crf(&self, entry: usize) -> f64 {
        self.entries[entry].crf / self.unit
    }

    /// Sets a score that was saved earlier, in picks made now.
    pub fn seed(&mut self, entry: usize, crf: f64) {
        self.entries[entry].crf = crf * self.unit;
    }

    /// How often the expert was picked since the start.
    pub fn count(&self, entry: usize) -> u32 {
        self.entries[entry].count
    }

    /// Whether the expert was ever picked, or known from an earlier run.
    pub fn is_known(&self, entry: usize) -> bool {
        self.entries[entry].crf > 0.0
    }

    /// Whether the expert was picked in the current layer step.
    pub fn in_step(&self, entry: usize) -> bool {
        let e = &self.entries[entry];
        e.count > 0 && e.step == self.step
    }

    /// An expert's place in this order: the higher, the more it is worth.
    pub fn rank(&self, ranking: Ranking, entry: usize) -> f64 {
        let e = &self.entries[entry];
        match ranking {
            Ranking::Crf => e.crf / self.unit,
            Ranking::Lru => e.step as f64,
            Ranking::Lfu => f64::from(e.count) + (e.step as f64 + 1.0) / (self.step as f64 + 2.0),
            Ranking::Lfru => f64::from(e.count) / (self.token - e.token + 1) as f64,
            Ranking::Random { seed } => {
                let mixed = super::mix::mix(seed ^ super::mix::mix(self.step << 24 | entry as u64));
                (mixed >> 11) as f64
            }
        }
    }
}
