//! Formats that store every weight by itself: F32, F16, BF16.

use crate::block::{Block, f16_at, u16_at, u32_at};
use crate::encode::{Encode, Weighting};
use crate::fit::{Weighted, f32_to_f16};

pub struct F32;
pub struct F16;
pub struct BF16;

impl Block for F32 {
    const LEN: usize = 1;
    const BYTES: usize = 4;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        dst[0] = f32::from_bits(u32_at(src, 0));
    }
}

impl Block for F16 {
    const LEN: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        dst[0] = f16_at(src, 0);
    }
}

impl Block for BF16 {
    const LEN: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn decode(src: &[u8], dst: &mut [f32]) {
        dst[0] = f32::from_bits(u32::from(u16_at(src, 0)) << 16);
    }
}

impl Encode for F32 {
    const LIMIT: f32 = f32::MAX;
    const WEIGHTING: Weighting = Weighting::Unused;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        dst.copy_from_slice(&block.x[0].to_le_bytes());
    }
}

impl Encode for F16 {
    const WEIGHTING: Weighting = Weighting::Unused;

    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let sign = (block.x[0].to_bits() >> 16 & 0x8000) as u16;
        dst.copy_from_slice(&(f32_to_f16(block.x[0].abs()) | sign).to_le_bytes());
    }
}

impl Encode for BF16 {
    /// The largest BF16; what lies above would round to infinity.
    const LIMIT: f32 = f32::from_bits(0x7f7f_0000);
    const WEIGHTING: Weighting = Weighting::Unused;

    /// To nearest, ties to even.
    #[inline(always)]
    fn encode(block: &Weighted, dst: &mut [u8]) {
        let bits = block.x[0].to_bits();
        let rounded = bits + 0x7fff + (bits >> 16 & 1);
        dst.copy_from_slice(&((rounded >> 16) as u16).to_le_bytes());
    }
}
