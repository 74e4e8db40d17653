//! IQ1_S and IQ1_M: 256 weights of 1.56 and 1.75 bits: points of a ternary codebook, shifted by an eighth.
//!
//! `block_iq1_s`: `d` f16, `qs` 32 bytes, `qh` 8 x u16. Group `g` of 32 has four points; point `i` is `qs[4 g + i]` plus
//! three upper bits at `3 i` of `qh[g]`, whose bits 12..15 are the scale and bit 15 the sign of the shift.
//! `block_iq1_m`: `qs` 32 bytes, `qh` 16 bytes, `scales` 4 x u16. A nibble of `qh` a point: three upper bits and the
//! shift's sign. Scales of 3 bits for 16 weights; the top nibbles of the four words are the f16 `d`.
//! Weight = d * (2 scale + 1) * (point +- 1/8). Decoding only: no encoder.

use crate::block::{Block, f16_at, f16_to_f32, u16_at};
use crate::grids::IQ1;

pub struct IQ1_S;
pub struct IQ1_M;

const DELTA: f32 = 0.125;

#[inline(always)]
fn shifted(point: usize, delta: f32, scale: f32, dst: &mut [f32]) {
    for (dst, q) in dst.iter_mut().zip(IQ1[point].to_le_bytes()) {
        *dst = scale * (f32::from(q as i8) + delta);
    }
}

impl Block for IQ1_S {
    const LEN: usize = 256;
    const BYTES: usize = 50;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 0);
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let qh = u16_at(src, 34 + 2 * group);
            let scale = d * f32::from(2 * (qh >> 12 & 7) + 1);
            let delta = if qh & 0x8000 == 0 { DELTA } else { -DELTA };
            for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
                let point = usize::from(src[2 + 4 * group + i]) | usize::from(qh >> (3 * i) & 7) << 8;
                shifted(point, delta, scale, dst);
            }
        }
    }
}

impl Block for IQ1_M {
    const LEN: usize = 256;
    const BYTES: usize = 56;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let words: [u16; 4] = std::array::from_fn(|i| u16_at(src, 48 + 2 * i));
        let d = words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12;
        let d = f16_to_f32(d);
        for (i, dst) in dst.chunks_exact_mut(8).enumerate() {
            let scale = d * f32::from(2 * (words[i / 8] >> (i / 2 % 4 * 3) & 7) + 1);
            let qh = src[32 + i / 2] >> (i % 2 * 4) & 15;
            let delta = if qh & 8 == 0 { DELTA } else { -DELTA };
            shifted(usize::from(src[i]) | usize::from(qh & 7) << 8, delta, scale, dst);
        }
    }
}
