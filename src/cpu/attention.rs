//! Rotary embedding with the cache store, and attention with an online softmax over cache pages.
//!
//! A work item is a tile of neighbouring tokens of one sequence times one key-value head: its query rows share every
//! page that is read. With few items the context is split too, and the parts are merged by their maxima and sums
//! (Dao et al. 2023, section 3.1), so that one token of a long context still keeps every thread busy. No (t, t) matrix
//! exists.

use rynd_quant::attention::PAGE;

use super::kv::{KvCache, Widened};
use super::threads::Worker;
use super::{Cpu, Run};
use crate::plan::{Attention, Heads, Norm, RopeLayout, RopeStore};

/// Query rows of a tile, at most (tokens times heads of a group, unless one token has more).
const TILE_ROWS: usize = 48;
/// Pages of a split, at least: below this the merging costs more than the idle thread.
const SPLIT_PAGES: usize = 4;

/// A worker's buffers for attention.
#[derive(Default)]
pub struct Buffers {
    q: Vec<f32>, // (g, d)
    s: Vec<f32>, // (g, PAGE)
    wide: Widened,
    head: Vec<f32>, // (d)
}

/// Neighbouring tokens of one sequence.
#[derive(Clone, Copy)]
struct Tile {
    first: usize, // token index
    tokens: usize,
}

/// Cuts the run's tokens into tiles of at most `most` tokens of one sequence.
fn tiles(run: &Run, most: usize) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = vec![];
    for (i, token) in run.env.tokens.iter().enumerate() {
        match tiles.last_mut() {
            Some(tile) if tile.tokens < most && run.env.tokens[tile.first].seq == token.seq => tile.tokens += 1,
            _ => tiles.push(Tile { first: i, tokens: 1 }),
        }
    }
    tiles
}

impl Cpu {
    /// `plan::RopeStore`.
    pub(super) fn rope_store(&self, run: &Run, w: &Worker, op: &RopeStore) {
        let &RopeStore { q, k, v, heads, q_norm, k_norm, rope, kv } = op;
        let (d, kv) = (heads.head_dim, self.cache(kv));
        let t = run.env.tokens.len();
        let per_token = heads.heads + heads.kv_heads;
        let worker = self.worker(w);
        let buffers = &mut worker.attention;
        buffers.head.resize(d, 0.0);
        w.chunks(t * per_token, if t == 1 { per_token.div_ceil(w.team()) } else { 4 * per_token }, |items| {
            for item in items {
                let (token, head) = (item / per_token, item % per_token);
                let turn = rope.map(|id| run.rope(id, token));
                if head < heads.heads {
                    let at = (token * heads.heads + head) * d;
                    // SAFETY: phase contract; each item is one head of one token.
                    let q = unsafe { self.buffer(q).get_mut(at..at + d) };
                    self.norm_and_turn(q, q_norm, turn);
                } else {
                    let head = head - heads.heads;
                    let at = (token * heads.kv_heads + head) * d;
                    // SAFETY: phase contract; k and v are only read here.
                    let (k, v) = unsafe { (self.buffer(k).get(at..at + d), self.buffer(v).get(at..at + d)) };
                    buffers.head.copy_from_slice(k);
                    self.norm_and_turn(&mut buffers.head, k_norm, turn);
                    let place = run.env.tokens[token];
                    let page = run.env.seqs[place.seq as usize].tables[kv.group][place.pos as usize / PAGE];
                    // SAFETY: phase contract; a position of a sequence occurs once in a run.
                    unsafe { kv.store(page, place.pos as usize % PAGE, head, &buffers.head, v) };
                }
            }
        });
    }

    fn norm_and_turn(&self, head: &mut [f32], norm: Option<Norm>, turn: Option<(&[f32], &[f32], RopeLayout)>) {
        if let Some(norm) = norm {
            let weight = self.vector(norm.weight);
            let scale = self.rms_scale(head, norm.eps);
            head.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
        }
        let Some((cos, sin, layout)) = turn else { return };
        let half = cos.len();
        match layout {
            RopeLayout::Halves => {
                let (a, b) = head[..2 * half].split_at_mut(half);
                for i in 0..half {
                    (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                }
            }
            RopeLayout::Pairs => {
                for (i, pair) in head[..2 * half].chunks_exact_mut(2).enumerate() {
                    (pair[0], pair[1]) = (pair[0] * cos[i] - pair[1] * sin[i], pair[1] * cos[i] + pair[0] * sin[i]);
                }
            }
        }
    }

    /// `plan::Attention`.
    pub(super) fn attention(&self, run: &Run, w: &Worker, op: &Attention) {
        let &Attention { heads, kv, window, .. } = op;
        let group = heads.heads / heads.kv_heads;
        let tiles = tiles(run, (TILE_ROWS / group).max(1));
        let items = tiles.len() * heads.kv_heads;
        let longest = run.env.tokens.iter().map(|token| token.pos as usize / PAGE + 1).max().unwrap_or(0);
        let seen_pages = window.map_or(longest, |window| longest.min(window as usize / PAGE + 2));
        let splits = if items >= 2 * w.team() {
            1
        } else {
            (2 * w.team()).div_ceil(items).min(seen_pages.div_ceil(SPLIT_PAGES)).max(1)
        };
        let task = Task { run, op, kv: self.cache(kv), splits, group };
        let worker = self.worker(w);
        // The last tiles see the longest context: they go first.
        w.chunks(items * splits, 1, |range| {
            for item in range {
                let (tile, rest) = (item / (heads.kv_heads * splits), item % (heads.kv_heads * splits));
                self.attend(&task, tiles[tiles.len() - 1 - tile], rest / splits, rest % splits, &mut worker.attention);
            }
        });
        if splits > 1 {
            let rows = run.env.tokens.len() * heads.heads;
            w.chunks(rows, rows.div_ceil(w.team()), |range| range.for_each(|row| self.merge(&task, row)));
        }
    }

    /// One tile of tokens, one key-value head, one part of the context.
    fn attend(&self, task: &Task, tile: Tile, head: usize, split: usize, buffers: &mut Buffers) {
        let d = task.op.heads.head_dim;
        let group = task.group;
        let rows = tile.tokens * group;
        let tokens = &task.run.env.tokens[tile.first..tile.first + tile.tokens];
        buffers.q.resize(rows * d, 0.0);
        buffers.s.resize(rows * PAGE, 0.0);
        for row in 0..rows {
            let at = ((tile.first + row / group) * task.op.heads.heads + head * group + row % group) * d;
            // SAFETY: phase contract; q is only read in this step.
            let q = unsafe { self.buffer(task.op.q).get(at..at + d) };
            buffers.q[row * d..(row + 1) * d].iter_mut().zip(q).for_each(|(to, x)| *to = x * task.op.scale);
        }
        // Partial results live in the shared buffer: sums (d), then maximum and normaliser.
        let lowest = |pos: u32| task.op.window.map_or(0, |window| (pos + 1).saturating_sub(window)) as usize;
        let first_page = lowest(tokens[0].pos) / PAGE;
        let end_page = tokens[tile.tokens - 1].pos as usize / PAGE + 1;
        let pages = end_page - first_page;
        let from = first_page + pages * split / task.splits;
        let to = first_page + pages * (split + 1) / task.splits;

        let mut acc = std::mem::take(&mut buffers.head);
        acc.clear();
        acc.resize(rows * d, 0.0);
        let mut maxima = [f32::NEG_INFINITY; MAX_ROWS];
        let mut sums = [0.0_f32; MAX_ROWS];
        let table = task.run.env.seqs[tokens[0].seq as usize].tables[task.kv.group];
        for page in from..to {
            let id = table[page];
            // SAFETY: phase contract; the cache was written in an earlier step.
            unsafe { task.kv.scores(&self.page_kernels, id, head, &buffers.q, &mut buffers.wide, &mut buffers.s) };
            let (mut first, mut last) = (PAGE, 0); // of the tokens that any row sees
            for row in 0..rows {
                let pos = tokens[row / group].pos;
                let lo = lowest(pos).saturating_sub(page * PAGE).min(PAGE);
                let hi = (pos as usize + 1).saturating_sub(page * PAGE).min(PAGE);
                let s = &mut buffers.s[row * PAGE..(row + 1) * PAGE];
                if lo >= hi {
                    s.fill(0.0);
                    continue;
                }
                let max = s[lo..hi].iter().fold(maxima[row], |m, &x| m.max(x));
                if max > maxima[row] {
                    let shrink = (maxima[row] - max).exp();
                    sums[row] *= shrink;
                    acc[row * d..(row + 1) * d].iter_mut().for_each(|x| *x *= shrink);
                    maxima[row] = max;
                }
                s[..lo].fill(0.0);
                s[hi..].fill(0.0);
                sums[row] += (self.page_kernels.exp_sub_sum)(&mut s[lo..hi], max);
                (first, last) = (first.min(lo), last.max(hi));
            }
            if first < last {
                // SAFETY: as for the scores.
                unsafe {
                    task.kv.mix(&self.page_kernels, id, head, &buffers.s, first..last, &mut buffers.wide, &mut acc);
                }
            }
        }
        for row in 0..rows {
            let out_row = (tile.first + row / group) * task.op.heads.heads + head * group + row % group;
            let acc = &acc[row * d..(row + 1) * d];
            // SAFETY: phase contract; each row and part belongs to one item.
            unsafe {
                if task.splits == 1 {
                    let out = self.buffer(task.op.out).get_mut(out_row * d..(out_row + 1) * d);
                    let scale = 1.0 / sums[row];
                    out.iter_mut().zip(acc).for_each(|(o, a)| *o = a * scale);
                } else {
                    let at = (out_row * task.splits + split) * (d + 2);
                    let part = self.partials.get_mut(at..at + d + 2);
                    part[..d].copy_from_slice(acc);
                    part[d] = maxima[row];
                    part[d + 1] = sums[row];
                }
            }
        }
        buffers.head = acc;
    }

    /// Merges the parts of one head of one token.
    fn merge(&self, task: &Task, row: usize) {
        let d = task.op.heads.head_dim;
        let at = row * task.splits * (d + 2);
        // SAFETY: phase contract; parts were written before the barrier, and each row has one writer.
        let (parts, out) = unsafe {
            (
                self.partials.get(at..at + task.splits * (d + 2)),
                self.buffer(task.op.out).get_mut(row * d..(row + 1) * d),
            )
        };
        let max = parts.chunks_exact(d + 2).fold(f32::NEG_INFINITY, |m, part| m.max(part[d]));
        out.fill(0.0);
        let mut sum = 0.0;
        // A part that no token is in has none; a sum that is no number has to be seen.
        for part in parts.chunks_exact(d + 2).filter(|part| part[d + 1] != 0.0) {
            let weight = (part[d] - max).exp();
            sum += weight * part[d + 1];
            out.iter_mut().zip(part).for_each(|(o, x)| *o += weight * x);
        }
        out.iter_mut().for_each(|o| *o /= sum);
    }
}

/// What the items of one attention step share.
struct Task<'a> {
    run: &'a Run<'a>,
    op: &'a Attention,
    kv: &'a KvCache,
    splits: usize,
    group: usize,
}

/// Rows of a tile, at most: TILE_ROWS, or the group of one token.
const MAX_ROWS: usize = 256;

/// Values of the buffer that holds partial results, for a model with these heads on a team of this size.
pub fn partial_values(heads: Heads, team: usize) -> usize {
    // Splits happen only while items (tiles x kv_heads) are fewer than 2 x team; tokens then number at most
    // TILE_ROWS / group x 2 x team, and splits at most 2 x team.
    let group = heads.heads / heads.kv_heads;
    let tokens = (TILE_ROWS / group).max(1) * (2 * team).div_ceil(heads.kv_heads);
    tokens * heads.heads * 2 * team * (heads.head_dim + 2)
}

/// Whether the executor's fixed buffers hold these heads.
pub fn supports(heads: Heads) -> bool {
    heads.heads / heads.kv_heads <= MAX_ROWS
}
