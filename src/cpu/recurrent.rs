//! Operations with a recurrent state on the CPU.
//!
//! A run holds tokens of several sequences, those of one neighbours by rising position. Work is cut by sequence and channel,
//! and an item walks its tokens in order: what it carries from one to the next stays in the first-level cache. The state it
//! begins with is only read, the one it leaves behind is written whole, so a run that fails changed nothing.

use std::ops::Range;

use super::threads::Worker;
use super::{Cpu, Run, WorkerState};
use crate::backend::StateStep;
use crate::plan::{Activation, DeltaRule, ShortConv, StateId};

/// Channels of a convolution's item.
const CHANNELS: usize = 64;

/// Columns of a delta rule's item: of a head of 128 keys its part of the state takes 16 KB.
const COLUMNS: usize = 32;

/// Beside the sum of squares that keys and queries are divided by, in every model with a delta rule.
const LENGTH_EPS: f32 = 1e-6;

/// Factors of nothing.
const ONES: [f32; CHANNELS] = [1.0; CHANNELS];

/// One sequence's tokens in a run.
struct Span {
    tokens: Range<usize>,
    state: StateStep,
}

fn spans(run: &Run) -> Vec<Span> {
    let mut spans: Vec<Span> = vec![];
    for tokens in run.env.tokens.chunk_by(|a, b| a.seq == b.seq) {
        let first = spans.last().map_or(0, |span| span.tokens.end);
        // Asserted once, where a run begins.
        let Some(state) = run.env.seqs[tokens[0].seq as usize].state else { continue };
        spans.push(Span { tokens: first..first + tokens.len(), state });
    }
    spans
}

impl Cpu {
    /// A part of a state as the run found it; `None` for zeros.
    ///
    /// # Safety
    /// The phase contract: no sequence of the run leaves its state at this place.
    unsafe fn old_state(&self, id: StateId, step: StateStep, part: Range<usize>) -> Option<&[f32]> {
        let first = step.from? as usize * self.plan.states[id.0 as usize].values;
        // SAFETY: the caller's contract.
        Some(unsafe { self.states[id.0 as usize].get(first + part.start..first + part.end) })
    }

    /// A part of the state that the run leaves behind.
    ///
    /// # Safety
    /// The phase contract: nobody else has this part.
    #[expect(clippy::mut_from_ref, reason = "each item asks for its own part only")]
    unsafe fn new_state(&self, id: StateId, step: StateStep, part: Range<usize>) -> &mut [f32] {
        let first = step.to as usize * self.plan.states[id.0 as usize].values;
        // SAFETY: the caller's contract.
        unsafe { self.states[id.0 as usize].get_mut(first + part.start..first + part.end) }
    }

    /// `plan::ShortConv`.
    pub(super) fn short_conv(&self, run: &Run, w: &Worker, op: &ShortConv) {
        let n = self.width(op.out);
        let spans = spans(run);
        let blocks = n.div_ceil(CHANNELS);
        w.chunks(spans.len() * blocks, 1, |items| {
            for item in items {
                let first = item % blocks * CHANNELS;
                self.convolve(w, op, &spans[item / blocks], first..(first + CHANNELS).min(n));
            }
        });
    }

    /// Some channels of one sequence.
    fn convolve(&self, w: &Worker, op: &ShortConv, span: &Span, channels: Range<usize>) {
        let &ShortConv { x, weight, gated, act, state, out } = op;
        let (n, width, c) = (self.width(out), self.width(x), channels.len());
        let (taps, row_bytes) = (self.plan.weight(weight).k, self.plan.weight(weight).row_bytes());
        let WorkerState { tile, tile2, .. } = self.worker(w);
        // (c, taps) as in the file, behind it (taps, c).
        tile.resize(2 * taps * c, 0.0);
        let (rows, kernel) = tile.split_at_mut(taps * c);
        let bytes = &self.weights.bytes(weight)[channels.start * row_bytes..channels.end * row_bytes];
        self.plan.weight(weight).format.decode(bytes, rows);
        for (i, row) in rows.chunks_exact(taps).enumerate() {
            row.iter().enumerate().for_each(|(tap, value)| kernel[tap * c + i] = *value);
        }
        // The last inputs (taps, c), input i of the run at row (i + taps - 1) % taps.
        tile2.resize(taps * c, 0.0);
        for (j, row) in tile2.chunks_exact_mut(c).take(taps - 1).enumerate() {
            // SAFETY: phase contract; states that are begun with are only read in a run.
            match unsafe { self.old_state(state, span.state, j * n + channels.start..j * n + channels.end) } {
                Some(old) => row.copy_from_slice(old),
                None => row.fill(0.0),
            }
        }
        for (i, token) in span.tokens.clone().enumerate() {
            let part = |part: usize| token * width + part * n + channels.start..token * width + part * n + channels.end;
            let newest = (i + taps - 1) % taps * c;
            let newest = &mut tile2[newest..newest + c];
            // SAFETY: phase contract; x is only read here, and each item has channels of its own of out.
            let (x, out) = unsafe {
                newest.copy_from_slice(self.buffer(x).get(part(if gated { 2 } else { 0 })));
                (self.buffer(x), self.buffer(out).get_mut(token * n + channels.start..token * n + channels.end))
            };
            if gated {
                // SAFETY: as above.
                newest.iter_mut().zip(unsafe { x.get(part(0)) }).for_each(|(u, b)| *u *= b);
            }
            out.fill(0.0);
            for (j, kernel) in kernel.chunks_exact(c).enumerate() {
                let input = &tile2[(i + j) % taps * c..][..c];
                out.iter_mut().zip(input).zip(kernel).for_each(|((o, u), k)| *o += u * k);
            }
            match act {
                None => {}
                Some(Activation::Silu) => self.kernels.vector().silu_mul(out, &ONES[..c]),
                Some(Activation::GeluTanh) => self.kernels.vector().gelu_mul(out, &ONES[..c]),
            }
            if gated {
                // SAFETY: as above.
                out.iter_mut().zip(unsafe { x.get(part(1)) }).for_each(|(o, c)| *o *= c);
            }
        }
        for j in 0..taps - 1 {
            let row = &tile2[(span.tokens.len() + j) % taps * c..][..c];
            // SAFETY: phase contract; each item has its own channels of its sequence's state.
            unsafe { self.new_state(state, span.state, j * n + channels.start..j * n + channels.end) }
                .copy_from_slice(row);
        }
    }

    /// `plan::DeltaRule`.
    pub(super) fn delta_rule(&self, run: &Run, w: &Worker, op: &DeltaRule) {
        let heads = op.heads;
        let spans = spans(run);
        let blocks = heads.value_dim.div_ceil(COLUMNS);
        let a_span = heads.values * blocks;
        w.chunks(spans.len() * a_span, 1, |items| {
            for item in items {
                let (head, first) = (item % a_span / blocks, item % blocks * COLUMNS);
                let columns = first..(first + COLUMNS).min(heads.value_dim);
                self.delta_head(w, op, &spans[item / a_span], head, columns);
            }
        });
    }

    /// Some columns of one head of one sequence.
    fn delta_head(&self, w: &Worker, op: &DeltaRule, span: &Span, head: usize, columns: Range<usize>) {
        let &DeltaRule { x, decay, rate, slope, shift, heads, state, out } = op;
        let (d, n) = (heads.key_dim, heads.value_dim);
        let width = heads.width();
        let key_head = if heads.tiled { head % heads.keys } else { head / (heads.values / heads.keys) };
        let vector = self.kernels.vector();
        let (slope, shift) = (self.vector(slope)[head], self.vector(shift)[head]);
        let WorkerState { tile, tile2, .. } = self.worker(w);
        // This part of the state (d, columns).
        tile.resize(d * columns.len(), 0.0);
        tile2.resize(2 * d, 0.0);
        let (k, q) = tile2.split_at_mut(d);
        let place = |row: usize| (head * d + row) * n + columns.start..(head * d + row) * n + columns.end;
        for (i, row) in tile.chunks_exact_mut(columns.len()).enumerate() {
            // SAFETY: phase contract; states that are begun with are only read in a run.
            match unsafe { self.old_state(state, span.state, place(i)) } {
                Some(old) => row.copy_from_slice(old),
                None => row.fill(0.0),
            }
        }
        for token in span.tokens.clone() {
            let at = token * heads.values + head;
            // SAFETY: phase contract; inputs are only read here, and each item has columns of its own of out.
            let (x, gates, out) = unsafe {
                (
                    self.buffer(x).get(token * width..(token + 1) * width),
                    [self.buffer(decay).get(at..at + 1)[0], self.buffer(rate).get(at..at + 1)[0]],
                    self.buffer(out).get_mut(at * n + columns.start..at * n + columns.end),
                )
            };
            let (queries, rest) = x.split_at(heads.keys * d);
            let (keys, values) = rest.split_at(heads.keys * d);
            let part = key_head * d..(key_head + 1) * d;
            for (to, from, scale) in
                [(&mut *q, &queries[part.clone()], 1.0 / (d as f32).sqrt()), (&mut *k, &keys[part], 1.0)]
            {
                let scale = scale / (vector.sum_squares(from) + LENGTH_EPS).sqrt();
                to.iter_mut().zip(from).for_each(|(to, x)| *to = x * scale);
            }
            let decay = (slope * softplus(gates[0] + shift)).exp();
            let rate = 1.0 / (1.0 + (-gates[1]).exp());
            let v = &values[head * n + columns.start..head * n + columns.end];
            vector.delta(tile, [k, q, v], [decay, rate], out);
        }
        for (i, row) in tile.chunks_exact(columns.len()).enumerate() {
            // SAFETY: phase contract; each item has its own columns of its sequence's state.
            unsafe { self.new_state(state, span.state, place(i)) }.copy_from_slice(row);
        }
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
