//! The mixture of experts on the CPU.
//!
//! One token: its few experts' matrices are read once, straight from the mapping. A batch is grouped by expert first,
//! so that each expert's weights are unpacked once for all tokens that picked it. The second product adds into the
//! output by chunks of rows, each chunk one worker's for all experts: no per-pair output buffer, and a fixed order of
//! sums whatever the number of threads.
//!
//! With a RAM tier the matrices come from its slots. Reads start as soon as the picks are known; a token computes what
//! is in memory first, a batch takes its experts in waves of as many as find room, the next wave being read meanwhile.
//! Sums keep their order, so the numbers are those without a tier.

use std::ops::Range;

use rynd_quant::{ActKind, Tokens};

use super::dense::{ActSet, Matrix, activate};
use super::threads::{Shared, Worker};
use super::{Cpu, Run, WorkerState};
use crate::backend::{BackendError, ELSEWHERE};
use crate::experts::store::SCORED_TOKENS;
use crate::experts::tier::Tier;
use crate::plan::{Experts, Op, Plan, WeightId};

/// Rows of a chunk in a batch, at most.
const CHUNK: usize = 64;

/// Experts of a tier that are computed together in a batch, at most.
const WAVE: usize = 8;

/// Buffers of the mixture, sized at load for the widest layer.
pub(super) struct Mixture {
    pub logits: Shared<f32>, // (batch, experts)
    hidden: Shared<f32>,     // (batch * used, ff)
    acts: ActSet,            // (batch * used, ff)
    order: Shared<u32>,      // (used): places among one token's picks, those in memory first
}

impl Mixture {
    pub(super) fn new(plan: &Plan, batch: usize) -> Result<Mixture, BackendError> {
        let (mut logits, mut hidden, mut most_used) = (0, 0, 0);
        for step in &plan.steps {
            match &step.op {
                Op::Router(op) => logits = logits.max(plan.weight(op.weight).rows),
                Op::Experts(op) => {
                    hidden = hidden.max(op.used * plan.weight(op.down).k);
                    most_used = most_used.max(op.used);
                }
                Op::Embed(_)
                | Op::RmsNorm(_)
                | Op::Linear(_)
                | Op::RopeStore(_)
                | Op::Attention(_)
                | Op::GatedUp(_)
                | Op::ShortConv(_)
                | Op::DeltaRule(_)
                | Op::Gate(_)
                | Op::Split(_)
                | Op::TakeRows(_)
                | Op::Move(_) => {}
            }
        }
        let mut acts = ActSet::default();
        acts.reserve(batch * hidden);
        Ok(Mixture {
            logits: Shared::zeroed(batch * logits, "router logits")?,
            hidden: Shared::zeroed(batch * hidden, "expert activations")?,
            acts,
            order: Shared::zeroed(most_used, "expert order")?,
        })
    }

    /// Bytes when all is in use.
    pub(super) fn bytes(&self) -> usize {
        // The int8 copies of two kinds take about half of the floats.
        4 * self.logits.len() + 6 * self.hidden.len()
    }
}

/// The picks of a token that are computed here: (place, expert).
fn here(ids: &[u32]) -> impl Iterator<Item = (usize, usize)> {
    ids.iter().enumerate().filter(|(_, id)| **id != ELSEWHERE).map(|(pick, id)| (pick, *id as usize))
}

/// What a router picked: (t, used) each.
#[derive(Clone, Copy)]
struct Picks<'a> {
    ids: &'a [u32],
    weights: &'a [f32],
}

/// A batch's (token, pick) pairs grouped by expert; every worker has its own copy, which costs less than sharing one.
#[derive(Default)]
pub(super) struct Groups {
    /// Token of each pair, pairs of one expert together.
    tokens: Vec<u32>,
    /// Mixing weight of each pair.
    weights: Vec<f32>,
    /// Experts that were picked, and where their pairs end.
    experts: Vec<(usize, usize)>,
    ends: Vec<usize>,
}

impl Groups {
    /// Groups picks by expert.
    fn fill(&mut self, picks: Picks, used: usize, experts: usize) {
        self.ends.clear();
        self.ends.resize(experts + 1, 0);
        here(picks.ids).for_each(|(_, expert)| self.ends[expert + 1] += 1);
        for e in 0..experts {
            self.ends[e + 1] += self.ends[e];
        }
        let pairs = self.ends[experts];
        self.tokens.resize(pairs, 0);
        self.weights.resize(pairs, 0.0);
        // `ends[e]` starts as the first place of expert e and moves to its end.
        for (pick, expert) in here(picks.ids) {
            let place = &mut self.ends[expert];
            self.tokens[*place] = (pick / used) as u32;
            self.weights[*place] = picks.weights[pick];
            *place += 1;
        }
        self.experts.clear();
        let mut start = 0;
        for e in 0..experts {
            if self.ends[e] > start {
                self.experts.push((e, self.ends[e]));
            }
            start = self.ends[e];
        }
    }

    /// (expert, pair) of all pairs.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.experts.len()).flat_map(|i| {
            let (expert, pairs) = self.get(i);
            pairs.map(move |pair| (expert, pair))
        })
    }

    /// The i-th picked expert and its pairs.
    fn get(&self, i: usize) -> (usize, std::ops::Range<usize>) {
        let start = if i == 0 { 0 } else { self.experts[i - 1].1 };
        (self.experts[i].0, start..self.experts[i].1)
    }
}

impl Cpu {
    /// `plan::Experts`.
    pub(super) fn run_experts(&self, run: &Run, w: &Worker, op: &Experts) {
        let &Experts { x, ids, weights, used, .. } = op;
        let t = run.rows(x);
        // SAFETY: phase contract; picks are only read in this step.
        let picks =
            unsafe { Picks { ids: self.ids(ids).get(0..t * used), weights: self.buffer(weights).get(0..t * used) } };
        if t == 1 && picks.ids.contains(&ELSEWHERE) {
            let (ids, weights): (Vec<u32>, Vec<f32>) =
                here(picks.ids).map(|(pick, expert)| (expert as u32, picks.weights[pick])).unzip();
            if !ids.is_empty() {
                self.experts_of_one(w, op, Picks { ids: &ids, weights: &weights });
            }
        } else if t == 1 {
            self.experts_of_one(w, op, picks);
        } else {
            self.experts_of_batch(w, op, picks, t);
        }
    }

    /// The matrix of an expert, which is pinned if it lies in a tier; `None` when it could not be read, which ends the run.
    fn expert_matrix(&self, w: &Worker, id: WeightId, expert: usize) -> Option<Matrix<'_>> {
        let weight = self.plan.weight(id);
        let bytes = match self.tier.as_ref().and_then(|tier| Some((tier, tier.place(id)?))) {
            None => self.weights.expert(id, expert),
            // SAFETY: the step pins its experts before a barrier and releases them after its last.
            Some((tier, (layer, part))) => unsafe { tier.store.part(layer, expert, part, w.index == 0)? },
        };
        Some(Matrix { linear: self.linear(id), bytes, rows: weight.rows, k: weight.k })
    }

    /// The tier of this layer's experts and its number there.
    fn tier_of(&self, op: &Experts) -> Option<(&Tier, usize)> {
        let tier = self.tier.as_deref()?;
        Some((tier, tier.place(op.gate)?.0))
    }

    /// One token's, whose picks may be fewer than a router's.
    fn experts_of_one(&self, w: &Worker, op: &Experts, picks: Picks) {
        let &Experts { x, gate, up, down, act, out, .. } = op;
        let used = picks.ids.len();
        let k = self.width(x);
        let ff = self.plan.weight(down).k;
        let n = self.width(out);
        let WorkerState { own, own_hidden, normed, tile, tile2, .. } = self.worker(w);
        let kinds = [self.linear(gate).act(), self.linear(up).act()];
        let picked = || picks.ids.iter().map(|id| *id as usize);
        let tier = self.tier_of(op);
        // Kept aside: the picks' buffer may serve the next step when these are released.
        let mut pinned = vec![];
        if let (Some((tier, layer)), 0) = (tier, w.index) {
            pinned.extend(picked());
            tier.store.picked(layer, picked());
            tier.store.want(layer, picked(), true);
            // SAFETY: phase contract; only this worker writes, and a barrier follows.
            let order = unsafe { self.mixture.order.get_mut(0..used) };
            let ready = |pick: &usize| tier.store.is_ready(layer, picks.ids[*pick] as usize);
            let (first, last): (Vec<usize>, Vec<usize>) = (0..used).partition(ready);
            order.iter_mut().zip(first.into_iter().chain(last)).for_each(|(o, pick)| *o = pick as u32);
        }
        let (rows_f32, set) = self.inputs(w, own, normed, self.buffer(x), [1, k], None, &kinds);
        let order = tier.map(|_| {
            w.barrier();
            // SAFETY: phase contract; written before the barrier.
            unsafe { self.mixture.order.get(0..used) }
        });
        self.see_picked(w, &[gate, up], picked().map(|expert| (expert, 0)), rows_f32);
        // SAFETY: phase contract; the set was filled for both kinds and is only read.
        let (gate_x, up_x) = unsafe { (set.view(kinds[0], [1, k], rows_f32), set.view(kinds[1], [1, k], rows_f32)) };

        let chunk = self.chunk_rows(w, 1, ff * used);
        let per_expert = ff.div_ceil(chunk);
        w.chunks(per_expert * used, 1, |items| {
            for item in items {
                let (place, part) = (item / per_expert, item % per_expert);
                let pick = order.map_or(place, |order| order[place] as usize);
                let expert = picks.ids[pick] as usize;
                let rows = part * chunk..((part + 1) * chunk).min(ff);
                tile.resize(rows.len(), 0.0);
                tile2.resize(rows.len(), 0.0);
                let Some(gate) = self.expert_matrix(w, gate, expert) else { continue };
                let Some(up) = self.expert_matrix(w, up, expert) else { continue };
                gate.one(rows.clone(), gate_x.row(0), tile);
                up.one(rows.clone(), up_x.row(0), tile2);
                activate(self.kernels, act, tile, tile2);
                let at = pick * ff;
                // SAFETY: phase contract; each chunk of rows has one writer.
                unsafe { self.mixture.hidden.get_mut(at + rows.start..at + rows.end) }.copy_from_slice(tile);
            }
        });

        let kind = self.linear(down).act();
        own_hidden.reserve(used * ff);
        // SAFETY: phase contract; hidden was written before the barrier, and the set is this worker's own.
        let hidden = unsafe {
            let hidden = self.mixture.hidden.get(0..used * ff);
            self.see_picked(w, &[down], picked().enumerate().map(|(pick, expert)| (expert, pick)), hidden);
            own_hidden.fill(&[kind], [used, ff], 0..used, hidden);
            own_hidden.view(kind, [used, ff], hidden)
        };
        w.chunks(n, self.chunk_rows(w, 1, n), |rows| {
            tile.resize(rows.len(), 0.0);
            // SAFETY: phase contract; each chunk of rows has one writer.
            let out = unsafe { self.buffer(out).get_mut(rows.clone()) };
            for pick in 0..used {
                let expert = picks.ids[pick] as usize;
                let Some(down) = self.expert_matrix(w, down, expert) else { continue };
                down.one(rows.clone(), hidden.row(pick), tile);
                let weight = picks.weights[pick];
                out.iter_mut().zip(&*tile).for_each(|(o, y)| *o += weight * y);
            }
        });
        if let (Some((tier, layer)), 0) = (tier, w.index) {
            tier.store.release(layer, pinned.into_iter());
        }
    }

    fn experts_of_batch(&self, w: &Worker, op: &Experts, picks: Picks, t: usize) {
        let &Experts { x, used, gate, up, down, act, out, .. } = op;
        let k = self.width(x);
        let ff = self.plan.weight(down).k;
        let n = self.width(out);
        let WorkerState { own, normed, tile, tile2, groups, .. } = self.worker(w);
        groups.fill(picks, used, self.plan.weight(gate).experts);
        let pairs = groups.tokens.len();
        let kinds = [self.linear(gate).act(), self.linear(up).act()];
        let (rows_f32, set) = self.inputs(w, own, normed, self.buffer(x), [t, k], None, &kinds);
        let tokens = groups.pairs().map(|(expert, pair)| (expert, groups.tokens[pair] as usize));
        self.see_picked(w, &[gate, up], tokens, rows_f32);
        // SAFETY: phase contract; the set was filled for both kinds and is only read.
        let (gate_x, up_x) = unsafe { (set.view(kinds[0], [t, k], rows_f32), set.view(kinds[1], [t, k], rows_f32)) };

        let per_expert = ff.div_ceil(CHUNK);
        let kind = self.linear(down).act();
        let tier = self.tier_of(op);
        let total = groups.experts.len();
        // Without a tier all experts are one wave; with one, two waves find room at a time.
        let wave = tier.map_or(total, |(tier, layer)| (tier.store.room(layer) / 2).clamp(1, WAVE));
        if let (Some((tier, layer)), 0) = (tier, w.index) {
            let scored = picks.ids.chunks_exact(used).rev().take(SCORED_TOKENS);
            tier.store.picked(layer, scored.flat_map(here).map(|(_, expert)| expert));
        }
        let experts_of = |wave: Range<usize>| groups.experts[wave].iter().map(|(expert, _)| *expert);
        let mut start = 0;
        while start < total {
            let end = (start + wave).min(total);
            if let Some((tier, layer)) = tier {
                if w.index == 0 {
                    tier.store.want(layer, experts_of(start..end), true);
                    tier.store.want(layer, experts_of(end..(end + wave).min(total)), false);
                }
                w.barrier();
            }
            w.chunks(per_expert * (end - start), 1, |items| {
                for item in items {
                    let (expert, pairs) = groups.get(start + item / per_expert);
                    let rows = item % per_expert * CHUNK..((item % per_expert + 1) * CHUNK).min(ff);
                    let tokens = &groups.tokens[pairs.clone()];
                    tile.resize(tokens.len() * rows.len(), 0.0);
                    tile2.resize(tokens.len() * rows.len(), 0.0);
                    let Some(gate) = self.expert_matrix(w, gate, expert) else { continue };
                    let Some(up) = self.expert_matrix(w, up, expert) else { continue };
                    gate.many(rows.clone(), &gate_x, Tokens::List(tokens), tile);
                    up.many(rows.clone(), &up_x, Tokens::List(tokens), tile2);
                    activate(self.kernels, act, tile, tile2);
                    for (pair, values) in pairs.zip(tile.chunks_exact(rows.len())) {
                        let at = pair * ff;
                        // SAFETY: phase contract; each chunk of rows has one writer.
                        unsafe { self.mixture.hidden.get_mut(at + rows.start..at + rows.end) }.copy_from_slice(values);
                    }
                }
            });

            let first = groups.get(start).1.start;
            let share = w.share(groups.get(end - 1).1.end - first);
            let share = first + share.start..first + share.end;
            if kind != ActKind::F32 && !share.is_empty() {
                // SAFETY: phase contract; hidden was written before the barrier, shares are disjoint.
                unsafe {
                    let hidden = self.mixture.hidden.get(share.start * ff..share.end * ff);
                    self.mixture.acts.fill(&[kind], [pairs, ff], share, hidden);
                }
            }
            w.barrier();
            // SAFETY: phase contract; this wave's pairs were filled before the barrier, and no others are read.
            let hidden = unsafe { self.mixture.acts.view(kind, [pairs, ff], self.mixture.hidden.get(0..pairs * ff)) };
            let chunk = (n / (4 * w.team())).next_multiple_of(16).clamp(16, CHUNK);
            w.chunks(n, chunk, |rows| {
                for i in start..end {
                    let (expert, pairs) = groups.get(i);
                    tile.resize(pairs.len() * rows.len(), 0.0);
                    let Some(down) = self.expert_matrix(w, down, expert) else { continue };
                    down.many(rows.clone(), &hidden, Tokens::Range(pairs.start, pairs.end), tile);
                    for (pair, values) in pairs.zip(tile.chunks_exact(rows.len())) {
                        let (at, weight) = (groups.tokens[pair] as usize * n, groups.weights[pair]);
                        // SAFETY: phase contract; each chunk of rows has one writer, for all experts.
                        let out = unsafe { self.buffer(out).get_mut(at + rows.start..at + rows.end) };
                        out.iter_mut().zip(values).for_each(|(o, y)| *o += weight * y);
                    }
                }
            });
            if let (Some((tier, layer)), 0) = (tier, w.index) {
                tier.store.release(layer, experts_of(start..end));
            }
            start = end;
        }
        // SAFETY: phase contract; all of hidden was written before the last barrier.
        let hidden = unsafe { self.mixture.hidden.get(0..pairs * ff) };
        self.see_picked(w, &[down], groups.pairs(), hidden);
    }
}
