//! IQ3_XXS and IQ3_S: 256 weights of 3.06 and 3.44 bits: codebook points of four magnitudes, and signs.
//!
//! `block_iq3_xxs`: `d` f16, 64 point bytes, then 8 x u32, one for 32 weights: four times 7 sign bits and a 4-bit scale.
//! Weight = d * (scale + 1/2) / 2 * magnitude. `block_iq3_s`: `d` f16, 64 bytes of points, 8 bytes `qh` with bit `i % 8`
//! of byte `i / 8` the ninth bit of point `i`, 32 sign bytes, 4 bytes of 4-bit scales for 32 weights.
//! Weight = d * (2 scale + 1) * magnitude.

use crate::block::{Block, f16_at, u32_at};
use crate::grids::{self, EVEN_SIGNS, signed};

pub struct IQ3_XXS;
pub struct IQ3_S;

/// Two points of four magnitudes as one of eight.
#[inline(always)]
fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl Block for IQ3_XXS {
    const LEN: usize = 256;
    const BYTES: usize = 98;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        let points = &src[2..66];
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let word = u32_at(src, 66 + 4 * group);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
                let at = 8 * group + 2 * i;
                let grid = |at: usize| grids::IQ3_XXS[usize::from(points[at])];
                signed(join(grid(at), grid(at + 1)), EVEN_SIGNS[(word >> (7 * i) & 127) as usize], scale, dst);
            }
        }
    }
}

impl Block for IQ3_S {
    const LEN: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        let (points, qh, signs, scales) = (&src[2..66], &src[66..74], &src[74..106], &src[106..110]);
        for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
            let scale = d * f32::from(2 * (scales[i / 8] >> (i / 4 % 2 * 4) & 15) + 1);
            let grid = |at: usize| grids::IQ3_S[usize::from(points[at]) | usize::from(qh[at / 8] >> (at % 8) & 1) << 8];
            signed(join(grid(2 * i), grid(2 * i + 1)), signs[i], scale, dst);
        }
    }
}
