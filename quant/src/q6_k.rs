//! Q6_K: 256 weights of 6 bits; 16 groups of 16 with a signed 8-bit scale each.
//!
//! Layout (`block_q6_K`): `ql` 128 bytes, `qh` 64 bytes, `scales` 16 x i8, `d` f16. Weights 0..128 use `ql[..64]` and
//! `qh[..32]`: weight `32 s + j` has its low nibble in `ql[32 (s % 2) + j]` (high half of the byte for s >= 2), its upper
//! two bits in bits `2 s..2 s + 2` of `qh[j]`; weights 128..256 use the other halves. Weight = d * scale * (q - 32).

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::Weighted;
use crate::fit::scale::{Integers, codes, fit_scales};

pub struct Q6_K;

impl Block for Q6_K {
    const LEN: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 208);
        for (run, dst) in dst.chunks_exact_mut(32).enumerate() {
            let (half, s) = (run / 4, run % 4);
            let ql = &src[64 * half + 32 * (s % 2)..][..32];
            let qh = &src[128 + 32 * half..][..32];
            let mut q = [0; 32];
            for j in 0..32 {
                q[j] = ql[j] >> (s / 2 * 4) & 15 | (qh[j] >> (2 * s) & 3) << 4;
            }
            let scales = &src[192 + 2 * run..][..2];
            for (i, dst) in dst.chunks_exact_mut(16).enumerate() {
                let scale = d * f32::from(scales[i] as i8);
                for j in 0..16 {
                    dst[j] = scale * (i32::from(q[16 * i + j]) - 32) as f32;
                }
            }
        }
    }
}

impl Encode for Q6_K {
    const WEIGHTING: Weighting = Weighting::Square;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_scales::<Integers<32>, 16, 16>(block, -128, 127);
        dst.fill(0);
        for g in 0..16 {
            let codes = codes::<Integers<32>, 16>(block.group(g), fit.d.value * fit.scales[g] as f32);
            let (half, s, j) = (g / 8, g / 2 % 4, g % 2 * 16);
            for i in 0..16 {
                let q = codes[i];
                dst[64 * half + 32 * (s % 2) + j + i] |= (q & 15) << (s / 2 * 4);
                dst[128 + 32 * half + j + i] |= (q >> 4) << (2 * s);
            }
            dst[192 + g] = fit.scales[g] as i8 as u8;
        }
        dst[208..210].copy_from_slice(&fit.d.bits.to_le_bytes());
    }
}
