//! TQ1_0 and TQ2_0: 256 ternary weights and one scale.
//!
//! `block_tq1_0`: `qs` 48 bytes, `qh` 4 bytes, `d` f16: base-3 numbers of five (in `qh` four) digits, scaled so that the
//! leading digit is `3 q / 256` and the next ones follow by multiplying with 3. Bytes 0..32 hold weights 0..160, byte `j`
//! weights `j`, `j + 32`, ...; bytes 32..48 hold 160..240 with a stride of 16; `qh` holds 240..256 with a stride of 4.
//! `block_tq2_0`: `qs` 64 bytes of two-bit digits laid out as in Q2_K, `d` f16.
//! Weight = d * (digit - 1). Decoding only: no encoder.

use crate::block::{Block, f16_at};

pub struct TQ1_0;
pub struct TQ2_0;

/// `digits` leading base-3 digits of every byte, digit-major.
#[inline(always)]
fn trits(qs: &[u8], d: f32, dst: &mut [f32]) {
    let mut power = 1_u8;
    for dst in dst.chunks_exact_mut(qs.len()) {
        for (dst, &q) in dst.iter_mut().zip(qs) {
            let digit = (u16::from(q.wrapping_mul(power)) * 3) >> 8;
            *dst = d * (i32::from(digit) - 1) as f32;
        }
        power = power.wrapping_mul(3);
    }
}

impl Block for TQ1_0 {
    const LEN: usize = 256;
    const BYTES: usize = 54;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 52);
        trits(&src[..32], d, &mut dst[..160]);
        trits(&src[32..48], d, &mut dst[160..240]);
        trits(&src[48..52], d, &mut dst[240..]);
    }
}

impl Block for TQ2_0 {
    const LEN: usize = 256;
    const BYTES: usize = 66;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let d = f16_at(src, 64);
        for (group, dst) in dst.chunks_exact_mut(32).enumerate() {
            let shift = group % 4 * 2;
            for (dst, &q) in dst.iter_mut().zip(&src[group / 4 * 32..][..32]) {
                *dst = d * (i32::from(q >> shift & 3) - 1) as f32;
            }
        }
    }
}
