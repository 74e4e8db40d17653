//! The instruction sets: what each detects, and which kernels it brings to the table.
//!
//! A level gives `None` for a format that it has no kernel for; the scalar one then stands in.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
mod shape;

use crate::format::Format;
use crate::kernels::{Design, Level, Linear, Quantise};
use crate::vector::Vector;

pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

pub(crate) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("gfni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

pub(crate) fn has_neon() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("dotprod");
    #[cfg(not(target_arch = "aarch64"))]
    false
}

/// The products of a format by each design that the level has for it.
pub(crate) fn designs(level: Level, format: Format) -> Vec<(Design, Linear)> {
    match level {
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::linear(format).map(|linear| (Design::Rows, linear)).into_iter().collect(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::designs(format),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::designs(format),
        _ => vec![],
    }
}

/// Tokens up to which rows are read as they lie, where a level has both designs: measured with weights from memory
/// (`cargo bench -p rynd-quant --bench kernels -- designs`, Zen 4).
pub(crate) fn few_tokens(level: Level, format: Format) -> usize {
    match (level, format) {
        // Little to unpack, or much of it for a tile.
        (_, Format::Q8_0 | Format::Q6_K) => 4,
        (Level::Avx512, _) => 2,
        _ => 4,
    }
}

pub(crate) fn exact(level: Level, format: Format) -> Option<Linear> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => Some(avx2::exact(format)),
        _ => Some(scalar::exact(format)),
    }
}

pub(crate) fn quantise(level: Level) -> Quantise {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => avx2::quantise,
        _ => scalar::quantise,
    }
}

pub(crate) fn vector(level: Level) -> Vector {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::vector::TABLE,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::vector::TABLE,
        _ => scalar::vector::TABLE,
    }
}
