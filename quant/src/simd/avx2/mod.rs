//! x86-64 with AVX2, FMA and F16C: int8 products by `vpmaddubsw`, which multiplies unsigned by signed.
//!
//! One token takes the same way as many. Unpacking 16 rows side by side costs less than what a row by itself needs: its
//! scales one by one, and sums across lanes for each block.

mod blocks32;
mod k_quants;
mod tile;
mod transpose;
pub(crate) mod vector;

use crate::acts::{ActKind, ActRow, Quantised};
use crate::format::Format;
use crate::kernels::{Batch, Linear, Rows};
use crate::simd::scalar;

/// The int8 products of a format; `None` where it has no integer form.
pub(crate) fn linear(format: Format) -> Option<Linear> {
    let linear = match format {
        Format::Q4_0 => tile::linear::<blocks32::Q40>,
        Format::Q4_1 => tile::linear::<blocks32::Q41>,
        Format::Q5_0 => tile::linear::<blocks32::Q50>,
        Format::Q5_1 => tile::linear::<blocks32::Q51>,
        Format::Q8_0 => tile::linear::<blocks32::Q80>,
        Format::IQ4_NL => tile::linear::<blocks32::Iq4Nl>,
        Format::MXFP4 => tile::linear::<blocks32::Mxfp4>,
        Format::Q2_K => tile::linear::<k_quants::Q2K>,
        Format::Q3_K => tile::linear::<k_quants::Q3K>,
        Format::Q4_K => tile::linear::<k_quants::Q4K>,
        Format::Q5_K => tile::linear::<k_quants::Q5K>,
        Format::Q6_K => tile::linear::<k_quants::Q6K>,
        Format::IQ4_XS => tile::linear::<k_quants::Iq4Xs>,
        Format::TQ2_0 => tile::linear::<k_quants::Tq2>,
        _ => return None,
    };
    Some(linear(format))
}

/// Plain and decoded weights times f32 activations: the portable loops, compiled for wider lanes.
pub(crate) fn exact(format: Format) -> Linear {
    Linear { format, act: ActKind::F32, matvec: f32_matvec, matmul: f32_matmul }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn f32_matvec(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    scalar::f32_matvec(rows, act, out);
}

/// # Safety
/// As `Linear::matmul`, on a machine with these features.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f32_matmul(rows: &Rows<'_>, batch: &Batch<'_>) {
    // SAFETY: the caller's contract.
    unsafe { scalar::f32_matmul(rows, batch) }
}

/// The portable quantiser, where rounding is one instruction.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn quantise(kind: ActKind, x: &[f32], into: Quantised<'_>) {
    scalar::quantise(kind, x, into);
}
