//! Embedding, norms, matrix products and the gated feed-forward on the CPU.
//!
//! A product runs in two phases: the inputs are normed and quantised (one token: by every worker for itself, which is
//! cheaper than a barrier; a batch: shared out), then rows are handed out in chunks. Each worker computes a chunk into a
//! tile of its own and finishes it there (bias, residual, activation) before it goes to the slot.

use std::ops::Range;

use rynd_quant::{ActKind, ActRow, ActShape, ActView, Acts, Linear, OutView, Tokens};

use super::threads::{Shared, Worker};
use super::{Cpu, Run, WorkerState};
use crate::plan::{self, Activation, Embed, GatedUp, Norm, Part, RmsNorm, TakeRows, WeightId};

/// Rows of a chunk in a batch: the row block that the tiled kernels keep in the second-level cache.
const BATCH_CHUNK: usize = 64;

/// Quantised inputs of one product, by kind of activation.
#[derive(Default)]
pub(super) struct ActSet {
    q8_0: Acts,
    q8_k: Acts,
}

impl ActSet {
    /// Room for `values` = tokens x k.
    pub(super) fn reserve(&mut self, values: usize) {
        self.q8_0.reserve(values);
        self.q8_k.reserve(values);
    }

    fn of(&self, kind: ActKind) -> Option<&Acts> {
        match kind {
            ActKind::F32 => None,
            ActKind::Q8_0 => Some(&self.q8_0),
            ActKind::Q8_K => Some(&self.q8_k),
        }
    }

    /// Quantises rows `tokens` of a (t, k) batch for each kind once; `x` holds these rows alone.
    ///
    /// # Safety
    /// The phase contract: nobody else fills these tokens or reads the set.
    pub(super) unsafe fn fill(&self, kinds: &[ActKind], [t, k]: [usize; 2], tokens: Range<usize>, x: &[f32]) {
        for (i, &kind) in kinds.iter().enumerate() {
            if let Some(acts) = self.of(kind).filter(|_| !kinds[..i].contains(&kind)) {
                // SAFETY: the caller's contract.
                unsafe { acts.fill(ActShape { kind, tokens: t, k }, tokens.clone(), x) };
            }
        }
    }

    /// The batch as this kind of activation; `x` (t, k) serves the f32 kind.
    ///
    /// # Safety
    /// The phase contract: all tokens were filled for this kind and shape, and nobody fills.
    pub(super) unsafe fn view<'a>(&'a self, kind: ActKind, [t, k]: [usize; 2], x: &'a [f32]) -> ActView<'a> {
        match self.of(kind) {
            None => ActView::f32(x, k),
            // SAFETY: the caller's contract.
            Some(acts) => unsafe { acts.view(ActShape { kind, tokens: t, k }) },
        }
    }
}

/// One matrix of a step, ready for the kernels.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub linear: &'static Linear,
    pub bytes: &'a [u8], // (rows, k) blocks
    pub rows: usize,
    pub k: usize,
}

impl Matrix<'_> {
    fn rows_of(&self, rows: Range<usize>) -> &[u8] {
        let row_bytes = self.bytes.len() / self.rows;
        &self.bytes[rows.start * row_bytes..rows.end * row_bytes]
    }

    /// `out (rows) = W[rows] . x`.
    pub(super) fn one(&self, rows: Range<usize>, x: ActRow, out: &mut [f32]) {
        self.linear.matvec(self.rows_of(rows), self.k, x, out);
    }

    /// `out (tokens, rows) = W[rows] . x[tokens]`.
    pub(super) fn many(&self, rows: Range<usize>, x: &ActView, tokens: Tokens, out: &mut [f32]) {
        let n = rows.len();
        let out = OutView::new(out, n);
        // SAFETY: the view covers `out`, which is this worker's alone.
        unsafe { self.linear.matmul(self.rows_of(rows), self.k, n, x, tokens, out) };
    }
}

impl Cpu {
    pub(super) fn matrix(&self, id: WeightId) -> Matrix<'_> {
        let weight = self.plan.weight(id);
        Matrix {
            linear: self.linear(id),
            bytes: self.weights.bytes(id),
            rows: weight.rows * weight.experts,
            k: weight.k,
        }
    }

    /// `plan::Embed`.
    pub(super) fn embed(&self, run: &Run, w: &Worker, op: &Embed) {
        let &Embed { table, scale, out } = op;
        let weight = self.plan.weight(table);
        let (bytes, row_bytes) = (self.weights.bytes(table), weight.row_bytes());
        for token in w.share(run.env.tokens.len()) {
            let id = run.env.tokens[token].id as usize;
            // SAFETY: phase contract; each token has one writer.
            let out = unsafe { self.buffer(out).get_mut(token * weight.k..(token + 1) * weight.k) };
            weight.format.decode(&bytes[id * row_bytes..(id + 1) * row_bytes], out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
        w.barrier();
    }

    /// `plan::RmsNorm`.
    pub(super) fn rms_norm(&self, run: &Run, w: &Worker, op: &RmsNorm) {
        let &RmsNorm { x, norm, out, add } = op;
        let n = self.width(x);
        for row in w.share(run.rows(x)) {
            let range = row * n..(row + 1) * n;
            // SAFETY: phase contract; each row has one writer, and x is another buffer than out.
            let (x, out) = unsafe { (self.buffer(x).get(range.clone()), self.buffer(out).get_mut(range)) };
            let scale = self.rms_scale(x, norm.eps);
            for ((o, x), weight) in out.iter_mut().zip(x).zip(self.vector(norm.weight)) {
                let y = x * scale * weight;
                *o = if add { *o + y } else { y };
            }
        }
        w.barrier();
    }

    /// `plan::TakeRows`.
    pub(super) fn take_rows(&self, run: &Run, w: &Worker, op: &TakeRows) {
        let &TakeRows { x, out } = op;
        let n = self.width(x);
        for row in w.share(run.env.rows.len()) {
            let from = run.env.rows[row] as usize;
            // SAFETY: phase contract; each row has one writer.
            unsafe {
                let x = self.buffer(x).get(from * n..(from + 1) * n);
                self.buffer(out).get_mut(row * n..(row + 1) * n).copy_from_slice(x);
            }
        }
        w.barrier();
    }

    /// Norms (if any) and quantises the (t, k) input of a product. One token is done by every worker for itself; a
    /// batch is shared out and ends with a barrier. Returns the f32 rows and the set that holds the rest.
    pub(super) fn inputs<'a>(
        &'a self,
        w: &Worker,
        own: &'a mut ActSet,
        own_normed: &'a mut Vec<f32>,
        x: &'a Shared<f32>,
        [t, k]: [usize; 2],
        norm: Option<Norm>,
        kinds: &[ActKind],
    ) -> (&'a [f32], &'a ActSet) {
        let alone = t == 1;
        if alone {
            own.reserve(k);
            own_normed.resize(k, 0.0);
        }
        for token in if alone { 0..1 } else { w.share(t) } {
            let range = token * k..(token + 1) * k;
            // SAFETY: phase contract; x is only read here, and each token of the shared buffer has one writer.
            unsafe {
                let x = x.get(range.clone());
                let row = match norm {
                    None => x,
                    Some(norm) => {
                        let out = if alone { &mut own_normed[..] } else { self.normed.get_mut(range) };
                        let scale = self.rms_scale(x, norm.eps);
                        self.kernels.vector().scale_mul(out, x, scale, self.vector(norm.weight));
                        out
                    }
                };
                let set = if alone { &*own } else { &self.acts };
                set.fill(kinds, [t, k], token..token + 1, row);
            }
        }
        if alone {
            // SAFETY: phase contract; x is only read in this step.
            let rows = if norm.is_some() { &own_normed[..k] } else { unsafe { x.get(0..k) } };
            return (rows, own);
        }
        w.barrier();
        // SAFETY: phase contract; both were written before the barrier and are only read now.
        let rows = unsafe { if norm.is_some() { self.normed.get(0..t * k) } else { x.get(0..t * k) } };
        (rows, &self.acts)
    }

    /// Rows of a chunk: in a batch the kernels' row block; for one token eight chunks a worker, whole blocks of 16.
    pub(super) fn chunk_rows(&self, w: &Worker, t: usize, rows: usize) -> usize {
        if t > 1 { BATCH_CHUNK } else { (rows / (w.team() * 8)).next_multiple_of(16).clamp(16, 512) }
    }

    /// `plan::Linear`.
    pub(super) fn run_linear(&self, run: &Run, w: &Worker, op: &plan::Linear) {
        let &plan::Linear { x, norm, ref parts, add } = op;
        let (t, k) = (run.rows(x), self.width(x));
        let WorkerState { own, normed, tile, .. } = self.worker(w);
        let mut kinds = [ActKind::F32; MAX_PARTS];
        parts.iter().zip(&mut kinds).for_each(|(part, kind)| *kind = self.linear(part.weight).act());
        let (rows_f32, set) = self.inputs(w, own, normed, self.buffer(x), [t, k], norm, &kinds[..parts.len()]);
        parts.iter().for_each(|part| self.see(w, part.weight, 0, rows_f32));

        let total: usize = parts.iter().map(|part| self.plan.weight(part.weight).rows).sum();
        let chunk = self.chunk_rows(w, t, total);
        let chunks_of = |part: &Part| self.plan.weight(part.weight).rows.div_ceil(chunk);
        w.chunks(parts.iter().map(chunks_of).sum(), 1, |items| {
            for mut item in items {
                let Some(part) = parts.iter().find(|part| {
                    let here = item < chunks_of(part);
                    if !here {
                        item -= chunks_of(part);
                    }
                    here
                }) else {
                    continue;
                };
                let matrix = self.matrix(part.weight);
                let rows = item * chunk..((item + 1) * chunk).min(matrix.rows);
                let bias = part.bias.map(|id| &self.vector(id)[rows.clone()]);
                // SAFETY: phase contract; the set was filled for the parts' kinds and is only read.
                let view = unsafe { set.view(matrix.linear.act(), [t, k], rows_f32) };
                self.product(&matrix, &view, rows.clone(), tile);
                for (token, values) in tile.chunks_exact(rows.len()).enumerate() {
                    let at = token * matrix.rows;
                    // SAFETY: phase contract; each chunk of rows has one writer.
                    let out = unsafe { self.buffer(part.out).get_mut(at + rows.start..at + rows.end) };
                    match (add, bias) {
                        (false, None) => out.copy_from_slice(values),
                        (false, Some(bias)) => {
                            out.iter_mut().zip(values).zip(bias).for_each(|((o, v), b)| *o = v + b);
                        }
                        (true, None) => out.iter_mut().zip(values).for_each(|(o, v)| *o += v),
                        (true, Some(bias)) => {
                            out.iter_mut().zip(values).zip(bias).for_each(|((o, v), b)| *o += v + b);
                        }
                    }
                }
            }
        });
    }

    /// `tile (t, rows) = W[rows] . x` for all tokens of the view.
    pub(super) fn product(&self, matrix: &Matrix, x: &ActView, rows: Range<usize>, tile: &mut Vec<f32>) {
        let t = x.tokens();
        tile.resize(t * rows.len(), 0.0);
        if t == 1 {
            matrix.one(rows, x.row(0), tile);
        } else {
            matrix.many(rows, x, Tokens::Range(0, t), tile);
        }
    }

    /// `plan::GatedUp`.
    pub(super) fn gated_up(&self, run: &Run, w: &Worker, op: &GatedUp) {
        let &GatedUp { x, norm, gate, up, act, out } = op;
        let (t, k, ids) = (run.rows(x), self.width(x), [gate, up]);
        let [gate, up] = ids.map(|id| self.matrix(id));
        let WorkerState { own, normed, tile, tile2, .. } = self.worker(w);
        let kinds = [gate.linear.act(), up.linear.act()];
        let (rows_f32, set) = self.inputs(w, own, normed, self.buffer(x), [t, k], norm, &kinds);
        ids.iter().for_each(|&id| self.see(w, id, 0, rows_f32));
        let n = gate.rows;
        let chunk = self.chunk_rows(w, t, n);
        w.chunks(n, chunk, |rows| {
            // SAFETY: phase contract; the set was filled for both kinds and is only read.
            let (gate_x, up_x) =
                unsafe { (set.view(kinds[0], [t, k], rows_f32), set.view(kinds[1], [t, k], rows_f32)) };
            self.product(&gate, &gate_x, rows.clone(), tile);
            self.product(&up, &up_x, rows.clone(), tile2);
            activate(self.kernels, act, tile, tile2);
            for (token, values) in tile.chunks_exact(rows.len()).enumerate() {
                // SAFETY: phase contract; each chunk of rows has one writer.
                unsafe { self.buffer(out).get_mut(token * n + rows.start..token * n + rows.end) }
                    .copy_from_slice(values);
            }
        });
    }
}

/// Matrices that one `plan::Linear` may hold.
const MAX_PARTS: usize = 8;

/// In place `gate = act(gate) * up`.
pub(super) fn activate(kernels: &rynd_quant::Kernels, act: Activation, gate: &mut [f32], up: &[f32]) {
    match act {
        Activation::Silu => kernels.vector().silu_mul(gate, up),
        Activation::GeluTanh => kernels.vector().gelu_mul(gate, up),
    }
}
