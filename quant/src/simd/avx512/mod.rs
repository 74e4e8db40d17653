//! AVX-512 with VNNI, VBMI and GFNI: Ice Lake, Zen 4 and later.

mod blocks32;
mod k_quants;
mod rows4;
mod tile;
mod transpose;
pub(crate) mod vector;

use crate::format::Format;
use crate::kernels::{Design, Linear, Matvec};
use crate::simd::avx2::rows;

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
    let Some(tiles) = tiles(format) else { return vec![] };
    let rows4: Option<Matvec> = match format {
        Format::Q4_K => Some(rows4::matvec::<rows4::Q4K>),
        Format::Q5_K => Some(rows4::matvec::<rows4::Q5K>),
        Format::Q6_K => Some(rows4::matvec::<rows4::Q6K>),
        _ => None,
    };
    let rows4 = rows4.map(|matvec| (Design::Rows4, Linear { matvec, ..tiles }));
    let rows = rows::linear::<rows::Avx512Vnni>(format).map(|rows| (Design::Rows, rows));
    [(Design::Tile, tiles)].into_iter().chain(rows).chain(rows4).collect()
}
