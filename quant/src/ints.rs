//! The integer form that most block formats share: weight = scale * q - min, one scale and min a sub-block.
//!
//! This is what the int8 kernels compute with, and the scalar reading of it here is their specification: a product is
//! `d_activation * (scale * sum(q * a) - min * sum(a))` a sub-block, with both sums exact. Formats that need a grid to
//! read a weight (IQ1 to IQ3) are not here; they go through `Format::decode`.

use half::f16;

use crate::acts::ActKind;
use crate::format::Format;

/// Up to 256 weights of one row. 32-block formats use the first 32 only.
pub(crate) struct Ints {
    pub q: [i8; 256],
    pub scale: [f32; 16],
    pub min: [f32; 16],
}

impl Ints {
    pub const ZERO: Ints = Ints { q: [0; 256], scale: [0.0; 16], min: [0.0; 16] };
}

/// How a format reads as integers.
#[derive(Clone, Copy)]
pub(crate) struct IntLayout {
    pub act: ActKind,
    /// Weights in a sub-block: 16 or 32.
    pub sub: usize,
    /// Reads one block.
    pub read: fn(&[u8], &mut Ints),
}

/// The integer form of a format, if it has one.
pub(crate) fn int_layout(format: Format) -> Option<IntLayout> {
    use ActKind::{Q8_0, Q8_K};
    let layout = |act, sub, read| Some(IntLayout { act, sub, read });
    match format {
        Format::Q4_0 => layout(Q8_0, 32, q4_0),
        Format::Q4_1 => layout(Q8_0, 32, q4_1),
        Format::Q5_0 => layout(Q8_0, 32, q5_0),
        Format::Q5_1 => layout(Q8_0, 32, q5_1),
        Format::Q8_0 => layout(Q8_0, 32, q8_0),
        Format::IQ4_NL => layout(Q8_0, 32, iq4_nl),
        Format::MXFP4 => layout(Q8_0, 32, mxfp4),
        Format::Q2_K => layout(Q8_K, 16, q2_k),
        Format::Q3_K => layout(Q8_K, 16, q3_k),
        Format::Q4_K => layout(Q8_K, 32, q4_k),
        Format::Q5_K => layout(Q8_K, 32, q5_k),
        Format::Q6_K => layout(Q8_K, 16, q6_k),
        Format::IQ4_XS => layout(Q8_K, 32, iq4_xs),
        Format::TQ2_0 => layout(Q8_K, 32, tq2_0),
        Format::F32
        | Format::F16
        | Format::BF16
        | Format::Q8_K
        | Format::IQ1_S
        | Format::IQ1_M
        | Format::IQ2_XXS
        | Format::IQ2_XS
        | Format::IQ2_S
        | Format::IQ3_XXS
        | Format::IQ3_S
        | Format::TQ1_0
        | Format::NVFP4 => None,
    }
}

/// The non-linear 4-bit values of IQ4_NL and IQ4_XS.
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of a 4-bit float with 2 exponent bits and 1 mantissa bit (FP4 E2M1), sign in bit 3.
pub(crate) const FP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes of nibbles: the low ones are weights 0..16, the high ones 16..32.
fn nibbles(qs: &[u8], q: &mut [i8], value: impl Fn(u8, usize) -> i8) {
    for j in 0..16 {
        q[j] = value(qs[j] & 15, j);
        q[j + 16] = value(qs[j] >> 4, j + 16);
    }
}

fn q4_0(block: &[u8], out: &mut Ints) {
    out.scale[0] = half_at(block, 0);
    nibbles(&block[2..], &mut out.q, |v, _| v as i8 - 8);
}

fn q4_1(block: &[u8], out: &mut Ints) {
    out.scale[0] = half_at(block, 0);
    out.min[0] = -half_at(block, 2);
    nibbles(&block[4..], &mut out.q, |v, _| v as i8);
}

fn fifth_bit(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |j| ((high >> j) as u8 & 1) << 4
}

fn q5_0(block: &[u8], out: &mut Ints) {
    let high = fifth_bit(block, 2);
    out.scale[0] = half_at(block, 0);
    nibbles(&block[6..], &mut out.q, |v, j| (v | high(j)) as i8 - 16);
}

fn q5_1(block: &[u8], out: &mut Ints) {
    let high = fifth_bit(block, 4);
    out.scale[0] = half_at(block, 0);
    out.min[0] = -half_at(block, 2);
    nibbles(&block[8..], &mut out.q, |v, j| (v | high(j)) as i8);
}

fn q8_0(block: &[u8], out: &mut Ints) {
    out.scale[0] = half_at(block, 0);
    for j in 0..32 {
        out.q[j] = block[2 + j] as i8;
    }
}

fn iq4_nl(block: &[u8], out: &mut Ints) {
    out.scale[0] = half_at(block, 0);
    nibbles(&block[2..], &mut out.q, |v, _| IQ4_VALUES[v as usize]);
}

/// Half of the power of two that an E8M0 exponent byte names, because the integers are twice the FP4 values.
pub(crate) fn e8m0_half(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (u32::from(exponent) - 1) << 23 })
}

fn mxfp4(block: &[u8], out: &mut Ints) {
    out.scale[0] = e8m0_half(block[0]);
    nibbles(&block[1..], &mut out.q, |v, _| FP4_VALUES[v as usize]);
}

fn q2_k(block: &[u8], out: &mut Ints) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for i in 0..256 {
        let (half, sub, l) = (i / 128, i % 128 / 32, i % 32);
        out.q[i] = (qs[half * 32 + l] >> (2 * sub) & 3) as i8;
    }
    for (j, scale) in scales.iter().enumerate() {
        out.scale[j] = d * f32::from(scale & 15);
        out.min[j] = dmin * f32::from(scale >> 4);
    }
}

fn q3_k(block: &[u8], out: &mut Ints) {
    let (high, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for i in 0..256 {
        let (half, sub, l) = (i / 128, i % 128 / 32, i % 32);
        let low = (qs[half * 32 + l] >> (2 * sub) & 3) as i8;
        out.q[i] = low + 4 * (high[l] >> (half * 4 + sub) & 1) as i8 - 4;
    }
    for j in 0..16 {
        let low = scales[j % 8] >> (4 * (j / 8)) & 15;
        let top = scales[8 + j % 4] >> (2 * (j / 4)) & 3;
        out.scale[j] = d * f32::from((low | top << 4) as i8 - 32);
    }
}

/// The eight 6-bit scales and mins that Q4_K and Q5_K pack into 12 bytes.
fn six_bit_scales(block: &[u8], out: &mut Ints) {
    let (d, dmin, s) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for j in 0..8 {
        let (scale, min) = if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
        };
        out.scale[j] = d * f32::from(scale);
        out.min[j] = dmin * f32::from(min);
    }
}

fn q4_k(block: &[u8], out: &mut Ints) {
    six_bit_scales(block, out);
    let qs = &block[16..144];
    for i in 0..256 {
        out.q[i] = (qs[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15) as i8;
    }
}

fn q5_k(block: &[u8], out: &mut Ints) {
    six_bit_scales(block, out);
    let (high, qs) = (&block[16..48], &block[48..176]);
    for i in 0..256 {
        let low = qs[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15;
        out.q[i] = (low | (high[i % 32] >> (i / 32) & 1) << 4) as i8;
    }
}

fn q6_k(block: &[u8], out: &mut Ints) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for i in 0..256 {
        let (half, l) = (i / 128, i % 128);
        let four = low[half * 64 + l % 64] >> (4 * (l / 64)) & 15;
        let two = high[half * 32 + l % 32] >> (2 * (l / 32)) & 3;
        out.q[i] = (four | two << 4) as i8 - 32;
    }
    for j in 0..16 {
        out.scale[j] = d * f32::from(scales[j] as i8);
    }
}

fn iq4_xs(block: &[u8], out: &mut Ints) {
    let (d, top, low) = (half_at(block, 0), u16::from_le_bytes([block[2], block[3]]), &block[4..8]);
    for j in 0..8 {
        let scale = low[j / 2] >> (4 * (j % 2)) & 15 | ((top >> (2 * j) & 3) as u8) << 4;
        out.scale[j] = d * f32::from(scale as i8 - 32);
        nibbles(&block[8 + 16 * j..], &mut out.q[32 * j..], |v, _| IQ4_VALUES[v as usize]);
    }
}

fn tq2_0(block: &[u8], out: &mut Ints) {
    out.scale[..8].fill(half_at(block, 64));
    for i in 0..256 {
        let (half, sub, l) = (i / 128, i % 128 / 32, i % 32);
        out.q[i] = (block[half * 32 + l] >> (2 * sub) & 3) as i8 - 1;
    }
}
