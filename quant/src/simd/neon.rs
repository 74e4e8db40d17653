//! 64-bit Arm: dot products of int8 by `sdot`, everything else left to the compiler, for which NEON is the baseline.
//!
//! The standard library has no stable intrinsic for `sdot` yet, so it is written as inline assembly. Formats without a
//! kernel of their own read each block into integers once, by the scalar code, and multiply those; a matmul does so for
//! every format, since the reading is then shared by all tokens.

use std::arch::aarch64::*;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::acts::{ActKind, ActRow};
use crate::format::Format;
use crate::ints::{IntLayout, Ints, int_layout};
use crate::kernels::{Batch, Linear, Matvec, Rows, act_kind};
use crate::simd::scalar;

/// The kernels of a format; `None` where it has no integer form and is not F16.
pub(crate) fn linear(format: Format) -> Option<Linear> {
    if format == Format::F16 {
        let scalar = scalar::exact(format);
        return Some(Linear::new(format, ActKind::F32, f16_matvec, scalar.matmul));
    }
    int_layout(format)?;
    let matvec: Matvec = match format {
        Format::Q4_K => q4_k,
        Format::Q5_K => q5_k,
        Format::Q6_K => q6_k,
        Format::Q8_0 => q8_0,
        Format::Q5_0 => q5_0,
        _ => ints_matvec,
    };
    Some(Linear::new(format, act_kind(format), matvec, ints_matmul))
}

/// `acc[i] += a[4 i..4 i + 4] . b[4 i..4 i + 4]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: the instruction is enabled above and touches registers only.
    unsafe {
        std::arch::asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Sixteen int8 from the start of a slice.
#[inline]
#[target_feature(enable = "neon")]
fn load(q: &[i8]) -> int8x16_t {
    assert!(q.len() >= 16);
    // SAFETY: sixteen bytes are there.
    unsafe { vld1q_s8(q.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_bytes(q: &[u8]) -> uint8x16_t {
    assert!(q.len() >= 16);
    // SAFETY: sixteen bytes are there.
    unsafe { vld1q_u8(q.as_ptr()) }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// One block in integer form times the activations of values `at..`.
#[target_feature(enable = "neon,dotprod")]
fn block_dot(layout: &IntLayout, ints: &Ints, len: usize, act: &ActRow<'_>, at: usize) -> f32 {
    let mut sum = 0.0;
    for j in 0..len / layout.sub {
        let (q, a) = (&ints.q[j * layout.sub..], &act.q[at + j * layout.sub..]);
        let mut acc = sdot(vdupq_n_s32(0), load(q), load(a));
        let total = if layout.sub == 32 {
            acc = sdot(acc, load(&q[16..]), load(&a[16..]));
            act.sums32[at / 32 + j]
        } else {
            act.sums16[at / 16 + j]
        };
        sum += ints.scale[j] * vaddvq_s32(acc) as f32 - ints.min[j] * f32::from(total);
    }
    sum * act.d[at / layout.act.block_len()]
}

fn layout_of(rows: &Rows<'_>) -> IntLayout {
    let Some(layout) = int_layout(rows.format) else { unreachable!("the table has integer kernels for integers only") };
    layout
}

#[target_feature(enable = "neon,dotprod")]
fn ints_matvec(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let (layout, len) = (layout_of(rows), rows.format.block_len());
    let mut ints = Ints::ZERO;
    for (r, out) in out.iter_mut().enumerate() {
        *out = 0.0;
        for (b, block) in rows.row(r).chunks_exact(rows.format.block_bytes()).enumerate() {
            (layout.read)(block, &mut ints);
            *out += block_dot(&layout, &ints, len, act, b * len);
        }
    }
}

/// # Safety
/// As `Linear::matmul`, on a machine with neon and dotprod.
#[target_feature(enable = "neon,dotprod")]
unsafe fn ints_matmul(rows: &Rows<'_>, batch: &Batch<'_>) {
    let (layout, len) = (layout_of(rows), rows.format.block_len());
    let mut ints = Ints::ZERO;
    for r in 0..rows.n {
        for (b, block) in rows.row(r).chunks_exact(rows.format.block_bytes()).enumerate() {
            (layout.read)(block, &mut ints);
            for slot in 0..batch.tokens.len() {
                let act = batch.acts.row(batch.tokens.token(slot));
                let part = block_dot(&layout, &ints, len, &act, b * len);
                // SAFETY: slot and row are inside the output, and it is ours.
                unsafe {
                    let out = batch.out.at(slot, r);
                    *out = if b == 0 { part } else { *out + part };
                }
            }
        }
    }
}

/// The eight 6-bit scales and mins of Q4_K and Q5_K.
fn six_bit(s: &[u8]) -> ([i32; 8], [i32; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = i32::from(s[j] & 63);
        mins[j] = i32::from(s[j + 4] & 63);
        scales[j + 4] = i32::from(s[j + 8] & 15 | s[j] >> 6 << 4);
        mins[j + 4] = i32::from(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
    (scales, mins)
}

#[target_feature(enable = "neon,dotprod")]
fn q4_k(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let low = vdupq_n_u8(15);
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(144).enumerate() {
            let (scales, mins) = six_bit(&block[4..16]);
            let (a, sums) = (&act.q[b * 256..], &act.sums32[b * 8..]);
            let mut acc = vdupq_n_s32(0);
            let mut offset = 0;
            for pair in 0..4 {
                let q = &block[16 + 32 * pair..];
                let (q0, q1) = (load_bytes(q), load_bytes(&q[16..]));
                let a = &a[64 * pair..];
                let dot = sdot(vdupq_n_s32(0), vreinterpretq_s8_u8(vandq_u8(q0, low)), load(a));
                let dot = sdot(dot, vreinterpretq_s8_u8(vandq_u8(q1, low)), load(&a[16..]));
                acc = vmlaq_n_s32(acc, dot, scales[2 * pair]);
                let dot = sdot(vdupq_n_s32(0), vreinterpretq_s8_u8(vshrq_n_u8::<4>(q0)), load(&a[32..]));
                let dot = sdot(dot, vreinterpretq_s8_u8(vshrq_n_u8::<4>(q1)), load(&a[48..]));
                acc = vmlaq_n_s32(acc, dot, scales[2 * pair + 1]);
                offset +=
                    mins[2 * pair] * i32::from(sums[2 * pair]) + mins[2 * pair + 1] * i32::from(sums[2 * pair + 1]);
            }
            let exact = half_at(block, 0) * vaddvq_s32(acc) as f32 - half_at(block, 2) * offset as f32;
            sum += act.d[b] * exact;
        }
        *out = sum;
    }
}

#[target_feature(enable = "neon,dotprod")]
fn q5_k(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let (low, bit) = (vdupq_n_u8(15), vdupq_n_u8(1));
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(176).enumerate() {
            let (scales, mins) = six_bit(&block[4..16]);
            let (a, sums) = (&act.q[b * 256..], &act.sums32[b * 8..]);
            let mut high = [load_bytes(&block[16..]), load_bytes(&block[32..])];
            let mut acc = vdupq_n_s32(0);
            let mut offset = 0;
            for j in 0..8 {
                let a = &a[32 * j..];
                let mut dot = vdupq_n_s32(0);
                for half in 0..2 {
                    let q = load_bytes(&block[48 + 32 * (j / 2) + 16 * half..]);
                    let four = if j % 2 == 0 { vandq_u8(q, low) } else { vshrq_n_u8::<4>(q) };
                    let five = vorrq_u8(four, vshlq_n_u8::<4>(vandq_u8(high[half], bit)));
                    high[half] = vshrq_n_u8::<1>(high[half]);
                    dot = sdot(dot, vreinterpretq_s8_u8(five), load(&a[16 * half..]));
                }
                acc = vmlaq_n_s32(acc, dot, scales[j]);
                offset += mins[j] * i32::from(sums[j]);
            }
            let exact = half_at(block, 0) * vaddvq_s32(acc) as f32 - half_at(block, 2) * offset as f32;
            sum += act.d[b] * exact;
        }
        *out = sum;
    }
}

#[target_feature(enable = "neon,dotprod")]
fn q6_k(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let (low, two, offset) = (vdupq_n_u8(15), vdupq_n_u8(3), vdupq_n_s8(32));
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(210).enumerate() {
            let a = &act.q[b * 256..];
            let mut acc = vdupq_n_s32(0);
            for half in 0..2 {
                for part in 0..2 {
                    let mut high = load_bytes(&block[128 + 32 * half + 16 * part..]);
                    for quarter in 0..4 {
                        let q = load_bytes(&block[64 * half + 32 * (quarter % 2) + 16 * part..]);
                        let four = if quarter < 2 { vandq_u8(q, low) } else { vshrq_n_u8::<4>(q) };
                        let six = vorrq_u8(four, vshlq_n_u8::<4>(vandq_u8(high, two)));
                        high = vshrq_n_u8::<2>(high);
                        let sub = 8 * half + 2 * quarter + part;
                        let q = vsubq_s8(vreinterpretq_s8_u8(six), offset);
                        let dot = sdot(vdupq_n_s32(0), q, load(&a[16 * sub..]));
                        acc = vmlaq_n_s32(acc, dot, i32::from(block[192 + sub] as i8));
                    }
                }
            }
            sum += half_at(block, 208) * act.d[b] * vaddvq_s32(acc) as f32;
        }
        *out = sum;
    }
}

#[target_feature(enable = "neon,dotprod")]
fn q8_0(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = vdupq_n_f32(0.0);
        for (b, block) in rows.row(r).chunks_exact(34).enumerate() {
            let a = &act.q[b * 32..];
            let q0 = vreinterpretq_s8_u8(load_bytes(&block[2..]));
            let q1 = vreinterpretq_s8_u8(load_bytes(&block[18..]));
            let dot = sdot(sdot(vdupq_n_s32(0), q0, load(a)), q1, load(&a[16..]));
            sum = vfmaq_n_f32(sum, vcvtq_f32_s32(dot), half_at(block, 0) * act.d[b]);
        }
        *out = vaddvq_f32(sum);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn q5_0(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    let (low, bits, offset) = (vdupq_n_u8(15), load_bytes(&BITS), vdupq_n_s8(16));
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = vdupq_n_f32(0.0);
        for (b, block) in rows.row(r).chunks_exact(22).enumerate() {
            let a = &act.q[b * 32..];
            let q = load_bytes(&block[6..]);
            let mut dot = vdupq_n_s32(0);
            for (half, four) in [vandq_u8(q, low), vshrq_n_u8::<4>(q)].into_iter().enumerate() {
                // Each lane gets the byte that holds its fifth bit, tests it, and keeps 16 where it is set.
                let bytes = vcombine_u8(vdup_n_u8(block[2 + 2 * half]), vdup_n_u8(block[3 + 2 * half]));
                let fifth = vandq_u8(vtstq_u8(bytes, bits), vdupq_n_u8(16));
                let q = vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(four, fifth)), offset);
                dot = sdot(dot, q, load(&a[16 * half..]));
            }
            sum = vfmaq_n_f32(sum, vcvtq_f32_s32(dot), half_at(block, 0) * act.d[b]);
        }
        *out = vaddvq_f32(sum);
    }
}

fn f16_matvec(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let mut bits = [f16::ZERO; 256];
    let mut wide = [0.0; 256];
    for (r, out) in out.iter_mut().enumerate() {
        *out = 0.0;
        for (bytes, x) in rows.row(r).chunks(512).zip(act.x.chunks(256)) {
            let (bits, wide) = (&mut bits[..x.len()], &mut wide[..x.len()]);
            bits.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(bit, pair)| *bit = f16::from_le_bytes(*pair));
            bits.convert_to_f32_slice(wide);
            *out += scalar::vector::dot(wide, x);
        }
    }
}
