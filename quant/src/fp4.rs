//! MXFP4 and NVFP4: 4-bit floating-point weights (E2M1) under a shared scale.
//!
//! `block_mxfp4`: 32 weights: one byte, the scale's power of two (E8M0), then 16 bytes of nibbles as in Q4_0.
//! `block_nvfp4`: 64 weights: 4 scale bytes (E4M3, unsigned), then for each group of 16 eight bytes, weight `j` in the
//! low nibble of byte `j` and weight `j + 8` in the high one. `VALUES` are twice the E2M1 numbers, so that they are
//! integers; the scales are halved in return. NVFP4: decoding only.

use crate::block::Block;

pub struct MXFP4;
pub struct NVFP4;

/// Twice the values that the nibbles stand for.
pub const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(e - 128)`: half the E8M0 scale. The two smallest are subnormal.
#[inline(always)]
pub(crate) fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Half the unsigned E4M3 scale; the code of NaN counts as 0.
#[inline(always)]
fn e4m3_half(x: u8) -> f32 {
    let (exponent, mantissa) = (x >> 3 & 15, f32::from(x & 7));
    match (exponent, x) {
        (_, 0x7f) => 0.0,
        (0, _) => mantissa * (0.5 / 512.0),
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 127 - 7 - 1) << 23),
    }
}

/// Low nibbles into the first half of `dst`, high ones into the second.
#[inline(always)]
fn look_up(qs: &[u8], scale: f32, dst: &mut [f32]) {
    let (low, high) = dst.split_at_mut(qs.len());
    for (j, &q) in qs.iter().enumerate() {
        low[j] = scale * f32::from(VALUES[usize::from(q & 15)]);
        high[j] = scale * f32::from(VALUES[usize::from(q >> 4)]);
    }
}

impl Block for MXFP4 {
    const LEN: usize = 32;
    const BYTES: usize = 17;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        look_up(&src[1..17], e8m0_half(src[0]), dst);
    }
}

impl Block for NVFP4 {
    const LEN: usize = 64;
    const BYTES: usize = 36;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        for (group, dst) in dst.chunks_exact_mut(16).enumerate() {
            look_up(&src[4 + 8 * group..][..8], e4m3_half(src[group]), dst);
        }
    }
}
