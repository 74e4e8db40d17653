//! Small f32 kernels beside the matrix products: what attention, norms and activations are made of.
//!
//! `Kernels::get().vector()` gives the table of the level in use; its methods are safe, lengths must agree and are
//! asserted. Levels differ from each other by
//! summation order, and by 2e-7 where there is an exponential.
//!
//! | method | computes |
//! |--|--|
//! | `dot(a, b) -> f32` | sum a[i] b[i] |
//! | `axpy(y, a, x)` | y += a x |
//! | `sum_squares(x) -> f32` | sum x[i]^2, for RMS norms |
//! | `scale_mul(y, x, s, w)` | y = (x s) w, the second half of an RMS norm |
//! | `silu_mul(gate, up)` | gate = silu(gate) up |
//! | `gelu_mul(gate, up)` | gate = gelu(gate) up, by the tanh formula |
//! | `max(x) -> f32` | the largest |
//! | `exp_sub(x, max) -> f32` | x = exp(x - max), returns the sum: an online softmax's step |
//! | `softmax(x)` | x = exp(x - max) / sum |
//! | `f16_to_f32(src, dst)`, `f32_to_f16(src, dst)` | conversion, rounded half to even |
//!
//! What attention does with the pages of a KV cache is in `attention`.

use half::f16;

/// The small kernels of one level.
#[derive(Clone, Copy)]
pub struct Vector {
    pub(crate) dot: unsafe fn(&[f32], &[f32]) -> f32,
    pub(crate) axpy: unsafe fn(&mut [f32], f32, &[f32]),
    pub(crate) scale_mul: unsafe fn(&mut [f32], &[f32], f32, &[f32]),
    pub(crate) silu_mul: unsafe fn(&mut [f32], &[f32]),
    pub(crate) gelu_mul: unsafe fn(&mut [f32], &[f32]),
    pub(crate) max: unsafe fn(&[f32]) -> f32,
    pub(crate) exp_sub: unsafe fn(&mut [f32], f32) -> f32,
    pub(crate) scale: unsafe fn(&mut [f32], f32),
    pub(crate) f16_to_f32: unsafe fn(&[f16], &mut [f32]),
    pub(crate) f32_to_f16: unsafe fn(&[f32], &mut [f16]),
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

    /// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i].
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        unsafe { (self.silu_mul)(gate, up) }
    }

    /// gate[i] = gate[i] / 2 * (1 + tanh(sqrt(2 / pi) * (gate[i] + 0.044715 * gate[i]^3))) * up[i].
    pub fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        unsafe { (self.gelu_mul)(gate, up) }
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

    /// x becomes its softmax. A row that is -inf throughout (all masked) becomes 0; NaN makes the row NaN.
    pub fn softmax(&self, x: &mut [f32]) {
        let max = self.max(x);
        if max == f32::NEG_INFINITY {
            return x.iter_mut().for_each(|x| *x = if x.is_nan() { *x } else { 0.0 });
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
}
