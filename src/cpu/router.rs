//! The router on the CPU: a product over all experts, and each token's choice among them.
//!
//! `Choice` is the whole meaning of `Routing`, in scalar code: a token chooses a few of some hundred numbers. Where the
//! order of the logits decides alone, nothing else is computed before the choice.

use super::threads::Worker;
use super::{Cpu, Run, WorkerState};
use crate::plan::{Router, Routing, Score};

/// Rows of a chunk, at most.
const CHUNK: usize = 64;

/// Added to the sum that sigmoids are divided by: all of them may be 0.
const LEAST_SUM: f32 = 1e-20;

/// A worker's buffers for choosing.
#[derive(Default)]
pub(super) struct Choice {
    order: Vec<u32>,
    scores: Vec<f32>,        // (experts)
    by: Vec<f32>,            // (experts): what the choice goes by
    groups: Vec<(f32, u32)>, // worth, number
}

impl Cpu {
    /// `plan::Router`.
    pub(super) fn router(&self, run: &Run, w: &Worker, op: &Router) {
        let &Router { x, weight, routing, ids, weights } = op;
        let (t, k, used) = (run.rows(x), self.width(x), routing.used);
        let matrix = self.matrix(weight);
        let experts = matrix.rows;
        let WorkerState { own, normed, tile, choice, .. } = self.worker(w);
        let kind = matrix.linear.act();
        let (rows_f32, set) = self.inputs(w, own, normed, self.buffer(x), [t, k], None, &[kind]);
        self.see(w, weight, 0, rows_f32);
        // SAFETY: phase contract; the set was filled for this kind and is only read.
        let view = unsafe { set.view(kind, [t, k], rows_f32) };
        w.chunks(experts, experts.div_ceil(w.team()).next_multiple_of(16).min(CHUNK), |rows| {
            self.product(&matrix, &view, rows.clone(), tile);
            for (token, values) in tile.chunks_exact(rows.len()).enumerate() {
                let at = token * experts;
                // SAFETY: phase contract; each chunk of rows has one writer.
                unsafe { self.mixture.logits.get_mut(at + rows.start..at + rows.end) }.copy_from_slice(values);
            }
        });
        let bias = routing.bias.map(|id| self.vector(id));
        for token in w.share(t) {
            // SAFETY: phase contract; logits were written before the barrier, each token's picks have one writer.
            let (logits, ids, weights) = unsafe {
                (
                    self.mixture.logits.get(token * experts..(token + 1) * experts),
                    self.ids(ids).get_mut(token * used..(token + 1) * used),
                    self.buffer(weights).get_mut(token * used..(token + 1) * used),
                )
            };
            ids.copy_from_slice(choice.choose(logits, &routing, bias, weights));
            // One that is no number may rank last and never be seen again.
            if !logits.iter().chain(bias.into_iter().flatten()).all(|x| x.is_finite()) {
                weights.fill(f32::NAN);
            }
        }
        w.barrier();
        if let Some(log) = self.picks.as_deref().filter(|_| w.index == 0) {
            // SAFETY: phase contract; all picks were written before the barrier, and the next step only reads them.
            let (ids, weights) = unsafe { (self.ids(ids).get(0..t * used), self.buffer(weights).get(0..t * used)) };
            log.put(weight, ids, weights);
        }
    }
}

impl Choice {
    /// The experts that one token's logits choose, the best first, and their mixing weights, as `Routing` says.
    fn choose(&mut self, logits: &[f32], routing: &Routing, bias: Option<&[f32]>, weights: &mut [f32]) -> &[u32] {
        let Choice { order, scores, by, groups } = self;
        let Routing { score, used, normalize, scale, .. } = *routing;
        order.clear();
        if routing.is_by_logits() && score != Score::Sigmoid {
            order.extend(0..logits.len() as u32);
            keep_best(order, logits, used);
        } else {
            scores.clear();
            by.clear();
            match score {
                Score::Softmax => {
                    let max = logits.iter().fold(f32::NEG_INFINITY, |max, logit| max.max(*logit));
                    let total: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
                    scores.extend(logits.iter().map(|logit| (logit - max).exp() / total));
                }
                Score::Sigmoid => scores.extend(logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp()))),
                Score::SoftmaxAfter => scores.extend(logits),
            }
            match bias {
                Some(bias) => by.extend(scores.iter().zip(bias).map(|(score, bias)| score + bias)),
                None => by.extend(&*scores),
            }
            match routing.groups {
                Some((count, kept)) => best_groups(by, count, kept, groups, order),
                None => order.extend(0..logits.len() as u32),
            }
            keep_best(order, by, used);
        }
        let logit = |i: usize| logits[order[i] as usize];
        match score {
            Score::Softmax | Score::SoftmaxAfter => {
                let max = match routing.is_by_logits() {
                    true => logit(0),
                    false => logits.iter().fold(f32::NEG_INFINITY, |max, logit| max.max(*logit)),
                };
                let chosen = |i: usize| (logit(i) - max).exp();
                let total: f32 = match normalize || score == Score::SoftmaxAfter {
                    true => (0..used).map(chosen).sum(),
                    false => logits.iter().map(|logit| (logit - max).exp()).sum(),
                };
                weights.iter_mut().enumerate().for_each(|(i, weight)| *weight = chosen(i) / total * scale);
            }
            Score::Sigmoid => {
                let chosen = |i: usize| scores[order[i] as usize];
                let total = if normalize { (0..used).map(chosen).sum::<f32>() + LEAST_SUM } else { 1.0 };
                weights.iter_mut().enumerate().for_each(|(i, weight)| *weight = chosen(i) / total * scale);
            }
        }
        &order[..used]
    }
}

/// Brings the `used` experts of the largest values to the front, the best first, ties to the lower id.
fn keep_best(order: &mut [u32], values: &[f32], used: usize) {
    let by_value = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b));
    if used < order.len() {
        order.select_nth_unstable_by(used, by_value);
    }
    order[..used].sort_unstable_by(by_value);
}

/// Appends the experts of the `kept` groups whose two best values have the largest sums, ties to the lower group.
fn best_groups(by: &[f32], count: usize, kept: usize, groups: &mut Vec<(f32, u32)>, order: &mut Vec<u32>) {
    let size = by.len() / count;
    groups.clear();
    groups.extend(by.chunks_exact(size).zip(0..).map(|(values, group)| (two_best(values), group)));
    groups.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let size = size as u32;
    order.extend(groups[..kept].iter().flat_map(|(_, group)| group * size..(group + 1) * size));
}

/// The sum of the two largest values; the value, when there is one only.
fn two_best(values: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &value in values {
        if value > first {
            (first, second) = (value, first);
        } else if value > second {
            second = value;
        }
    }
    if values.len() > 1 { first + second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::WeightId;

    const BIASED: Option<WeightId> = Some(WeightId(0));

    fn chosen(logits: &[f32], routing: &Routing, bias: Option<&[f32]>) -> (Vec<u32>, Vec<f32>) {
        let mut weights = vec![f32::NAN; routing.used];
        let ids = Choice::default().choose(logits, routing, bias, &mut weights).to_vec();
        (ids, weights)
    }

    /// The description of `Routing` word by word, in f64, with nothing but full sorts.
    fn by_the_book(logits: &[f32], routing: &Routing, bias: Option<&[f32]>) -> (Vec<u32>, Vec<f64>) {
        let logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let score = |logit: f64| match routing.score {
            Score::Softmax => logit.exp() / total,
            Score::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            Score::SoftmaxAfter => logit,
        };
        let scores: Vec<f64> = logits.iter().map(|logit| score(*logit)).collect();
        let by: Vec<f64> = (0..scores.len()).map(|e| scores[e] + bias.map_or(0.0, |bias| f64::from(bias[e]))).collect();
        let falling = |values: &[f64]| {
            let mut places: Vec<usize> = (0..values.len()).collect();
            places.sort_by(|a, b| values[*b].partial_cmp(&values[*a]).unwrap());
            places
        };
        let (count, kept) = routing.groups.unwrap_or((1, 1));
        let size = by.len() / count;
        let worth: Vec<f64> =
            by.chunks(size).map(|group| falling(group).iter().take(2).map(|e| group[*e]).sum()).collect();
        let open = falling(&worth)[..kept].to_vec();
        let ids = falling(&by).into_iter().filter(|e| open.contains(&(e / size))).take(routing.used);
        let ids: Vec<usize> = ids.collect();
        let mut weights: Vec<f64> = ids.iter().map(|e| scores[*e]).collect();
        if routing.score == Score::SoftmaxAfter {
            weights.iter_mut().for_each(|weight| *weight = weight.exp());
        }
        let sum: f64 = weights.iter().sum();
        if routing.normalize || routing.score == Score::SoftmaxAfter {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        weights.iter_mut().for_each(|weight| *weight *= f64::from(routing.scale));
        (ids.into_iter().map(|e| e as u32).collect(), weights)
    }

    #[test]
    fn every_routing_chooses_as_its_description_says() {
        let mut state = 11_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 * 8.0 - 4.0
        };
        for case in 0..600 {
            let experts = [16, 64, 256][case % 3];
            let logits: Vec<f32> = (0..experts).map(|_| random()).collect();
            let bias: Vec<f32> = (0..experts).map(|_| random() / 8.0).collect();
            let with_bias = case % 2 == 1;
            let routing = Routing {
                score: [Score::Softmax, Score::Sigmoid, Score::SoftmaxAfter][case / 3 % 3],
                bias: if with_bias { BIASED } else { None },
                groups: [None, Some((8, 4)), Some((4, 1))][case / 9 % 3],
                normalize: case / 27 % 2 == 0,
                scale: [1.0, 2.5][case / 54 % 2],
                used: [1, 4][case / 108 % 2],
            };
            assert_eq!(routing.problem(experts), None);
            let bias = with_bias.then_some(&bias[..]);
            let (ids, weights) = chosen(&logits, &routing, bias);
            let (book_ids, book_weights) = by_the_book(&logits, &routing, bias);
            assert_eq!(ids, book_ids, "case {case}: {routing:?}");
            for (found, expected) in weights.iter().zip(&book_weights) {
                assert!((f64::from(*found) - expected).abs() < 1e-5 * expected.abs(), "case {case}: {routing:?}");
            }
        }
    }

    #[test]
    fn the_bias_chooses_and_does_not_weigh_and_a_closed_group_holds_even_the_best() {
        // Two groups of three. The best expert of all, 0, is alone in its group; the bias brings 4 before 3.
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let logits = [0.9, 0.1, 0.1, 0.6, 0.5, 0.2].map(logit);
        let bias = [0.0, 0.0, 0.0, 0.0, 0.2, 0.0];
        let routing =
            Routing { score: Score::Sigmoid, bias: BIASED, groups: Some((2, 1)), normalize: true, scale: 2.5, used: 2 };
        let (ids, weights) = chosen(&logits, &routing, Some(&bias));
        assert_eq!(ids, [4, 3]);
        let close = |found: f32, expected: f32| (found - expected).abs() < 1e-5;
        assert!(close(weights[0], 2.5 * 0.5 / 1.1) && close(weights[1], 2.5 * 0.6 / 1.1), "{weights:?}");
    }

    #[test]
    fn equal_scores_go_to_the_lower_expert() {
        // Sigmoids of large logits are all 1, whatever their order.
        let routing = Routing { score: Score::Sigmoid, ..Routing::softmax(2) };
        assert_eq!(chosen(&[30.0, 40.0, 50.0], &routing, None), (vec![0, 1], vec![0.5, 0.5]));
        assert_eq!(chosen(&[1.0, 2.0, 2.0], &Routing::softmax(2), None).0, [1, 2]);
    }

    #[test]
    fn a_routing_that_no_model_means_is_refused() {
        let refuses = |groups, used, experts| Routing { groups, ..Routing::softmax(used) }.problem(experts).is_some();
        assert!(refuses(None, 0, 8) && refuses(None, 9, 8));
        assert!(refuses(Some((3, 1)), 1, 8) && refuses(Some((4, 5)), 1, 8) && refuses(Some((0, 0)), 1, 8));
        assert!(refuses(Some((4, 2)), 5, 8) && !refuses(Some((4, 2)), 4, 8));
    }
}
