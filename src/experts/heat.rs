//! Heat: how often each expert is picked, over all runs of a model, kept between them.
//!
//! A run's picks are added to what was known, which decays by the tokens of the run. At the next start the scores begin at
//! what such frequencies give in the long run: an expert picked by a part p of the tokens has the mean score
//! `p H / ln 2`. One JSON object; it names the model by the key of its routers, and another model's heat is refused.

use serde::{Deserialize, Serialize};

use super::Grid;
use super::score::Scores;
use super::trace::Trace;

const FORMAT: &str = "rynd-heat 1";
/// Tokens of later runs after which a run counts half.
const HALF_LIFE: f64 = 8192.0;

/// Why saved heat can not be used. The caller names the file.
#[derive(Debug, thiserror::Error)]
pub enum HeatError {
    #[error("this is no expert profile: {0}")]
    Damaged(String),
    #[error("it is the profile of another model (its routers have the key {found}, this model's {expected})")]
    OtherModel { found: String, expected: String },
    #[error("it has {found} experts, this model {expected}")]
    OtherShape { found: usize, expected: usize },
}

/// How often each expert was picked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heat {
    format: String,
    /// Key of the model's routers.
    pub model: String,
    /// Tokens that the picks are of, decayed.
    pub tokens: f64,
    pub picks: Vec<Vec<f32>>, // (layers, experts), decayed
}

impl Heat {
    /// Nothing known.
    pub fn new(model: &str, grid: &Grid) -> Heat {
        let picks = vec![vec![0.0; grid.experts]; grid.layers()];
        Heat { format: FORMAT.to_owned(), model: model.to_owned(), tokens: 0.0, picks }
    }

    /// Reads a file's bytes; `model` and the grid must be the saved ones.
    pub fn parse(bytes: &[u8], model: &str, grid: &Grid) -> Result<Heat, HeatError> {
        let heat: Heat = serde_json::from_slice(bytes).map_err(|e| HeatError::Damaged(e.to_string()))?;
        if heat.format != FORMAT {
            return Err(HeatError::Damaged(format!("its format is '{}', this program reads '{FORMAT}'", heat.format)));
        }
        if heat.model != model {
            return Err(HeatError::OtherModel { found: heat.model, expected: model.to_owned() });
        }
        let found = heat.picks.iter().map(Vec::len).sum();
        if heat.picks.len() != grid.layers() || heat.picks.iter().any(|layer| layer.len() != grid.experts) {
            return Err(HeatError::OtherShape { found, expected: grid.entries() });
        }
        let sound = |x: f64| x.is_finite() && x >= 0.0;
        if !sound(heat.tokens) || heat.picks.iter().flatten().any(|&n| !sound(f64::from(n))) {
            return Err(HeatError::Damaged("a count is negative or no number".to_owned()));
        }
        Ok(heat)
    }

    /// What a trace of this model says.
    pub fn of_trace(trace: &Trace, model: &str, grid: &Grid) -> Result<Heat, HeatError> {
        if trace.header.model_hash != model {
            let found = trace.header.model_hash.clone();
            return Err(HeatError::OtherModel { found, expected: model.to_owned() });
        }
        let mut heat = Heat::new(model, grid);
        let mut counts = vec![0; grid.entries()];
        if (trace.header.layers.len(), trace.header.experts) != (grid.layers(), grid.experts) {
            let found = trace.header.layers.len() * trace.header.experts;
            return Err(HeatError::OtherShape { found, expected: grid.entries() });
        }
        for token in 0..trace.len() {
            for layer in 0..grid.layers() {
                let picks = trace.picks(token, layer).iter();
                picks.for_each(|&id| counts[grid.entry(layer, usize::from(id))] += 1);
            }
        }
        heat.merge(|layer, expert| counts[grid.entry(layer, expert)], trace.len() as u64);
        Ok(heat)
    }

    /// As a file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut rounded = self.clone();
        rounded.tokens = rounded.tokens.round();
        rounded.picks.iter_mut().flatten().for_each(|n| *n = (*n * 100.0).round() / 100.0);
        // Strings and finite numbers have no case in which this fails.
        let mut bytes = serde_json::to_vec(&rounded).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Adds a run: how often each expert was picked in it, and its tokens.
    pub fn merge(&mut self, counts: impl Fn(usize, usize) -> u32, tokens: u64) {
        let kept = (-(tokens as f64) / HALF_LIFE).exp2();
        self.tokens = self.tokens * kept + tokens as f64;
        for (layer, picks) in self.picks.iter_mut().enumerate() {
            for (expert, n) in picks.iter_mut().enumerate() {
                *n = (f64::from(*n) * kept) as f32 + counts(layer, expert) as f32;
            }
        }
    }

    /// Starts scores where these frequencies would have brought them.
    pub fn seed(&self, scores: &mut Scores, half_life: f64) {
        if self.tokens <= 0.0 {
            return;
        }
        let per_pick = half_life / std::f64::consts::LN_2 / self.tokens;
        let entries = self.picks.iter().flatten();
        entries.enumerate().for_each(|(entry, &n)| scores.seed(entry, f64::from(n) * per_pick));
    }
}
