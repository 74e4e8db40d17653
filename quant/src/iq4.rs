//! IQ4_NL and IQ4_XS: 4-bit indices into 16 unevenly spaced values.
//!
//! `block_iq4_nl`: 32 weights: `d` f16, 16 bytes of nibbles as in Q4_0. Weight = d * value.
//! `block_iq4_xs`: 256 weights: `d` f16, `scales_h` u16, `scales_l` 4 bytes, `qs` 128 bytes. Each group of 32 is packed
//! like IQ4_NL; its scale has its low nibble in `scales_l`, its upper two bits in `scales_h`, and is stored plus 32.
//! Weight = d * scale * value.

use crate::block::{Block, f16_at, u16_at};

pub struct IQ4_NL;
pub struct IQ4_XS;

/// The values that the indices stand for.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[inline(always)]
fn look_up(qs: &[u8], scale: f32, dst: &mut [f32]) {
    let (low, high) = dst.split_at_mut(16);
    for (j, &q) in qs.iter().enumerate() {
        low[j] = scale * f32::from(VALUES[usize::from(q & 15)]);
        high[j] = scale * f32::from(VALUES[usize::from(q >> 4)]);
    }
}

impl Block for IQ4_NL {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        look_up(&src[2..18], f16_at(src, 0), dst);
    }
}

impl Block for IQ4_XS {
    const LEN: usize = 256;
    const BYTES: usize = 136;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, scales_h) = (f16_at(src, 0), u16_at(src, 2));
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let low = i32::from(src[4 + group / 2] >> (group % 2 * 4) & 15);
            let high = i32::from(scales_h >> (2 * group) & 3);
            look_up(&src[8 + 16 * group..][..16], d * ((low | high << 4) - 32) as f32, dst);
        }
    }
}
