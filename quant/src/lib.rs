//! GGML block formats: encode, decode, dot products and tiled matrix products.

#![expect(non_camel_case_types, reason = "block types carry the names that the field writes, underscores included")]

pub mod acts;
mod aligned;
pub mod attention;
pub mod block;
pub mod encode;
mod fit;
pub mod format;
pub mod grids;
mod ints;
pub mod kernels;
mod simd;
pub mod vector;

pub mod fp4;
pub mod iq1;
pub mod iq2;
pub mod iq3;
pub mod iq4;
pub mod plain;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_k;
pub mod q5_0;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod q8_k;
pub mod tq;

pub use acts::{ActKind, ActRow, ActShape, ActView, Acts};
pub use encode::EncodeError;
pub use format::Format;
pub use kernels::{Design, Kernels, Level, Linear, OutView, ROW_TILE, Tokens};
pub use vector::Vector;
