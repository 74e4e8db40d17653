//! The same 16 bytes of 8 rows, turned into four vectors of one dword a row.
//!
//! A tile wants 4 weights of 8 rows side by side; a row keeps its weights one after the other. Everything that
//! unpacking does to a byte (masks, shifts, tables) can be done after this turn, on 8 rows at once.

use std::arch::x86_64::*;

/// Dwords 0..4 of the 16 bytes at `offset` of each row: `[dword][row]`.
///
/// # Safety
/// 16 bytes must be readable at `offset` of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dwords(rows: &[*const u8; 8], offset: usize) -> [__m256i; 4] {
    // SAFETY: by the caller.
    let [a, b, c, d] = std::array::from_fn(|i| unsafe {
        // Lane l holds row 4 l + i, so that turning 4 x 4 dwords inside the lanes puts the rows in order.
        let row = |lane: usize| _mm_loadu_si128(rows[4 * lane + i].add(offset).cast());
        _mm256_set_m128i(row(1), row(0))
    });
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The f16 in the low half of each dword.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn low_f16(x: __m256i) -> __m256 {
    let words = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
    // Packing works inside the 128-bit lanes: the wanted words are in quadwords 0 and 2.
    let words = _mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi32(words, words));
    _mm256_cvtph_ps(_mm256_castsi256_si128(words))
}

/// The f16 in the high half of each dword.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn high_f16(x: __m256i) -> __m256 {
    low_f16(_mm256_srli_epi32::<16>(x))
}

/// Unsigned byte `i` of each dword.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn byte(x: __m256i, i: usize) -> __m256i {
    _mm256_and_si256(shift_right(x, 8 * i), _mm256_set1_epi32(255))
}

/// Signed byte `i` of each dword.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn signed_byte(x: __m256i, i: usize) -> __m256i {
    _mm256_srai_epi32::<24>(shift_left(x, 24 - 8 * i))
}

/// Dwords shifted right. With a constant `bits` this is one instruction.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_right(x: __m256i, bits: usize) -> __m256i {
    _mm256_srl_epi32(x, _mm_cvtsi32_si128(bits as i32))
}

/// Dwords shifted left.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_left(x: __m256i, bits: usize) -> __m256i {
    _mm256_sll_epi32(x, _mm_cvtsi32_si128(bits as i32))
}

/// Integers below 2^24 as f32, times `by`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn times(x: __m256i, by: __m256) -> __m256 {
    _mm256_mul_ps(_mm256_cvtepi32_ps(x), by)
}

/// The low nibble of each byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn low_nibbles(x: __m256i) -> __m256i {
    _mm256_and_si256(x, _mm256_set1_epi8(15))
}

/// The high nibble of each byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn high_nibbles(x: __m256i) -> __m256i {
    low_nibbles(_mm256_srli_epi32::<4>(x))
}

/// `x | (bits & mask)`, the mask in every byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn or_masked(x: __m256i, bits: __m256i, mask: i8) -> __m256i {
    _mm256_or_si256(x, _mm256_and_si256(bits, _mm256_set1_epi8(mask)))
}

/// Sixteen values plus an offset that makes them unsigned, for `vpshufb`.
pub(super) const fn nibble_table(values: [i8; 16], offset: i16) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (values[i] as i16 + offset) as u8;
        i += 1;
    }
    table
}

/// A table in both lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn both_lanes(table: &'static [u8; 16]) -> __m256i {
    // SAFETY: 16 bytes are read from 16.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}
