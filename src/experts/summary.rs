//! What a trace says about a model: how unevenly experts are used, how soon they return, how alike neighbouring tokens
//! are, and which experts belong to which kind of text.
//!
//! Every figure that could come from chance has its control beside it: overlap against the same tokens shuffled, divergence
//! against the same texts cut into blocks and dealt out at random. Generated tokens count; a trace of a text that was only
//! read is to be taken `as_decode`.

use serde::Serialize;

use super::mix::permutation;
use super::trace::{Phase, Trace};

/// Lags, in tokens, at which overlap is measured.
pub const LAGS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Tokens of a block when texts are dealt out at random: neighbours stay together.
const BLOCK: usize = 32;
/// How often the control of a divergence is drawn.
const DRAWS: u64 = 8;

/// What one mixture layer shows.
#[derive(Clone, Debug, Serialize)]
pub struct LayerSummary {
    /// Its number in the model.
    pub layer: u32,
    pub counts: Vec<u32>, // (experts)
    /// Share of the picks that the tenth and the quarter of the experts with the most picks have.
    pub top_tenth: f64,
    pub top_quarter: f64,
    /// `2^entropy`: how many equally used experts would be as varied.
    pub effective: f64,
    /// 0 when all experts are used alike, towards 1 when few do everything.
    pub gini: f64,
    /// Picks of a token that the token before did not have.
    pub new_a_token: f64,
    /// Picks of a token that no token before had, over the second half.
    pub unseen_a_token: f64,
}

/// Values over powers of two: how many lie in `2^i .. 2^(i + 1)`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Distribution {
    pub counts: Vec<u64>,
    pub median: u32,
    pub p90: u32,
}

/// What a trace shows.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub tokens: usize,
    pub experts: usize,
    pub used: usize,
    pub layers: Vec<LayerSummary>,
    /// Tokens between two picks of an expert.
    pub reuse: Distribution,
    /// (lag, part of the picks that were also picked so many tokens ago, the same with tokens shuffled).
    pub overlap: Vec<(usize, f64, f64)>,
}

impl Summary {
    /// Reads a trace.
    pub fn new(trace: &Trace) -> Summary {
        let tokens = decoded(trace);
        let layers = (0..trace.header.layers.len()).map(|layer| layer_summary(trace, &tokens, layer)).collect();
        let shuffled = trace.shuffled(1);
        let overlap = LAGS
            .into_iter()
            .filter(|&lag| lag < tokens.len())
            .map(|lag| (lag, overlap(trace, &tokens, lag), overlap(&shuffled, &tokens, lag)))
            .collect();
        Summary {
            tokens: tokens.len(),
            experts: trace.header.experts,
            used: trace.header.used,
            layers,
            reuse: reuse(trace, &tokens),
            overlap,
        }
    }

    /// The mean of a figure over the layers.
    pub fn mean(&self, figure: impl Fn(&LayerSummary) -> f64) -> f64 {
        self.layers.iter().map(figure).sum::<f64>() / self.layers.len().max(1) as f64
    }
}

fn decoded(trace: &Trace) -> Vec<usize> {
    (0..trace.len()).filter(|&t| trace.tokens[t].phase != Phase::Prefill).collect()
}

fn layer_summary(trace: &Trace, tokens: &[usize], layer: usize) -> LayerSummary {
    let mut counts = vec![0u32; trace.header.experts];
    let (mut new, mut unseen) = (0usize, 0usize);
    let half = tokens.len() / 2;
    for (i, &t) in tokens.iter().enumerate() {
        let before: &[u16] = if i > 0 { trace.picks(tokens[i - 1], layer) } else { &[] };
        for &id in trace.picks(t, layer) {
            new += usize::from(i > 0 && !before.contains(&id));
            unseen += usize::from(i >= half && counts[usize::from(id)] == 0);
        }
        trace.picks(t, layer).iter().for_each(|&id| counts[usize::from(id)] += 1);
    }
    let new_a_token = new as f64 / (tokens.len().saturating_sub(1)).max(1) as f64;
    let unseen_a_token = unseen as f64 / (tokens.len() - half).max(1) as f64;
    LayerSummary { new_a_token, unseen_a_token, ..LayerSummary::of_counts(trace.header.layers[layer].layer, counts) }
}

impl LayerSummary {
    /// What counts alone say; nothing is known of what is new.
    pub fn of_counts(layer: u32, counts: Vec<u32>) -> LayerSummary {
        let experts = counts.len();
        let total = counts.iter().map(|&n| f64::from(n)).sum::<f64>().max(1.0);
        let mut sorted = counts.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let top = |part: usize| sorted[..experts.div_ceil(part)].iter().map(|&n| f64::from(n)).sum::<f64>() / total;
        let entropy: f64 = counts
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| {
                let p = f64::from(n) / total;
                -p * p.log2()
            })
            .sum();
        // Over rising values x_i, i from 1: G = (2 sum i x_i) / (n sum x_i) - (n + 1) / n.
        let weighted: f64 = sorted.iter().rev().enumerate().map(|(i, &n)| (i + 1) as f64 * f64::from(n)).sum();
        let n = experts as f64;
        LayerSummary {
            layer,
            top_tenth: top(10),
            top_quarter: top(4),
            effective: entropy.exp2(),
            gini: 2.0 * weighted / (n * total) - (n + 1.0) / n,
            new_a_token: 0.0,
            unseen_a_token: 0.0,
            counts,
        }
    }
}

fn overlap(trace: &Trace, tokens: &[usize], lag: usize) -> f64 {
    let (mut same, mut all) = (0usize, 0usize);
    for pair in tokens.windows(lag + 1) {
        for layer in 0..trace.header.layers.len() {
            let then = trace.picks(pair[0], layer);
            let now = trace.picks(pair[lag], layer);
            same += now.iter().filter(|id| then.contains(id)).count();
            all += now.len();
        }
    }
    same as f64 / all.max(1) as f64
}

fn reuse(trace: &Trace, tokens: &[usize]) -> Distribution {
    let mut distances: Vec<u32> = vec![];
    for layer in 0..trace.header.layers.len() {
        let mut last = vec![None; trace.header.experts];
        for (i, &t) in tokens.iter().enumerate() {
            for &id in trace.picks(t, layer) {
                if let Some(before) = last[usize::from(id)].replace(i) {
                    distances.push((i - before) as u32);
                }
            }
        }
    }
    distances.sort_unstable();
    let quantile = |part: f64| match distances.len() {
        0 => 0,
        n => distances[((n - 1) as f64 * part).round() as usize],
    };
    let mut counts = vec![];
    for &distance in &distances {
        let bucket = distance.ilog2() as usize;
        counts.resize(counts.len().max(bucket + 1), 0);
        counts[bucket] += 1;
    }
    Distribution { median: quantile(0.5), p90: quantile(0.9), counts }
}

/// How differently two texts use a layer's experts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Divergence {
    pub layer: u32,
    /// Jensen-Shannon divergence of the two distributions over experts, in bits: 0 alike, 1 nothing in common.
    pub bits: f64,
    /// The same when the texts are cut into blocks and dealt out at random: what chance alone gives.
    pub by_chance: f64,
}

/// Divergence of two traces of one model, by layer.
pub fn divergence(a: &Trace, b: &Trace) -> Vec<Divergence> {
    let (in_a, in_b) = (decoded(a), decoded(b));
    let blocks: Vec<(&Trace, &[usize])> =
        in_a.chunks(BLOCK).map(|c| (a, c)).chain(in_b.chunks(BLOCK).map(|c| (b, c))).collect();
    let first = in_a.len().div_ceil(BLOCK);
    (0..a.header.layers.len().min(b.header.layers.len()))
        .map(|layer| {
            let counts = |blocks: &mut dyn Iterator<Item = usize>, from: &[(&Trace, &[usize])]| {
                let mut counts = vec![0u32; a.header.experts.max(b.header.experts)];
                for block in blocks {
                    let (trace, tokens) = from[block];
                    for &t in tokens {
                        trace.picks(t, layer).iter().for_each(|&id| counts[usize::from(id)] += 1);
                    }
                }
                counts
            };
            let bits = jensen_shannon(&counts(&mut (0..first), &blocks), &counts(&mut (first..blocks.len()), &blocks));
            let by_chance = (0..DRAWS)
                .map(|draw| {
                    let order = permutation(blocks.len(), draw);
                    let (left, right) = order.split_at(first);
                    jensen_shannon(
                        &counts(&mut left.iter().copied(), &blocks),
                        &counts(&mut right.iter().copied(), &blocks),
                    )
                })
                .sum::<f64>()
                / DRAWS as f64;
            Divergence { layer: a.header.layers[layer].layer, bits, by_chance }
        })
        .collect()
}

/// Jensen-Shannon divergence of two histograms, in bits.
pub fn jensen_shannon(a: &[u32], b: &[u32]) -> f64 {
    let total = |counts: &[u32]| counts.iter().map(|&n| f64::from(n)).sum::<f64>().max(1.0);
    let (in_a, in_b) = (total(a), total(b));
    let term = |p: f64, m: f64| if p > 0.0 { p * (p / m).log2() } else { 0.0 };
    a.iter()
        .zip(b)
        .map(|(&a, &b)| {
            let (p, q) = (f64::from(a) / in_a, f64::from(b) / in_b);
            let m = (p + q) / 2.0;
            (term(p, m) + term(q, m)) / 2.0
        })
        .sum()
}

/// An expert that one text uses more than the others do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Specialist {
    pub layer: u32,
    pub expert: usize,
    /// Part of this text's tokens that picked it.
    pub here: f64,
    /// The same over all other texts.
    pub elsewhere: f64,
}

/// For each trace the experts that tell it apart best, the clearest first: by what each adds to the divergence.
pub fn specialists(traces: &[&Trace], most: usize) -> Vec<Vec<Specialist>> {
    let summaries: Vec<Summary> = traces.iter().map(|trace| Summary::new(trace)).collect();
    (0..traces.len())
        .map(|own| {
            let mut found: Vec<(f64, Specialist)> = vec![];
            for (at, layer) in summaries[own].layers.iter().enumerate() {
                for expert in 0..layer.counts.len() {
                    let here = f64::from(layer.counts[expert]) / summaries[own].tokens.max(1) as f64;
                    let (mut picks, mut tokens) = (0.0, 0);
                    for (other, summary) in summaries.iter().enumerate().filter(|(other, _)| *other != own) {
                        let counts = summary.layers.get(at).map(|layer| &layer.counts);
                        debug_assert_ne!(other, own);
                        picks += counts.and_then(|c| c.get(expert)).map_or(0.0, |&n| f64::from(n));
                        tokens += summary.tokens;
                    }
                    let elsewhere = picks / tokens.max(1) as f64;
                    if here > elsewhere {
                        let gain = here * (2.0 * here / (here + elsewhere)).log2();
                        found.push((gain, Specialist { layer: layer.layer, expert, here, elsewhere }));
                    }
                }
            }
            found.sort_by(|a, b| b.0.total_cmp(&a.0));
            found.into_iter().take(most).map(|(_, specialist)| specialist).collect()
        })
        .collect()
}
