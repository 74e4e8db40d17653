//! Q8_0: 32 weights of 8 bits and one f16 scale. Layout (`block_q8_0`): `d` f16, `qs` 32 x i8. Weight = d * q.

use crate::block::{Block, f16_at};

pub struct Q8_0;

impl Block for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        for (dst, &q) in dst.iter_mut().zip(&src[2..34]) {
            *dst = d * f32::from(q as i8);
        }
    }
}
