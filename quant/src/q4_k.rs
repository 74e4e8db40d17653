//! Q4_K: 256 weights of 4 bits; 8 groups of 32 with a 6-bit scale and a 6-bit offset each.
//!
//! Layout (`block_q4_K`): `d` f16, `dmin` f16, `scales` 12 bytes, `qs` 128 bytes. Bytes `32 p..32 p + 32` of `qs` hold
//! group `2 p` in their low nibbles and group `2 p + 1` in their high ones. `scales`: byte `i` < 4 is scale `i` and byte
//! `4 + i` is offset `i`, in six bits; byte `8 + i` holds the low nibbles of scale `4 + i` and of offset `4 + i`, whose
//! upper two bits are the top bits of bytes `i` and `4 + i`. Weight = d * scale * q - dmin * offset.

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::Weighted;
use crate::fit::affine::fit_pairs;

pub struct Q4_K;

/// The 8 scales and the 8 offsets of Q4_K and Q5_K, 0..=63.
#[inline(always)]
pub(crate) fn scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[4 + i] & 63;
        scales[4 + i] = packed[8 + i] & 15 | packed[i] >> 6 << 4;
        mins[4 + i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
    }
    (scales, mins)
}

impl Block for Q4_K {
    const LEN: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, dmin) = (f16_at(src, 0), f16_at(src, 2));
        let (scales, mins) = scales_and_mins(&src[4..16]);
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let (scale, min) = (d * f32::from(scales[group]), dmin * f32::from(mins[group]));
            let shift = group % 2 * 4;
            for (dst, &q) in dst.iter_mut().zip(&src[16 + group / 2 * 32..][..32]) {
                *dst = scale * f32::from(q >> shift & 15) - min;
            }
        }
    }
}

/// The inverse of `scales_and_mins`.
#[inline(always)]
pub(crate) fn pack(scales: &[u8; 8], mins: &[u8; 8], packed: &mut [u8]) {
    for i in 0..4 {
        packed[i] = scales[i] | scales[4 + i] >> 4 << 6;
        packed[4 + i] = mins[i] | mins[4 + i] >> 4 << 6;
        packed[8 + i] = scales[4 + i] & 15 | mins[4 + i] << 4;
    }
}

impl Encode for Q4_K {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_pairs::<15, 32, 8>(block, 63, 1);
        dst[0..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        dst[2..4].copy_from_slice(&fit.m.bits.to_le_bytes());
        pack(&fit.scales, &fit.mins, &mut dst[4..16]);
        for (pair, qs) in dst[16..].chunks_exact_mut(32).enumerate() {
            let low = fit.levels::<15, 32>(block, 2 * pair);
            let high = fit.levels::<15, 32>(block, 2 * pair + 1);
            for j in 0..32 {
                qs[j] = low[j] | high[j] << 4;
            }
        }
    }
}
