//! IQ4_NL and IQ4_XS: 4-bit indices into 16 unevenly spaced values.
//!
//! `block_iq4_nl`: 32 weights: `d` f16, 16 bytes of nibbles as in Q4_0. Weight = d * value.
//! `block_iq4_xs`: 256 weights: `d` f16, `scales_h` u16, `scales_l` 4 bytes, `qs` 128 bytes. Each group of 32 is packed
//! like IQ4_NL; its scale has its low nibble in `scales_l`, its upper two bits in `scales_h`, and is stored plus 32.
//! Weight = d * scale * value.

use crate::block::{Block, f16_at, u16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::scale::{Levels, best_scale, codes, fit_scales, tries};
use crate::fit::{Half, LANES, Weighted};
use crate::q4_0::pack_nibbles;

pub struct IQ4_NL;
pub struct IQ4_XS;

/// The values that the indices stand for.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[inline(always)]
fn look_up(qs: &[u8], scale: f32, dst: &mut [f32]) {
    let (low, high) = dst.split_at_mut(16);
    for (j, &q) in qs.iter().enumerate() {
        low[j] = scale * f32::from(VALUES[usize::from(q & 15)]);
        high[j] = scale * f32::from(VALUES[usize::from(q >> 4)]);
    }
}

impl Block for IQ4_NL {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        look_up(&src[2..18], f16_at(src, 0), dst);
    }
}

impl Block for IQ4_XS {
    const LEN: usize = 256;
    const BYTES: usize = 136;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, scales_h) = (f16_at(src, 0), u16_at(src, 2));
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let low = i32::from(src[4 + group / 2] >> (group % 2 * 4) & 15);
            let high = i32::from(scales_h >> (2 * group) & 3);
            look_up(&src[8 + 16 * group..][..16], d * ((low | high << 4) - 32) as f32, dst);
        }
    }
}

/// `VALUES` as levels.
struct Values;

impl Levels for Values {
    const TRIES: [f32; LANES] = tries(9, -127.0, 113.0, 0.12, 0.12);

    /// Starts at the lowest value and climbs one step at every midpoint that `y` has passed.
    #[inline(always)]
    fn nearest(y: f32) -> f32 {
        let mut level = f32::from(VALUES[0]);
        for (lower, upper) in VALUES.iter().zip(&VALUES[1..]) {
            let (lower, upper) = (f32::from(*lower), f32::from(*upper));
            level += if y > (lower + upper) * 0.5 { upper - lower } else { 0.0 };
        }
        level
    }

    #[inline(always)]
    fn code(y: f32) -> u8 {
        let mut code = 0;
        for (lower, upper) in VALUES.iter().zip(&VALUES[1..]) {
            code += u8::from(y > (f32::from(*lower) + f32::from(*upper)) * 0.5);
        }
        code
    }
}

impl Encode for IQ4_NL {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let d = Half::new(best_scale::<Values, 32>(block.group(0), 1));
        dst[..2].copy_from_slice(&d.bits.to_le_bytes());
        pack_nibbles(&codes::<Values, 32>(block.group(0), d.value), &mut dst[2..]);
    }
}

impl Encode for IQ4_XS {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_scales::<Values, 32, 8>(block, -32, 31);
        dst[..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        dst[2..8].fill(0);
        let mut scales_h = 0;
        for group in 0..8 {
            let scale = (fit.scales[group] + 32) as u8;
            dst[4 + group / 2] |= (scale & 15) << (group % 2 * 4);
            scales_h |= u16::from(scale >> 4) << (2 * group);
            let codes = codes::<Values, 32>(block.group(group), fit.d.value * fit.scales[group] as f32);
            pack_nibbles(&codes, &mut dst[8 + 16 * group..][..16]);
        }
        dst[2..4].copy_from_slice(&scales_h.to_le_bytes());
    }
}
