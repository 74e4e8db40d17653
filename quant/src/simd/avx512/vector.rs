//! The small f32 kernels with AVX-512: whole vectors of 16, the tail by a mask.

use std::arch::x86_64::*;

use half::f16;

use crate::simd::scalar::vector::{GELU_CUBIC, GELU_LINEAR};
use crate::vector::Vector;

pub(crate) const TABLE: Vector =
    Vector { dot, axpy, scale_mul, silu_mul, gelu_mul, max, exp_sub, scale, f16_to_f32, f32_to_f16 };

/// The lanes of the vector at `at` that lie inside `len`.
#[inline]
fn lanes(len: usize, at: usize) -> __mmask16 {
    let left = len - at;
    if left >= 16 { !0 } else { (1 << left) - 1 }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32], at: usize) -> __m512 {
    // SAFETY: the mask keeps the load inside the slice.
    unsafe { _mm512_maskz_loadu_ps(lanes(x.len(), at), x.as_ptr().add(at)) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: &mut [f32], at: usize, v: __m512) {
    let mask = lanes(x.len(), at);
    // SAFETY: the mask keeps the store inside the slice.
    unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr().add(at), mask, v) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_f16(x: &[f16], at: usize) -> __m512 {
    // SAFETY: the mask keeps the load inside the slice.
    let half = unsafe { _mm256_maskz_loadu_epi16(lanes(x.len(), at), x.as_ptr().add(at).cast()) };
    _mm512_cvtph_ps(half)
}

#[target_feature(enable = "avx512f")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    let mut at = 0;
    while at + 64 <= a.len() {
        for i in 0..4 {
            sums[i] = _mm512_fmadd_ps(load(a, at + 16 * i), load(b, at + 16 * i), sums[i]);
        }
        at += 64;
    }
    while at < a.len() {
        sums[0] = _mm512_fmadd_ps(load(a, at), load(b, at), sums[0]);
        at += 16;
    }
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}

#[target_feature(enable = "avx512f")]
fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    let a = _mm512_set1_ps(a);
    for at in (0..y.len()).step_by(16) {
        let sum = _mm512_fmadd_ps(a, load(x, at), load(y, at));
        store(y, at, sum);
    }
}

#[target_feature(enable = "avx512f")]
fn scale_mul(y: &mut [f32], x: &[f32], s: f32, w: &[f32]) {
    let s = _mm512_set1_ps(s);
    for at in (0..y.len()).step_by(16) {
        store(y, at, _mm512_mul_ps(_mm512_mul_ps(load(x, at), s), load(w, at)));
    }
}

#[target_feature(enable = "avx512f")]
fn scale(x: &mut [f32], s: f32) {
    let s = _mm512_set1_ps(s);
    for at in (0..x.len()).step_by(16) {
        let scaled = _mm512_mul_ps(load(x, at), s);
        store(x, at, scaled);
    }
}

/// e^x within 2e-7 of the true value: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients of expf).
/// Gives 0 below -104 and +inf above 88.8; -inf and +inf are fine, NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp(x: __m512) -> __m512 {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // Of a NaN and a number these return their second operand: so it stays one.
    let x = _mm512_min_ps(_mm512_set1_ps(100.0), _mm512_max_ps(_mm512_set1_ps(-110.0), x));
    let n = _mm512_roundscale_ps::<NEAREST>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm512_set1_ps(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    let p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    _mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0)), n)
}

#[target_feature(enable = "avx512f")]
fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for at in (0..gate.len()).step_by(16) {
        let g = load(gate, at);
        store(gate, at, _mm512_mul_ps(sigmoid_times(g, g), load(up, at)));
    }
}

#[target_feature(enable = "avx512f")]
fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    let (linear, cubic) = (_mm512_set1_ps(GELU_LINEAR), _mm512_set1_ps(GELU_CUBIC));
    for at in (0..gate.len()).step_by(16) {
        let g = load(gate, at);
        let z = _mm512_mul_ps(g, _mm512_fmadd_ps(_mm512_mul_ps(cubic, g), g, linear));
        store(gate, at, _mm512_mul_ps(sigmoid_times(z, g), load(up, at)));
    }
}

/// g / (1 + e^-z).
#[inline]
#[target_feature(enable = "avx512f")]
fn sigmoid_times(z: __m512, g: __m512) -> __m512 {
    let e = exp(_mm512_sub_ps(_mm512_setzero_ps(), z));
    _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0), e))
}

#[target_feature(enable = "avx512f")]
fn max(x: &[f32]) -> f32 {
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = [lowest; 2];
    for (i, at) in (0..x.len()).step_by(16).enumerate() {
        let v = _mm512_mask_blend_ps(lanes(x.len(), at), lowest, load(x, at));
        largest[i % 2] = _mm512_max_ps(largest[i % 2], v);
    }
    _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]))
}

#[target_feature(enable = "avx512f")]
fn exp_sub(x: &mut [f32], max: f32) -> f32 {
    let (max, mut sum) = (_mm512_set1_ps(max), _mm512_setzero_ps());
    for at in (0..x.len()).step_by(16) {
        let e = exp(_mm512_sub_ps(load(x, at), max));
        sum = _mm512_mask_add_ps(sum, lanes(x.len(), at), sum, e);
        store(x, at, e);
    }
    _mm512_reduce_add_ps(sum)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    for at in (0..dst.len()).step_by(16) {
        store(dst, at, load_f16(src, at));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn f32_to_f16(src: &[f32], dst: &mut [f16]) {
    for at in (0..dst.len()).step_by(16) {
        let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(load(src, at));
        let mask = lanes(dst.len(), at);
        // SAFETY: the mask keeps the store inside the slice.
        unsafe { _mm256_mask_storeu_epi16(dst.as_mut_ptr().add(at).cast(), mask, half) };
    }
}

/// The four sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn sum4([a, b, c, d]: [__m512; 4]) -> __m128 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    let all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
    _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
}
