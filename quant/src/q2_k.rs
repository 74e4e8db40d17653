//! Q2_K: 256 weights of 2 bits; 16 groups of 16 with a 4-bit scale and a 4-bit offset each.
//!
//! Layout (`block_q2_K`): `scales` 16 bytes (scale low nibble, offset high), `qs` 64 bytes, `d` f16, `dmin` f16.
//! Weights 0..128 lie in bytes 0..32 of `qs`: weight `32 s + j` in bits `2 s..2 s + 2` of byte `j`; then 128..256 alike.
//! Weight = d * scale * q - dmin * offset.

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::Weighted;
use crate::fit::affine::fit_pairs;

pub struct Q2_K;

impl Block for Q2_K {
    const LEN: usize = 256;
    const BYTES: usize = 84;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, dmin) = (f16_at(src, 80), f16_at(src, 82));
        for (group, dst) in dst.chunks_exact_mut(16).enumerate() {
            let (scale, min) = (d * f32::from(src[group] & 15), dmin * f32::from(src[group] >> 4));
            let qs = &src[16 + group / 8 * 32 + group % 2 * 16..][..16];
            let shift = group / 2 % 4 * 2;
            for (dst, &q) in dst.iter_mut().zip(qs) {
                *dst = scale * f32::from(q >> shift & 3) - min;
            }
        }
    }
}

impl Encode for Q2_K {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_pairs::<3, 16, 16>(block, 15, 2);
        dst[..80].fill(0);
        for group in 0..16 {
            dst[group] = fit.scales[group] | fit.mins[group] << 4;
            let levels = fit.levels::<3, 16>(block, group);
            let qs = &mut dst[16 + group / 8 * 32 + group % 2 * 16..][..16];
            for j in 0..16 {
                qs[j] |= levels[j] << (group / 2 % 4 * 2);
            }
        }
        dst[80..82].copy_from_slice(&fit.d.bits.to_le_bytes());
        dst[82..84].copy_from_slice(&fit.m.bits.to_le_bytes());
    }
}
