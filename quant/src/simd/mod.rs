//! The instruction sets: what each detects, and which kernels it brings to the table.
//!
//! A level gives `None` for a format that it has no kernel for; the scalar one then stands in.

pub(crate) mod scalar;

use crate::format::Format;
use crate::kernels::{Level, Linear, Quantise};
use crate::vector::Vector;

pub(crate) fn has_avx2() -> bool {
    false
}

pub(crate) fn has_avx512() -> bool {
    false
}

pub(crate) fn has_neon() -> bool {
    false
}

pub(crate) fn linear(level: Level, _format: Format) -> Option<Linear> {
    match level {
        Level::Scalar | Level::Avx2 | Level::Avx512 | Level::Neon => None,
    }
}

pub(crate) fn exact(level: Level, _format: Format) -> Option<Linear> {
    match level {
        Level::Scalar | Level::Avx2 | Level::Avx512 | Level::Neon => None,
    }
}

pub(crate) fn quantise(level: Level) -> Quantise {
    match level {
        Level::Scalar | Level::Avx2 | Level::Avx512 | Level::Neon => scalar::quantise,
    }
}

pub(crate) fn vector(level: Level) -> Vector {
    match level {
        Level::Scalar | Level::Avx2 | Level::Avx512 | Level::Neon => scalar::vector::TABLE,
    }
}
