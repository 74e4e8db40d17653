//! Unpacking the formats of 32-weight blocks, 8 rows at a time.
//!
//! Layouts are GGML's (`block_q4_0` and so on); `ints.rs` has them in plain code, which these must equal.

use std::arch::x86_64::*;

use super::tile::{Eight, Unpack};
use super::transpose::*;
use crate::ints::{FP4_VALUES, IQ4_VALUES};
use crate::simd::shape::{Block32, Block32Mins};

/// 16 bytes of nibbles: the low ones are weights 0..16, the high ones 16..32.
///
/// # Safety
/// As `Unpack::block`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(rows: &[*const u8; 8], offset: usize, mut put: impl FnMut(usize, __m256i)) {
    // SAFETY: by the caller.
    for (i, q) in unsafe { dwords(rows, offset) }.into_iter().enumerate() {
        put(i, low_nibbles(q));
        put(i + 4, high_nibbles(q));
    }
}

/// Adds bits 4 k4 .. 4 k4 + 4 of `high` as the fifth bits of four weights.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(q: __m256i, high: __m256i, k4: usize) -> __m256i {
    // The byte with these bits four times; then the upper four bits of it, each in a byte of its own, become 16.
    let copy = _mm256_set1_epi32(0x0101_0101 * (k4 as i32 / 2));
    let dwords = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
    let bits = _mm256_shuffle_epi8(high, _mm256_add_epi32(copy, dwords));
    let bits = if k4.is_multiple_of(2) { _mm256_slli_epi16::<4>(bits) } else { bits };
    let bits = _mm256_and_si256(bits, _mm256_set1_epi32(0x8040_2010_u32 as i32));
    _mm256_or_si256(q, _mm256_min_epu8(bits, _mm256_set1_epi8(16)))
}

/// d (and a negative min beside it) of a block whose first dword is `head`.
///
/// # Safety
/// As `Unpack::block`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scale_and_min(head: __m256i, into: Eight) {
    // SAFETY: by the caller.
    unsafe {
        into.scale(0, low_f16(head));
        into.min(0, _mm256_sub_ps(_mm256_setzero_ps(), high_f16(head)));
    }
}

macro_rules! unpack {
    ($name:ident: $shape:ty, $bytes:literal bytes, $bits:literal bits, offset $offset:literal,
        |$rows:ident, $into:ident| $body:block) => {
        pub(super) struct $name;

        impl Unpack for $name {
            type Shape = $shape;
            const BYTES: usize = $bytes;
            const BITS: u32 = $bits;
            const OFFSET: i32 = $offset;

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn block($rows: &[*const u8; 8], $into: Eight) {
                // SAFETY: by the caller; offsets stay inside a block.
                unsafe { $body }
            }
        }
    };
}

unpack!(Q40: Block32, 18 bytes, 4 bits, offset 8, |rows, into| {
    into.scale(0, low_f16(dwords(rows, 0)[0]));
    nibbles(rows, 2, |k4, q| into.put(k4, q));
});

unpack!(Q41: Block32Mins, 20 bytes, 4 bits, offset 0, |rows, into| {
    scale_and_min(dwords(rows, 0)[0], into);
    nibbles(rows, 4, |k4, q| into.put(k4, q));
});

unpack!(Q50: Block32, 22 bytes, 5 bits, offset 16, |rows, into| {
    let [head, next, ..] = dwords(rows, 0);
    let high = _mm256_or_si256(_mm256_srli_epi32::<16>(head), _mm256_slli_epi32::<16>(next));
    into.scale(0, low_f16(head));
    nibbles(rows, 6, |k4, q| into.put(k4, fifth_bits(q, high, k4)));
});

unpack!(Q51: Block32Mins, 24 bytes, 5 bits, offset 0, |rows, into| {
    let [head, high, ..] = dwords(rows, 0);
    scale_and_min(head, into);
    nibbles(rows, 8, |k4, q| into.put(k4, fifth_bits(q, high, k4)));
});

unpack!(Q80: Block32, 34 bytes, 8 bits, offset 128, |rows, into| {
    into.scale(0, low_f16(dwords(rows, 0)[0]));
    for half in 0..2 {
        for (i, q) in dwords(rows, 2 + 16 * half).into_iter().enumerate() {
            into.put_wide(half * 4 + i, _mm256_xor_si256(q, _mm256_set1_epi8(-128)));
        }
    }
});

unpack!(Iq4Nl: Block32, 18 bytes, 8 bits, offset 128, |rows, into| {
    let table = both_lanes(const { &nibble_table(IQ4_VALUES, 128) });
    into.scale(0, low_f16(dwords(rows, 0)[0]));
    nibbles(rows, 2, |k4, q| into.put_wide(k4, _mm256_shuffle_epi8(table, q)));
});

unpack!(Mxfp4: Block32, 17 bytes, 5 bits, offset 16, |rows, into| {
    let table = both_lanes(const { &nibble_table(FP4_VALUES, 16) });
    let exponent = byte(dwords(rows, 0)[0], 0);
    // As `e8m0_half`: below 2 the half is subnormal.
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponent, _mm256_set1_epi32(1)));
    let tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponent);
    let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponent);
    into.scale(0, _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, small)));
    nibbles(rows, 1, |k4, q| into.put(k4, _mm256_shuffle_epi8(table, q)));
});
