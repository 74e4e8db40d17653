//! The trait of a block format, and the row loops written once over it.
//!
//! A row is a run of blocks without gaps, so decoding rows, a matrix or a single block is one loop. The loops are
//! instantiated a second time for AVX2: the same Rust code, compiled wider. Rust never contracts `a * b + c`, so both
//! give the same bits. Lengths are asserted once, at entry; a `Block` sees slices of exactly one block.

#[cfg(target_arch = "x86_64")]
use crate::kernels::{Kernels, Level};

/// A format at compile time.
pub trait Block {
    /// Weights in one block.
    const LEN: usize;
    /// Bytes of one block.
    const BYTES: usize;

    /// `src` (BYTES) -> `dst` (LEN).
    fn decode(src: &[u8], dst: &mut [f32]);
}

/// Largest `Block::LEN`.
pub const MAX_LEN: usize = 256;

/// The row functions of one format, as the table in `format.rs` keeps them.
#[derive(Clone, Copy)]
pub struct RowFns {
    pub decode: fn(&[u8], &mut [f32]),
    pub dot: fn(&[u8], &[f32]) -> f32,
}

impl RowFns {
    pub const fn new<B: Block>() -> RowFns {
        const { assert!(B::LEN <= MAX_LEN && MAX_LEN.is_multiple_of(B::LEN)) };
        RowFns { decode: decode::<B>, dot: dot::<B> }
    }
}

fn check_lengths<B: Block>(src: &[u8], values: usize) {
    assert!(
        values.is_multiple_of(B::LEN) && src.len() == values / B::LEN * B::BYTES,
        "{} bytes do not hold {values} weights in blocks of {} bytes for {} weights",
        src.len(),
        B::BYTES,
        B::LEN
    );
}

fn decode<B: Block>(src: &[u8], dst: &mut [f32]) {
    check_lengths::<B>(src, dst.len());
    #[cfg(target_arch = "x86_64")]
    if matches!(Kernels::get().level(), Level::Avx2 | Level::Avx512) {
        // SAFETY: the machine runs the level that was chosen, and both have these features.
        return unsafe { decode_avx2::<B>(src, dst) };
    }
    decode_loop::<B>(src, dst);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2<B: Block>(src: &[u8], dst: &mut [f32]) {
    decode_loop::<B>(src, dst);
}

#[inline(always)]
fn decode_loop<B: Block>(src: &[u8], dst: &mut [f32]) {
    for (src, dst) in src.chunks_exact(B::BYTES).zip(dst.chunks_exact_mut(B::LEN)) {
        B::decode(src, dst);
    }
}

/// Exact-mode dot product of a row with activations: products and sums in f64, so the order does not show.
fn dot<B: Block>(src: &[u8], x: &[f32]) -> f32 {
    check_lengths::<B>(src, x.len());
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let mut weights = [0.0_f32; MAX_LEN];
    for (src, x) in src.chunks(MAX_LEN / B::LEN * B::BYTES).zip(x.chunks(MAX_LEN)) {
        let weights = &mut weights[..x.len()];
        decode::<B>(src, weights);
        let (mut w, mut x) = (weights.chunks_exact(LANES), x.chunks_exact(LANES));
        for (w, x) in (&mut w).zip(&mut x) {
            for lane in 0..LANES {
                sums[lane] += f64::from(w[lane]) * f64::from(x[lane]);
            }
        }
        for (&w, &x) in w.remainder().iter().zip(x.remainder()) {
            sums[0] += f64::from(w) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() as f32
}

/// Little-endian fields at a byte offset of a block.
#[inline(always)]
pub(crate) fn u16_at(src: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([src[at], src[at + 1]])
}

#[inline(always)]
pub(crate) fn u32_at(src: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([src[at], src[at + 1], src[at + 2], src[at + 3]])
}

#[inline(always)]
pub(crate) fn f16_at(src: &[u8], at: usize) -> f32 {
    f16_to_f32(u16_at(src, at))
}

/// Without branches and calls, so that loops over it vectorise; `half` looks up the CPU's features at each call.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23); // 2^112: exact, subnormals included
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 }; // infinity and NaN keep the top exponent
    f32::from_bits(value | special | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_as_ieee_754_says() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                ours == theirs && ours.signum() == theirs.signum() || ours.is_nan() && theirs.is_nan(),
                "{bits:#x}"
            );
        }
    }
}
