//! Groups under one factor: `x ~ s * level`, with levels that are fixed by the format.
//!
//! The score of a scale is how much it lowers the group's weighted squared error below that of all zeros:
//! `2 s slx - s^2 sll` with `slx = sum w x level` and `sll = sum w level^2`; the best `s` for given levels is
//! `slx / sll`, with score `slx^2 / sll`.

use super::{CUT, Group, Half, LANES, Lanes, Weighted, best_lane, clamp, integer, largest, round};

/// The values that a format can multiply its scale with.
pub trait Levels {
    /// Levels onto which the search first puts the largest weight: around both extremes, so both signs are tried.
    const TRIES: Lanes;

    /// The level nearest to `y`.
    fn nearest(y: f32) -> f32;

    /// The code that the format stores for that level.
    fn code(y: f32) -> u8;
}

/// `a` lanes around `min`, the others around `max`, each from `1 - below` to `1 + above` times it.
pub const fn tries(a: usize, min: f32, max: f32, below: f32, above: f32) -> Lanes {
    let mut tries = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        let (extreme, i_of, n) = if i < a { (min, i, a) } else { (max, i - a, LANES - a) };
        tries[i] = extreme * (1.0 - below + (below + above) * (i_of as f32 + 0.5) / n as f32);
        i += 1;
    }
    tries
}

/// The integers `-HALF..HALF`.
pub struct Integers<const HALF: i32>;

impl<const HALF: i32> Levels for Integers<HALF> {
    const TRIES: Lanes = {
        let half = HALF as f32;
        let margin = if HALF > 16 { 1.0 / half } else { 1.2 / half };
        tries(if HALF > 16 { LANES } else { 10 }, -half, half - 1.0, margin, margin)
    };

    #[inline(always)]
    fn nearest(y: f32) -> f32 {
        round(clamp(y, -HALF as f32, (HALF - 1) as f32))
    }

    #[inline(always)]
    fn code(y: f32) -> u8 {
        (integer(clamp(y, -HALF as f32, (HALF - 1) as f32)) + HALF) as u8
    }
}

/// `(slx, sll)` of the levels that each lane's inverse scale gives.
#[inline(always)]
fn sums<L: Levels, const N: usize>(group: Group<N>, inverse: &Lanes) -> (Lanes, Lanes) {
    let inverse = *inverse;
    let (mut slx, mut sll) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..N {
        for lane in 0..LANES {
            let level = L::nearest(inverse[lane] * group.x[i]);
            slx[lane] += group.wx[i] * level;
            sll[lane] += group.w[i] * level * level;
        }
    }
    (slx, sll)
}

/// The best scale that `1 + refinements` passes find. 0 for a group of zeros.
#[inline(always)]
pub fn best_scale<L: Levels, const N: usize>(group: Group<N>, refinements: usize) -> f32 {
    let extreme = largest(group.x);
    if extreme == 0.0 {
        return 0.0;
    }
    let mut inverse = L::TRIES;
    for inverse in &mut inverse {
        *inverse /= extreme;
    }
    let (mut slx, mut sll) = sums::<L, N>(group, &inverse);
    for _ in 0..refinements {
        for lane in 0..LANES {
            inverse[lane] = if slx[lane] != 0.0 { sll[lane] / slx[lane] } else { inverse[lane] };
        }
        (slx, sll) = sums::<L, N>(group, &inverse);
    }
    let mut scores = [0.0; LANES];
    for lane in 0..LANES {
        scores[lane] = if sll[lane] > 0.0 { slx[lane] * slx[lane] / sll[lane] } else { 0.0 };
    }
    let best = best_lane(&scores);
    if sll[best] > 0.0 { slx[best] / sll[best] } else { 0.0 }
}

/// Integer scales of the groups of a super-block, and their common unit.
pub struct Scales<const G: usize> {
    pub d: Half,
    pub scales: [i32; G],
}

/// The lane of the best of 16 given scales, and the sums under each.
#[inline(always)]
fn best_of<L: Levels, const N: usize>(group: Group<N>, scales: &Lanes) -> (usize, Lanes, Lanes) {
    let mut inverse = [0.0; LANES];
    for lane in 0..LANES {
        inverse[lane] = if scales[lane] != 0.0 { 1.0 / scales[lane] } else { 0.0 };
    }
    let (slx, sll) = sums::<L, N>(group, &inverse);
    let mut scores = [0.0; LANES];
    for lane in 0..LANES {
        scores[lane] = scales[lane] * (2.0 * slx[lane] - scales[lane] * sll[lane]);
    }
    (best_lane(&scores), slx, sll)
}

/// The lane of the best of 16 given scales.
#[inline(always)]
pub fn best_factor<L: Levels, const N: usize>(group: Group<N>, scales: &Lanes) -> usize {
    best_of::<L, N>(group, scales).0
}

/// A group under the best of 16 integer scales around `guess`.
struct Choice {
    scale: i32,
    slx: f32,
    sll: f32,
}

#[inline(always)]
fn best_integer<L: Levels, const N: usize>(group: Group<N>, d: f32, guess: f32, lo: i32, hi: i32) -> Choice {
    let first = (integer(guess) - LANES as i32 / 2).clamp(lo, hi - (LANES as i32 - 1));
    let mut scales = [0.0; LANES];
    for lane in 0..LANES {
        scales[lane] = d * (first + lane as i32) as f32;
    }
    let (best, slx, sll) = best_of::<L, N>(group, &scales);
    Choice { scale: first + best as i32, slx: slx[best], sll: sll[best] }
}

/// Scales in `lo..=hi` (`lo` the larger in magnitude) for all groups: chosen for a unit, which is then solved
/// for, and that can only lower the error.
#[inline(always)]
pub fn fit_scales<L: Levels, const N: usize, const G: usize>(block: &Weighted, lo: i32, hi: i32) -> Scales<G> {
    let mut targets = [0.0_f32; G];
    let mut largest = 0.0_f32;
    for g in 0..G {
        targets[g] = best_scale::<L, N>(block.group(g), 0);
        largest = if targets[g].abs() > largest.abs() { targets[g] } else { largest };
    }
    let mut fit = Scales { d: Half::not_below(largest / lo as f32, CUT), scales: [0; G] };
    let d = fit.d.value;
    if d == 0.0 {
        return fit;
    }
    let (mut numerator, mut denominator) = (0.0, 0.0);
    for g in 0..G {
        let guess = clamp(targets[g] / d, lo as f32, hi as f32);
        let choice = best_integer::<L, N>(block.group(g), d, guess, lo, hi);
        fit.scales[g] = choice.scale;
        let scale = choice.scale as f32;
        numerator += scale * choice.slx;
        denominator += scale * scale * choice.sll;
    }
    fit.d = fit.d.refitted(numerator / denominator);
    fit
}

/// The codes of a group under its final scale.
#[inline(always)]
pub fn codes<L: Levels, const N: usize>(group: Group<N>, scale: f32) -> [u8; N] {
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    let mut codes = [0; N];
    for i in 0..N {
        codes[i] = L::code(inverse * group.x[i]);
    }
    codes
}
