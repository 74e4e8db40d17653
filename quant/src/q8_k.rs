//! Q8_K: 256 activations of 8 bits, one f32 scale, and the sums of 16 neighbours that formats with offsets need.
//!
//! Layout (`block_q8_K`): `d` f32, `qs` 256 x i8, `bsums` 16 x i16. No file stores weights so; it can still be read.

use crate::block::{Block, u32_at};

pub struct Q8_K;

impl Block for Q8_K {
    const LEN: usize = 256;
    const BYTES: usize = 292;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f32::from_bits(u32_at(src, 0));
        for (dst, &q) in dst.iter_mut().zip(&src[4..260]) {
            *dst = d * f32::from(q as i8);
        }
    }
}
