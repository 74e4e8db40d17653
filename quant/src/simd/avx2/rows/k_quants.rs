//! Rows of super-blocks: 256 weights under one f16, with 8 or 16 scales of a few bits.
//!
//! A super-block is read as eight groups of 32 bytes. The words of a group's products are multiplied by its scales as
//! words and added up as 32 bits, so a super-block needs one conversion to f32 a token. Layouts are GGML's
//! (`block_q4_K` and so on); `ints.rs` has them in plain code, which these must equal.

use std::arch::x86_64::*;

use super::{Isa, Row, Span};
use crate::ints::IQ4_VALUES;
use crate::simd::avx2::transpose::{both_lanes, high_nibbles, low_nibbles, nibble_table, or_masked};

/// What a super-block says about its groups.
pub(super) struct Head {
    /// Signed scales in order, 8 or 16 of them.
    scales: __m128i,
    /// Unsigned mins in order, as many.
    mins: __m128i,
    d: f32,
    dmin: f32,
}

/// How the bytes of a super-block are read.
pub(super) trait SuperBlock {
    const BYTES: usize;
    /// Weights under one scale: 16 or 32.
    const SUB: usize;
    const MINS: bool;
    /// The bytes of a group are this much more than its weights.
    const OFFSET: i32;
    /// The bytes of a group are signed.
    const SIGNED: bool;

    /// # Safety
    /// `block` holds BYTES; AVX2 and F16C exist.
    unsafe fn head(block: *const u8) -> Head;

    /// Calls `put` with the number of each group, 0 to 7 in any order, and its 32 bytes in the order of the weights.
    ///
    /// # Safety
    /// As `head`.
    unsafe fn groups(block: *const u8, put: impl FnMut(usize, __m256i));
}

/// Rows of this kind of super-blocks.
pub(super) struct Super<B>(B);

impl<B: SuperBlock> Row for Super<B> {
    const BYTES: usize = B::BYTES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn span<I: Isa, const N: usize>(block: *const u8, acts: &[Span; N], totals: &mut [__m256; N]) {
        // SAFETY: by the caller.
        unsafe {
            let head = B::head(block);
            let scales = scale_words::<B>(head.scales);
            let mut dots = [_mm256_setzero_si256(); N];
            if B::OFFSET != 0 {
                for i in 0..N {
                    let sums = if B::SUB == 16 {
                        let sums = _mm256_loadu_si256(acts[i].sums16.cast());
                        _mm256_madd_epi16(_mm256_cvtepi8_epi16(head.scales), sums)
                    } else {
                        let sums = _mm_loadu_si128(acts[i].sums32.cast());
                        _mm256_zextsi128_si256(_mm_madd_epi16(_mm_cvtepi8_epi16(head.scales), sums))
                    };
                    dots[i] = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-B::OFFSET));
                }
            }
            B::groups(block, |g, q| {
                let scale = group_scale::<B>(scales, g);
                let positive = if B::SIGNED { _mm256_abs_epi8(q) } else { q };
                for i in 0..N {
                    let a = _mm256_loadu_si256(acts[i].q.add(32 * g).cast());
                    let a = if B::SIGNED { _mm256_sign_epi8(a, q) } else { a };
                    dots[i] = I::add_words(dots[i], _mm256_maddubs_epi16(positive, a), scale);
                }
            });
            for i in 0..N {
                let act_d = *acts[i].d;
                if B::MINS {
                    let mins = if B::SUB == 16 {
                        let sums = _mm256_loadu_si256(acts[i].sums16.cast());
                        _mm256_madd_epi16(_mm256_cvtepu8_epi16(head.mins), sums)
                    } else {
                        let sums = _mm_loadu_si128(acts[i].sums32.cast());
                        _mm256_zextsi128_si256(_mm_madd_epi16(_mm_cvtepu8_epi16(head.mins), sums))
                    };
                    let dmin = _mm256_set1_ps(head.dmin * act_d);
                    totals[i] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(mins), dmin, totals[i]);
                }
                let d = _mm256_set1_ps(head.d * act_d);
                totals[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[i]), d, totals[i]);
            }
        }
    }

    unsafe fn rest<I: Isa, const N: usize>(_: &[u8], _: &[Span; N], _: &mut [__m256; N]) {
        unreachable!("rows are whole super-blocks")
    }
}

/// The scales as words. Of 16, the even ones are in the lower lane and the odd ones in the upper; 8 are in both.
#[inline]
#[target_feature(enable = "avx2")]
fn scale_words<B: SuperBlock>(scales: __m128i) -> __m256i {
    if B::SUB == 16 {
        let by_parity = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, by_parity))
    } else {
        _mm256_broadcastsi128_si256(_mm_cvtepi8_epi16(scales))
    }
}

/// Word `g` of each lane, eight times.
#[inline]
#[target_feature(enable = "avx2")]
fn group_scale<B: SuperBlock>(scales: __m256i, g: usize) -> __m256i {
    _mm256_shuffle_epi8(scales, _mm256_set1_epi16(((g * 2) | ((g * 2 + 1) << 8)) as i16))
}

/// # Safety
/// 32 bytes are readable at `block + at`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(block: *const u8, at: usize) -> __m256i {
    // SAFETY: by the caller.
    unsafe { _mm256_loadu_si256(block.add(at).cast()) }
}

/// The f16 at `block + at`, read as the first or the second half of a dword: the compiler's own way of two bytes into a
/// vector would wait for whatever its register held before.
///
/// # Safety
/// Two bytes are readable there, and two more in front of them or, at the start of a block, behind.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn half_at(block: *const u8, at: usize) -> f32 {
    // SAFETY: by the caller.
    let bits = unsafe {
        if at < 2 {
            block.add(at).cast::<u32>().read_unaligned()
        } else {
            block.add(at - 2).cast::<u32>().read_unaligned() >> 16
        }
    };
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits as i32)))
}

/// d, dmin, and the 6-bit scales and mins of Q4_K and Q5_K:
///
/// | bytes | 0..2 | 2..4 | 4..8 | 8..12 | 12..16 |
/// |--|--|--|--|--|--|
/// | | d | dmin | scales 0..4, tops of 4..8 | mins 0..4, tops of 4..8 | low nibbles: scales 4..8, high: mins 4..8 |
///
/// # Safety
/// As `SuperBlock::head`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn six_bit_head(block: *const u8) -> Head {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // SAFETY: by the caller.
    let (both, nibbles) = unsafe {
        (block.add(4).cast::<u64>().read_unaligned(), u64::from(block.add(12).cast::<u32>().read_unaligned()))
    };
    let low = both & (63 * EACH);
    let high = (nibbles | nibbles << 28) & (15 * EACH) | both >> 2 & (0x30 * EACH);
    // Dwords: scales 0..4, mins 0..4, scales 4..8, mins 4..8.
    let mixed = _mm_set_epi64x(high as i64, low as i64);
    // SAFETY: by the caller.
    let (d, dmin) = unsafe { (half_at(block, 0), half_at(block, 2)) };
    Head { scales: _mm_shuffle_epi32::<0b11_01_10_00>(mixed), mins: _mm_shuffle_epi32::<0b10_00_11_01>(mixed), d, dmin }
}

pub(super) struct Q4K;

impl SuperBlock for Q4K {
    const BYTES: usize = 144;
    const SUB: usize = 32;
    const MINS: bool = true;
    const OFFSET: i32 = 0;
    const SIGNED: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        // SAFETY: by the caller.
        unsafe { six_bit_head(block) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        for pair in 0..4 {
            // SAFETY: by the caller.
            let q = unsafe { load(block, 16 + 32 * pair) };
            put(2 * pair, low_nibbles(q));
            put(2 * pair + 1, high_nibbles(q));
        }
    }
}

pub(super) struct Q5K;

impl SuperBlock for Q5K {
    const BYTES: usize = 176;
    const SUB: usize = 32;
    const MINS: bool = true;
    const OFFSET: i32 = 0;
    const SIGNED: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        // SAFETY: by the caller.
        unsafe { six_bit_head(block) }
    }

    /// Bit g of the 32 bytes behind the scales is the fifth bit of group g.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        // SAFETY: by the caller.
        let high = unsafe { load(block, 16) };
        let bits = [
            [_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<3>(high)],
            [_mm256_slli_epi16::<2>(high), _mm256_slli_epi16::<1>(high)],
            [high, _mm256_srli_epi16::<1>(high)],
            [_mm256_srli_epi16::<2>(high), _mm256_srli_epi16::<3>(high)],
        ];
        for pair in 0..4 {
            // SAFETY: by the caller.
            let q = unsafe { load(block, 48 + 32 * pair) };
            put(2 * pair, or_masked(low_nibbles(q), bits[pair][0], 0x10));
            put(2 * pair + 1, or_masked(high_nibbles(q), bits[pair][1], 0x10));
        }
    }
}

pub(super) struct Q6K;

impl SuperBlock for Q6K {
    const BYTES: usize = 210;
    const SUB: usize = 16;
    const MINS: bool = false;
    const OFFSET: i32 = 32;
    const SIGNED: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        // SAFETY: by the caller.
        unsafe {
            let scales = _mm_loadu_si128(block.add(192).cast());
            Head { scales, mins: _mm_setzero_si128(), d: half_at(block, 208), dmin: 0.0 }
        }
    }

    /// Of each half: 64 bytes of nibbles, the low ones two groups and the high ones two; 32 bytes of bits 4 and 5, two a
    /// group.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        for half in 0..2 {
            // SAFETY: by the caller.
            let [a, b, top] =
                unsafe { [load(block, 64 * half), load(block, 64 * half + 32), load(block, 128 + 32 * half)] };
            put(4 * half, or_masked(low_nibbles(a), _mm256_slli_epi16::<4>(top), 0x30));
            put(4 * half + 1, or_masked(low_nibbles(b), _mm256_slli_epi16::<2>(top), 0x30));
            put(4 * half + 2, or_masked(high_nibbles(a), top, 0x30));
            put(4 * half + 3, or_masked(high_nibbles(b), _mm256_srli_epi16::<2>(top), 0x30));
        }
    }
}

/// Two bits a weight: 32 bytes hold 4 groups, one of each shift.
#[inline]
#[target_feature(enable = "avx2")]
fn two_bits(q: __m256i) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(q, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(q), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(q), mask),
    ]
}

pub(super) struct Q2K;

impl SuperBlock for Q2K {
    const BYTES: usize = 84;
    const SUB: usize = 16;
    const MINS: bool = true;
    const OFFSET: i32 = 0;
    const SIGNED: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        let nibble = _mm_set1_epi8(15);
        // SAFETY: by the caller.
        unsafe {
            let both = _mm_loadu_si128(block.cast());
            Head {
                scales: _mm_and_si128(both, nibble),
                mins: _mm_and_si128(_mm_srli_epi16::<4>(both), nibble),
                d: half_at(block, 80),
                dmin: half_at(block, 82),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        for half in 0..2 {
            // SAFETY: by the caller.
            let q = two_bits(unsafe { load(block, 16 + 32 * half) });
            for (i, q) in q.into_iter().enumerate() {
                put(4 * half + i, q);
            }
        }
    }
}

pub(super) struct Q3K;

impl SuperBlock for Q3K {
    const BYTES: usize = 110;
    const SUB: usize = 16;
    const MINS: bool = false;
    const OFFSET: i32 = 4;
    const SIGNED: bool = false;

    /// Sixteen scales of 6 bits: bytes 0..8 hold the low four bits of two each, 8..12 the upper two of four each.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        const EACH: u64 = 0x0101_0101_0101_0101;
        // SAFETY: by the caller.
        unsafe {
            let low = block.add(96).cast::<u64>().read_unaligned();
            let top = u64::from(block.add(104).cast::<u32>().read_unaligned());
            // Bits for the first four scales in place, for the next four shifted by two, and so on.
            let first = (top | top << 30) << 4 & (0x30 * EACH);
            let second = (top | top << 30) & (0x30 * EACH);
            let scales = _mm_set_epi64x((low >> 4 & (15 * EACH) | second) as i64, (low & (15 * EACH) | first) as i64);
            let scales = _mm_sub_epi8(scales, _mm_set1_epi8(32));
            Head { scales, mins: _mm_setzero_si128(), d: half_at(block, 108), dmin: 0.0 }
        }
    }

    /// Bit g of the first 32 bytes is the third bit of group g.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        // SAFETY: by the caller.
        let (high, low) = unsafe { (load(block, 0), [load(block, 32), load(block, 64)].map(|q| two_bits(q))) };
        put(0, or_masked(low[0][0], _mm256_slli_epi16::<2>(high), 4));
        put(1, or_masked(low[0][1], _mm256_slli_epi16::<1>(high), 4));
        put(2, or_masked(low[0][2], high, 4));
        put(3, or_masked(low[0][3], _mm256_srli_epi16::<1>(high), 4));
        put(4, or_masked(low[1][0], _mm256_srli_epi16::<2>(high), 4));
        put(5, or_masked(low[1][1], _mm256_srli_epi16::<3>(high), 4));
        put(6, or_masked(low[1][2], _mm256_srli_epi16::<4>(high), 4));
        put(7, or_masked(low[1][3], _mm256_srli_epi16::<5>(high), 4));
    }
}

pub(super) struct Iq4Xs;

impl SuperBlock for Iq4Xs {
    const BYTES: usize = 136;
    const SUB: usize = 32;
    const MINS: bool = false;
    const OFFSET: i32 = 0;
    const SIGNED: bool = true;

    /// Eight scales of 6 bits: four in a nibble each, two in two bits each.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        // SAFETY: by the caller.
        unsafe {
            let top = i32::from(block.add(2).cast::<u16>().read_unaligned());
            let low = block.add(4).cast::<i32>().read_unaligned();
            let low = _mm256_srlv_epi32(_mm256_set1_epi32(low), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let top = _mm256_srlv_epi32(_mm256_set1_epi32(top << 4), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
            let both = _mm256_or_si256(
                _mm256_and_si256(low, _mm256_set1_epi32(15)),
                _mm256_and_si256(top, _mm256_set1_epi32(0x30)),
            );
            let words = _mm_packs_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
            let words = _mm_sub_epi16(words, _mm_set1_epi16(32));
            Head { scales: _mm_packs_epi16(words, words), mins: _mm_setzero_si128(), d: half_at(block, 0), dmin: 0.0 }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        let table = both_lanes(const { &nibble_table(IQ4_VALUES, 0) });
        for pair in 0..4 {
            // SAFETY: by the caller.
            let q = unsafe { load(block, 8 + 32 * pair) };
            // Each 16 bytes are one group: their low nibbles its first half, their high ones the second.
            let (low, high) = (low_nibbles(q), high_nibbles(q));
            put(2 * pair, _mm256_shuffle_epi8(table, _mm256_permute2x128_si256::<0x20>(low, high)));
            put(2 * pair + 1, _mm256_shuffle_epi8(table, _mm256_permute2x128_si256::<0x31>(low, high)));
        }
    }
}

/// Signed, because an offset would cost precision: most weights are zero, and its share of the sums far above theirs.
pub(super) struct Tq2;

impl SuperBlock for Tq2 {
    const BYTES: usize = 66;
    const SUB: usize = 32;
    const MINS: bool = false;
    const OFFSET: i32 = 0;
    const SIGNED: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn head(block: *const u8) -> Head {
        // SAFETY: by the caller.
        let d = unsafe { half_at(block, 64) };
        Head { scales: _mm_set1_epi8(1), mins: _mm_setzero_si128(), d, dmin: 0.0 }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn groups(block: *const u8, mut put: impl FnMut(usize, __m256i)) {
        for half in 0..2 {
            // SAFETY: by the caller.
            let q = two_bits(unsafe { load(block, 32 * half) });
            for (i, q) in q.into_iter().enumerate() {
                put(4 * half + i, _mm256_sub_epi8(q, _mm256_set1_epi8(1)));
            }
        }
    }
}
