//! What the loop of a tiled int8 product depends on, whatever the instruction set.
//!
//! Formats differ in how their bytes become a tile; how a tile is multiplied differs only in how many weights share a
//! scale, whether they have mins, and what activations they take.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use crate::acts::ActKind;

/// Asks for what each row has behind the next `bytes`, as much again: a tile reads as many streams as it has rows, too
/// many for the machine to follow by itself. Into the second-level cache, where more requests may be under way: those of
/// a whole tile come at once, and past the limit of the first level each would wait.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch_rows<const ROWS: usize>(rows: &[*const u8; ROWS], bytes: usize) {
    for row in rows {
        for line in (0..bytes).step_by(64) {
            _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(bytes + line).cast());
        }
    }
}

/// The scales of a format.
pub(super) trait Shape {
    /// Weights under one scale: 16 or 32.
    const SUB: usize;
    /// Whether weights have a min. If not they have an offset.
    const MINS: bool;
    const ACT: ActKind;
}

macro_rules! shapes {
    ($($name:ident: $sub:literal, $mins:literal, $act:ident;)*) => {
        $(pub(super) struct $name;
        impl Shape for $name {
            const SUB: usize = $sub;
            const MINS: bool = $mins;
            const ACT: ActKind = ActKind::$act;
        })*
    };
}

shapes! {
    Super32Mins: 32, true, Q8_K;
    Super32: 32, false, Q8_K;
    Super16Mins: 16, true, Q8_K;
    Super16: 16, false, Q8_K;
    Block32Mins: 32, true, Q8_0;
    Block32: 32, false, Q8_0;
}
