//! Q3_K: 256 weights of 3 bits; 16 groups of 16 with a signed 6-bit scale each.
//!
//! Layout (`block_q3_K`): `hmask` 32 bytes, `qs` 64 bytes, `scales` 12 bytes, `d` f16. The low two bits lie as in Q2_K;
//! the high bit of weight `32 s + j` is bit `s` of `hmask[j]`, and means "do not subtract 4". Scale `i` has its low
//! nibble in byte `i % 8` (high nibble for i >= 8), its upper two bits in bits `2 (i / 4)..` of byte `8 + i % 4`, and is
//! stored plus 32. Weight = d * scale * q.

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::Weighted;
use crate::fit::scale::{Integers, codes, fit_scales};

pub struct Q3_K;

/// The 16 scales, -32..=31.
#[inline(always)]
pub(crate) fn scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

impl Block for Q3_K {
    const LEN: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 108);
        let scales = scales(&src[96..108]);
        for (group, dst) in dst.chunks_exact_mut(16).enumerate() {
            let scale = d * f32::from(scales[group]);
            let hmask = &src[group % 2 * 16..][..16];
            let qs = &src[32 + group / 8 * 32 + group % 2 * 16..][..16];
            let (shift, bit) = (group / 2 % 4 * 2, group / 2);
            for j in 0..16 {
                let q = (qs[j] >> shift & 3 | (hmask[j] >> bit & 1) << 2) as i8 - 4;
                dst[j] = scale * f32::from(q);
            }
        }
    }
}

impl Encode for Q3_K {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let fit = fit_scales::<Integers<4>, 16, 16>(block, -32, 31);
        dst.fill(0);
        for group in 0..16 {
            let codes = codes::<Integers<4>, 16>(block.group(group), fit.d.value * fit.scales[group] as f32);
            let (plane, j0) = (group / 2, group % 2 * 16);
            for j in 0..16 {
                let q = codes[j];
                dst[j0 + j] |= q >> 2 << plane;
                dst[32 + group / 8 * 32 + j0 + j] |= (q & 3) << (plane % 4 * 2);
            }
            let scale = (fit.scales[group] + 32) as u8;
            dst[96 + group % 8] |= (scale & 15) << (group / 8 * 4);
            dst[104 + group % 4] |= scale >> 4 << (group / 4 * 2);
        }
        dst[108..110].copy_from_slice(&fit.d.bits.to_le_bytes());
    }
}
