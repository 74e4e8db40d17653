//! The small f32 kernels with AVX2, FMA and F16C: the portable loops compiled for eight lanes, and those that the
//! compiler does not vectorise (exponentials, f16) by hand. Tails go through a padded vector.

use std::arch::x86_64::*;

use half::f16;

use crate::simd::scalar::vector as portable;
use crate::simd::scalar::vector::{GELU_CUBIC, GELU_LINEAR};
use crate::vector::Vector;

pub(crate) const TABLE: Vector =
    Vector { dot, axpy, scale_mul, silu_mul, gelu_mul, max, exp_sub, scale, f16_to_f32, f32_to_f16 };

/// Lanes of a vector.
const LANES: usize = 8;

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: eight values are there.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(x: &mut [f32; LANES], v: __m256) {
    // SAFETY: eight values are there.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
}

/// Up to eight values, with zeros behind them.
#[inline]
fn padded(x: &[f32]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all[..x.len()].copy_from_slice(x);
    all
}

#[target_feature(enable = "avx2,fma")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (a4, a_rest) = a.as_chunks::<{ 4 * LANES }>();
    let (b4, b_rest) = b.as_chunks::<{ 4 * LANES }>();
    for (a, b) in a4.iter().zip(b4) {
        for (i, (a, b)) in a.as_chunks().0.iter().zip(b.as_chunks().0).enumerate() {
            sums[i] = _mm256_fmadd_ps(load(a), load(b), sums[i]);
        }
    }
    for (a, b) in a_rest.chunks(LANES).zip(b_rest.chunks(LANES)) {
        sums[0] = _mm256_fmadd_ps(load(&padded(a)), load(&padded(b)), sums[0]);
    }
    let [a, b, c, d] = sums;
    sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

#[target_feature(enable = "avx2,fma")]
fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    portable::axpy(y, a, x);
}

#[target_feature(enable = "avx2,fma")]
fn scale_mul(y: &mut [f32], x: &[f32], s: f32, w: &[f32]) {
    portable::scale_mul(y, x, s, w);
}

#[target_feature(enable = "avx2,fma")]
fn scale(x: &mut [f32], s: f32) {
    portable::scale(x, s);
}

#[target_feature(enable = "avx2")]
fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (x8, rest) = x.as_chunks::<LANES>();
    for x in x8 {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(x[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, x| max.max(*x))
}

/// e^x within 2e-7 of the true value: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients of expf).
/// Gives 0 below -104 and +inf above 88.8; -inf and +inf are fine, NaN stays NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp(x: __m256) -> __m256 {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    // Of a NaN and a number these return their second operand: so it stays one.
    let x = _mm256_min_ps(_mm256_set1_ps(100.0), _mm256_max_ps(_mm256_set1_ps(-110.0), x));
    let n = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm256_set1_ps(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
    // 2^n in two factors, since n runs from -159 to 144 and an exponent holds -126 to 127 only.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    _mm256_mul_ps(_mm256_mul_ps(p, power(half)), power(_mm256_sub_epi32(n, half)))
}

/// g / (1 + e^-z).
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sigmoid_times(z: __m256, g: __m256) -> __m256 {
    let e = exp(_mm256_sub_ps(_mm256_setzero_ps(), z));
    _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0), e))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn gated(gate: &mut [f32], up: &[f32], gate_of: impl Fn(__m256) -> __m256) {
    let (gate8, gate_rest) = gate.as_chunks_mut();
    let (up8, up_rest) = up.as_chunks();
    for (gate, up) in gate8.iter_mut().zip(up8) {
        let v = _mm256_mul_ps(gate_of(load(gate)), load(up));
        store(gate, v);
    }
    let (mut gate, up) = (padded(gate_rest), padded(up_rest));
    let v = _mm256_mul_ps(gate_of(load(&gate)), load(&up));
    store(&mut gate, v);
    gate_rest.copy_from_slice(&gate[..gate_rest.len()]);
}

#[target_feature(enable = "avx2,fma")]
fn silu_mul(gate: &mut [f32], up: &[f32]) {
    gated(gate, up, |g| sigmoid_times(g, g));
}

#[target_feature(enable = "avx2,fma")]
fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    let (linear, cubic) = (_mm256_set1_ps(GELU_LINEAR), _mm256_set1_ps(GELU_CUBIC));
    gated(gate, up, |g| sigmoid_times(_mm256_mul_ps(g, _mm256_fmadd_ps(_mm256_mul_ps(cubic, g), g, linear)), g));
}

#[target_feature(enable = "avx2,fma")]
fn exp_sub(x: &mut [f32], max: f32) -> f32 {
    let mut total = _mm256_setzero_ps();
    let (x8, rest) = x.as_chunks_mut();
    for x in x8 {
        let e = exp(_mm256_sub_ps(load(x), _mm256_set1_ps(max)));
        total = _mm256_add_ps(total, e);
        store(x, e);
    }
    let mut last = padded(rest);
    let e = exp(_mm256_sub_ps(load(&last), _mm256_set1_ps(max)));
    store(&mut last, e);
    rest.copy_from_slice(&last[..rest.len()]);
    sum(total) + rest.iter().sum::<f32>()
}

#[target_feature(enable = "avx2,f16c")]
fn f16_to_f32(src: &[f16], dst: &mut [f32]) {
    let (src8, src_rest) = src.as_chunks::<LANES>();
    let (dst8, dst_rest) = dst.as_chunks_mut();
    for (src, dst) in src8.iter().zip(dst8) {
        // SAFETY: eight f16 are there.
        let half = unsafe { _mm_loadu_si128(src.as_ptr().cast()) };
        store(dst, _mm256_cvtph_ps(half));
    }
    for (src, dst) in src_rest.iter().zip(dst_rest) {
        *dst = src.to_f32();
    }
}

#[target_feature(enable = "avx2,f16c")]
fn f32_to_f16(src: &[f32], dst: &mut [f16]) {
    let (src8, src_rest) = src.as_chunks();
    let (dst8, dst_rest) = dst.as_chunks_mut::<LANES>();
    for (src, dst) in src8.iter().zip(dst8) {
        let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load(src));
        // SAFETY: eight f16 fit there.
        unsafe { _mm_storeu_si128(dst.as_mut_ptr().cast(), half) };
    }
    for (src, dst) in src_rest.iter().zip(dst_rest) {
        *dst = f16::from_f32(*src);
    }
}
