//! Unpacking the formats of 256-weight super-blocks, 8 rows at a time.
//!
//! Layouts are GGML's (`block_q4_K` and so on); `ints.rs` has them in plain code, which these must equal.

use std::arch::x86_64::*;

use super::tile::{Eight, Unpack};
use super::transpose::*;
use crate::ints::IQ4_VALUES;
use crate::simd::shape::{Super16, Super16Mins, Super32, Super32Mins};

/// The eight 6-bit scales and mins of Q4_K and Q5_K; d and dmin are in front of them.
///
/// # Safety
/// As `Unpack::block`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bit_scales(rows: &[*const u8; 8], into: Eight) {
    // SAFETY: by the caller.
    unsafe {
        let [head, a, b, c] = dwords(rows, 0);
        let (d, dmin) = (low_f16(head), high_f16(head));
        let low6 = |x| _mm256_and_si256(x, _mm256_set1_epi8(63));
        let top = |x| _mm256_srli_epi32::<2>(x); // bits 6 and 7 of each byte to 4 and 5
        let scales = [low6(a), or_masked(low_nibbles(c), top(a), 0x30)];
        let mins = [low6(b), or_masked(high_nibbles(c), top(b), 0x30)];
        for i in 0..8 {
            into.scale(i, times(byte(scales[i / 4], i % 4), d));
            into.min(i, times(byte(mins[i / 4], i % 4), dmin));
        }
    }
}

pub(super) struct Q4K;

impl Unpack for Q4K {
    type Shape = Super32Mins;
    const BYTES: usize = 144;
    const BITS: u32 = 4;
    const OFFSET: i32 = 0;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            six_bit_scales(rows, into);
            for part in 0..8 {
                for (i, q) in dwords(rows, 16 + 16 * part).into_iter().enumerate() {
                    let k4 = part / 2 * 16 + part % 2 * 4 + i;
                    into.put(k4, low_nibbles(q));
                    into.put(k4 + 8, high_nibbles(q));
                }
            }
        }
    }
}

pub(super) struct Q5K;

impl Unpack for Q5K {
    type Shape = Super32Mins;
    const BYTES: usize = 176;
    const BITS: u32 = 5;
    const OFFSET: i32 = 0;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            six_bit_scales(rows, into);
            for half in 0..2 {
                let high = dwords(rows, 16 + 16 * half);
                for pair in 0..4 {
                    let low = dwords(rows, 48 + 32 * pair + 16 * half);
                    for i in 0..4 {
                        // Bit 2 pair is the fifth bit of the low nibbles, the next one that of the high ones.
                        let (first, second) = if pair < 2 {
                            (shift_left(high[i], 4 - 2 * pair), shift_left(high[i], 3 - 2 * pair))
                        } else {
                            (shift_right(high[i], 2 * pair - 4), shift_right(high[i], 2 * pair - 3))
                        };
                        let k4 = pair * 16 + half * 4 + i;
                        into.put(k4, or_masked(low_nibbles(low[i]), first, 0x10));
                        into.put(k4 + 8, or_masked(high_nibbles(low[i]), second, 0x10));
                    }
                }
            }
        }
    }
}

pub(super) struct Q6K;

impl Unpack for Q6K {
    type Shape = Super16;
    const BYTES: usize = 210;
    const BITS: u32 = 6;
    const OFFSET: i32 = 32;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            let d = high_f16(dwords(rows, 194)[3]);
            for (part, scales) in dwords(rows, 192).into_iter().enumerate() {
                for i in 0..4 {
                    into.scale(part * 4 + i, times(signed_byte(scales, i), d));
                }
            }
            for part in 0..4 {
                let (half, quarter) = (part / 2, part % 2 * 4);
                let two = dwords(rows, 128 + 16 * part);
                let four = [0, 32].map(|at| dwords(rows, 64 * half + 16 * (part % 2) + at));
                for i in 0..4 {
                    let k4 = half * 32 + quarter + i;
                    let bits = two[i];
                    into.put(k4, or_masked(low_nibbles(four[0][i]), shift_left(bits, 4), 0x30));
                    into.put(k4 + 8, or_masked(low_nibbles(four[1][i]), shift_left(bits, 2), 0x30));
                    into.put(k4 + 16, or_masked(high_nibbles(four[0][i]), bits, 0x30));
                    into.put(k4 + 24, or_masked(high_nibbles(four[1][i]), shift_right(bits, 2), 0x30));
                }
            }
        }
    }
}

/// Two bits a weight: 32 bytes hold 128 weights, 32 of each shift.
///
/// # Safety
/// As `Unpack::block`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn two_bits(rows: &[*const u8; 8], offset: usize, mut put: impl FnMut(usize, __m256i)) {
    for part in 0..4 {
        // SAFETY: by the caller.
        let bits = unsafe { dwords(rows, offset + 16 * part) };
        for i in 0..4 {
            for shift in 0..4 {
                let q = _mm256_and_si256(shift_right(bits[i], 2 * shift), _mm256_set1_epi8(3));
                put(part / 2 * 32 + shift * 8 + part % 2 * 4 + i, q);
            }
        }
    }
}

pub(super) struct Q2K;

impl Unpack for Q2K {
    type Shape = Super16Mins;
    const BYTES: usize = 84;
    const BITS: u32 = 2;
    const OFFSET: i32 = 0;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            let tail = dwords(rows, 68)[3];
            let (d, dmin) = (low_f16(tail), high_f16(tail));
            for (part, both) in dwords(rows, 0).into_iter().enumerate() {
                for i in 0..4 {
                    into.scale(part * 4 + i, times(byte(low_nibbles(both), i), d));
                    into.min(part * 4 + i, times(byte(high_nibbles(both), i), dmin));
                }
            }
            two_bits(rows, 16, |k4, q| into.put(k4, q));
        }
    }
}

pub(super) struct Q3K;

impl Unpack for Q3K {
    type Shape = Super16;
    const BYTES: usize = 110;
    const BITS: u32 = 3;
    const OFFSET: i32 = 4;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            let d = high_f16(dwords(rows, 94)[3]);
            let [_, a, b, top] = dwords(rows, 92);
            let four = [low_nibbles(a), low_nibbles(b), high_nibbles(a), high_nibbles(b)];
            for part in 0..4 {
                let two = if part < 2 { shift_left(top, 4 - 2 * part) } else { shift_right(top, 2 * part - 4) };
                let scales = or_masked(four[part], two, 0x30);
                for i in 0..4 {
                    let scale = _mm256_sub_epi32(byte(scales, i), _mm256_set1_epi32(32));
                    into.scale(part * 4 + i, times(scale, d));
                }
            }
            let high: [[__m256i; 4]; 2] = [dwords(rows, 0), dwords(rows, 16)];
            two_bits(rows, 32, |k4, q| {
                // Bit k4 / 8 of byte k4 % 8 * 4 ..; it counts 4.
                let bits = high[k4 % 8 / 4][k4 % 4];
                let bit = k4 / 8;
                let bits = if bit < 2 { shift_left(bits, 2 - bit) } else { shift_right(bits, bit - 2) };
                into.put(k4, or_masked(q, bits, 4));
            });
        }
    }
}

pub(super) struct Iq4Xs;

impl Unpack for Iq4Xs {
    type Shape = Super32;
    const BYTES: usize = 136;
    const BITS: u32 = 8;
    const OFFSET: i32 = 128;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            let [head, low, ..] = dwords(rows, 0);
            let d = low_f16(head);
            let top = _mm256_srli_epi32::<16>(head);
            let table = both_lanes(const { &nibble_table(IQ4_VALUES, 128) });
            for i in 0..8 {
                let four = _mm256_and_si256(shift_right(low, 4 * i), _mm256_set1_epi32(15));
                let two = shift_left(_mm256_and_si256(shift_right(top, 2 * i), _mm256_set1_epi32(3)), 4);
                let scale = _mm256_sub_epi32(_mm256_or_si256(four, two), _mm256_set1_epi32(32));
                into.scale(i, times(scale, d));
                for (j, q) in dwords(rows, 8 + 16 * i).into_iter().enumerate() {
                    into.put_wide(i * 8 + j, _mm256_shuffle_epi8(table, low_nibbles(q)));
                    into.put_wide(i * 8 + 4 + j, _mm256_shuffle_epi8(table, high_nibbles(q)));
                }
            }
        }
    }
}

pub(super) struct Tq2;

impl Unpack for Tq2 {
    type Shape = Super32;
    const BYTES: usize = 66;
    const BITS: u32 = 2;
    const OFFSET: i32 = 1;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn block(rows: &[*const u8; 8], into: Eight) {
        // SAFETY: by the caller.
        unsafe {
            let d = high_f16(dwords(rows, 50)[3]);
            for i in 0..8 {
                into.scale(i, d);
            }
            two_bits(rows, 0, |k4, q| into.put(k4, q));
        }
    }
}
