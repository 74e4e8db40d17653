//! x86-64 with AVX2, FMA and F16C: int8 products by `vpmaddubsw`, which multiplies unsigned by signed.
//!
//! One token, and a few, take rows as they lie (`rows`); many tokens share the unpacking of 16 rows to a tile (`tile`).

mod blocks32;
mod k_quants;
pub(super) mod rows;
mod tile;
mod transpose;
pub(crate) mod vector;

use crate::acts::{ActKind, ActRow, Quantised};
use crate::format::Format;
use crate::kernels::{Batch, Design, Linear, Rows};
use crate::simd::scalar;

/// The int8 products of a format by tiles; `None` where it has no integer form.
fn tiles(format: Format) -> Option<Linear> {
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

/// The int8 products of a format, by each design that it has.
pub(crate) fn designs(format: Format) -> Vec<(Design, Linear)> {
    let rows = if is_x86_feature_detected!("avxvnni") {
        rows::linear::<rows::AvxVnni>(format)
    } else {
        rows::linear::<rows::Plain>(format)
    };
    let tiles = tiles(format).map(|tiles| (Design::Tile, tiles));
    tiles.into_iter().chain(rows.map(|rows| (Design::Rows, rows))).collect()
}

/// Plain and decoded weights times f32 activations: the portable loops, compiled for wider lanes.
pub(crate) fn exact(format: Format) -> Linear {
    Linear::new(format, ActKind::F32, f32_matvec, f32_matmul)
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
