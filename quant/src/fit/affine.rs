//! Groups under a factor and an offset: `x ~ s * level + o`, with levels `0..=TOP`.
//!
//! For given levels the best `(s, o)` solves two linear equations in the sums below. The K formats store `-o` without a
//! sign (`FREE` false), so there an offset above zero becomes zero. The score of a pair is how much it lowers the
//! weighted squared error below that of all zeros.

use super::{
    CUT, Group, Half, LANES, Lanes, Weighted, best_lane, clamp, extremes, integer, larger, round, smaller, sum,
};

/// The sums over a group that the equations need; `l` is the level.
#[derive(Clone, Copy)]
struct Sums {
    sl: Lanes,
    sll: Lanes,
    slx: Lanes,
}

/// What does not depend on the levels.
#[derive(Clone, Copy)]
struct Totals {
    sw: f32,
    swx: f32,
}

#[inline(always)]
fn totals<const N: usize>(group: Group<N>) -> Totals {
    let (mut sw, mut swx) = ([0.0; LANES], [0.0; LANES]);
    for (w, wx) in group.w.chunks_exact(LANES).zip(group.wx.chunks_exact(LANES)) {
        for lane in 0..LANES {
            sw[lane] += w[lane];
            swx[lane] += wx[lane];
        }
    }
    Totals { sw: sum(&sw), swx: sum(&swx) }
}

/// The sums of the levels that each lane's `level = inverse * x + shift` gives.
#[inline(always)]
fn sums<const TOP: i32, const N: usize>(group: Group<N>, inverse: &Lanes, shift: &Lanes) -> Sums {
    let (inverse, shift) = (*inverse, *shift);
    let (mut sl, mut sll, mut slx) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for i in 0..N {
        for lane in 0..LANES {
            let level = round(clamp(inverse[lane] * group.x[i] + shift[lane], 0.0, TOP as f32));
            let wl = group.w[i] * level;
            sl[lane] += wl;
            sll[lane] += wl * level;
            slx[lane] += group.wx[i] * level;
        }
    }
    Sums { sl, sll, slx }
}

/// The best pair for the levels behind the sums, a lane each, and its score.
#[inline(always)]
fn solve<const FREE: bool>(t: Totals, sums: &Sums) -> (Lanes, Lanes, Lanes) {
    let (mut scale, mut offset, mut score) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let (sl, sll, slx) = (sums.sl[lane], sums.sll[lane], sums.slx[lane]);
        let determinant = t.sw * sll - sl * sl;
        // All levels alike: the offset alone fits.
        let alike = determinant <= 1e-6 * t.sw * sll;
        let inverse = if alike { 0.0 } else { 1.0 / determinant };
        let s = (t.sw * slx - t.swx * sl) * inverse;
        let o = if alike { t.swx / t.sw } else { (sll * t.swx - sl * slx) * inverse };
        let above = !FREE && o > 0.0;
        let only = if sll > 0.0 { slx / sll } else { 0.0 };
        scale[lane] = if above { only } else { s };
        offset[lane] = if above { 0.0 } else { o };
        score[lane] = gain(t, sl, sll, slx, scale[lane], offset[lane]);
    }
    (scale, offset, score)
}

#[inline(always)]
fn gain(t: Totals, sl: f32, sll: f32, slx: f32, s: f32, o: f32) -> f32 {
    s * (2.0 * slx - s * sll - 2.0 * o * sl) + o * (2.0 * t.swx - o * t.sw)
}

/// The best `(scale, offset)` that `1 + refinements` passes find; the scale is not negative.
#[inline(always)]
pub fn best_pair<const TOP: i32, const FREE: bool, const N: usize>(group: Group<N>, refinements: usize) -> (f32, f32) {
    let (lo, hi) = extremes(group.x);
    let (lo, hi) = if FREE { (lo, hi) } else { (smaller(lo, 0.0), larger(hi, 0.0)) };
    let range = hi - lo;
    if range == 0.0 {
        return (0.0, lo);
    }
    let t = totals(group);
    let (mut inverse, mut shift) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        // The range spans about TOP levels: somewhat fewer waste the ends, somewhat more cut the outermost weights.
        let (part, outer) = ((lane / 2) as f32 / (LANES / 2 - 1) as f32, (lane % 2) as f32);
        let span = TOP as f32 + BELOW + (ABOVE - BELOW) * part;
        inverse[lane] = span / range;
        // Even lanes put the low end on level 0, odd ones share what is cut between both ends.
        shift[lane] = -lo * inverse[lane] - outer * 0.5 * (span - TOP as f32);
    }
    let mut sums_now = sums::<TOP, N>(group, &inverse, &shift);
    let (mut scale, mut offset, mut score) = solve::<FREE>(t, &sums_now);
    for _ in 0..refinements {
        for lane in 0..LANES {
            inverse[lane] = if scale[lane] > 0.0 { 1.0 / scale[lane] } else { inverse[lane] };
            shift[lane] = -offset[lane] * inverse[lane];
        }
        sums_now = sums::<TOP, N>(group, &inverse, &shift);
        (scale, offset, score) = solve::<FREE>(t, &sums_now);
    }
    let best = best_lane(&score);
    let (scale, offset) = (scale[best], offset[best]);
    if scale > 0.0 { (scale, offset) } else { (0.0, if FREE || t.swx < 0.0 { t.swx / t.sw } else { 0.0 }) }
}

/// Candidates' spans relative to TOP.
const BELOW: f32 = -0.9;
const ABOVE: f32 = 1.1;

/// Unsigned integer scales and offsets of the groups of a super-block, and their units.
/// Weight = `d * scale * level - m * min`.
#[derive(Clone, Copy)]
pub struct Pairs<const G: usize> {
    pub d: Half,
    pub m: Half,
    pub scales: [u8; G],
    pub mins: [u8; G],
}

/// A group under the best of 16 integer pairs.
struct Choice {
    scale: f32,
    min: f32,
    sl: f32,
    sll: f32,
    slx: f32,
}

#[inline(always)]
fn best_integers<const TOP: i32, const N: usize>(
    group: Group<N>,
    t: Totals,
    (d, m): (f32, f32),
    (scale_guess, min_guess): (f32, f32),
    limit: f32,
) -> Choice {
    let scale_first = clamp(round(scale_guess - 0.5) - 1.0, 0.0, limit - 3.0);
    let min_first = clamp(round(min_guess - 0.5) - 1.0, 0.0, limit - 3.0);
    let (mut scale, mut min, mut inverse, mut shift) = ([0.0; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        scale[lane] = scale_first + (lane % 4) as f32;
        min[lane] = min_first + (lane / 4) as f32;
        let s = d * scale[lane];
        inverse[lane] = if s > 0.0 { 1.0 / s } else { 0.0 };
        shift[lane] = m * min[lane] * inverse[lane];
    }
    let Sums { sl, sll, slx } = sums::<TOP, N>(group, &inverse, &shift);
    let mut score = [0.0; LANES];
    for lane in 0..LANES {
        score[lane] = gain(t, sl[lane], sll[lane], slx[lane], d * scale[lane], -m * min[lane]);
    }
    let best = best_lane(&score);
    Choice { scale: scale[best], min: min[best], sl: sl[best], sll: sll[best], slx: slx[best] }
}

/// Scales and offsets `0..=limit` for all groups.
#[inline(always)]
pub fn fit_pairs<const TOP: i32, const N: usize, const G: usize>(
    block: &Weighted,
    limit: i32,
    refinements: usize,
) -> Pairs<G> {
    let limit = limit as f32;
    let (mut scale, mut min, mut all) = ([0.0_f32; G], [0.0_f32; G], [Totals { sw: 0.0, swx: 0.0 }; G]);
    let (mut top_scale, mut top_min) = (0.0_f32, 0.0_f32);
    for g in 0..G {
        let (s, o) = best_pair::<TOP, false, N>(block.group(g), refinements);
        all[g] = totals(block.group::<N>(g));
        (scale[g], min[g]) = (s, -o);
        (top_scale, top_min) = (larger(top_scale, s), larger(top_min, -o));
    }
    let (d, m) = (Half::not_below(top_scale / limit, CUT), Half::not_below(top_min / limit, CUT));
    let mut fit = Pairs { d, m, scales: [0; G], mins: [0; G] };
    // Least squares for d and m under the chosen integers and levels: x ~ d (scale level) - m (min).
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for g in 0..G {
        let guess = (
            if d.value > 0.0 { clamp(scale[g] / d.value, 0.0, limit) } else { 0.0 },
            if m.value > 0.0 { clamp(min[g] / m.value, 0.0, limit) } else { 0.0 },
        );
        let c = best_integers::<TOP, N>(block.group(g), all[g], (d.value, m.value), guess, limit);
        (fit.scales[g], fit.mins[g]) = (integer(c.scale) as u8, integer(c.min) as u8);
        aa += c.scale * c.scale * c.sll;
        ab += c.scale * c.min * c.sl;
        bb += c.min * c.min * all[g].sw;
        ax += c.scale * c.slx;
        bx += c.min * all[g].swx;
    }
    let determinant = aa * bb - ab * ab;
    let (d, m) = if determinant > 1e-6 * aa * bb {
        ((ax * bb - ab * bx) / determinant, (ab * ax - aa * bx) / determinant)
    } else {
        (if aa > 0.0 { ax / aa } else { 0.0 }, 0.0)
    };
    if d > 0.0 && m >= 0.0 {
        (fit.d, fit.m) = (fit.d.refitted(d), fit.m.refitted(m));
    }
    fit
}

impl<const G: usize> Pairs<G> {
    /// The levels of group `g`.
    #[inline(always)]
    pub fn levels<const TOP: i32, const N: usize>(&self, block: &Weighted, g: usize) -> [u8; N] {
        let scale = self.d.value * f32::from(self.scales[g]);
        levels::<TOP, N>(block.group(g), scale, -self.m.value * f32::from(self.mins[g]))
    }
}

/// The levels of a group under its final scale and offset.
#[inline(always)]
pub fn levels<const TOP: i32, const N: usize>(group: Group<N>, scale: f32, offset: f32) -> [u8; N] {
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut levels = [0; N];
    for i in 0..N {
        levels[i] = integer(clamp((group.x[i] - offset) * inverse, 0.0, TOP as f32)) as u8;
    }
    levels
}
