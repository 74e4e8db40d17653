//! Super-blocks of codebook points: `x ~ d (scale + 1/2) unit * sign * point`.
//!
//! For a vector of 4 or 8 neighbours and one scale `s`, a point's error is `sum w x^2 - 2 s a + s^2 b` with
//! `a = sum w |x| p` and `b = sum w p^2`. All points of the codebook are tried, 16 at a time, under four neighbouring
//! integer scales at once: an exact search, and still faster than walking lists of neighbours, because nothing branches.

use super::scale::{Levels, best_scale};
use super::{Group, Half, LANES, Weighted, clamp, integer};

/// A codebook of `16 CHUNKS` points, transposed: `[chunk][coordinate][point in chunk]`.
pub struct Points<const DIM: usize, const CHUNKS: usize>([[[f32; LANES]; DIM]; CHUNKS]);

impl<const DIM: usize, const CHUNKS: usize> Points<DIM, CHUNKS> {
    /// From codes of `bits` bits a coordinate and the magnitudes these stand for.
    pub const fn new(codes: &[u16], bits: usize, values: &[u8]) -> Self {
        assert!(codes.len() == LANES * CHUNKS);
        let mut points = [[[0.0; LANES]; DIM]; CHUNKS];
        let mut i = 0;
        while i < codes.len() {
            let mut j = 0;
            while j < DIM {
                let coordinate = codes[i] as usize >> (bits * j) & ((1 << bits) - 1);
                points[i / LANES][j][i % LANES] = values[coordinate] as f32;
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
const TOP_SCALE: f32 = 15.0;
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

/// Keys of one vector's least errors: the error's bits with the chunk's number in the lowest ones. Floats that are not
/// negative compare as integers do.
type Keys = [[i32; LANES]; TRIES];
const CHUNK_BITS: u32 = 63;

/// The least error under each scale, divided by the scale, of a vector with `w` and `wx`.
#[inline(always)]
fn search<const DIM: usize, const CHUNKS: usize>(
    points: &Points<DIM, CHUNKS>,
    w: &[f32; DIM],
    wx: &[f32; DIM],
    scales: &[f32; TRIES],
    wxx: f32,
) -> Keys {
    let mut all = [0.0; TRIES];
    for t in 0..TRIES {
        all[t] = wxx / scales[t];
    }
    let mut number = 0;
    let mut best = [[i32::MAX; LANES]; TRIES];
    for chunk in &points.0 {
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        for j in 0..DIM {
            for lane in 0..LANES {
                let p = chunk[j][lane];
                a[lane] += wx[j] * p;
                b[lane] += w[j] * (p * p);
            }
        }
        for t in 0..TRIES {
            for lane in 0..LANES {
                let error = (all[t] - 2.0 * a[lane]) + scales[t] * b[lane];
                let key = (error.to_bits() & !CHUNK_BITS) as i32 | number;
                best[t][lane] = if key < best[t][lane] { key } else { best[t][lane] };
            }
        }
        number += 1;
    }
    best
}

/// The least key of the lanes.
#[inline(always)]
fn least(keys: &[i32; LANES]) -> i32 {
    let mut best = i32::MAX;
    for &key in keys {
        best = if key < best { key } else { best };
    }
    best
}

/// Index of the point with the least key.
#[inline(always)]
fn winner(keys: &[i32; LANES]) -> usize {
    let best = least(keys);
    let mut lane = 0;
    for i in 0..LANES {
        lane = if keys[i] == best { i } else { lane };
    }
    (best as u32 & CHUNK_BITS) as usize * LANES + lane
}

/// Groups of `N` weights with one scale each, in vectors of `DIM`.
#[inline(always)]
pub fn fit_points<L: Lattice, const DIM: usize, const CHUNKS: usize, const N: usize>(
    block: &Weighted,
    points: &Points<DIM, CHUNKS>,
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
    fit.d = Half::new(largest / ((TOP_SCALE + 0.5) * L::UNIT));
    for _ in 0..ROUNDS {
        let unit = fit.d.value * L::UNIT;
        if unit == 0.0 {
            return Fit { d: Half::ZERO, scales: [0; LEN / 16], signs: [0; LEN / 8], points: [0; LEN / 4] };
        }
        let (mut numerator, mut denominator) = (0.0, 0.0);
        for g in 0..LEN / N {
            let first =
                clamp((integer(targets[g] / unit) - TRIES as i32 / 2) as f32, 0.0, TOP_SCALE - TRIES as f32 + 1.0);
            let mut scales = [0.0; TRIES];
            for t in 0..TRIES {
                scales[t] = unit * (first + t as f32 + 0.5);
            }
            let (w, _) = block.w[g * N..(g + 1) * N].as_chunks::<DIM>();
            let (wx, _) = wax[g * N..(g + 1) * N].as_chunks::<DIM>();
            let (x, _) = ax[g * N..(g + 1) * N].as_chunks::<DIM>();
            let mut keys = [[[0; LANES]; TRIES]; 8];
            let mut errors = [0.0; TRIES];
            for v in 0..N / DIM {
                let mut wxx = 0.0;
                for j in 0..DIM {
                    wxx += wx[v][j] * x[v][j];
                }
                keys[v] = search(points, &w[v], &wx[v], &scales, wxx);
                for t in 0..TRIES {
                    errors[t] += scales[t] * f32::from_bits(least(&keys[v][t]) as u32);
                }
            }
            let mut best = 0;
            for t in 1..TRIES {
                best = if errors[t] < errors[best] { t } else { best };
            }
            fit.scales[g] = integer(first) as u8 + best as u8;
            let factor = (first + best as f32 + 0.5) * L::UNIT;
            for v in 0..N / DIM {
                let point = winner(&keys[v][best]);
                fit.points[g * (N / DIM) + v] = point as u16;
                for j in 0..DIM {
                    let p = points.0[point / LANES][j][point % LANES] * factor;
                    numerator += wx[v][j] * p;
                    denominator += w[v][j] * p * p;
                }
            }
        }
        fit.d = Half::new(if denominator > 0.0 { numerator / denominator } else { 0.0 });
    }
    fit
}

/// Times that the unit of a super-block is fitted to the points, and these to it.
const ROUNDS: usize = 1;
