//! Unpacking the formats of 32-weight blocks, 16 rows at a time.
//!
//! Layouts are GGML's (`block_q4_0` and so on); `ints.rs` has them in plain code, which these must equal.

use std::arch::x86_64::*;

use super::tile::{Sixteen, Unpack};
use super::transpose::*;
use crate::ints::{FP4_VALUES, IQ4_VALUES};
use crate::simd::shape::{Block32, Block32Mins};

/// Sixteen values plus an offset that makes them unsigned, for `vpshufb`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn nibble_table(values: [i8; 16], offset: i16) -> __m512i {
    let table: [u8; 16] = values.map(|v| (i16::from(v) + offset) as u8);
    // SAFETY: 16 bytes are read from 16.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// 16 bytes of nibbles: the low ones are weights 0..16, the high ones 16..32.
///
/// # Safety
/// As `Unpack::block`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn nibbles(rows: &[*const u8; 16], offset: usize, mut put: impl FnMut(usize, __m512i)) {
    // SAFETY: by the caller.
    for (i, q) in unsafe { dwords(rows, offset) }.into_iter().enumerate() {
        put(i, low_nibbles(q));
        put(i + 4, high_nibbles(q));
    }
}

/// Adds bits 4 k4 .. 4 k4 + 4 of `high` as the fifth bits of four weights.
#[inline]
#[target_feature(enable = "avx512f")]
fn fifth_bits(q: __m512i, high: __m512i, k4: usize) -> __m512i {
    // Entry b: 16 in each byte i of which bit i of b is set. The permute reads the low four bits of an index only.
    let table: [i32; 16] = std::array::from_fn(|b| (0..4).map(|i| ((b as i32 >> i) & 1) << (8 * i + 4)).sum());
    // SAFETY: 64 bytes are read from 64.
    let table = unsafe { _mm512_loadu_si512(table.as_ptr().cast()) };
    _mm512_or_si512(q, _mm512_permutexvar_epi32(shift_right(high, 4 * k4), table))
}

/// d (and a negative min beside it) of a block whose first dword is `head`.
///
/// # Safety
/// As `Unpack::block`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn scale_and_min(head: __m512i, into: Sixteen) {
    // SAFETY: by the caller.
    unsafe {
        into.scale(0, low_f16(head));
        into.min(0, _mm512_sub_ps(_mm512_setzero_ps(), high_f16(head)));
    }
}

macro_rules! unpack {
    ($(#[$doc:meta])* $name:ident: $shape:ty, $bytes:literal bytes, offset 1 << $offset:literal, |$rows:ident, $into:ident| $body:block) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Unpack for $name {
            type Shape = $shape;
            const BYTES: usize = $bytes;
            const OFFSET_BITS: u32 = $offset;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
            unsafe fn block($rows: &[*const u8; 16], $into: Sixteen) {
                // SAFETY: by the caller; offsets stay inside a block.
                unsafe { $body }
            }
        }
    };
}

unpack!(Q40: Block32, 18 bytes, offset 1 << 3, |rows, into| {
    into.scale(0, low_f16(dwords(rows, 0)[0]));
    nibbles(rows, 2, |k4, q| into.put(k4, q));
});

unpack!(Q41: Block32Mins, 20 bytes, offset 1 << 0, |rows, into| {
    scale_and_min(dwords(rows, 0)[0], into);
    nibbles(rows, 4, |k4, q| into.put(k4, q));
});

unpack!(Q50: Block32, 22 bytes, offset 1 << 4, |rows, into| {
    let [head, next, ..] = dwords(rows, 0);
    let high = _mm512_or_si512(_mm512_srli_epi32::<16>(head), _mm512_slli_epi32::<16>(next));
    into.scale(0, low_f16(head));
    nibbles(rows, 6, |k4, q| into.put(k4, fifth_bits(q, high, k4)));
});

unpack!(Q51: Block32Mins, 24 bytes, offset 1 << 0, |rows, into| {
    let [head, high, ..] = dwords(rows, 0);
    scale_and_min(head, into);
    nibbles(rows, 8, |k4, q| into.put(k4, fifth_bits(q, high, k4)));
});

unpack!(Q80: Block32, 34 bytes, offset 1 << 7, |rows, into| {
    into.scale(0, low_f16(dwords(rows, 0)[0]));
    for half in 0..2 {
        for (i, q) in dwords(rows, 2 + 16 * half).into_iter().enumerate() {
            into.put(half * 4 + i, _mm512_xor_si512(q, _mm512_set1_epi8(-128)));
        }
    }
});

unpack!(Iq4Nl: Block32, 18 bytes, offset 1 << 7, |rows, into| {
    let table = nibble_table(IQ4_VALUES, 128);
    into.scale(0, low_f16(dwords(rows, 0)[0]));
    nibbles(rows, 2, |k4, q| into.put(k4, _mm512_shuffle_epi8(table, q)));
});

unpack!(Mxfp4: Block32, 17 bytes, offset 1 << 4, |rows, into| {
    let table = nibble_table(FP4_VALUES, 16);
    let exponent = byte(dwords(rows, 0)[0], 0);
    // As `e8m0_half`: below 2 the half is subnormal.
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponent, _mm512_set1_epi32(1)));
    let tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponent);
    let small = _mm512_cmplt_epi32_mask(exponent, _mm512_set1_epi32(2));
    into.scale(0, _mm512_castsi512_ps(_mm512_mask_blend_epi32(small, normal, tiny)));
    nibbles(rows, 1, |k4, q| into.put(k4, _mm512_shuffle_epi8(table, q)));
});
