//! One to a few tokens times rows as they lie in memory, row by row, everything in registers.
//!
//! A tile pays when many tokens share its unpacking; one token wants as few instructions a byte as memory delivers. A
//! row is read once, front to back; 256 weights become eight vectors of bytes, each is multiplied with the same 32
//! values of up to four tokens, and what does not depend on a weight (mins, offsets) comes from the sums that the
//! activations bring along. Rows lie back to back, so the whole product is one stream that is prefetched by address.
//!
//! Bytes are multiplied by `vpmaddubsw`, unsigned by signed, whose pairs must fit 16 bits: 2 x 127 x 127 does, and
//! activations are never below -127. Where the machine has `vpdpbusd` and `vpdpwssd`, `Isa` takes them instead.

mod blocks32;
mod k_quants;

use std::arch::x86_64::*;

use crate::acts::ActRow;
use crate::format::Format;
use crate::kernels::{Batch, Linear, Matmul, Matvec, Rows, act_kind};

/// Tokens that share one reading of a row.
const TOKENS: usize = 4;
/// Weights that are multiplied between two uses of the scales' factor.
const SPAN: usize = 256;
/// How far ahead of the current block memory is asked for, in bytes.
const AHEAD: usize = 3072;

/// How the level multiplies bytes and words.
pub(in crate::simd) trait Isa {
    /// Sums of four products of unsigned and signed bytes, in eight lanes; no product of a pair may leave 16 bits.
    ///
    /// # Safety
    /// AVX2, and what the implementation names.
    unsafe fn dot_bytes(unsigned: __m256i, signed: __m256i) -> __m256i;

    /// `sum + a . b` of pairs of words.
    ///
    /// # Safety
    /// AVX2, and what the implementation names.
    unsafe fn add_words(sum: __m256i, a: __m256i, b: __m256i) -> __m256i;
}

/// AVX2 alone.
pub(in crate::simd) struct Plain;

impl Isa for Plain {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot_bytes(unsigned: __m256i, signed: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_words(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
    }
}

// By assembly: the functions that these are inlined into are compiled for AVX2 once, and the compiler would split
// `vpdpwssd` into a product and a sum again.
macro_rules! vnni {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        pub(in crate::simd) struct $name;

        impl Isa for $name {
            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn dot_bytes(unsigned: __m256i, signed: __m256i) -> __m256i {
                let mut sum = _mm256_setzero_si256();
                // SAFETY: one arithmetic instruction, which exists by the caller.
                unsafe {
                    std::arch::asm!(concat!($prefix, "vpdpbusd {0}, {1}, {2}"), inout(ymm_reg) sum,
                        in(ymm_reg) unsigned, in(ymm_reg) signed, options(pure, nomem, nostack, preserves_flags));
                }
                sum
            }

            #[inline]
            #[target_feature(enable = "avx2")]
            unsafe fn add_words(mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: one arithmetic instruction, which exists by the caller.
                unsafe {
                    std::arch::asm!(concat!($prefix, "vpdpwssd {0}, {1}, {2}"), inout(ymm_reg) sum,
                        in(ymm_reg) a, in(ymm_reg) b, options(pure, nomem, nostack, preserves_flags));
                }
                sum
            }
        }
    };
}

vnni!(
    /// AVX-VNNI: Alder Lake, Zen 5 and later.
    AvxVnni,
    "{{vex}} "
);
vnni!(
    /// The same instructions of AVX-512 VNNI with VL.
    Avx512Vnni,
    ""
);

/// The activations under one span of one token.
#[derive(Clone, Copy)]
struct Span {
    q: *const i8,       // (256)
    d: *const f32,      // (1), or (8) for blocks of 32
    sums16: *const i16, // (16)
    sums32: *const i16, // (8)
}

impl Span {
    /// The activations from value `at` on.
    ///
    /// # Safety
    /// `at` is a multiple of 256 below `k`.
    #[inline]
    unsafe fn of(act: &ActRow<'_>, at: usize) -> Span {
        // SAFETY: by the caller.
        unsafe {
            Span {
                q: act.q.as_ptr().add(at),
                d: act.d.as_ptr().add(at / act.kind().block_len()),
                sums16: act.sums16.as_ptr().add(at / 16),
                sums32: act.sums32.as_ptr().add(at / 32),
            }
        }
    }
}

/// How a format multiplies rows.
trait Row {
    /// Bytes of a whole span.
    const BYTES: usize;

    /// Adds a span times N tokens to `totals`.
    ///
    /// # Safety
    /// `weights` holds BYTES, and `acts` 256 values; the instructions of `I` exist.
    unsafe fn span<I: Isa, const N: usize>(weights: *const u8, acts: &[Span; N], totals: &mut [__m256; N]);

    /// As `span` for fewer than 256 weights, where the format allows it.
    ///
    /// # Safety
    /// `weights` are of whole blocks, and the activations hold as many values.
    unsafe fn rest<I: Isa, const N: usize>(weights: &[u8], acts: &[Span; N], totals: &mut [__m256; N]);
}

/// One row times N tokens.
///
/// # Safety
/// `row` holds the blocks of the tokens' `k`; the instructions of `I` exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<F: Row, I: Isa, const N: usize>(row: &[u8], acts: &[ActRow<'_>; N]) -> [f32; N] {
    let mut totals = [_mm256_setzero_ps(); N];
    let spans = row.len() / F::BYTES;
    // SAFETY: spans lie inside the row, and the activations are of the same k.
    unsafe {
        for span in 0..spans {
            let weights = row.as_ptr().add(span * F::BYTES);
            for line in 0..F::BYTES.div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD + line * 64).cast());
            }
            F::span::<I, N>(weights, &std::array::from_fn(|i| Span::of(&acts[i], span * SPAN)), &mut totals);
        }
        let rest = &row[spans * F::BYTES..];
        if !rest.is_empty() {
            F::rest::<I, N>(rest, &std::array::from_fn(|i| Span::of(&acts[i], spans * SPAN)), &mut totals);
        }
    }
    totals.map(|total| super::vector::sum(total))
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn matvec<F: Row, I: Isa>(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    for (r, out) in out.iter_mut().enumerate() {
        // SAFETY: by the caller; sizes were checked by `Linear`.
        [*out] = unsafe { dots::<F, I, 1>(rows.row(r), &[*act]) };
    }
}

/// Each row times all tokens, four at a time: the row stays in the first-level cache meanwhile.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn matmul<F: Row, I: Isa>(rows: &Rows<'_>, batch: &Batch<'_>) {
    let slots = batch.tokens.len();
    for r in 0..rows.n {
        for slot in (0..slots).step_by(TOKENS) {
            // SAFETY: by the caller; these slots exist.
            unsafe {
                match slots - slot {
                    1 => few::<F, I, 1>(rows, batch, r, slot),
                    2 => few::<F, I, 2>(rows, batch, r, slot),
                    3 => few::<F, I, 3>(rows, batch, r, slot),
                    _ => few::<F, I, TOKENS>(rows, batch, r, slot),
                }
            }
        }
    }
}

/// # Safety
/// As `Linear::matmul`; slots slot .. slot + N exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<F: Row, I: Isa, const N: usize>(rows: &Rows<'_>, batch: &Batch<'_>, r: usize, slot: usize) {
    let acts = std::array::from_fn(|i| batch.acts.row(batch.tokens.token(slot + i)));
    // SAFETY: by the caller.
    unsafe {
        let dots = dots::<F, I, N>(rows.row(r), &acts);
        for (i, dot) in dots.into_iter().enumerate() {
            *batch.out.at(slot + i, r) = dot;
        }
    }
}

/// The kernels of a format for one token and for a few; `None` where it has none.
pub(in crate::simd) fn linear<I: Isa>(format: Format) -> Option<Linear> {
    use blocks32::Eight;
    use k_quants::Super;
    let kernels: (Matvec, Matmul) = match format {
        Format::Q4_0 => (matvec::<Eight<blocks32::Q40>, I>, matmul::<Eight<blocks32::Q40>, I>),
        Format::Q4_1 => (matvec::<Eight<blocks32::Q41>, I>, matmul::<Eight<blocks32::Q41>, I>),
        Format::Q5_0 => (matvec::<Eight<blocks32::Q50>, I>, matmul::<Eight<blocks32::Q50>, I>),
        Format::Q5_1 => (matvec::<Eight<blocks32::Q51>, I>, matmul::<Eight<blocks32::Q51>, I>),
        Format::Q8_0 => (matvec::<Eight<blocks32::Q80>, I>, matmul::<Eight<blocks32::Q80>, I>),
        Format::IQ4_NL => (matvec::<Eight<blocks32::Iq4Nl>, I>, matmul::<Eight<blocks32::Iq4Nl>, I>),
        Format::MXFP4 => (matvec::<Eight<blocks32::Mxfp4>, I>, matmul::<Eight<blocks32::Mxfp4>, I>),
        Format::Q2_K => (matvec::<Super<k_quants::Q2K>, I>, matmul::<Super<k_quants::Q2K>, I>),
        Format::Q3_K => (matvec::<Super<k_quants::Q3K>, I>, matmul::<Super<k_quants::Q3K>, I>),
        Format::Q4_K => (matvec::<Super<k_quants::Q4K>, I>, matmul::<Super<k_quants::Q4K>, I>),
        Format::Q5_K => (matvec::<Super<k_quants::Q5K>, I>, matmul::<Super<k_quants::Q5K>, I>),
        Format::Q6_K => (matvec::<Super<k_quants::Q6K>, I>, matmul::<Super<k_quants::Q6K>, I>),
        Format::IQ4_XS => (matvec::<Super<k_quants::Iq4Xs>, I>, matmul::<Super<k_quants::Iq4Xs>, I>),
        Format::TQ2_0 => (matvec::<Super<k_quants::Tq2>, I>, matmul::<Super<k_quants::Tq2>, I>),
        _ => return None,
    };
    Some(Linear::new(format, act_kind(format), kernels.0, kernels.1))
}
