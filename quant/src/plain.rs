//! Formats that store every weight by itself: F32, F16, BF16.

use crate::block::{Block, f16_at, u16_at, u32_at};

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
