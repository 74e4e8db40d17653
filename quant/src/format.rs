//! The closed set of GGML block formats and the one table that describes them.
//!
//! A format's id, name and block geometry are facts of the GGUF file format (`enum ggml_type`). Everything else in
//! the crate asks this table; no other file matches on `Format` to learn a size or to find its code.

use crate::block::{Block, RowFns};
use crate::encode::{Encode, Encoder};
use crate::{fp4, iq1, iq2, iq3, iq4, plain, q2_k, q3_k, q4_0, q4_k, q5_0, q5_k, q6_k, q8_0, q8_k, tq};

/// A GGML tensor type that rynd can read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[expect(non_camel_case_types, reason = "the field writes these names with underscores")]
#[repr(u8)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

struct Row {
    format: Format,
    ggml_id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
    fns: RowFns,
    encoder: Option<Encoder>,
}

const fn row<B: Block>(format: Format, ggml_id: u32, name: &'static str) -> Row {
    Row { format, ggml_id, name, block_len: B::LEN, block_bytes: B::BYTES, fns: RowFns::new::<B>(), encoder: None }
}

/// A row of a format that can also be written.
const fn coded<E: Encode>(format: Format, ggml_id: u32, name: &'static str) -> Row {
    let mut row = row::<E>(format, ggml_id, name);
    row.encoder = Some(Encoder::new::<E>());
    row
}

/// In the order of the enum, so that `format as usize` is the index (a test holds this).
static TABLE: [Row; 27] = [
    coded::<plain::F32>(Format::F32, 0, "F32"),
    coded::<plain::F16>(Format::F16, 1, "F16"),
    coded::<plain::BF16>(Format::BF16, 30, "BF16"),
    coded::<q4_0::Q4_0>(Format::Q4_0, 2, "Q4_0"),
    coded::<q4_0::Q4_1>(Format::Q4_1, 3, "Q4_1"),
    coded::<q5_0::Q5_0>(Format::Q5_0, 6, "Q5_0"),
    coded::<q5_0::Q5_1>(Format::Q5_1, 7, "Q5_1"),
    coded::<q8_0::Q8_0>(Format::Q8_0, 8, "Q8_0"),
    coded::<q2_k::Q2_K>(Format::Q2_K, 10, "Q2_K"),
    coded::<q3_k::Q3_K>(Format::Q3_K, 11, "Q3_K"),
    coded::<q4_k::Q4_K>(Format::Q4_K, 12, "Q4_K"),
    coded::<q5_k::Q5_K>(Format::Q5_K, 13, "Q5_K"),
    coded::<q6_k::Q6_K>(Format::Q6_K, 14, "Q6_K"),
    row::<q8_k::Q8_K>(Format::Q8_K, 15, "Q8_K"),
    row::<iq1::IQ1_S>(Format::IQ1_S, 19, "IQ1_S"),
    row::<iq1::IQ1_M>(Format::IQ1_M, 29, "IQ1_M"),
    coded::<iq2::IQ2_XXS>(Format::IQ2_XXS, 16, "IQ2_XXS"),
    coded::<iq2::IQ2_XS>(Format::IQ2_XS, 17, "IQ2_XS"),
    coded::<iq2::IQ2_S>(Format::IQ2_S, 22, "IQ2_S"),
    coded::<iq3::IQ3_XXS>(Format::IQ3_XXS, 18, "IQ3_XXS"),
    coded::<iq3::IQ3_S>(Format::IQ3_S, 21, "IQ3_S"),
    coded::<iq4::IQ4_NL>(Format::IQ4_NL, 20, "IQ4_NL"),
    coded::<iq4::IQ4_XS>(Format::IQ4_XS, 23, "IQ4_XS"),
    row::<tq::TQ1_0>(Format::TQ1_0, 34, "TQ1_0"),
    row::<tq::TQ2_0>(Format::TQ2_0, 35, "TQ2_0"),
    coded::<fp4::MXFP4>(Format::MXFP4, 39, "MXFP4"),
    row::<fp4::NVFP4>(Format::NVFP4, 40, "NVFP4"),
];

impl Format {
    /// Every format, in the order of the enum.
    pub fn all() -> impl Iterator<Item = Format> {
        TABLE.iter().map(|row| row.format)
    }

    /// The format with this id in a GGUF tensor table.
    pub fn from_ggml_id(id: u32) -> Option<Format> {
        TABLE.iter().find(|row| row.ggml_id == id).map(|row| row.format)
    }

    /// The format of this name, case-insensitively ("q4_k", "BF16").
    pub fn from_name(name: &str) -> Option<Format> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.format)
    }

    /// The id in a GGUF tensor table.
    pub fn ggml_id(self) -> u32 {
        self.row().ggml_id
    }

    /// The name in the field's spelling ("Q4_K").
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Weights in one block.
    pub fn block_len(self) -> usize {
        self.row().block_len
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Bits a weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Bytes of a row of `k` weights; `None` when `k` is no multiple of the block or the size overflows.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        if !k.is_multiple_of(self.block_len()) {
            return None;
        }
        (k / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether several weights share a scale: everything but F32, F16 and BF16.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Blocks `src` -> weights `dst`; any whole number of blocks. Panics unless the lengths belong together.
    pub fn decode(self, src: &[u8], dst: &mut [f32]) {
        (self.row().fns.decode)(src, dst);
    }

    /// The exact dot product of the row `src` with `x`: weights decoded to f32, summed in f64. Slow; the truth that
    /// kernels are measured against. Panics unless the lengths belong together.
    pub fn dot_f32(self, src: &[u8], x: &[f32]) -> f32 {
        (self.row().fns.dot)(src, x)
    }

    pub(crate) fn encoder(self) -> Option<Encoder> {
        self.row().encoder
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.format as usize, i, "{}", row.name);
        }
    }
}
