//! Gates and splits on the CPU: what stands between the products of recurrent and gated layers.

use super::threads::Worker;
use super::{Cpu, Run};
use crate::plan::{Gate, Split};

impl Cpu {
    /// `plan::Gate`.
    pub(super) fn gate(&self, run: &Run, w: &Worker, op: &Gate) {
        let &Gate { x, gate, norm, silu, heads } = op;
        let d = self.width(x) / heads;
        let one_value = self.width(gate) == heads && d > 1;
        let vector = self.kernels.vector();
        let total = run.rows(x) * heads;
        w.chunks(total, total.div_ceil(4 * w.team()), |items| {
            for item in items {
                let range = item * d..(item + 1) * d;
                let gates = if one_value { item..item + 1 } else { range.clone() };
                // SAFETY: phase contract; each head of a token has one writer, and gates are only read.
                let (row, gates) = unsafe { (self.buffer(x).get_mut(range), self.buffer(gate).get(gates)) };
                if let Some(norm) = norm {
                    let scale = self.rms_scale(row, norm.eps);
                    row.iter_mut().zip(self.vector(norm.weight)).for_each(|(x, weight)| *x *= scale * weight);
                }
                if let (true, [gate]) = (one_value, gates) {
                    let open = 1.0 / (1.0 + (-gate).exp());
                    vector.scale(row, if silu { gate * open } else { open });
                } else {
                    vector.sigmoid_mul(row, gates);
                    if silu {
                        row.iter_mut().zip(gates).for_each(|(x, gate)| *x *= gate);
                    }
                }
            }
        });
    }

    /// `plan::Split`.
    pub(super) fn split(&self, run: &Run, w: &Worker, op: &Split) {
        let (x, groups) = (op.x, op.groups);
        let n = self.width(x) / groups;
        for item in w.share(run.rows(x) * groups) {
            let mut first = item * n;
            for &out in &op.outs {
                let width = self.width(out) / groups;
                // SAFETY: phase contract; x is only read here, and each group of a token has one writer.
                unsafe {
                    let part = self.buffer(x).get(first..first + width);
                    self.buffer(out).get_mut(item * width..(item + 1) * width).copy_from_slice(part);
                }
                first += width;
            }
        }
        w.barrier();
    }
}
