//! IQ2_XXS, IQ2_XS and IQ2_S: 256 weights of 2.06 to 2.56 bits: codebook points of eight magnitudes, and signs.
//!
//! `block_iq2_xxs`: `d` f16, then 8 groups of 32: four point bytes, then a u32 with four times 7 sign bits and a 4-bit
//! scale on top. `block_iq2_xs`: `d` f16, 32 x u16 (9 bits of point, 7 of signs), 8 bytes with a 4-bit scale for each 16
//! weights. `block_iq2_s`: `d` f16, 32 bytes of points, 32 sign bytes, 8 bytes `qh` with two upper bits for each point,
//! scales as in IQ2_XS. Weight = d * (scale + 1/2) / 4 * magnitude, signed.

use crate::block::{Block, f16_at, u16_at, u32_at};
use crate::encode::{Encode, Weighting};
use crate::fit::points::{Lattice, Points, fit_points};
use crate::fit::scale::{Levels, tries};
use crate::fit::{LANES, Weighted};
use crate::grids::{self, EVEN_SIGNS, IQ2_VALUES, codes, signed};

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

static POINTS_XXS: Points<8, 256> = Points::new(&codes::IQ2_XXS, 2, &IQ2_VALUES);
static POINTS_XS: Points<8, 512> = Points::new(&codes::IQ2_XS, 2, &IQ2_VALUES);
static POINTS_S: Points<8, 1024> = Points::new(&codes::IQ2_S, 2, &IQ2_VALUES);

/// The magnitudes as levels.
struct Magnitudes<const EVEN_SIGNS: bool>;

impl<const EVEN_SIGNS: bool> Levels for Magnitudes<EVEN_SIGNS> {
    const TRIES: [f32; LANES] = tries(LANES, 43.0, 43.0, 0.4, 0.1);

    #[inline(always)]
    fn nearest(y: f32) -> f32 {
        let [a, b, c] = IQ2_VALUES;
        let (a, b, c) = (f32::from(a), f32::from(b), f32::from(c));
        let low = if y > (a + b) * 0.5 { b } else { a };
        if y > (b + c) * 0.5 { c } else { low }
    }

    #[inline(always)]
    fn code(y: f32) -> u8 {
        u8::from(y > 16.5) + u8::from(y > 34.0)
    }
}

impl<const EVEN_SIGNS: bool> Lattice for Magnitudes<EVEN_SIGNS> {
    const UNIT: f32 = 0.25;
    const EVEN_SIGNS: bool = EVEN_SIGNS;
}

impl Encode for IQ2_XXS {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_points::<Magnitudes<true>, 8, 256, 32>(block, &POINTS_XXS);
        dst[..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        for (group, dst) in dst[2..].chunks_exact_mut(8).enumerate() {
            let mut word = u32::from(fit.scales[group]) << 28;
            for i in 0..4 {
                dst[i] = fit.points[4 * group + i] as u8;
                word |= u32::from(fit.signs[4 * group + i] & 127) << (7 * i);
            }
            dst[4..].copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl Encode for IQ2_XS {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_points::<Magnitudes<true>, 8, 512, 16>(block, &POINTS_XS);
        dst[..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        for i in 0..32 {
            let q = fit.points[i] | u16::from(fit.signs[i] & 127) << 9;
            dst[2 + 2 * i..4 + 2 * i].copy_from_slice(&q.to_le_bytes());
        }
        for i in 0..8 {
            dst[66 + i] = fit.scales[2 * i] | fit.scales[2 * i + 1] << 4;
        }
    }
}

impl Encode for IQ2_S {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_points::<Magnitudes<false>, 8, 1024, 16>(block, &POINTS_S);
        dst.fill(0);
        dst[..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        for i in 0..32 {
            dst[2 + i] = fit.points[i] as u8;
            dst[34 + i] = fit.signs[i];
            dst[66 + i / 4] |= ((fit.points[i] >> 8) as u8) << (i % 4 * 2);
        }
        for i in 0..8 {
            dst[74 + i] = fit.scales[2 * i] | fit.scales[2 * i + 1] << 4;
        }
    }
}
