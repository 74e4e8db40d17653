//! Attention over one page of the key-value cache: scores, online softmax, mixing of values.
//!
//! A page holds 64 tokens of one key-value head: keys transposed (d, 64), values (64, d). So both products are sums of
//! broadcast times vector, with no horizontal reduction, and several query rows (the heads of a group, the tokens of a
//! tile) share every key and value that is loaded and widened. Queries, scores and sums are f32. The scalar code is the
//! specification; the others differ by the order of f32 sums only.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::{Kernels, Level};

/// Tokens in a page.
pub const PAGE: usize = 64;

/// `(p, v, d, from..to, acc)`.
pub type Mix<T> = fn(&[f32], &[T], usize, std::ops::Range<usize>, &mut [f32]);

/// The page kernels of one instruction set. `d` is the head size; any number of query rows g.
#[derive(Clone, Copy)]
pub struct PageKernels {
    /// `s (g, PAGE) = q (g, d) . k (d, PAGE)`.
    pub scores_f16: fn(q: &[f32], k: &[f16], d: usize, s: &mut [f32]),
    pub scores_f32: fn(q: &[f32], k: &[f32], d: usize, s: &mut [f32]),
    /// `acc (g, d) += p (g, PAGE)[.., from..to] . v (PAGE, d)`.
    pub mix_f16: Mix<f16>,
    pub mix_f32: Mix<f32>,
    /// In place `p = exp(p - max)`; returns the sum.
    pub exp_sub_sum: fn(p: &mut [f32], max: f32) -> f32,
}

impl PageKernels {
    /// The kernels of the level that `Kernels::get` chose, or the scalar ones.
    pub fn new(scalar: bool) -> PageKernels {
        PageKernels::at(if scalar { Level::Scalar } else { Kernels::get().level() })
    }

    fn at(level: Level) -> PageKernels {
        match level {
            // A level that the machine does not run is never chosen.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::KERNELS,
            _ => SCALAR,
        }
    }
}

const SCALAR: PageKernels = PageKernels {
    scores_f16: |q, k, d, s| scores_wide::<false>(q, k, d, s),
    scores_f32: |q, k, d, s| scores::<false>(q, k, d, s),
    mix_f16: |p, v, d, tokens, acc| mix_wide::<false>(p, v, d, tokens, acc),
    mix_f32: |p, v, d, tokens, acc| mix::<false>(p, v, d, tokens, acc),
    exp_sub_sum: |p, max| exp_sub_sum::<false>(p, max),
};

/// `a * b + c`, fused only where the instruction set has it: the library's software version is slow.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

fn check(rows: usize, q: &[f32], page_values: usize, d: usize, s: &[f32]) {
    assert!(q.len() == rows * d && page_values == d * PAGE && s.len() == rows * PAGE, "attention page shapes differ");
}

#[inline(always)]
fn scores<const FUSED: bool>(q: &[f32], k: &[f32], d: usize, s: &mut [f32]) {
    check(q.len() / d, q, k.len(), d, s);
    for (q, s) in q.chunks_exact(d).zip(s.chunks_exact_mut(PAGE)) {
        let mut sums = [0.0_f32; PAGE];
        for (&q, k) in q.iter().zip(k.chunks_exact(PAGE)) {
            for (sum, &k) in sums.iter_mut().zip(k) {
                *sum = fma::<FUSED>(q, k, *sum);
            }
        }
        s.copy_from_slice(&sums);
    }
}

#[inline(always)]
fn mix<const FUSED: bool>(p: &[f32], v: &[f32], d: usize, tokens: std::ops::Range<usize>, acc: &mut [f32]) {
    check(acc.len() / d, acc, v.len(), d, p);
    for (p, acc) in p.chunks_exact(PAGE).zip(acc.chunks_exact_mut(d)) {
        for j in tokens.clone() {
            let weight = p[j];
            for (acc, &v) in acc.iter_mut().zip(&v[j * d..(j + 1) * d]) {
                *acc = fma::<FUSED>(weight, v, *acc);
            }
        }
    }
}

/// Values that the widening fallback holds on the stack; wider heads go by parts.
const WIDE: usize = 512;

#[inline(always)]
fn scores_wide<const FUSED: bool>(q: &[f32], k: &[f16], d: usize, s: &mut [f32]) {
    check(q.len() / d, q, k.len(), d, s);
    s.fill(0.0);
    let mut wide = [0.0_f32; PAGE];
    for (i, k) in k.chunks_exact(PAGE).enumerate() {
        k.convert_to_f32_slice(&mut wide);
        for (row, s) in s.chunks_exact_mut(PAGE).enumerate() {
            let q = q[row * d + i];
            for (sum, &k) in s.iter_mut().zip(&wide) {
                *sum = fma::<FUSED>(q, k, *sum);
            }
        }
    }
}

#[inline(always)]
fn mix_wide<const FUSED: bool>(p: &[f32], v: &[f16], d: usize, tokens: std::ops::Range<usize>, acc: &mut [f32]) {
    check(acc.len() / d, acc, v.len(), d, p);
    let mut wide = [0.0_f32; WIDE];
    for j in tokens {
        for (part, v) in v[j * d..(j + 1) * d].chunks(WIDE).enumerate() {
            let wide = &mut wide[..v.len()];
            v.convert_to_f32_slice(wide);
            for (row, acc) in acc.chunks_exact_mut(d).enumerate() {
                let weight = p[row * PAGE + j];
                for (acc, &v) in acc[part * WIDE..].iter_mut().zip(&*wide) {
                    *acc = fma::<FUSED>(weight, v, *acc);
                }
            }
        }
    }
}

/// `exp(x)` for x <= 0, relative error below 2e-7; 0 below -87; NaN of NaN.
#[inline(always)]
fn exp_negative<const FUSED: bool>(x: f32) -> f32 {
    // x = n ln 2 + r, |r| <= ln 2 / 2; the shift rounds n to an integer in the mantissa's low bits.
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    // Written so that NaN stays NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let n = fma::<FUSED>(x, std::f32::consts::LOG2_E, SHIFT) - SHIFT;
    let r = fma::<FUSED>(n, -0.693_145_75, x);
    let r = fma::<FUSED>(n, -1.428_606_8e-6, r);
    // Minimax polynomial of e^r on that interval.
    let mut e = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        e = fma::<FUSED>(e, r, c);
    }
    e * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

#[inline(always)]
fn exp_sub_sum<const FUSED: bool>(p: &mut [f32], max: f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let mut chunks = p.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for (p, sum) in chunk.iter_mut().zip(&mut sums) {
            *p = exp_negative::<FUSED>(*p - max);
            *sum += *p;
        }
    }
    for p in chunks.into_remainder() {
        *p = exp_negative::<FUSED>(*p - max);
        sums[0] += *p;
    }
    sums.iter().sum()
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::*;

    /// NEON and its fused multiply-add are part of the aarch64 baseline: the portable loops vectorise as they are.
    pub const KERNELS: PageKernels = PageKernels {
        scores_f16: |q, k, d, s| scores_wide::<true>(q, k, d, s),
        scores_f32: |q, k, d, s| scores::<true>(q, k, d, s),
        mix_f16: |p, v, d, tokens, acc| mix_wide::<true>(p, v, d, tokens, acc),
        mix_f32: |p, v, d, tokens, acc| mix::<true>(p, v, d, tokens, acc),
        exp_sub_sum: |p, max| exp_sub_sum::<true>(p, max),
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    // SAFETY (all five): `PageKernels::at` hands this table out for a level that the machine runs: avx2, fma, f16c.
    pub const KERNELS: PageKernels = PageKernels {
        // SAFETY: see above.
        scores_f16: |q, k, d, s| unsafe { scores_f16(q, k, d, s) },
        // SAFETY: see above.
        scores_f32: |q, k, d, s| unsafe { scores_f32(q, k, d, s) },
        // SAFETY: see above.
        mix_f16: |p, v, d, tokens, acc| unsafe { mix_f16(p, v, d, tokens, acc) },
        // SAFETY: see above.
        mix_f32: |p, v, d, tokens, acc| unsafe { mix_f32(p, v, d, tokens, acc) },
        // SAFETY: see above.
        exp_sub_sum: |p, max| unsafe { exp_sub_sum_avx2(p, max) },
    };

    #[target_feature(enable = "avx2,fma,f16c")]
    fn scores_f16(q: &[f32], k: &[f16], d: usize, s: &mut [f32]) {
        scores_wide::<true>(q, k, d, s);
    }

    #[target_feature(enable = "avx2,fma")]
    fn scores_f32(q: &[f32], k: &[f32], d: usize, s: &mut [f32]) {
        scores::<true>(q, k, d, s);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn mix_f16(p: &[f32], v: &[f16], d: usize, tokens: std::ops::Range<usize>, acc: &mut [f32]) {
        mix_wide::<true>(p, v, d, tokens, acc);
    }

    #[target_feature(enable = "avx2,fma")]
    fn mix_f32(p: &[f32], v: &[f32], d: usize, tokens: std::ops::Range<usize>, acc: &mut [f32]) {
        mix::<true>(p, v, d, tokens, acc);
    }

    #[target_feature(enable = "avx2,fma")]
    fn exp_sub_sum_avx2(p: &mut [f32], max: f32) -> f32 {
        exp_sub_sum::<true>(p, max)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// Query rows that one pass over a page serves: 6 x 4 sums, 4 keys and a broadcast fill 29 of 32 registers.
    const ROWS: usize = 6;

    pub const KERNELS: PageKernels = PageKernels {
        // SAFETY: `PageKernels::at` hands this table out for a level that the machine runs: avx512f, f16c and more.
        scores_f16: |q, k, d, s| unsafe { scores_any(q, k, d, s) },
        // SAFETY: as above.
        scores_f32: |q, k, d, s| unsafe { scores_any(q, k, d, s) },
        // SAFETY: as above.
        mix_f16: |p, v, d, tokens, acc| unsafe { mix_any(p, v, d, tokens, acc) },
        // SAFETY: as above.
        mix_f32: |p, v, d, tokens, acc| unsafe { mix_any(p, v, d, tokens, acc) },
        // SAFETY: as above.
        exp_sub_sum: |p, max| unsafe { exp_sub_sum_avx512(p, max) },
    };

    #[target_feature(enable = "avx512f")]
    fn exp_sub_sum_avx512(p: &mut [f32], max: f32) -> f32 {
        exp_sub_sum::<true>(p, max)
    }

    /// A cache value that sixteen lanes load and widen at once.
    trait Lane: Copy {
        /// # Safety
        /// `at` points to 16 readable values; avx512f and f16c are present.
        unsafe fn load(at: *const Self) -> __m512;
    }

    impl Lane for f32 {
        #[inline(always)]
        unsafe fn load(at: *const f32) -> __m512 {
            // SAFETY: the caller's contract.
            unsafe { _mm512_loadu_ps(at) }
        }
    }

    impl Lane for f16 {
        #[inline(always)]
        unsafe fn load(at: *const f16) -> __m512 {
            // SAFETY: the caller's contract.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
        }
    }

    #[target_feature(enable = "avx512f,f16c")]
    fn scores_any<T: Lane>(q: &[f32], k: &[T], d: usize, s: &mut [f32]) {
        let rows = q.len() / d;
        check(rows, q, k.len(), d, s);
        let mut row = 0;
        while row < rows {
            let n = (rows - row).min(ROWS);
            let q = &q[row * d..(row + n) * d];
            let s = &mut s[row * PAGE..(row + n) * PAGE];
            // SAFETY: the slices hold n rows, as checked above; the feature set is this function's own.
            unsafe {
                match n {
                    6 => scores_rows::<6, T>(q, k, d, s),
                    5 => scores_rows::<5, T>(q, k, d, s),
                    4 => scores_rows::<4, T>(q, k, d, s),
                    3 => scores_rows::<3, T>(q, k, d, s),
                    2 => scores_rows::<2, T>(q, k, d, s),
                    _ => scores_rows::<1, T>(q, k, d, s),
                }
            }
            row += n;
        }
    }

    /// # Safety
    /// q: (N, d), k: (d, PAGE), s: (N, PAGE).
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn scores_rows<const N: usize, T: Lane>(q: &[f32], k: &[T], d: usize, s: &mut [f32]) {
        // SAFETY: every offset is below the lengths of the contract.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 4]; N];
            for i in 0..d {
                let at = k.as_ptr().add(i * PAGE);
                let keys = [T::load(at), T::load(at.add(16)), T::load(at.add(32)), T::load(at.add(48))];
                for row in 0..N {
                    let q = _mm512_set1_ps(*q.get_unchecked(row * d + i));
                    for j in 0..4 {
                        sums[row][j] = _mm512_fmadd_ps(q, keys[j], sums[row][j]);
                    }
                }
            }
            for row in 0..N {
                for j in 0..4 {
                    _mm512_storeu_ps(s.as_mut_ptr().add(row * PAGE + 16 * j), sums[row][j]);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,f16c")]
    fn mix_any<T: Lane>(p: &[f32], v: &[T], d: usize, tokens: std::ops::Range<usize>, acc: &mut [f32]) {
        let rows = acc.len() / d;
        check(rows, acc, v.len(), d, p);
        assert!(tokens.end <= PAGE && d.is_multiple_of(16), "head of {d} values; the kernel needs a multiple of 16");
        let mut row = 0;
        while row < rows {
            let n = (rows - row).min(ROWS);
            let p = &p[row * PAGE..(row + n) * PAGE];
            let acc = &mut acc[row * d..(row + n) * d];
            // SAFETY: the slices hold n rows, as checked above; the feature set is this function's own.
            unsafe {
                match n {
                    6 => mix_rows::<6, T>(p, v, d, tokens.clone(), acc),
                    5 => mix_rows::<5, T>(p, v, d, tokens.clone(), acc),
                    4 => mix_rows::<4, T>(p, v, d, tokens.clone(), acc),
                    3 => mix_rows::<3, T>(p, v, d, tokens.clone(), acc),
                    2 => mix_rows::<2, T>(p, v, d, tokens.clone(), acc),
                    _ => mix_rows::<1, T>(p, v, d, tokens.clone(), acc),
                }
            }
            row += n;
        }
    }

    /// # Safety
    /// p: (N, PAGE), v: (PAGE, d), acc: (N, d), tokens within the page, d a multiple of 16.
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn mix_rows<const N: usize, T: Lane>(
        p: &[f32],
        v: &[T],
        d: usize,
        tokens: std::ops::Range<usize>,
        acc: &mut [f32],
    ) {
        let mut column = 0;
        while column < d {
            // SAFETY: columns up to column + 16 * width lie within d.
            unsafe {
                if d - column >= 64 {
                    mix_columns::<N, 4, T>(p, v, d, column, tokens.clone(), acc);
                    column += 64;
                } else {
                    mix_columns::<N, 1, T>(p, v, d, column, tokens.clone(), acc);
                    column += 16;
                }
            }
        }
    }

    /// # Safety
    /// As `mix_rows`, and `column + 16 * W <= d`.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn mix_columns<const N: usize, const W: usize, T: Lane>(
        p: &[f32],
        v: &[T],
        d: usize,
        column: usize,
        tokens: std::ops::Range<usize>,
        acc: &mut [f32],
    ) {
        // SAFETY: every offset is below the lengths of the contract.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); W]; N];
            for row in 0..N {
                for j in 0..W {
                    sums[row][j] = _mm512_loadu_ps(acc.as_ptr().add(row * d + column + 16 * j));
                }
            }
            for token in tokens {
                let at = v.as_ptr().add(token * d + column);
                let mut values = [_mm512_setzero_ps(); W];
                for j in 0..W {
                    values[j] = T::load(at.add(16 * j));
                }
                for row in 0..N {
                    let weight = _mm512_set1_ps(*p.get_unchecked(row * PAGE + token));
                    for j in 0..W {
                        sums[row][j] = _mm512_fmadd_ps(weight, values[j], sums[row][j]);
                    }
                }
            }
            for row in 0..N {
                for j in 0..W {
                    _mm512_storeu_ps(acc.as_mut_ptr().add(row * d + column + 16 * j), sums[row][j]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn every_page_kernel_agrees_with_f64() {
        for kernels in Level::ALL.into_iter().filter(|level| level.available()).map(PageKernels::at) {
            for d in [16, 32, 64, 80, 128, 256, 512, 576, 1024] {
                for rows in [1, 2, 3, 5, 6, 7, 12, 13] {
                    let q = noise(rows * d, 1);
                    let page: Vec<f16> = noise(d * PAGE, 2).into_iter().map(f16::from_f32).collect();
                    let wide: Vec<f32> = page.iter().map(|x| x.to_f32()).collect();
                    let mut s = vec![0.0; rows * PAGE];
                    let mut s32 = vec![0.0; rows * PAGE];
                    (kernels.scores_f16)(&q, &page, d, &mut s);
                    (kernels.scores_f32)(&q, &wide, d, &mut s32);
                    for (at, (a, b)) in s.iter().zip(&s32).enumerate() {
                        let (row, j) = (at / PAGE, at % PAGE);
                        let truth: f64 =
                            (0..d).map(|i| f64::from(q[row * d + i]) * f64::from(wide[i * PAGE + j])).sum();
                        assert!((f64::from(*a) - truth).abs() < 1e-4 && (f64::from(*b) - truth).abs() < 1e-4);
                    }
                    let p = noise(rows * PAGE, 3);
                    let start = noise(rows * d, 4);
                    for tokens in [0..PAGE, 0..1, 5..17] {
                        let (mut a, mut b) = (start.clone(), start.clone());
                        (kernels.mix_f16)(&p, &page, d, tokens.clone(), &mut a);
                        (kernels.mix_f32)(&p, &wide, d, tokens.clone(), &mut b);
                        for at in 0..rows * d {
                            let (row, i) = (at / d, at % d);
                            let truth: f64 = f64::from(start[at])
                                + tokens
                                    .clone()
                                    .map(|j| f64::from(p[row * PAGE + j]) * f64::from(wide[j * d + i]))
                                    .sum::<f64>();
                            assert!((f64::from(a[at]) - truth).abs() < 1e-4 && (f64::from(b[at]) - truth).abs() < 1e-4);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_never_swallowed() {
        for kernels in Level::ALL.into_iter().filter(|level| level.available()).map(PageKernels::at) {
            for bad in [f32::NAN, f32::INFINITY] {
                for at in [0, 5, 16, 40] {
                    let mut p = vec![-1.0_f32; 41];
                    p[at] = bad;
                    let max = p.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
                    assert!((kernels.exp_sub_sum)(&mut p, max).is_nan(), "{bad} at {at}");
                }
            }
            assert!((kernels.exp_sub_sum)(&mut [f32::NAN; 17], f32::NEG_INFINITY).is_nan());
            assert!((kernels.exp_sub_sum)(&mut [-1e30, 0.0], 0.0) == 1.0);
        }
    }

    #[test]
    fn the_exponential_is_within_two_units_of_its_last_place() {
        for kernels in Level::ALL.into_iter().filter(|level| level.available()).map(PageKernels::at) {
            let mut p: Vec<f32> = (0..20_003).map(|i| -0.004 * i as f32).collect();
            let truth: Vec<f64> = p.iter().map(|&x| f64::from(x).exp()).collect();
            let sum = (kernels.exp_sub_sum)(&mut p, 0.0);
            for (a, b) in p.iter().zip(&truth) {
                assert!((f64::from(*a) - b).abs() <= 2.5e-7 * b, "{a} {b}");
            }
            assert!((f64::from(sum) / truth.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        }
    }
}
