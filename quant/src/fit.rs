//! Fitting scales: how an encoder finds the scale (and offset) under which a group's levels fit best.
//!
//! Sixteen candidates stand side by side in the lanes of a vector. A pass over the group rounds every weight under
//! every candidate and sums what least squares needs, so that nothing is ever reduced across lanes and all loops
//! vectorise by themselves. The scales of the best candidates are then solved for, and the group rounded again.
//!
//! Plain loops only: a closure handed to the library may be compiled outside the function whose instruction set it needs.

pub mod affine;
pub mod points;
pub mod scale;

/// Candidates in a pass.
pub const LANES: usize = 16;
pub type Lanes = [f32; LANES];

/// A block of weights with what every pass needs of it.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    pub x: &'a [f32],
    /// Error weights, positive and finite.
    pub w: &'a [f32],
    pub wx: &'a [f32],
}

/// One group of a block.
#[derive(Clone, Copy)]
pub struct Group<'a, const N: usize> {
    pub x: &'a [f32; N],
    pub w: &'a [f32; N],
    pub wx: &'a [f32; N],
}

impl<'a> Weighted<'a> {
    /// The `g`-th `N` weights.
    #[inline(always)]
    pub fn group<const N: usize>(&self, g: usize) -> Group<'a, N> {
        Group { x: nth(self.x, g), w: nth(self.w, g), wx: nth(self.wx, g) }
    }
}

#[inline(always)]
fn nth<const N: usize>(values: &[f32], g: usize) -> &[f32; N] {
    &values.as_chunks().0[g]
}

/// To the nearest integer, ties to even; `|y|` below 2^22. An addition on every instruction set.
#[inline(always)]
pub fn round(y: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (y + SHIFT) - SHIFT
}

/// The nearest integer to `y`, ties to even; `|y|` below 2^22. Unlike `as`, it needs no care for NaN and overflow.
#[inline(always)]
pub fn integer(y: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (y + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

/// Into `lo..=hi`; NaN becomes `lo`. Unlike `f32::clamp`, two instructions.
#[inline(always)]
pub fn clamp(y: f32, lo: f32, hi: f32) -> f32 {
    let y = if y > lo { y } else { lo };
    if y < hi { y } else { hi }
}

#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
pub fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The lane of the largest score, to within a few units of the last place; negative scores lose to others.
///
/// The lane replaces a score's lowest bits, and non-negative floats compare as integers do, so this is a plain maximum.
#[inline(always)]
pub fn best_lane(scores: &Lanes) -> usize {
    const LANE_BITS: u32 = LANES as u32 - 1;
    let mut best = i32::MIN;
    for lane in 0..LANES {
        let key = (scores[lane].to_bits() & !LANE_BITS | lane as u32) as i32;
        best = if key > best { key } else { best };
    }
    (best as u32 & LANE_BITS) as usize
}

/// The value of largest magnitude, with its sign.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let mut best = 0;
    for x in x {
        let key = x.to_bits().rotate_left(1); // magnitude first, then the sign
        best = if key > best { key } else { best };
    }
    f32::from_bits(best.rotate_right(1))
}

/// Smallest and largest value.
#[inline(always)]
pub fn extremes(x: &[f32]) -> (f32, f32) {
    // Flipping the magnitude bits of negative floats makes all compare as integers do; twice is the identity.
    #[inline(always)]
    fn ordered(bits: i32) -> i32 {
        bits ^ (bits >> 31 & i32::MAX)
    }
    let (mut lo, mut hi) = (i32::MAX, i32::MIN);
    for x in x {
        let key = ordered(x.to_bits() as i32);
        lo = if key < lo { key } else { lo };
        hi = if key > hi { key } else { hi };
    }
    (f32::from_bits(ordered(lo) as u32), f32::from_bits(ordered(hi) as u32))
}

/// The sum of all lanes, pairwise.
#[inline(always)]
pub fn sum(lanes: &Lanes) -> f32 {
    let mut eight = [0.0; 8];
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    let mut four = [0.0; 4];
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// What rounding may cut from the largest scale of a super-block: half a step at 7 bits.
const CUT: f32 = 1.0 / 256.0;

/// A scale as its f16 bits and as the f32 that a decoder will see.
#[derive(Clone, Copy)]
pub struct Half {
    pub bits: u16,
    pub value: f32,
}

impl Half {
    pub const ZERO: Half = Half { bits: 0, value: 0.0 };

    /// Nearest f16; but a scale that is not zero stays so, and a large one stays finite: tiny weights would vanish.
    #[inline(always)]
    pub fn new(scale: f32) -> Half {
        let magnitude = scale.abs();
        if magnitude == 0.0 || magnitude.is_nan() {
            return Half::ZERO;
        }
        let bits = f32_to_f16(clamp(magnitude, 5.960_464_5e-8, 65504.0));
        let sign = if scale < 0.0 { 0x8000 } else { 0 };
        Half { bits: bits | sign, value: crate::block::f16_to_f32(bits | sign) }
    }
}

impl Half {
    /// As `new`, but away from zero where rounding would cut the scale by more than `part`, and so the largest weight.
    /// Only subnormal scales are coarse enough for that.
    #[inline(always)]
    pub fn not_below(scale: f32, part: f32) -> Half {
        let half = Half::new(scale);
        if half.value.abs() >= scale.abs() * (1.0 - part) {
            return half;
        }
        Half { bits: half.bits + 1, value: crate::block::f16_to_f32(half.bits + 1) }
    }

    /// The f16 of a unit that was fitted to the levels chosen under `self`; `self` where f16 is too coarse to follow.
    #[inline(always)]
    pub fn refitted(self, unit: f32) -> Half {
        let subnormal = self.bits & 0x7c00 == 0;
        if subnormal || unit.is_nan() || unit == 0.0 { self } else { Half::new(unit) }
    }
}

/// Rounds to nearest even, without branches; `x` finite, non-negative, at most 65504.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5; // 2^-14
    // In units of 2^-24 a subnormal is an integer.
    let subnormal = integer(smaller(x, SMALLEST_NORMAL) * 16_777_216.0);
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x0fff + (bits >> 13 & 1));
    let normal = rounded.wrapping_sub((127 - 15) << 23) >> 13;
    (if x < SMALLEST_NORMAL { subnormal as u32 } else { normal }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_round_to_f16_as_ieee_754_says_but_never_to_zero_or_infinity() {
        let mut x = 1e-9_f32;
        while x < 1e6 {
            let truth = half::f16::from_f32(x);
            let ours = Half::new(-x);
            if truth.to_f32() > 0.0 && truth.is_finite() {
                assert_eq!(ours.bits, truth.to_bits() | 0x8000, "{x}");
            } else {
                assert!(ours.value < 0.0 && ours.value.is_finite(), "{x}");
            }
            x *= 1.000_37;
        }
        assert_eq!(Half::new(0.0).bits, 0);
    }
}
