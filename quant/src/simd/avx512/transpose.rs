//! The same 16 bytes of 16 rows, turned into four vectors of one dword a row.
//!
//! A tile wants 4 weights of 16 rows side by side; a row keeps its weights one after the other. Everything that
//! unpacking does to a byte (masks, shifts, tables) can be done after this turn, on 16 rows at once.

use std::arch::x86_64::*;

/// Dwords 0..4 of the 16 bytes at `offset` of each row: `[dword][row]`.
///
/// # Safety
/// 16 bytes must be readable at `offset` of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn dwords(rows: &[*const u8; 16], offset: usize) -> [__m512i; 4] {
    // SAFETY: by the caller.
    let [a, b, c, d] = std::array::from_fn(|i| unsafe {
        // Lane l holds row 4 l + i, so that turning 4 x 4 dwords inside the lanes puts the rows in order.
        let row = |lane: usize| _mm_loadu_si128(rows[4 * lane + i].add(offset).cast());
        let quad = _mm512_castsi128_si512(row(0));
        let quad = _mm512_inserti32x4::<1>(quad, row(1));
        let quad = _mm512_inserti32x4::<2>(quad, row(2));
        _mm512_inserti32x4::<3>(quad, row(3))
    });
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// The f16 in the low half of each dword.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn low_f16(x: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
}

/// The f16 in the high half of each dword.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn high_f16(x: __m512i) -> __m512 {
    low_f16(_mm512_srli_epi32::<16>(x))
}

/// Unsigned byte `i` of each dword.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn byte(x: __m512i, i: usize) -> __m512i {
    _mm512_and_si512(shift_right(x, 8 * i), _mm512_set1_epi32(255))
}

/// Dwords shifted right. With a constant `bits` this is one instruction.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn shift_right(x: __m512i, bits: usize) -> __m512i {
    _mm512_srl_epi32(x, _mm_cvtsi32_si128(bits as i32))
}

/// Dwords shifted left.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn shift_left(x: __m512i, bits: usize) -> __m512i {
    _mm512_sll_epi32(x, _mm_cvtsi32_si128(bits as i32))
}

/// Integers below 2^24 as f32, times `by`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn times(x: __m512i, by: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_cvtepi32_ps(x), by)
}

/// The low nibble of each byte.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn low_nibbles(x: __m512i) -> __m512i {
    _mm512_and_si512(x, _mm512_set1_epi8(15))
}

/// The high nibble of each byte.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn high_nibbles(x: __m512i) -> __m512i {
    low_nibbles(_mm512_srli_epi32::<4>(x))
}

/// `x | (bits & mask)`, the mask in every byte.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn or_masked(x: __m512i, bits: __m512i, mask: i8) -> __m512i {
    _mm512_ternarylogic_epi32::<0xf8>(x, bits, _mm512_set1_epi8(mask))
}
