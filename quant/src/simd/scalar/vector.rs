//! The small f32 kernels in portable code. Sums run in eight lanes, so that the compiler may vectorise them.

use half::f16;

use crate::vector::{Heads, Vector};

pub(crate) const TABLE: Vector =
    Vector { dot, axpy, scale_mul, silu_mul, max, exp_sub, scale, f16_to_f32, f32_to_f16, scores_f16, mix_f16 };

const LANES: usize = 8;

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

fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

fn scale_mul(y: &mut [f32], x: &[f32], s: f32, w: &[f32]) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * s * w;
    }
}

fn silu_mul(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g / (1.0 + (-g).exp()) * u;
    }
}

fn max(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x))
}

fn exp_sub(x: &mut [f32], max: f32) -> f32 {
    let mut sum = 0.0;
    for x in x {
        *x = (*x - max).exp();
        sum += *x;
    }
    sum
}

fn scale(x: &mut [f32], s: f32) {
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

fn scores_f16(keys: &Heads<'_>, q: &[f32], out: &mut [f32]) {
    for i in 0..keys.n {
        for (h, q) in q.chunks_exact(keys.d).enumerate() {
            out[h * keys.n + i] = q.iter().zip(keys.row(i)).map(|(q, k)| q * k.to_f32()).sum();
        }
    }
}

fn mix_f16(values: &Heads<'_>, p: &[f32], out: &mut [f32]) {
    for i in 0..values.n {
        for (h, out) in out.chunks_exact_mut(values.d).enumerate() {
            let p = p[h * values.n + i];
            for (out, v) in out.iter_mut().zip(values.row(i)) {
                *out += p * v.to_f32();
            }
        }
    }
}
