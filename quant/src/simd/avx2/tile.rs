//! The matrix product of int8 kernels: rows unpacked to bytes once, multiplied with many tokens.
//!
//! A tile is 16 rows x up to 256 weights as unsigned bytes, dword by dword: `q[k / 4][row][k % 4]`. `vpmaddubsw` then
//! multiplies 4 weights of 8 rows with 4 broadcast activations and adds them in pairs, to 16 bits. The kernel holds 16
//! rows x 6 tokens in 12 accumulators of such pairs, which leaves 4 registers for weights, activations and a product.
//! Tiles stay in the first-level cache while all tokens pass by; the weights are read from memory once. No sum crosses
//! lanes: each lane is one row, and a row's two pairs meet in `vpmaddwd`.
//!
//! `vpmaddubsw` saturates and 16 bits are few, so sums move to 32 bits before they could overflow, in the worst case of
//! all weights 2^bits - 1 and all activations -128:
//!
//! | bits | dwords added in 16 bits | largest sum of pairs |
//! |--|--|--|
//! | up to 4 | 8 | 8 x 2 x 15 x 128 = 30720 |
//! | 5 | 4 | 4 x 2 x 31 x 128 = 31744 |
//! | 6 | 2 | 2 x 2 x 63 x 128 = 32256 |
//! | 8 | 8 + 8 | as for 4 bits, twice |
//!
//! Weights of 8 bits lie in two planes of nibbles, and `vpmaddwd` multiplies the sums of the upper one by 16: a single
//! pair would leave 16 bits otherwise (2 x 255 x 128). Offsets of unsigned weights are cancelled exactly, in the
//! integers: an accumulator starts at `-offset * sum(activations)`.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::acts::ActRow;
use crate::kernels::{Batch, Linear, OutView, Rows, Tokens, act_kind};
use crate::simd::shape::Shape;

/// Rows in a tile: two vectors of dwords.
const ROWS: usize = 16;
/// Weights of a row in a tile.
const DEPTH: usize = 256;
/// Tiles that share a pass over the tokens.
const TILES: usize = 2;
/// Tokens of the widest kernel.
const TOKENS: usize = 6;

/// How the bytes of a format become a tile.
pub(super) trait Unpack {
    type Shape: Shape;
    /// Bytes of one block of 256 weights (`Q8_K` shapes) or 32 (`Q8_0` shapes).
    const BYTES: usize;
    /// Bits of an unsigned weight: up to 6, or 8.
    const BITS: u32;
    /// An unsigned weight is this much more than the signed one. Shapes with mins ignore it.
    const OFFSET: i32;

    /// Unpacks one block of 8 rows.
    ///
    /// # Safety
    /// Each pointer is at a readable block; `into` has room for it; AVX2, FMA and F16C exist.
    unsafe fn block(rows: &[*const u8; 8], into: Eight);
}

/// Half a tile: where the values of 8 rows go.
#[derive(Clone, Copy)]
pub(super) struct Eight {
    q: *mut u8,      // (plane, k / 4, ROWS, 4)
    scale: *mut f32, // (k / sub, ROWS)
    min: *mut f32,   // (k / sub, ROWS)
}

// SAFETY, of these four: as `Unpack::block`, whose indices stay inside its block.
impl Eight {
    /// Weights 4 * k4 .. + 4 of 8 rows, of up to 6 bits.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn put(self, k4: usize, q: __m256i) {
        // SAFETY: as above.
        unsafe { _mm256_store_si256(self.q.add(k4 * ROWS * 4).cast(), q) }
    }

    /// As `put`, for 8 bits.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn put_wide(self, k4: usize, q: __m256i) {
        let nibble = _mm256_set1_epi8(15);
        // SAFETY: as above; the second plane follows the first.
        unsafe {
            self.put(k4, _mm256_and_si256(_mm256_srli_epi16::<4>(q), nibble));
            self.put(k4 + DEPTH / 4, _mm256_and_si256(q, nibble));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn scale(self, sub: usize, scale: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_store_ps(self.scale.add(sub * ROWS), scale) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn min(self, sub: usize, min: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_store_ps(self.min.add(sub * ROWS), min) }
    }
}

#[repr(C, align(64))]
struct Tile {
    q: [u8; 2 * ROWS * DEPTH],         // (plane, DEPTH / 4, ROWS, 4)
    scale: [f32; ROWS * (DEPTH / 16)], // (DEPTH / sub, ROWS)
    min: [f32; ROWS * (DEPTH / 16)],   // (DEPTH / sub, ROWS)
}

/// Entry of the table for a format.
pub(super) fn linear<U: Unpack>(format: crate::Format) -> Linear {
    Linear::new(format, act_kind(format), matvec::<U>, matmul::<U>)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn matvec<U: Unpack>(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let acts = act.as_view();
    let view = OutView::new(out, rows.n);
    // SAFETY: the output is ours alone.
    unsafe { product::<U, 1>(rows, &Batch { acts, tokens: Tokens::Range(0, 1), out: view }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn matmul<U: Unpack>(rows: &Rows<'_>, batch: &Batch<'_>) {
    // SAFETY: by the caller.
    unsafe { product::<U, TILES>(rows, batch) }
}

/// # Safety
/// The outputs are ours alone; sizes were checked by `Linear`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product<U: Unpack, const TILES: usize>(rows: &Rows<'_>, batch: &Batch<'_>) {
    let mut tiles: [MaybeUninit<Tile>; TILES] = [const { MaybeUninit::uninit() }; TILES];
    let mut acts = Strip { q: [0; TOKENS * DEPTH], sums: [0; TOKENS * (DEPTH / 16)], d: [0.0; TOKENS * (DEPTH / 32)] };
    let slots = batch.tokens.len();
    for first in (0..rows.n).step_by(ROWS * TILES) {
        let used = (rows.n - first).div_ceil(ROWS).min(TILES);
        for at in (0..rows.k).step_by(DEPTH) {
            let depth = DEPTH.min(rows.k - at);
            for (i, tile) in tiles[..used].iter_mut().enumerate() {
                // SAFETY: the rows exist, and the tile holds `depth` weights of 16.
                unsafe { unpack::<U, TILES>(rows, first + i * ROWS, at, depth, tile.as_mut_ptr()) };
            }
            for slot in (0..slots).step_by(TOKENS) {
                acts.fill::<U>(batch, slot, TOKENS.min(slots - slot), at, depth);
                prefetch(batch, slot + TOKENS, at, depth);
                for (i, tile) in tiles[..used].iter().enumerate() {
                    let (row, subs) = (first + i * ROWS, depth / <U::Shape as Shape>::SUB);
                    let rows = (rows.n - row).min(ROWS);
                    let step = Step { acts: &acts, tile: tile.as_ptr(), subs, out: batch.out, slot, row, rows, at };
                    // SAFETY: the tile is filled up to `depth`; slots and rows are inside the output.
                    unsafe {
                        match slots - slot {
                            1 => step.run::<U, 1>(),
                            2 => step.run::<U, 2>(),
                            3 => step.run::<U, 3>(),
                            4 => step.run::<U, 4>(),
                            5 => step.run::<U, 5>(),
                            _ => step.run::<U, 6>(),
                        }
                    }
                }
            }
        }
    }
}

/// Unpacks weights at .. at + depth of 16 rows from `first`. Past the last row it is repeated. The rows of the tile that
/// will come next are prefetched in address order.
///
/// # Safety
/// `tile` may be written; sizes were checked by `Linear`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<U: Unpack, const TILES: usize>(
    rows: &Rows<'_>,
    first: usize,
    at: usize,
    depth: usize,
    tile: *mut Tile,
) {
    let block_len = <U::Shape as Shape>::ACT.block_len();
    let offset = at / block_len * U::BYTES;
    let next = rows.bytes.as_ptr().wrapping_add((first + ROWS * TILES) * rows.row_bytes + offset * ROWS);
    let bytes = depth / block_len * U::BYTES * 8;
    for half in 0..ROWS / 8 {
        for line in (0..bytes).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(half * bytes + line).cast());
        }
        let mut pointers: [*const u8; 8] = std::array::from_fn(|r| {
            let row = (first + half * 8 + r).min(rows.n - 1);
            rows.bytes[row * rows.row_bytes + offset..].as_ptr()
        });
        // SAFETY: offsets stay inside the tile's arrays, and each row has depth / block_len blocks left.
        unsafe {
            let (q, scale, min) = (&raw mut (*tile).q, &raw mut (*tile).scale, &raw mut (*tile).min);
            for block in 0..depth / block_len {
                let weights = block * block_len;
                let subs = weights / <U::Shape as Shape>::SUB;
                U::block(
                    &pointers,
                    Eight {
                        q: q.cast::<u8>().add(weights * ROWS + half * 32),
                        scale: scale.cast::<f32>().add(subs * ROWS + half * 8),
                        min: min.cast::<f32>().add(subs * ROWS + half * 8),
                    },
                );
                for pointer in &mut pointers {
                    *pointer = pointer.wrapping_add(U::BYTES);
                }
            }
        }
    }
}

/// The activations of up to six tokens under a tile, side by side.
#[repr(C, align(64))]
struct Strip {
    q: [i8; TOKENS * DEPTH], // (TOKENS, DEPTH)
    /// What the offsets or mins of the weights take away from each sub-block: i32, or the bits of f32 where there are
    /// mins.
    sums: [i32; TOKENS * (DEPTH / 16)], // (TOKENS, DEPTH / 16)
    d: [f32; TOKENS * (DEPTH / 32)], // (TOKENS, DEPTH / 32)
}

impl Strip {
    /// Takes values at .. at + depth of the tokens of slots slot .. slot + n.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn fill<U: Unpack>(&mut self, batch: &Batch<'_>, slot: usize, n: usize, at: usize, depth: usize) {
        let sub_len = <U::Shape as Shape>::SUB;
        let d_len = <U::Shape as Shape>::ACT.block_len();
        let acts = &batch.acts;
        for i in 0..n {
            let values = batch.tokens.token(slot + i) * acts.k() + at;
            let (from, into) = (&acts.q[values..][..depth], &mut self.q[i * DEPTH..][..depth]);
            for (from, into) in from.as_chunks::<32>().0.iter().zip(into.as_chunks_mut::<32>().0) {
                *into = *from;
            }
            let d = &mut self.d[i * (DEPTH / 32)..][..depth / d_len];
            d.copy_from_slice(&acts.d[values / d_len..][..depth / d_len]);
            let all = if sub_len == 16 { acts.sums16 } else { acts.sums32 };
            let sums = &all[values / sub_len..][..depth / sub_len];
            for (j, (into, sum)) in self.sums[i * (DEPTH / 16)..].iter_mut().zip(sums).enumerate() {
                *into = if !<U::Shape as Shape>::MINS {
                    -U::OFFSET * i32::from(*sum)
                } else if d_len == 32 {
                    (f32::from(*sum) * d[j]).to_bits() as i32
                } else {
                    f32::from(*sum).to_bits() as i32
                };
            }
        }
    }
}

/// Asks for the next tokens' activations. They lie a row apart, often on pages of their own, where no hardware
/// prefetcher follows.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(batch: &Batch<'_>, slot: usize, at: usize, depth: usize) {
    for slot in slot..(slot + TOKENS).min(batch.tokens.len()) {
        let act = batch.acts.q[batch.tokens.token(slot) * batch.acts.k() + at..].as_ptr();
        for line in 0..depth.div_ceil(64) {
            _mm_prefetch::<_MM_HINT_T0>(act.wrapping_add(line * 64));
        }
    }
}

/// One tile times up to six tokens.
struct Step<'a> {
    acts: &'a Strip,
    tile: *const Tile,
    /// Sub-blocks that the tile holds.
    subs: usize,
    out: OutView,
    slot: usize,
    row: usize,
    /// Rows of the tile that are in the product.
    rows: usize,
    at: usize,
}

impl Step<'_> {
    /// # Safety
    /// Slots slot .. slot + N exist and are in `acts`, and the tile is filled up to its `subs`.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<U: Unpack, const N: usize>(&self) {
        let sub_len = <U::Shape as Shape>::SUB;
        let mins = <U::Shape as Shape>::MINS;
        let blocks = <U::Shape as Shape>::ACT.block_len() == 32;
        let a = self.acts;
        // SAFETY: the tile holds `subs` sub-blocks of 16 rows, the strip of N tokens.
        unsafe {
            let w = (&raw const (*self.tile).q).cast::<u8>();
            let scale = (&raw const (*self.tile).scale).cast::<f32>();
            let min = (&raw const (*self.tile).min).cast::<f32>();
            // By pointers: the lengths of arrays would tell the compiler how often the loop runs at most, and it would
            // write it out that many times.
            let (a, sums, d) = (a.q.as_ptr(), a.sums.as_ptr(), a.d.as_ptr());
            let sum = |i: usize, sub: usize| *sums.add(i * (DEPTH / 16) + sub);
            let d = |i: usize, sub: usize| _mm256_set1_ps(*d.add(i * (DEPTH / 32) + sub));

            let mut totals = [[_mm256_setzero_ps(); 2]; N];
            for sub in 0..self.subs {
                let mut dots = [[_mm256_setzero_si256(); 2]; N];
                if !mins {
                    for i in 0..N {
                        dots[i] = [_mm256_set1_epi32(sum(i, sub)); 2];
                    }
                }
                let (w, a) = (w.add(sub * sub_len * ROWS), a.add(sub * sub_len));
                match (U::BITS, sub_len) {
                    (8, _) => {
                        add_dwords::<N, 8>(&mut dots, w, a, 16);
                        add_dwords::<N, 8>(&mut dots, w.add(DEPTH * ROWS), a, 1);
                    }
                    (6, _) => {
                        for start in (0..sub_len).step_by(8) {
                            add_dwords::<N, 2>(&mut dots, w.add(start * ROWS), a.add(start), 1);
                        }
                    }
                    (5, _) => {
                        for start in (0..sub_len).step_by(16) {
                            add_dwords::<N, 4>(&mut dots, w.add(start * ROWS), a.add(start), 1);
                        }
                    }
                    (_, 16) => add_dwords::<N, 4>(&mut dots, w, a, 1),
                    _ => add_dwords::<N, 8>(&mut dots, w, a, 1),
                }
                for half in 0..2 {
                    let scale = _mm256_load_ps(scale.add(sub * ROWS + half * 8));
                    for i in 0..N {
                        let mut dot = _mm256_cvtepi32_ps(dots[i][half]);
                        if blocks {
                            dot = _mm256_mul_ps(dot, d(i, sub));
                        }
                        totals[i][half] = _mm256_fmadd_ps(dot, scale, totals[i][half]);
                    }
                    if mins {
                        let min = _mm256_load_ps(min.add(sub * ROWS + half * 8));
                        for i in 0..N {
                            let sum = _mm256_set1_ps(f32::from_bits(sum(i, sub) as u32));
                            totals[i][half] = _mm256_fnmadd_ps(sum, min, totals[i][half]);
                        }
                    }
                }
            }
            for i in 0..N {
                let d = if blocks { _mm256_set1_ps(1.0) } else { d(i, 0) };
                for half in 0..2 {
                    let left = self.rows.saturating_sub(half * 8).min(8);
                    let out = self.out.at(self.slot + i, self.row).wrapping_add(half * 8);
                    add_to(out, left, self.at == 0, _mm256_mul_ps(totals[i][half], d));
                }
            }
        }
    }
}

/// Adds K dwords of weights of 16 rows times those of N tokens, summed in 16 bits first and then times `weight`.
///
/// # Safety
/// K dwords of 16 rows lie at `w`, and in each of N activation rows, DEPTH apart, from `a`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_dwords<const N: usize, const K: usize>(
    dots: &mut [[__m256i; 2]; N],
    w: *const u8,
    a: *const i8,
    weight: i16,
) {
    // SAFETY: by the caller.
    let (w, a) = unsafe {
        (
            |k: usize, half: usize| _mm256_load_si256(w.add(k * ROWS * 4 + half * 32).cast()),
            |i: usize, k: usize| _mm256_set1_epi32(a.add(i * DEPTH + k * 4).cast::<i32>().read_unaligned()),
        )
    };
    let weight = _mm256_set1_epi16(weight);
    if K == 2 {
        // Half by half: nothing but the sums of 32 bits stays in registers.
        for half in 0..2 {
            let w = [w(0, half), w(1, half)];
            for i in 0..N {
                let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w[0], a(i, 0)), _mm256_maddubs_epi16(w[1], a(i, 1)));
                dots[i][half] = _mm256_add_epi32(dots[i][half], _mm256_madd_epi16(pairs, weight));
            }
        }
        return;
    }
    let mut pairs = [[_mm256_setzero_si256(); 2]; N];
    for k in 0..K {
        let w = [w(k, 0), w(k, 1)];
        for i in 0..N {
            let a = a(i, k);
            for half in 0..2 {
                pairs[i][half] = _mm256_add_epi16(pairs[i][half], _mm256_maddubs_epi16(w[half], a));
            }
        }
    }
    for i in 0..N {
        for half in 0..2 {
            dots[i][half] = _mm256_add_epi32(dots[i][half], _mm256_madd_epi16(pairs[i][half], weight));
        }
    }
}

/// Stores the first `n` lanes, or adds them to what is there.
///
/// # Safety
/// `n` values, up to 8, are ours at `out`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_to(out: *mut f32, n: usize, first: bool, x: __m256) {
    // SAFETY: the mask keeps loads and stores inside n values.
    unsafe {
        if n == 8 {
            let before = if first { _mm256_setzero_ps() } else { _mm256_loadu_ps(out) };
            _mm256_storeu_ps(out, _mm256_add_ps(before, x));
        } else if n > 0 {
            let order = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), order);
            let before = if first { _mm256_setzero_ps() } else { _mm256_maskload_ps(out, mask) };
            _mm256_maskstore_ps(out, mask, _mm256_add_ps(before, x));
        }
    }
}
