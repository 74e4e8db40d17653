//! Log-probabilities of the model's own distribution, before any bias, penalty or temperature: what an
//! API reports beside a token, and what perplexity sums.

use super::candidates::{Candidate, top_k};
use super::{SamplerError, peak};

#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the token asked for; minus infinity where it is forbidden or out of range.
    pub chosen: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Takes the logits (n_vocab) as the model gave them: call it before `Sampler::sample` changes them.
pub fn logprobs(logits: &[f32], chosen: u32, top: usize) -> Result<Logprobs, SamplerError> {
    let (_, peak) = peak(logits)?;
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - peak).exp())).sum();
    let log_sum = f64::from(peak) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let mut likeliest: Vec<Candidate> = Vec::new();
    top_k(logits, top.min(logits.len()), &mut likeliest);
    Ok(Logprobs {
        chosen: logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: likeliest.iter().map(|candidate| (candidate.id, logprob(candidate.logit))).collect(),
    })
}
