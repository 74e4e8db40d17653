//! GGML block formats: encode, decode, dot products and tiled matrix products.

pub mod acts;
mod aligned;
pub mod attention;
pub mod format;
mod ints;
pub mod kernels;
mod simd;
pub mod vector;

pub use acts::{ActKind, ActRow, ActShape, ActView, Acts};
pub use format::Format;
pub use kernels::{Kernels, Level, Linear, OutView, ROW_TILE, Scratch, Tokens};
pub use vector::Vector;

/// Decodes whole blocks of one row to f32.
pub(crate) fn decode_row(format: Format, src: &[u8], dst: &mut [f32]) {
    match format {
        Format::F32 => {
            for (src, dst) in src.as_chunks::<4>().0.iter().zip(dst) {
                *dst = f32::from_le_bytes(*src);
            }
        }
        Format::F16 => {
            for (src, dst) in src.as_chunks::<2>().0.iter().zip(dst) {
                *dst = half::f16::from_le_bytes(*src).to_f32();
            }
        }
        Format::BF16 => {
            for (src, dst) in src.as_chunks::<2>().0.iter().zip(dst) {
                *dst = half::bf16::from_le_bytes(*src).to_f32();
            }
        }
        _ => {
            let Some(layout) = ints::int_layout(format) else { panic!("decoding of {format} is still to come") };
            let mut ints = ints::Ints::ZERO;
            for (src, dst) in src.chunks_exact(format.block_bytes()).zip(dst.chunks_exact_mut(format.block_len())) {
                (layout.read)(src, &mut ints);
                for (i, dst) in dst.iter_mut().enumerate() {
                    *dst = ints.scale[i / layout.sub] * f32::from(ints.q[i]) - ints.min[i / layout.sub];
                }
            }
        }
    }
}
