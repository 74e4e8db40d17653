//! Small f32 kernels beside the matrix products: what attention, norms and activations are made of.
//!
//! `Kernels::get().vector()` gives the table of the level in use; its methods are safe, lengths must agree and are
//! asserted. f16 rows (the KV cache) are `half::f16`. Levels differ from each other by summation order only.
//!
//! | method | computes |
//! |--|--|
//! | `dot(a, b) -> f32` | sum a[i] b[i] |
//! | `axpy(y, a, x)` | y += a x |
//! | `sum_squares(x) -> f32` | sum x[i]^2, for RMS norms |
//! | `scale_mul(y, x, s, w)` | y = (x s) w, the second half of an RMS norm |
//! | `silu_mul(y, gate, up)` | y = silu(gate) up |
//! | `max(x) -> f32` | the largest |
//! | `exp_sub(x, max) -> f32` | x = exp(x - max), returns the sum: an online softmax's step |
//! | `softmax(x)` | x = exp(x - max) / sum |
//! | `f16_to_f32(src, dst)`, `f32_to_f16(src, dst)` | conversion, rounded half to even |
//! | `scores_f16(q, heads, keys, stride, out)` | out[h, i] = q[h] . keys[i], key i at i * stride |
//! | `mix_f16(p, heads, values, stride, out)` | out[h] += sum_i p[h, i] values[i] |

use half::f16;

/// The small kernels of one level.
#[derive(Clone, Copy)]
pub struct Vector {
    pub(crate) dot: unsafe fn(&[f32], &[f32]) -> f32,
    pub(crate) axpy: unsafe fn(&mut [f32], f32, &[f32]),
    pub(crate) scale_mul: unsafe fn(&mut [f32], &[f32], f32, &[f32]),
    pub(crate) silu_mul: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(crate) max: unsafe fn(&[f32]) -> f32,
    pub(crate) exp_sub: unsafe fn(&mut [f32], f32) -> f32,
    pub(crate) scale: unsafe fn(&mut [f32], f32),
    pub(crate) f16_to_f32: unsafe fn(&[f16], &mut [f32]),
    pub(crate) f32_to_f16: unsafe fn(&[f32], &mut [f16]),
    pub(crate) scores_f16: unsafe fn(&Heads<'_>, &[f32], &mut [f32]),
    pub(crate) mix_f16: unsafe fn(&Heads<'_>, &[f32], &mut [f32]),
}

/// n rows of d values of the KV cache, and the number of query heads that share them.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub heads: usize,
    pub n: usize,
    pub d: usize,
    pub rows: &'a [f16], // row i at i * stride, d values
    pub stride: usize,
}

impl<'a> Heads<'a> {
    fn new(heads: usize, per_row: usize, per_value: usize, rows: &'a [f16], stride: usize) -> Heads<'a> {
        assert!(heads > 0 && per_row.is_multiple_of(heads) && per_value.is_multiple_of(heads), "{heads} heads");
        let (n, d) = (per_row / heads, per_value / heads);
        let need = if n == 0 { 0 } else { (n - 1) * stride + d };
        assert!(d <= stride && need <= rows.len(), "{n} rows of {d} at stride {stride} in {} values", rows.len());
        Heads { heads, n, d, rows, stride }
    }

    pub fn row(&self, i: usize) -> &'a [f16] {
        &self.rows[i * self.stride..][..self.d]
    }
}

// SAFETY, for every block below: the table of a level is reachable only where the level is available, and the kernels
// need equal lengths, which are asserted first.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Vector {
    /// Sum of a[i] * b[i].
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        unsafe { (self.dot)(a, b) }
    }

    /// y[i] += a * x[i].
    pub fn axpy(&self, y: &mut [f32], a: f32, x: &[f32]) {
        assert_eq!(y.len(), x.len());
        unsafe { (self.axpy)(y, a, x) }
    }

    /// Sum of x[i] * x[i].
    pub fn sum_squares(&self, x: &[f32]) -> f32 {
        self.dot(x, x)
    }

    /// y[i] = x[i] * s * w[i].
    pub fn scale_mul(&self, y: &mut [f32], x: &[f32], s: f32, w: &[f32]) {
        assert!(y.len() == x.len() && y.len() == w.len());
        unsafe { (self.scale_mul)(y, x, s, w) }
    }

    /// y[i] = gate[i] / (1 + exp(-gate[i])) * up[i].
    pub fn silu_mul(&self, y: &mut [f32], gate: &[f32], up: &[f32]) {
        assert!(y.len() == gate.len() && y.len() == up.len());
        unsafe { (self.silu_mul)(y, gate, up) }
    }

    /// The largest value; -inf of an empty slice.
    pub fn max(&self, x: &[f32]) -> f32 {
        unsafe { (self.max)(x) }
    }

    /// x[i] = exp(x[i] - max), and their sum. -inf gives exactly 0.
    pub fn exp_sub(&self, x: &mut [f32], max: f32) -> f32 {
        unsafe { (self.exp_sub)(x, max) }
    }

    /// x[i] *= s.
    pub fn scale(&self, x: &mut [f32], s: f32) {
        unsafe { (self.scale)(x, s) }
    }

    /// x becomes its softmax. A row that is -inf throughout (all masked) becomes 0.
    pub fn softmax(&self, x: &mut [f32]) {
        let max = self.max(x);
        if max == f32::NEG_INFINITY {
            return x.fill(0.0);
        }
        let sum = self.exp_sub(x, max);
        self.scale(x, 1.0 / sum);
    }

    pub fn f16_to_f32(&self, src: &[f16], dst: &mut [f32]) {
        assert_eq!(src.len(), dst.len());
        unsafe { (self.f16_to_f32)(src, dst) }
    }

    pub fn f32_to_f16(&self, src: &[f32], dst: &mut [f16]) {
        assert_eq!(src.len(), dst.len());
        unsafe { (self.f32_to_f16)(src, dst) }
    }

    /// out (heads, n) = `heads` queries q (heads, d) times n keys, key i at `keys[i * stride..]`; n is out.len() / heads.
    /// Queries that share a key head go together, so that each key is read and converted once.
    pub fn scores_f16(&self, q: &[f32], heads: usize, keys: &[f16], stride: usize, out: &mut [f32]) {
        let keys = Heads::new(heads, out.len(), q.len(), keys, stride);
        unsafe { (self.scores_f16)(&keys, q, out) }
    }

    /// out (heads, d) += p (heads, n) times n values, value i at `values[i * stride..]`; n is p.len() / heads.
    pub fn mix_f16(&self, p: &[f32], heads: usize, values: &[f16], stride: usize, out: &mut [f32]) {
        let values = Heads::new(heads, p.len(), out.len(), values, stride);
        unsafe { (self.mix_f16)(&values, p, out) }
    }
}
