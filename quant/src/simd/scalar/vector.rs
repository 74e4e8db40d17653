//! The small f32 kernels in portable code. Sums run in eight lanes, so that the compiler may vectorise them.

use half::f16;

use crate::vector::Vector;

pub(crate) const TABLE: Vector = Vector {
    dot,
    axpy,
    scale_mul,
    silu_mul,
    gelu_mul,
    sigmoid_mul,
    delta,
    max,
    exp_sub,
    scale,
    f16_to_f32,
    f32_to_f16,
};

const LANES: usize = 8;

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a8, a_rest) = a.as_chunks::<LANES>();
    let (b8, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[inline(always)]
pub(crate) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

#[inline(always)]
pub(crate) fn scale_mul(y: &mut [f32], x: &[f32], s: f32, w: &[f32]) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * s * w;
    }
}

fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

/// With (1 + tanh z) / 2 = 1 / (1 + e^-2z).
fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        let z = *g * (GELU_LINEAR + GELU_CUBIC * *g * *g);
        *g = *g / (1.0 + (-z).exp()) * u;
    }
}

fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
    for (x, g) in x.iter_mut().zip(gate) {
        *x /= 1.0 + (-*g).exp();
    }
}

/// Columns that are summed at once.
const COLUMNS: usize = 16;

pub(crate) fn delta(state: &mut [f32], k: &[f32], q: &[f32], v: &[f32], decay: f32, rate: f32, out: &mut [f32]) {
    let c = v.len();
    state.iter_mut().for_each(|s| *s *= decay);
    for first in (0..c).step_by(COLUMNS) {
        let columns = first..(first + COLUMNS).min(c);
        let n = columns.len();
        let (mut seen, mut mixed) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for (row, k) in state.chunks_exact(c).zip(k) {
            axpy(&mut seen[..n], *k, &row[columns.clone()]);
        }
        // What is new in v.
        for (seen, v) in seen.iter_mut().zip(&v[columns.clone()]) {
            *seen = rate * (v - *seen);
        }
        for ((row, k), q) in state.chunks_exact_mut(c).zip(k).zip(q) {
            let row = &mut row[columns.clone()];
            axpy(row, *k, &seen[..n]);
            axpy(&mut mixed[..n], *q, row);
        }
        out[columns].copy_from_slice(&mixed[..n]);
    }
}

/// 2 sqrt(2 / pi), and that times 0.044715.
pub(crate) const GELU_LINEAR: f32 = 1.595_769;
pub(crate) const GELU_CUBIC: f32 = 0.071_354_82;

fn max(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x))
}

fn exp_sub(x: &mut [f32], max: f32) -> f32 {
    let mut sum = 0f64;
    for x in x {
        *x = (*x - max).exp();
        sum += f64::from(*x);
    }
    sum as f32
}

#[inline(always)]
pub(crate) fn scale(x: &mut [f32], s: f32) {
    for x in x {
        *x *= s;
    }
}

fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    for (src, dst) in src.iter().zip(dst) {
        *dst = src.to_f32();
    }
}

fn f32_to_f16(src: &[f32], dst: &mut [f16]) {
    for (src, dst) in src.iter().zip(dst) {
        *dst = f16::from_f32(*src);
    }
}
