//! Q8_0: 32 weights of 8 bits and one f16 scale. Layout (`block_q8_0`): `d` f16, `qs` 32 x i8. Weight = d * q.

use crate::block::{Block, f16_at};
use crate::encode::{Encode, Weighting};
use crate::fit::{Half, Weighted, clamp, integer, largest};

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

impl Encode for Q8_0 {
    const WEIGHTING: Weighting = Weighting::Unused;

    /// The largest weight takes the last level: at 8 bits a search gains nothing worth its time.
    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let scale = largest(block.x).abs() / 127.0;
        let d = Half::not_below(scale, 1.0 / 254.0);
        let inverse = if d.value > 0.0 { 1.0 / d.value } else { 0.0 };
        dst[..2].copy_from_slice(&d.bits.to_le_bytes());
        for (q, x) in dst[2..].iter_mut().zip(block.x) {
            *q = integer(clamp(x * inverse, -127.0, 127.0)) as u8;
        }
    }
}
