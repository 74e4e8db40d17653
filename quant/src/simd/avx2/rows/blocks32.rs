//! Rows of blocks of 32 weights with a scale each, eight blocks at a time.
//!
//! The eight scales are converted together, multiplied by those of the activations and kept in memory, from where a
//! block's product is a broadcast for free; what mins or offsets take away is computed for the eight at once. Layouts
//! are GGML's (`block_q4_0` and so on); `ints.rs` has them in plain code, which these must equal.

use std::arch::x86_64::*;

use super::{Isa, Row, SPAN, Span};
use crate::ints::{FP4_VALUES, IQ4_VALUES};
use crate::simd::avx2::transpose::{both_lanes, low_nibbles, nibble_table};

/// Blocks in a span.
const BLOCKS: usize = SPAN / 32;

/// How the bytes of a block are read.
pub(super) trait Block32 {
    const BYTES: usize;
    /// Whether a min (a second f16, which is added) follows the scale.
    const MINS: bool;
    /// The bytes are this much more than the weights.
    const OFFSET: i32;
    /// The bytes are signed.
    const SIGNED: bool;

    /// The 32 bytes in the order of the weights.
    ///
    /// # Safety
    /// `block` holds BYTES; AVX2 exists.
    unsafe fn bytes(block: *const u8) -> __m256i;

    /// The scales of eight blocks.
    ///
    /// # Safety
    /// `blocks` holds eight; AVX2 and F16C exist.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn scales(blocks: [*const u8; BLOCKS]) -> __m256 {
        // SAFETY: by the caller.
        unsafe { halves(blocks, 0) }
    }
}

/// The f16 at `at` in each block, brought together by integer instructions: the compiler's own way into a vector would
/// wait for whatever its register held before.
///
/// # Safety
/// Two bytes are readable there; F16C exists.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(blocks: [*const u8; BLOCKS], at: usize) -> __m256 {
    // SAFETY: by the caller.
    let [a, b, c, d, e, f, g, h] =
        blocks.map(|block| u64::from(unsafe { block.add(at).cast::<u16>().read_unaligned() }));
    let (low, high) = (a | b << 16 | c << 32 | d << 48, e | f << 16 | g << 32 | h << 48);
    _mm256_cvtph_ps(_mm_set_epi64x(high as i64, low as i64))
}

/// Eight factors in memory.
#[repr(C, align(32))]
struct Factors([f32; BLOCKS]);

/// Rows of this kind of blocks.
pub(super) struct Eight<B>(B);

impl<B: Block32> Eight<B> {
    /// The first `count` of eight blocks (or ALL) times N tokens; past these the scale of the last is repeated.
    ///
    /// # Safety
    /// `weights` holds `count` blocks; so do the activations, and 8 values each of `d` and `sums`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn some<I: Isa, const N: usize, const ALL: bool>(
        weights: *const u8,
        count: usize,
        q: [*const i8; N],
        d: [__m256; N],
        sums: [__m128i; N],
        totals: &mut [__m256; N],
    ) {
        let count = if ALL { BLOCKS } else { count };
        // SAFETY: by the caller; no block past `count` is touched.
        unsafe {
            let blocks = std::array::from_fn(|b| weights.add(b.min(count - 1) * B::BYTES));
            let scales = B::scales(blocks);
            let mut factors = [const { Factors([0.0; BLOCKS]) }; N];
            for i in 0..N {
                let factor = _mm256_mul_ps(scales, d[i]);
                _mm256_store_ps(factors[i].0.as_mut_ptr(), factor);
                if B::MINS || B::OFFSET != 0 {
                    let sums = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums[i]));
                    let by = if B::MINS {
                        _mm256_mul_ps(halves(blocks, 2), d[i])
                    } else {
                        _mm256_mul_ps(factor, _mm256_set1_ps(-B::OFFSET as f32))
                    };
                    totals[i] = _mm256_fmadd_ps(sums, by, totals[i]);
                }
            }
            // By an address that the compiler can not see through: it would shuffle registers instead.
            let mut address = factors.as_ptr().expose_provenance();
            std::arch::asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags));
            let factors = std::ptr::with_exposed_provenance::<Factors>(address);
            // Two short chains of sums where there is one token, lest each block wait for the one before.
            let mut pair = [_mm256_setzero_ps(); 2];
            for b in 0..count {
                let bytes = B::bytes(weights.add(b * B::BYTES));
                let positive = if B::SIGNED { _mm256_abs_epi8(bytes) } else { bytes };
                for i in 0..N {
                    let a = _mm256_loadu_si256(q[i].add(32 * b).cast());
                    let a = if B::SIGNED { _mm256_sign_epi8(a, bytes) } else { a };
                    let dot = _mm256_cvtepi32_ps(I::dot_bytes(positive, a));
                    let into = if ALL && N == 1 { &mut pair[b % 2] } else { &mut totals[i] };
                    *into = _mm256_fmadd_ps(dot, _mm256_broadcast_ss(&(*factors.add(i)).0[b]), *into);
                }
            }
            if ALL && N == 1 {
                totals[0] = _mm256_add_ps(totals[0], _mm256_add_ps(pair[0], pair[1]));
            }
        }
    }
}

impl<B: Block32> Row for Eight<B> {
    const BYTES: usize = BLOCKS * B::BYTES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn span<I: Isa, const N: usize>(weights: *const u8, acts: &[Span; N], totals: &mut [__m256; N]) {
        // SAFETY: by the caller.
        unsafe {
            let d = std::array::from_fn(|i| _mm256_loadu_ps(acts[i].d));
            let sums = std::array::from_fn(|i| _mm_loadu_si128(acts[i].sums32.cast()));
            Self::some::<I, N, true>(weights, BLOCKS, std::array::from_fn(|i| acts[i].q), d, sums, totals);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn rest<I: Isa, const N: usize>(weights: &[u8], acts: &[Span; N], totals: &mut [__m256; N]) {
        let count = weights.len() / B::BYTES;
        // SAFETY: by the caller; what the row does not have stays zero.
        unsafe {
            let (mut d, mut sums) = ([[0f32; BLOCKS]; N], [[0i16; BLOCKS]; N]);
            for i in 0..N {
                for b in 0..count.min(BLOCKS) {
                    (d[i][b], sums[i][b]) = (*acts[i].d.add(b), *acts[i].sums32.add(b));
                }
            }
            let d = d.map(|d| _mm256_loadu_ps(d.as_ptr()));
            let sums = sums.map(|sums| _mm_loadu_si128(sums.as_ptr().cast()));
            Self::some::<I, N, false>(weights.as_ptr(), count, std::array::from_fn(|i| acts[i].q), d, sums, totals);
        }
    }
}

/// 16 bytes of nibbles: the low ones are weights 0..16, the high ones 16..32.
///
/// # Safety
/// 16 bytes are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: by the caller.
    let both = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(at.cast()) });
    low_nibbles(_mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)))
}

/// 16 in each byte whose bit of the 32 is set.
///
/// # Safety
/// Four bytes are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn fifth_bits(at: *const u8) -> __m256i {
    // SAFETY: by the caller.
    let bits = _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() });
    // Byte i / 8 for weight i; then its bit i % 8 by itself; then whether that is set.
    let copy = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, copy), one), one);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

macro_rules! blocks {
    ($($name:ident: $bytes:literal bytes, mins $mins:literal, offset $offset:literal, signed $signed:literal,
        |$block:ident| $body:expr $(, scales |$blocks:ident| $scales:expr)?;)*) => {
        $(pub(super) struct $name;

        impl Block32 for $name {
            const BYTES: usize = $bytes;
            const MINS: bool = $mins;
            const OFFSET: i32 = $offset;
            const SIGNED: bool = $signed;

            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn bytes($block: *const u8) -> __m256i {
                // SAFETY: by the caller; offsets stay inside a block.
                unsafe { $body }
            }

            $(#[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn scales($blocks: [*const u8; BLOCKS]) -> __m256 {
                // SAFETY: by the caller.
                unsafe { $scales }
            })?
        })*
    };
}

blocks! {
    Q40: 18 bytes, mins false, offset 8, signed false, |block| nibbles(block.add(2));
    Q41: 20 bytes, mins true, offset 0, signed false, |block| nibbles(block.add(4));
    Q50: 22 bytes, mins false, offset 16, signed false,
        |block| _mm256_or_si256(nibbles(block.add(6)), fifth_bits(block.add(2)));
    Q51: 24 bytes, mins true, offset 0, signed false,
        |block| _mm256_or_si256(nibbles(block.add(8)), fifth_bits(block.add(4)));
    Q80: 34 bytes, mins false, offset 0, signed true, |block| _mm256_loadu_si256(block.add(2).cast());
    Iq4Nl: 18 bytes, mins false, offset 0, signed true,
        |block| _mm256_shuffle_epi8(both_lanes(const { &nibble_table(IQ4_VALUES, 0) }), nibbles(block.add(2)));
    Mxfp4: 17 bytes, mins false, offset 12, signed false,
        |block| _mm256_shuffle_epi8(both_lanes(const { &nibble_table(FP4_VALUES, 12) }), nibbles(block.add(1))),
        scales |blocks| exponents(blocks);
}

/// Powers of two from a byte each, as `e8m0_half`.
///
/// # Safety
/// Each block has a byte; AVX2 exists.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn exponents(blocks: [*const u8; BLOCKS]) -> __m256 {
    // SAFETY: by the caller.
    let bytes = blocks.iter().rev().fold(0, |all, block| all << 8 | u64::from(unsafe { **block }));
    let exponent = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64));
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(exponent, _mm256_set1_epi32(1)));
    let tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), exponent);
    let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), exponent);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, small))
}
