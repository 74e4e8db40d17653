//! Q5_K: 256 weights of 5 bits; 8 groups of 32 with a 6-bit scale and a 6-bit offset each.
//!
//! Layout (`block_q5_K`): `d` f16, `dmin` f16, `scales` 12 bytes, `qh` 32 bytes, `qs` 128 bytes. `scales` and `qs` as in
//! Q4_K; bit `g` of `qh[j]` is the fifth bit of weight `j` of group `g`. Weight = d * scale * q - dmin * offset.

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::Weighted;
use crate::fit::affine::fit_pairs;
use crate::q4_k::{pack, scales_and_mins};

pub struct Q5_K;

impl Block for Q5_K {
    const LEN: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, dmin) = (f16_at(src, 0), f16_at(src, 2));
        let (scales, mins) = scales_and_mins(&src[4..16]);
        let qh = &src[16..48];
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let (scale, min) = (d * f32::from(scales[group]), dmin * f32::from(mins[group]));
            let qs = &src[48 + group / 2 * 32..][..32];
            let shift = group % 2 * 4;
            for j in 0..32 {
                let q = qs[j] >> shift & 15 | (qh[j] >> group & 1) << 4;
                dst[j] = scale * f32::from(q) - min;
            }
        }
    }
}

impl Encode for Q5_K {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_pairs::<31, 32, 8>(block, 63, 1);
        dst[0..2].copy_from_slice(&fit.d.bits.to_le_bytes());
        dst[2..4].copy_from_slice(&fit.m.bits.to_le_bytes());
        pack(&fit.scales, &fit.mins, &mut dst[4..16]);
        let (qh, qs) = dst[16..].split_at_mut(32);
        qh.fill(0);
        for (pair, qs) in qs.chunks_exact_mut(32).enumerate() {
            let low = fit.levels::<31, 32>(block, 2 * pair);
            let high = fit.levels::<31, 32>(block, 2 * pair + 1);
            for j in 0..32 {
                qs[j] = low[j] & 15 | high[j] << 4;
                qh[j] |= low[j] >> 4 << (2 * pair) | high[j] >> 4 << (2 * pair + 1);
            }
        }
    }
}
