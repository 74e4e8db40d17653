//! Q5_0 and Q5_1: 32 weights of 5 bits, one scale, and for Q5_1 one offset.
//!
//! Layout (`block_q5_0`, `block_q5_1`): `d` f16, for Q5_1 `m` f16, `qh` u32 with the fifth bit of weight `j` in bit `j`,
//! `qs` 16 bytes as in Q4_0. Weight = d * (q - 16), or d * q + m.

use crate::block::{Block, f16_at, u32_at};
use crate::encode::{Encode, Weighting};
use crate::fit::affine::{best_pair, levels};
use crate::fit::scale::{Integers, best_scale, codes};
use crate::fit::{Half, Weighted};

pub struct Q5_0;
pub struct Q5_1;

/// Weights `j` and `j + 16`, 0..=31.
#[inline(always)]
fn pair(qs: &[u8], qh: u32, j: usize) -> (i32, i32) {
    let low = u32::from(qs[j] & 15) | (qh >> j & 1) << 4;
    let high = u32::from(qs[j] >> 4) | (qh >> (j + 16) & 1) << 4;
    (low as i32, high as i32)
}

impl Block for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, qh) = (f16_at(src, 0), u32_at(src, 2));
        let (low, high) = dst.split_at_mut(16);
        for j in 0..16 {
            let (a, b) = pair(&src[6..22], qh, j);
            low[j] = d * (a - 16) as f32;
            high[j] = d * (b - 16) as f32;
        }
    }
}

impl Block for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        let (d, m, qh) = (f16_at(src, 0), f16_at(src, 2), u32_at(src, 4));
        let (low, high) = dst.split_at_mut(16);
        for j in 0..16 {
            let (a, b) = pair(&src[8..24], qh, j);
            low[j] = d * a as f32 + m;
            high[j] = d * b as f32 + m;
        }
    }
}

/// 32 codes of 5 bits: 4 bytes of fifth bits, then 16 of nibbles.
#[inline(always)]
fn pack(codes: &[u8; 32], dst: &mut [u8]) {
    let mut qh = 0;
    for j in 0..32 {
        qh |= u32::from(codes[j] >> 4) << j;
    }
    dst[..4].copy_from_slice(&qh.to_le_bytes());
    for j in 0..16 {
        dst[4 + j] = codes[j] & 15 | codes[j + 16] << 4;
    }
}

impl Encode for Q5_0 {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let d = Half::new(best_scale::<Integers<16>, 32>(block.group(0), 1));
        dst[..2].copy_from_slice(&d.bits.to_le_bytes());
        pack(&codes::<Integers<16>, 32>(block.group(0), d.value), &mut dst[2..]);
    }
}

impl Encode for Q5_1 {
    const WEIGHTING: Weighting = Weighting::Linear;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let (d, m) = best_pair::<31, true, 32>(block.group(0), 2);
        let (d, m) = (Half::new(d), Half::new(m));
        dst[..2].copy_from_slice(&d.bits.to_le_bytes());
        dst[2..4].copy_from_slice(&m.bits.to_le_bytes());
        pack(&levels::<31, 32>(block.group(0), d.value, m.value), &mut dst[4..]);
    }
}
