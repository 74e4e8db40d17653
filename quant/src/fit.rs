//! Fitting scales: how an encoder finds the scale (and offset) under which a group's levels fit best.
//!
//! Sixteen candidates stand side by side in the lanes of a vector. A pass over the group rounds every weight under
//! every candidate and sums what least squares needs, so that nothing is ever reduced across lanes and all loops
//! vectorise by themselves. The scales of the best candidates are then solved for, and the group rounded again.
//!
//! Plain loops only: a closure handed to the library may be compiled outside the function whose instruction set it needs.

pub mod affine;
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

/// The entry of every column of `table` in the lane where column 0 is largest.
#[inline(always)]
pub fn best_lane<const C: usize>(table: &[Lanes; C]) -> [f32; C] {
    let half = better_half::<16, 8, C>(table);
    let half = better_half::<8, 4, C>(&half);
    let half = better_half::<4, 2, C>(&half);
    let mut best = [0.0; C];
    for c in 0..C {
        best[c] = if half[0][0] >= half[0][1] { half[c][0] } else { half[c][1] };
    }
    best
}

#[inline(always)]
fn better_half<const N: usize, const HALF: usize, const C: usize>(table: &[[f32; N]; C]) -> [[f32; HALF]; C] {
    let mut better = [[0.0; HALF]; C];
    for c in 0..C {
        for lane in 0..HALF {
            better[c][lane] =
                if table[0][lane] >= table[0][lane + HALF] { table[c][lane] } else { table[c][lane + HALF] };
        }
    }
    better
}

/// Smallest and largest of a group.
#[inline(always)]
pub fn extremes<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    let (mut lo, mut hi) = ([0.0; LANES], [0.0; LANES]);
    lo.copy_from_slice(&x[..LANES]);
    hi.copy_from_slice(&x[..LANES]);
    for x in x[LANES..].chunks_exact(LANES) {
        for lane in 0..LANES {
            lo[lane] = smaller(lo[lane], x[lane]);
            hi[lane] = larger(hi[lane], x[lane]);
        }
    }
    let (lo, hi) = extreme_half::<16, 8>(&lo, &hi);
    let (lo, hi) = extreme_half::<8, 4>(&lo, &hi);
    let (lo, hi) = extreme_half::<4, 2>(&lo, &hi);
    (smaller(lo[0], lo[1]), larger(hi[0], hi[1]))
}

#[inline(always)]
fn extreme_half<const N: usize, const HALF: usize>(lo: &[f32; N], hi: &[f32; N]) -> ([f32; HALF], [f32; HALF]) {
    let mut half = ([0.0; HALF], [0.0; HALF]);
    for lane in 0..HALF {
        half.0[lane] = smaller(lo[lane], lo[lane + HALF]);
        half.1[lane] = larger(hi[lane], hi[lane + HALF]);
    }
    half
}

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

/// Rounds to nearest even; `x` finite, non-negative, at most 65504.
#[inline(always)]
fn f32_to_f16(x: f32) -> u16 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5; // 2^-14
    if x < SMALLEST_NORMAL {
        // In units of 2^-24 a subnormal is an integer.
        return round(x * 16_777_216.0) as u16;
    }
    let bits = x.to_bits();
    let rounded = bits + 0x0fff + (bits >> 13 & 1);
    ((rounded - ((127 - 15) << 23)) >> 13) as u16
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
