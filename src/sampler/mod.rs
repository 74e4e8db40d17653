//! Logits to one token. Pure arithmetic with a seeded generator: no I/O, no clock.
//!
//! A constraint comes first, where there is one: it forbids what a grammar does not allow. The order of the other steps is
//! llama.cpp's default: bias, penalties, top-k, typical, top-p, min-p,
//! temperature, draw. Each step sees the probabilities that the steps before it left, at temperature 1.
//! Temperature 0 skips from the penalties to the largest logit, the lowest id of equals. The same
//! config, logits and accepted tokens give the same choice: the generator is PCG-64, whose output is
//! defined, and ties are broken by id.

mod candidates;
mod config;
mod constraint;
mod gbnf;
mod logprobs;

pub use candidates::Candidate;
pub use config::{SamplerConfig, SamplerError};
pub use constraint::{Constraint, Constraints, Grammar};
pub use logprobs::{Logprobs, logprobs};

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// PCG's own default stream.
const STREAM: u128 = 0x0a02_bdbf_7bb3_c0a7_ac28_fa16_a64a_bf96;

pub struct Sampler {
    config: SamplerConfig,
    seed: u64,
    random: Pcg64,
    window: VecDeque<u32>,     // the last penalty_tokens accepted, oldest first
    counts: HashMap<u32, u32>, // of the tokens in `window`
    candidates: Vec<Candidate>,
    constraint: Option<Constraint>,
}

impl Sampler {
    pub fn new(config: SamplerConfig) -> Result<Self, SamplerError> {
        config.check()?;
        let seed = config.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        Ok(Self {
            config,
            seed,
            random: Pcg64::new(seed.into(), STREAM),
            window: VecDeque::new(),
            counts: HashMap::new(),
            candidates: Vec::new(),
            constraint: None,
        })
    }

    /// From now on what is chosen keeps to a grammar; a token that `sample` gives is one that follows.
    pub fn constrain(&mut self, constraint: Constraint) {
        self.constraint = Some(constraint);
    }

    /// What constrains the choice, if anything does.
    pub fn constraint(&mut self) -> Option<&mut Constraint> {
        self.constraint.as_mut()
    }

    /// The seed in use, also where the config left it open.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether the choice is the largest logit as it stands: then no other needs to be known.
    pub fn takes_largest(&self) -> bool {
        let config = &self.config;
        let penalties = config.penalty_tokens > 0
            && (config.repetition_penalty != 1.0 || config.frequency_penalty != 0.0 || config.presence_penalty != 0.0);
        config.temperature == 0.0 && config.logit_bias.is_empty() && !penalties && self.constraint.is_none()
    }

    /// Tells the penalties of a token, of the prompt or chosen.
    pub fn accept(&mut self, id: u32) {
        if self.config.penalty_tokens == 0 {
            return;
        }
        if self.window.len() == self.config.penalty_tokens {
            self.forget_oldest();
        }
        self.window.push_back(id);
        *self.counts.entry(id).or_default() += 1;
    }

    fn forget_oldest(&mut self) {
        let Some(id) = self.window.pop_front() else { return };
        if let Some(count) = self.counts.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&id);
            }
        }
    }

    /// Chooses a token; `logits` (n_vocab) are changed by bias and penalties. It is not accepted yet.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SamplerError> {
        if let Some(constraint) = &mut self.constraint {
            constraint.apply(logits)?;
        }
        let id = self.choose(logits)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        Ok(id)
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<u32, SamplerError> {
        if self.config.temperature == 0.0 {
            return self.likeliest(logits).map(|(id, _)| id);
        }
        let random = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let left = self.distribution(logits)?;
        let mut sum = 0.0;
        for candidate in left {
            sum += f64::from(candidate.probability);
            if random < sum {
                return Ok(candidate.id);
            }
        }
        // Rounding left the sum a hair below `random`.
        let last = left.iter().rev().find(|candidate| candidate.probability > 0.0);
        last.map(|candidate| candidate.id).ok_or(SamplerError::AllForbidden)
    }

    /// The tokens that could be chosen now, by id, and how likely each is.
    pub fn distribution(&mut self, logits: &mut [f32]) -> Result<&[Candidate], SamplerError> {
        let (id, logit) = self.likeliest(logits)?;
        let Self { config, candidates: left, .. } = self;
        if config.temperature == 0.0 {
            left.clear();
            left.push(Candidate { id, logit, probability: 1.0 });
            return Ok(left);
        }
        match config.top_k {
            0 => candidates::all(logits, left),
            k => candidates::top_k(logits, k, left),
        }
        if config.typical_p < 1.0 {
            candidates::typical(left, config.typical_p);
        }
        if config.top_p < 1.0 {
            candidates::top_p(left, config.top_p);
        }
        if config.min_p > 0.0 {
            candidates::min_p(left, config.min_p);
        }
        left.sort_unstable_by_key(|candidate| candidate.id);
        candidates::softmax(left, config.temperature);
        Ok(left)
    }

    /// Applies bias and penalties, then finds the largest logit.
    fn likeliest(&self, logits: &mut [f32]) -> Result<(u32, f32), SamplerError> {
        let config = &self.config;
        for &(id, bias) in &config.logit_bias {
            let n_vocab = logits.len();
            let logit = logits.get_mut(id as usize).ok_or(SamplerError::BiasOutOfRange { id, n_vocab })?;
            *logit += bias;
        }
        for (&id, &count) in &self.counts {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            let repetition = config.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            *logit -= count as f32 * config.frequency_penalty + config.presence_penalty;
        }
        peak(logits)
    }
}

/// The likeliest token: the lowest id of equals.
fn peak(logits: &[f32]) -> Result<(u32, f32), SamplerError> {
    if logits.is_empty() {
        return Err(SamplerError::NoLogits);
    }
    match candidates::peak(logits) {
        Err(id) => Err(SamplerError::NotFinite { id, value: logits[id] }),
        Ok((_, f32::NEG_INFINITY)) => Err(SamplerError::AllForbidden),
        Ok((id, logit)) => Ok((id as u32, logit)),
    }
}
