//! Portable kernels, and the specification of the others.
//!
//! Written for reading: one sub-block after the other, integer sums exact, scales in f32. Nothing here is tuned.

pub(crate) mod vector;

use crate::acts::{ActKind, ActRow, Quantised};
use crate::format::Format;
use crate::ints::{IntLayout, Ints, int_layout};
use crate::kernels::{Batch, Linear, Rows, act_kind};

/// The products of a format: over its integers where it has an integer form, else over decoded f32.
pub(crate) fn linear(format: Format) -> Linear {
    match int_layout(format) {
        Some(_) => Linear::new(format, act_kind(format), ints_matvec, ints_matmul),
        None => exact(format),
    }
}

pub(crate) fn exact(format: Format) -> Linear {
    Linear::new(format, ActKind::F32, f32_matvec, f32_matmul)
}

/// d = amax / 127, q = x / d rounded half to even; blocks whose values are all (nearly) zero become zero. A block with a
/// value that is not finite gets such a scale, so that no product of it looks sound.
#[inline(always)]
pub(crate) fn quantise(kind: ActKind, x: &[f32], into: Quantised<'_>) {
    let len = kind.block_len();
    for ((x, q), d) in x.chunks_exact(len).zip(into.q.chunks_exact_mut(len)).zip(into.d) {
        // Bits without the sign are ordered as the values are, infinity and then NaN last.
        let amax = f32::from_bits(x.iter().fold(0, |amax, v| amax.max(v.to_bits() & !SIGN)));
        let zero = amax < TINY;
        *d = if zero { 0.0 } else { amax / 127.0 };
        let inverse = if zero { 0.0 } else { 127.0 / amax };
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
    }
    for (sum, q) in into.sums16.iter_mut().zip(into.q.chunks_exact(16)) {
        *sum = q.iter().map(|q| i16::from(*q)).sum();
    }
    for (sum, q) in into.sums32.iter_mut().zip(into.q.chunks_exact(32)) {
        *sum = q.iter().map(|q| i16::from(*q)).sum();
    }
}

const SIGN: u32 = 1 << 31;
/// Below this 127 / amax would leave the range of f32.
pub(crate) const TINY: f32 = 1e-35;

fn layout(rows: &Rows<'_>) -> IntLayout {
    let Some(layout) = int_layout(rows.format) else { unreachable!("the table has integer kernels for integers only") };
    layout
}

/// One block of weights times the activations of values `at..`.
fn block_dot(layout: &IntLayout, ints: &Ints, len: usize, act: &ActRow<'_>, at: usize) -> f32 {
    let mut sum = 0f32;
    for (j, a) in act.q[at..at + len].chunks_exact(layout.sub).enumerate() {
        let q = &ints.q[j * layout.sub..][..layout.sub];
        let product: i32 = q.iter().zip(a).map(|(q, a)| i32::from(*q) * i32::from(*a)).sum();
        let total: i32 = a.iter().map(|a| i32::from(*a)).sum();
        sum += ints.scale[j] * product as f32 - ints.min[j] * total as f32;
    }
    sum * act.d[at / layout.act.block_len()]
}

pub(crate) fn ints_matvec(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let (layout, len) = (layout(rows), rows.format.block_len());
    let mut ints = Ints::ZERO;
    for (r, out) in out.iter_mut().enumerate() {
        *out = 0.0;
        for (b, block) in rows.row(r).chunks_exact(rows.format.block_bytes()).enumerate() {
            (layout.read)(block, &mut ints);
            *out += block_dot(&layout, &ints, len, act, b * len);
        }
    }
}

/// Reads each block once for all tokens.
///
/// # Safety
/// As `Linear::matmul`.
pub(crate) unsafe fn ints_matmul(rows: &Rows<'_>, batch: &Batch<'_>) {
    let (layout, len) = (layout(rows), rows.format.block_len());
    let mut ints = Ints::ZERO;
    for r in 0..rows.n {
        for (b, block) in rows.row(r).chunks_exact(rows.format.block_bytes()).enumerate() {
            (layout.read)(block, &mut ints);
            for slot in 0..batch.tokens.len() {
                let act = batch.acts.row(batch.tokens.token(slot));
                let part = block_dot(&layout, &ints, len, &act, b * len);
                // SAFETY: slot and row are inside the output, and it is ours.
                unsafe {
                    let out = batch.out.at(slot, r);
                    *out = if b == 0 { part } else { *out + part };
                }
            }
        }
    }
}

/// Values decoded at a time: a whole number of blocks of every format.
const CHUNK: usize = 256;

#[inline(always)]
fn f32_chunks(rows: &Rows<'_>, r: usize, mut use_chunk: impl FnMut(usize, &[f32])) {
    let mut weights = [0f32; CHUNK];
    let len = rows.format.block_len();
    for (c, bytes) in rows.row(r).chunks(CHUNK / len * rows.format.block_bytes()).enumerate() {
        let weights = &mut weights[..bytes.len() / rows.format.block_bytes() * len];
        rows.format.decode(bytes, weights);
        use_chunk(c * CHUNK, weights);
    }
}

#[inline(always)]
pub(crate) fn f32_matvec(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    for (r, out) in out.iter_mut().enumerate() {
        *out = 0.0;
        f32_chunks(rows, r, |at, w| *out += vector::dot(w, &act.x[at..at + w.len()]));
    }
}

/// # Safety
/// As `Linear::matmul`.
#[inline(always)]
pub(crate) unsafe fn f32_matmul(rows: &Rows<'_>, batch: &Batch<'_>) {
    for r in 0..rows.n {
        f32_chunks(rows, r, |at, w| {
            for slot in 0..batch.tokens.len() {
                let act = batch.acts.row(batch.tokens.token(slot));
                let part = vector::dot(w, &act.x[at..at + w.len()]);
                // SAFETY: slot and row are inside the output, and it is ours.
                unsafe {
                    let out = batch.out.at(slot, r);
                    *out = if at == 0 { part } else { *out + part };
                }
            }
        });
    }
}
