//! Super-blocks of codebook points: `x ~ d (scale + 1/2) unit * sign * point`.
//!
//! For a vector of 4 or 8 neighbours and one scale `s`, a point's error is `sum w x^2 - 2 s a + s^2 b` with
//! `a = sum w |x| p` and `b = sum w p^2`. All points of the codebook are tried, under four neighbouring integer scales at
//! once: an exact search, and still faster than walking lists of neighbours, because it vectorises and never branches.

use super::scale::{Levels, best_scale};
use super::{CUT, Group, Half, Weighted, integer};

/// A codebook of `P` points (a power of two), transposed: `[coordinate][point]`.
pub struct Points<const DIM: usize, const P: usize>([[f32; P]; DIM]);

impl<const DIM: usize, const P: usize> Points<DIM, P> {
    /// From codes of `bits` bits a coordinate and the magnitudes these stand for.
    pub const fn new(codes: &[u16; P], bits: usize, values: &[u8]) -> Self {
        assert!(P.is_power_of_two() && P <= 1024);
        let mut points = [[0.0; P]; DIM];
        let mut i = 0;
        while i < P {
            let mut j = 0;
            while j < DIM {
                points[j][i] = values[codes[i] as usize >> (bits * j) & ((1 << bits) - 1)] as f32;
                j += 1;
            }
            i += 1;
        }
        Points(points)
    }
}

/// How a format uses its codebook.
pub trait Lattice: Levels {
    /// Factor of `scale + 1/2`.
    const UNIT: f32;
    /// Whether the number of minus signs in eight neighbours is even.
    const EVEN_SIGNS: bool;
}

const LEN: usize = 256;
/// Largest integer scale.
const TOP_SCALE: i32 = 15;
/// Integer scales tried for a group.
const TRIES: usize = 4;

/// An encoded super-block; `points` has 256 / DIM entries, `scales` 256 / N.
pub struct Fit {
    pub d: Half,
    pub scales: [u8; LEN / 16],
    pub signs: [u8; LEN / 8],
    pub points: [u16; LEN / 4],
}

/// Signs apart, magnitudes into `ax`; where signs must be even, the cheapest weight of the eight gives way.
#[inline(always)]
fn split_signs(x: &[f32], w: &[f32], even: bool, ax: &mut [f32]) -> u8 {
    let mut signs = 0_u8;
    for j in 0..8 {
        signs |= u8::from(x[j] < 0.0) << j;
        ax[j] = x[j].abs();
    }
    if even && signs.count_ones() % 2 == 1 {
        let mut least = 0;
        for j in 1..8 {
            if w[j] * ax[j] * ax[j] < w[least] * ax[least] * ax[least] {
                least = j;
            }
        }
        signs ^= 1 << least;
        ax[least] = -ax[least];
    }
    signs
}

/// The best points under each scale of a vector with `w` and `wx`: keys of the error, divided by the scale, and the
/// point's index in the lowest bits. Floats that are not negative compare as integers do, so a minimum finds the point;
/// of the error, at least 13 significant bits remain.
#[inline(always)]
fn search<const DIM: usize, const P: usize>(
    points: &Points<DIM, P>,
    w: &[f32; DIM],
    wx: &[f32; DIM],
    scales: &[f32; TRIES],
    wxx: f32,
) -> [i32; TRIES] {
    let [s0, s1, s2, s3] = *scales;
    let (c0, c1, c2, c3) = (wxx / s0, wxx / s1, wxx / s2, wxx / s3);
    let (mut k0, mut k1, mut k2, mut k3) = (i32::MAX, i32::MAX, i32::MAX, i32::MAX);
    // Written out, so that this loop is the one that the compiler vectorises.
    for i in 0..P {
        let (mut a, mut b) = (0.0, 0.0);
        for j in 0..DIM {
            let p = points.0[j][i];
            a += wx[j] * p;
            b += w[j] * (p * p);
        }
        a *= 2.0;
        k0 = least(k0, key::<P>((c0 - a) + s0 * b, i));
        k1 = least(k1, key::<P>((c1 - a) + s1 * b, i));
        k2 = least(k2, key::<P>((c2 - a) + s2 * b, i));
        k3 = least(k3, key::<P>((c3 - a) + s3 * b, i));
    }
    [k0, k1, k2, k3]
}

#[inline(always)]
fn key<const P: usize>(error: f32, point: usize) -> i32 {
    (error.to_bits() & !(P as u32 - 1) | point as u32) as i32
}

#[inline(always)]
fn least(a: i32, b: i32) -> i32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn chunks<const DIM: usize>(values: &[f32]) -> &[[f32; DIM]] {
    values.as_chunks().0
}

/// Groups of `N` weights with one scale each, in vectors of `DIM`.
#[inline(always)]
pub fn fit_points<L: Lattice, const DIM: usize, const P: usize, const N: usize>(
    block: &Weighted,
    points: &Points<DIM, P>,
) -> Fit {
    let mut fit = Fit { d: Half::ZERO, scales: [0; LEN / 16], signs: [0; LEN / 8], points: [0; LEN / 4] };
    let (mut ax, mut wax) = ([0.0_f32; LEN], [0.0_f32; LEN]);
    for i in 0..LEN / 8 {
        let at = 8 * i..8 * i + 8;
        fit.signs[i] = split_signs(&block.x[at.clone()], &block.w[at.clone()], L::EVEN_SIGNS, &mut ax[at]);
    }
    for i in 0..LEN {
        wax[i] = block.w[i] * ax[i];
    }
    let magnitudes = Weighted { x: &ax, w: block.w, wx: &wax };
    let mut targets = [0.0_f32; LEN / 16];
    let mut largest = 0.0_f32;
    for g in 0..LEN / N {
        let group: Group<N> = magnitudes.group(g);
        targets[g] = best_scale::<L, N>(group, 1).abs();
        largest = if targets[g] > largest { targets[g] } else { largest };
    }
    fit.d = Half::not_below(largest / ((TOP_SCALE as f32 + 0.5) * L::UNIT), CUT);
    let unit = fit.d.value * L::UNIT;
    if unit == 0.0 {
        fit.signs = [0; LEN / 8];
        return fit;
    }
    let (mut numerator, mut denominator) = (0.0, 0.0);
    for g in 0..LEN / N {
        let group: Group<N> = magnitudes.group(g);
        let first = (integer(targets[g] / unit) - TRIES as i32 / 2).clamp(0, TOP_SCALE - TRIES as i32 + 1);
        let mut scales = [0.0; TRIES];
        for t in 0..TRIES {
            scales[t] = unit * ((first + t as i32) as f32 + 0.5);
        }
        let (x, w, wx) = (chunks::<DIM>(group.x), chunks(group.w), chunks(group.wx));
        let mut keys = [[0; TRIES]; 8];
        let mut errors = [0.0; TRIES];
        for v in 0..N / DIM {
            let mut wxx = 0.0;
            for j in 0..DIM {
                wxx += wx[v][j] * x[v][j];
            }
            keys[v] = search(points, &w[v], &wx[v], &scales, wxx);
            for t in 0..TRIES {
                errors[t] += scales[t] * f32::from_bits(keys[v][t] as u32 & !(P as u32 - 1));
            }
        }
        let mut best = 0;
        for t in 1..TRIES {
            best = if errors[t] < errors[best] { t } else { best };
        }
        fit.scales[g] = (first + best as i32) as u8;
        let factor = (f32::from(fit.scales[g]) + 0.5) * L::UNIT;
        for v in 0..N / DIM {
            let point = keys[v][best] as usize & (P - 1);
            fit.points[g * (N / DIM) + v] = point as u16;
            for j in 0..DIM {
                let p = points.0[j][point] * factor;
                numerator += wx[v][j] * p;
                denominator += w[v][j] * p * p;
            }
        }
    }
    // The unit that suits the chosen points best.
    if numerator > 0.0 {
        fit.d = fit.d.refitted(numerator / denominator);
    }
    fit
}
