//! IQ2_XXS, IQ2_XS and IQ2_S: 256 weights of 2.06 to 2.56 bits: codebook points of eight magnitudes, and signs.
//!
//! `block_iq2_xxs`: `d` f16, then 8 groups of 32: four point bytes, then a u32 with four times 7 sign bits and a 4-bit
//! scale on top. `block_iq2_xs`: `d` f16, 32 x u16 (9 bits of point, 7 of signs), 8 bytes with a 4-bit scale for each 16
//! weights. `block_iq2_s`: `d` f16, 32 bytes of points, 32 sign bytes, 8 bytes `qh` with two upper bits for each point,
//! scales as in IQ2_XS. Weight = d * (scale + 1/2) / 4 * magnitude, signed.

use crate::block::{Block, f16_at, u16_at, u32_at};
use crate::grids::{self, EVEN_SIGNS, signed};

pub struct IQ2_XXS;
pub struct IQ2_XS;
pub struct IQ2_S;

#[inline(always)]
fn scaled(d: f32, scale: u32) -> f32 {
    d * (0.5 + scale as f32) * 0.25
}

impl Block for IQ2_XXS {
    const LEN: usize = 256;
    const BYTES: usize = 66;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        for (src, dst) in src[2..].chunks_exact(8).zip(dst.chunks_exact_mut(32)) {
            let word = u32_at(src, 4);
            let scale = scaled(d, word >> 28);
            for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
                let signs = EVEN_SIGNS[(word >> (7 * i) & 127) as usize];
                signed(grids::IQ2_XXS[usize::from(src[i])], signs, scale, dst);
            }
        }
    }
}

impl Block for IQ2_XS {
    const LEN: usize = 256;
    const BYTES: usize = 74;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
            let scale = scaled(d, u32::from(src[66 + i / 4] >> (i / 2 % 2 * 4) & 15));
            let q = usize::from(u16_at(src, 2 + 2 * i));
            signed(grids::IQ2_XS[q & 511], EVEN_SIGNS[q >> 9], scale, dst);
        }
    }
}

impl Block for IQ2_S {
    const LEN: usize = 256;
    const BYTES: usize = 82;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
            let scale = scaled(d, u32::from(src[74 + i / 4] >> (i / 2 % 2 * 4) & 15));
            let point = usize::from(src[2 + i]) | usize::from(src[66 + i / 4] >> (i % 4 * 2) & 3) << 8;
            signed(grids::IQ2_S[point], src[34 + i], scale, dst);
        }
    }
}
