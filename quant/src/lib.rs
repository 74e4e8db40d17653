//! GGML block formats: encode, decode, dot products and tiled matrix products.

pub mod attention;
pub mod format;

pub use format::Format;
