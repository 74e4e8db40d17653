//! MXFP4 and NVFP4: 4-bit floating-point weights (E2M1) under a shared scale.
//!
//! `block_mxfp4`: 32 weights: one byte, the scale's power of two (E8M0), then 16 bytes of nibbles as in Q4_0.
//! `block_nvfp4`: 64 weights: 4 scale bytes (E4M3, unsigned), then for each group of 16 eight bytes, weight `j` in the
//! low nibble of byte `j` and weight `j + 8` in the high one. `VALUES` are twice the E2M1 numbers, so that they are
//! integers; the scales are halved in return. NVFP4: decoding only.

use crate::block::Block;
use crate::encode::{Encode, Weighting};
use crate::fit::scale::{Levels, best_factor, codes, tries};
use crate::fit::{LANES, Weighted, clamp, integer, largest, round};
use crate::q4_0::pack_nibbles;

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

/// `VALUES` as levels: steps of 1 up to 4, of 2 up to 8, of 4 up to 12.
struct E2M1;

#[inline(always)]
fn step(y: f32) -> f32 {
    let magnitude = y.abs();
    if magnitude < 4.0 {
        1.0
    } else if magnitude < 8.0 {
        2.0
    } else {
        4.0
    }
}

impl Levels for E2M1 {
    const TRIES: [f32; LANES] = tries(LANES, 12.0, 12.0, 0.5, 0.5);

    #[inline(always)]
    fn nearest(y: f32) -> f32 {
        let y = clamp(y, -12.0, 12.0);
        let step = step(y);
        round(y / step) * step
    }

    #[inline(always)]
    fn code(y: f32) -> u8 {
        // The magnitudes 0 1 2 3 4 6 8 12 have the codes 0..=7.
        let y = clamp(y, -12.0, 12.0);
        let step = step(y);
        let steps = integer(y.abs() / step);
        let below = if step == 1.0 {
            0
        } else if step == 2.0 {
            2
        } else {
            4
        };
        (steps + below) as u8 | ((y < 0.0) as u8) << 3
    }
}

impl Encode for MXFP4 {
    const LIMIT: f32 = f32::MAX;
    const WEIGHTING: Weighting = Weighting::Linear;

    /// The scale is a power of two: the one under which the largest weight comes to lie in 8..16, or a neighbour.
    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let exponent = (largest(block.x).abs().to_bits() >> 23) as i32 - 3 + 1; // as E8M0 of twice the scale
        let first = (exponent - LANES as i32 / 2).clamp(0, 255 - LANES as i32);
        let mut scales = [0.0; LANES];
        for lane in 0..LANES {
            scales[lane] = e8m0_half((first + lane as i32) as u8);
        }
        let e = (first + best_factor::<E2M1, 32>(block.group(0), &scales) as i32) as u8;
        dst[0] = e;
        pack_nibbles(&codes::<E2M1, 32>(block.group(0), e8m0_half(e)), &mut dst[1..]);
    }
}
