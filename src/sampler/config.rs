//! What a sampler does, and which settings it refuses.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The steps run in the order of the fields; each names the value that turns it off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Added to the logits of single tokens; minus infinity forbids one. Empty: off.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the last tokens the three penalties look at. 0: off.
    pub penalty_tokens: usize,
    /// Divides the positive and multiplies the negative logits of tokens seen. 1: off.
    pub repetition_penalty: f32,
    /// Taken from a logit for each time its token was seen. 0: off.
    pub frequency_penalty: f32,
    /// Taken from a logit once if its token was seen. 0: off.
    pub presence_penalty: f32,
    /// Keeps this many of the likeliest tokens. 0: off.
    pub top_k: usize,
    /// Keeps the tokens closest to the expected surprise, up to this probability. 1: off.
    pub typical_p: f32,
    /// Keeps the likeliest tokens up to this probability. 1: off.
    pub top_p: f32,
    /// Keeps tokens of at least this share of the likeliest one's probability. 0: off.
    pub min_p: f32,
    /// Flattens (above 1) or sharpens what is left. 0: always the likeliest token.
    pub temperature: f32,
    /// The same seed gives the same choices; `None` takes a new one each time.
    pub seed: Option<u64>,
}

/// What Qwen recommends for Qwen3-Coder; the window of the penalty is llama.cpp's.
impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.05,
            top_k: 20,
            top_p: 0.8,
            temperature: 0.7,
            penalty_tokens: 64,
            ..Self::neutral()
        }
    }
}

#[derive(Debug, Error, PartialEq)]
pub enum SamplerError {
    #[error("{name} is {value}: it must be {wanted}")]
    BadSetting { name: &'static str, value: f32, wanted: &'static str },
    #[error("logit_bias names token {id} twice")]
    BiasTwice { id: u32 },
    #[error("logit_bias names token {id}, but the model has only {n_vocab} tokens")]
    BiasOutOfRange { id: u32, n_vocab: usize },
    #[error("there are no logits to choose from")]
    NoLogits,
    #[error("the logit of token {id} is {value}: the forward pass overflowed or the model's weights are damaged")]
    NotFinite { id: usize, value: f32 },
    #[error("the grammar can not be followed: {why}")]
    Grammar { why: String },
    #[error("a grammar needs a token that ends an answer, and the vocabulary has none")]
    NoEnd,
    #[error("every token is forbidden: nothing is left to choose from")]
    AllForbidden,
}

impl SamplerConfig {
    /// Every step off: draws from the model's own distribution.
    pub fn neutral() -> Self {
        Self {
            logit_bias: Vec::new(),
            penalty_tokens: 0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            temperature: 1.0,
            seed: None,
        }
    }

    /// Always the likeliest token, without penalties.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::neutral() }
    }

    pub(super) fn check(&self) -> Result<(), SamplerError> {
        let share = |value: f32| value > 0.0 && value <= 1.0;
        let finite = f32::is_finite;
        let Self { temperature, top_p, typical_p, min_p, .. } = *self;
        let (repetition, frequency, presence) =
            (self.repetition_penalty, self.frequency_penalty, self.presence_penalty);
        let settings = [
            ("temperature", temperature, temperature >= 0.0 && finite(temperature), "0 (greedy) or a positive number"),
            ("top_p", top_p, share(top_p), "above 0 and at most 1 (off)"),
            ("typical_p", typical_p, share(typical_p), "above 0 and at most 1 (off)"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 (off) to 1"),
            ("repetition_penalty", repetition, repetition > 0.0 && finite(repetition), "a positive number; 1 is off"),
            ("frequency_penalty", frequency, finite(frequency), "a finite number; 0 is off"),
            ("presence_penalty", presence, finite(presence), "a finite number; 0 is off"),
        ];
        for (name, value, good, wanted) in settings {
            if !good {
                return Err(SamplerError::BadSetting { name, value, wanted });
            }
        }
        for (at, &(id, value)) in self.logit_bias.iter().enumerate() {
            if value.is_nan() || value == f32::INFINITY {
                return Err(SamplerError::BadSetting {
                    name: "logit_bias",
                    value,
                    wanted: "a number or minus infinity",
                });
            }
            if self.logit_bias[..at].iter().any(|&(other, _)| other == id) {
                return Err(SamplerError::BiasTwice { id });
            }
        }
        Ok(())
    }
}
