//! IQ3_XXS and IQ3_S: 256 weights of 3.06 and 3.44 bits: codebook points of four magnitudes, and signs.
//!
//! `block_iq3_xxs`: `d` f16, 64 point bytes, then 8 x u32, one for 32 weights: four times 7 sign bits and a 4-bit scale.
//! Weight = d * (scale + 1/2) / 2 * magnitude. `block_iq3_s`: `d` f16, 64 bytes of points, 8 bytes `qh` with bit `i % 8`
//! of byte `i / 8` the ninth bit of point `i`, 32 sign bytes, 4 bytes of 4-bit scales for 32 weights.
//! Weight = d * (2 scale + 1) * magnitude.

use crate::block::{Block, f16_at, u32_at};
use crate::encode::{Encode, Weighting};
use crate::fit::points::{Lattice, Points, fit_points};
use crate::fit::scale::{Levels, tries};
use crate::fit::{LANES, Weighted, clamp, integer, round};
use crate::grids::{self, EVEN_SIGNS, IQ3_S_VALUES, IQ3_XXS_VALUES, codes, signed};

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

static POINTS_XXS: Points<4, 256> = Points::new(&codes::IQ3_XXS, 3, &IQ3_XXS_VALUES);
static POINTS_S: Points<4, 512> = Points::new(&codes::IQ3_S, 3, &IQ3_S_VALUES);

/// The magnitudes of IQ3_S as levels: odd numbers up to 15.
struct Odd;

impl Levels for Odd {
    const TRIES: [f32; LANES] = tries(LANES, 15.0, 15.0, 0.3, 0.1);

    #[inline(always)]
    fn nearest(y: f32) -> f32 {
        2.0 * round(clamp(0.5 * (y - 1.0), 0.0, 7.0)) + 1.0
    }

    #[inline(always)]
    fn code(y: f32) -> u8 {
        integer(clamp(0.5 * (y - 1.0), 0.0, 7.0)) as u8
    }
}

impl Lattice for Odd {
    const UNIT: f32 = 2.0;
    const EVEN_SIGNS: bool = false;
}

/// The magnitudes of IQ3_XXS as levels: nearly four times odd numbers.
struct FourOdd;

impl Levels for FourOdd {
    const TRIES: [f32; LANES] = tries(LANES, 62.0, 62.0, 0.3, 0.1);

    #[inline(always)]
    fn nearest(y: f32) -> f32 {
        let level = 4.0 * Odd::nearest(0.25 * y);
        if level == 60.0 { 62.0 } else { level }
    }

    #[inline(always)]
    fn code(y: f32) -> u8 {
        Odd::code(0.25 * y)
    }
}

impl Lattice for FourOdd {
    const UNIT: f32 = 0.5;
    const EVEN_SIGNS: bool = true;
}

impl Encode for IQ3_XXS {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_points::<FourOdd, 4, 256, 32>(block, &POINTS_XXS);
        dst[..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        for i in 0..64 {
            dst[2 + i] = fit.points[i] as u8;
        }
        for (group, dst) in dst[66..].chunks_exact_mut(4).enumerate() {
            let mut word = u32::from(fit.scales[group]) << 28;
            for i in 0..4 {
                word |= u32::from(fit.signs[4 * group + i] & 127) << (7 * i);
            }
            dst.copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl Encode for IQ3_S {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_points::<Odd, 4, 512, 32>(block, &POINTS_S);
        dst.fill(0);
        dst[..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        for i in 0..64 {
            dst[2 + i] = fit.points[i] as u8;
            dst[66 + i / 8] |= ((fit.points[i] >> 8) as u8) << (i % 8);
        }
        dst[74..106].copy_from_slice(&fit.signs);
        for i in 0..4 {
            dst[106 + i] = fit.scales[2 * i] | fit.scales[2 * i + 1] << 4;
        }
    }
}
