//! The tokens still in the running, and the steps that thin them out.
//!
//! A vocabulary has 150,000 tokens and a step wants a handful of them: nothing here sorts them all,
//! except `typical`, whose order is another one. Ties go to the lower id everywhere, so that the result
//! is the same on every machine.

use std::cmp::Ordering;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub id: u32,
    pub logit: f32,
    /// Of the candidates left; 0 until the distribution is finished.
    pub probability: f32,
}

impl Candidate {
    fn new(id: usize, logit: f32) -> Self {
        Self { id: id as u32, logit, probability: 0.0 }
    }

    /// The likelier first.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// The largest logit and where it is first, or the place of one that is NaN or plus infinity.
pub fn peak(logits: &[f32]) -> Result<(usize, f32), usize> {
    const LANES: usize = 16; // independent maxima, so that the compiler can use vectors
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut good = [true; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            best[lane] = if chunk[lane] > best[lane] { chunk[lane] } else { best[lane] };
            good[lane] &= chunk[lane] < f32::INFINITY;
        }
    }
    let best = best.iter().chain(rest).fold(f32::NEG_INFINITY, |best, &logit| if logit > best { logit } else { best });
    if good.contains(&false) || rest.iter().any(|&logit| logit.is_nan() || logit == f32::INFINITY) {
        return Err(logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).unwrap_or(0));
    }
    Ok((logits.iter().position(|&logit| logit == best).unwrap_or(0), best))
}

/// Fills `out` with every token that is not forbidden, by id.
pub fn all(logits: &[f32], out: &mut Vec<Candidate>) {
    out.clear();
    let allowed = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    out.extend(allowed.map(|(id, &logit)| Candidate::new(id, logit)));
}

/// Fills `out` with the `k` likeliest tokens, likeliest first: one pass that keeps a few times `k` and
/// drops the worse part whenever they are full.
pub fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    let full = k.saturating_mul(4).max(256);
    let mut bar = f32::NEG_INFINITY; // a later token must be likelier than this
    for (id, &logit) in logits.iter().enumerate() {
        if logit > bar {
            out.push(Candidate::new(id, logit));
            if out.len() == full {
                bar = out.select_nth_unstable_by(k - 1, Candidate::order).1.logit;
                out.truncate(k);
            }
        }
    }
    out.sort_unstable_by(Candidate::order);
    out.truncate(k);
}

/// Sets the probabilities, of logits divided by `temperature`. They sum to 1.
pub fn softmax(candidates: &mut [Candidate], temperature: f32) {
    let top = candidates.iter().fold(f32::NEG_INFINITY, |top, candidate| top.max(candidate.logit));
    let mut sum = 0.0f64;
    for candidate in candidates.iter_mut() {
        candidate.probability = ((candidate.logit - top) / temperature).exp();
        sum += f64::from(candidate.probability);
    }
    for candidate in candidates {
        candidate.probability = (f64::from(candidate.probability) / sum) as f32;
    }
}

/// Keeps the tokens whose surprise is nearest to the distribution's entropy, up to probability `p`
/// (Meister et al., Locally Typical Sampling).
pub fn typical(candidates: &mut Vec<Candidate>, p: f32) {
    softmax(candidates, 1.0);
    let surprise = |candidate: &Candidate| -f64::from(candidate.probability).ln();
    let certain = |candidate: &&Candidate| candidate.probability > 0.0; // 0 ln 0 is 0
    let entropy: f64 = candidates.iter().filter(certain).map(|c| f64::from(c.probability) * surprise(c)).sum();
    let distance = |candidate: &Candidate| (surprise(candidate) - entropy).abs();
    candidates.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.order(b)));
    let mut sum = 0.0;
    let reached = candidates.iter().position(|candidate| {
        sum += f64::from(candidate.probability);
        sum > f64::from(p)
    });
    candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
}

/// Keeps the likeliest tokens whose probabilities reach `p` together.
pub fn top_p(candidates: &mut Vec<Candidate>, p: f32) {
    softmax(candidates, 1.0);
    // Sorts a growing front part: nearly always a few dozen tokens are enough.
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let end = (sorted * 8).max(256).min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, Candidate::order);
        }
        candidates[sorted..end].sort_unstable_by(Candidate::order);
        for at in sorted..end {
            sum += f64::from(candidates[at].probability);
            if sum >= f64::from(p) {
                candidates.truncate(at + 1);
                return;
            }
        }
        sorted = end;
    }
}

/// Keeps tokens of at least `p` times the likeliest one's probability.
pub fn min_p(candidates: &mut Vec<Candidate>, p: f32) {
    let top = candidates.iter().fold(f32::NEG_INFINITY, |top, candidate| top.max(candidate.logit));
    let least = top + p.ln();
    candidates.retain(|candidate| candidate.logit >= least);
}
