//! Q4_0 and Q4_1: 32 weights of 4 bits, one scale, and for Q4_1 one offset.
//!
//! Layout (`block_q4_0`, `block_q4_1`): `d` f16, for Q4_1 `m` f16, `qs` 16 bytes. Byte `j` holds weight `j` in its low
//! nibble and weight `j + 16` in its high one. Weight = d * (q - 8), or d * q + m.

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::affine::{best_pair, levels};
use crate::fit::scale::{Integers, best_scale, codes};
use crate::fit::{Half, Weighted};

pub struct Q4_0;
pub struct Q4_1;

impl Block for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        let (low, high) = dst.split_at_mut(16);
        for (j, &q) in src[2..18].iter().enumerate() {
            low[j] = d * (i32::from(q & 15) - 8) as f32;
            high[j] = d * (i32::from(q >> 4) - 8) as f32;
        }
    }
}

impl Block for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, m) = (f16_at(src, 0), f16_at(src, 2));
        let (low, high) = dst.split_at_mut(16);
        for (j, &q) in src[4..20].iter().enumerate() {
            low[j] = d * f32::from(q & 15) + m;
            high[j] = d * f32::from(q >> 4) + m;
        }
    }
}

/// 32 codes of 4 bits, the first half in the low nibbles.
#[inline(always)]
pub(crate) fn pack_nibbles(codes: &[u8; 32], qs: &mut [u8]) {
    for j in 0..16 {
        qs[j] = codes[j] | codes[j + 16] << 4;
    }
}

impl Encode for Q4_0 {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let d = Half::new(best_scale::<Integers<8>, 32>(block.group(0), 1));
        dst[..2].copy_from_slice(&d.bits.to_le_bytes());
        pack_nibbles(&codes::<Integers<8>, 32>(block.group(0), d.value), &mut dst[2..]);
    }
}

impl Encode for Q4_1 {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let (d, m) = best_pair::<15, true, 32>(block.group(0), 2);
        let (d, m) = (Half::new(d), Half::new(m));
        dst[..2].copy_from_slice(&d.bits.to_le_bytes());
        dst[2..4].copy_from_slice(&m.bits.to_le_bytes());
        pack_nibbles(&levels::<15, 32>(block.group(0), d.value, m.value), &mut dst[4..]);
    }
}
