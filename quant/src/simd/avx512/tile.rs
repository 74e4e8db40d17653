//! The matrix product of int8 kernels: rows unpacked to bytes once, multiplied with many tokens.
//!
//! A tile is 32 rows x up to 256 weights as unsigned bytes, dword by dword: `q[k / 4][row][k % 4]`, so that one
//! `vpdpbusd` multiplies 4 weights of 16 rows with 4 broadcast activations. It is 8 KiB and stays in the first-level
//! cache together with its f32 scales while all tokens pass by; the weights are read from memory once. The kernel holds
//! 32 rows x 6 tokens: 12 integer and 12 f32 accumulators, 8 loads for 12 products. With scales for each 32 weights
//! 3/4 of the instructions on the two vector ports are products.
//!
//! Formats differ in their `Unpack` alone. Offsets of unsigned weights are cancelled exactly, in the integers: an
//! accumulator starts at `-offset * sum(activations)`.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::acts::ActRow;
use crate::kernels::{Batch, Linear, OutView, Rows, Tokens, act_kind};
use crate::simd::shape::{Shape, prefetch_rows};

/// Rows in a tile.
const ROWS: usize = 32;
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
    /// An unsigned weight is 2^OFFSET_BITS more than the signed one. Shapes with mins ignore it.
    const OFFSET_BITS: u32;

    /// Unpacks one block of 16 rows.
    ///
    /// # Safety
    /// Each pointer is at a readable block; `into` has room for it; AVX-512 as in the module.
    unsafe fn block(rows: &[*const u8; 16], into: Sixteen);
}

/// Half a tile: where the values of 16 rows go.
#[derive(Clone, Copy)]
pub(super) struct Sixteen {
    q: *mut u8,      // (k / 4, ROWS, 4)
    scale: *mut f32, // (k / sub, ROWS)
    min: *mut f32,   // (k / sub, ROWS)
}

// SAFETY, of these three: as `Unpack::block`, whose indices stay inside its block.
impl Sixteen {
    /// Weights 4 * k4 .. + 4 of 16 rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn put(self, k4: usize, q: __m512i) {
        // SAFETY: as above.
        unsafe { _mm512_store_si512(self.q.add(k4 * ROWS * 4).cast(), q) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn scale(self, sub: usize, scale: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(self.scale.add(sub * ROWS), scale) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn min(self, sub: usize, min: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(self.min.add(sub * ROWS), min) }
    }
}

#[repr(C, align(64))]
struct Tile {
    q: [u8; ROWS * DEPTH],             // (DEPTH / 4, ROWS, 4)
    scale: [f32; ROWS * (DEPTH / 16)], // (DEPTH / sub, ROWS)
    min: [f32; ROWS * (DEPTH / 16)],   // (DEPTH / sub, ROWS)
}

/// Entry of the table for a format.
pub(super) fn linear<U: Unpack>(format: crate::Format) -> Linear {
    Linear::new(format, act_kind(format), matvec::<U>, matmul::<U>)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn matvec<U: Unpack>(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let acts = act.as_view();
    let view = OutView::new(out, rows.n);
    // SAFETY: the output is ours alone.
    unsafe { product::<U, 1>(rows, &Batch { acts, tokens: Tokens::Range(0, 1), out: view }) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn matmul<U: Unpack>(rows: &Rows<'_>, batch: &Batch<'_>) {
    // SAFETY: by the caller.
    unsafe { product::<U, TILES>(rows, batch) }
}

/// # Safety
/// The outputs are ours alone; sizes were checked by `Linear`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn product<U: Unpack, const TILES: usize>(rows: &Rows<'_>, batch: &Batch<'_>) {
    let mut tiles: [MaybeUninit<Tile>; TILES] = [const { MaybeUninit::uninit() }; TILES];
    for first in (0..rows.n).step_by(ROWS * TILES) {
        let used = (rows.n - first).div_ceil(ROWS).min(TILES);
        for at in (0..rows.k).step_by(DEPTH) {
            let depth = DEPTH.min(rows.k - at);
            for (i, tile) in tiles[..used].iter_mut().enumerate() {
                // SAFETY: the rows exist, and the tile holds `depth` weights of 32.
                unsafe { unpack::<U>(rows, first + i * ROWS, at, depth, tile.as_mut_ptr()) };
            }
            let slots = batch.tokens.len();
            for slot in (0..slots).step_by(TOKENS) {
                for (i, tile) in tiles[..used].iter().enumerate() {
                    let step =
                        Step { batch, slot, row: first + i * ROWS, rows: rows.n, at, depth, tile: tile.as_ptr() };
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

/// Unpacks weights at .. at + depth of 32 rows from `first`. Past the last row it is repeated.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn unpack<U: Unpack>(rows: &Rows<'_>, first: usize, at: usize, depth: usize, tile: *mut Tile) {
    let block_len = <U::Shape as Shape>::ACT.block_len();
    let offset = at / block_len * U::BYTES;
    for half in 0..ROWS / 16 {
        let mut pointers: [*const u8; 16] = std::array::from_fn(|r| {
            let row = (first + half * 16 + r).min(rows.n - 1);
            rows.bytes[row * rows.row_bytes + offset..].as_ptr()
        });
        prefetch_rows(&pointers, depth / block_len * U::BYTES);
        // SAFETY: as_mut_ptr of a Tile; offsets stay inside its arrays, and each row has depth / block_len blocks left.
        unsafe {
            let (q, scale, min) = (&raw mut (*tile).q, &raw mut (*tile).scale, &raw mut (*tile).min);
            for block in 0..depth / block_len {
                let weights = block * block_len;
                let subs = weights / <U::Shape as Shape>::SUB;
                U::block(
                    &pointers,
                    Sixteen {
                        q: q.cast::<u8>().add(weights * ROWS + half * 64),
                        scale: scale.cast::<f32>().add(subs * ROWS + half * 16),
                        min: min.cast::<f32>().add(subs * ROWS + half * 16),
                    },
                );
                for pointer in &mut pointers {
                    *pointer = pointer.wrapping_add(U::BYTES);
                }
            }
        }
    }
}

/// One tile times up to six tokens.
struct Step<'a> {
    batch: &'a Batch<'a>,
    slot: usize,
    row: usize,
    /// Rows of the product: those of the tile past it are not written.
    rows: usize,
    at: usize,
    depth: usize,
    tile: *const Tile,
}

impl Step<'_> {
    /// # Safety
    /// Slots slot .. slot + N exist, and the tile is filled up to `depth`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
    unsafe fn run<U: Unpack, const N: usize>(&self) {
        let acts = &self.batch.acts;
        let sub_len = <U::Shape as Shape>::SUB;
        let mins = <U::Shape as Shape>::MINS;
        let blocks = <U::Shape as Shape>::ACT.block_len() == 32;
        let subs = self.depth / sub_len;
        let values: [usize; N] = std::array::from_fn(|i| self.batch.tokens.token(self.slot + i) * acts.k() + self.at);
        let mut sums = Corrections([[0; DEPTH / 16]; N]);
        // SAFETY: each token's k values, k / sub_len sums and k / block_len scales lie in `acts` (see `ActView`), and
        // at + depth <= k. The tile holds depth weights of 32 rows.
        unsafe {
            for i in 0..N {
                let all = if sub_len == 16 { acts.sums16 } else { acts.sums32 };
                let lanes = 0xffff_u16 >> (16 - subs);
                let sum = _mm256_maskz_loadu_epi16(lanes, all.as_ptr().add(values[i] / sub_len));
                let sum = _mm512_cvtepi16_epi32(sum);
                let correction = if !mins {
                    let offset = _mm_cvtsi32_si128(U::OFFSET_BITS as i32);
                    _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_sll_epi32(sum, offset))
                } else if blocks {
                    let d = _mm512_maskz_loadu_ps(lanes, acts.d.as_ptr().add(values[i] / 32));
                    _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), d))
                } else {
                    _mm512_castps_si512(_mm512_cvtepi32_ps(sum))
                };
                _mm512_store_si512(sums.0[i].as_mut_ptr().cast(), correction);
            }
            let q: [*const i8; N] = std::array::from_fn(|i| acts.q.as_ptr().add(values[i]));
            let w = (&raw const (*self.tile).q).cast::<u8>();
            let scale = (&raw const (*self.tile).scale).cast::<f32>();
            let min = (&raw const (*self.tile).min).cast::<f32>();

            let mut totals = [[_mm512_setzero_ps(); 2]; N];
            for sub in 0..subs {
                let mut dots = [[_mm512_setzero_si512(); 2]; N];
                if !mins {
                    for i in 0..N {
                        dots[i] = [_mm512_set1_epi32(sums.0[i][sub]); 2];
                    }
                }
                for step in 0..sub_len / 4 {
                    let at = sub * sub_len + step * 4;
                    let w = [0, 64].map(|half| _mm512_load_si512(w.add(at * ROWS + half).cast()));
                    for i in 0..N {
                        let a = _mm512_set1_epi32(q[i].add(at).cast::<i32>().read_unaligned());
                        dots[i][0] = _mm512_dpbusd_epi32(dots[i][0], w[0], a);
                        dots[i][1] = _mm512_dpbusd_epi32(dots[i][1], w[1], a);
                    }
                }
                for half in 0..2 {
                    let scale = _mm512_load_ps(scale.add(sub * ROWS + half * 16));
                    for i in 0..N {
                        let mut dot = _mm512_cvtepi32_ps(dots[i][half]);
                        if blocks {
                            dot = _mm512_mul_ps(dot, _mm512_set1_ps(*acts.d.as_ptr().add(values[i] / 32 + sub)));
                        }
                        totals[i][half] = _mm512_fmadd_ps(dot, scale, totals[i][half]);
                    }
                    if mins {
                        let min = _mm512_load_ps(min.add(sub * ROWS + half * 16));
                        for i in 0..N {
                            let sum = _mm512_set1_ps(f32::from_bits(sums.0[i][sub] as u32));
                            totals[i][half] = _mm512_fnmadd_ps(sum, min, totals[i][half]);
                        }
                    }
                }
            }
            for half in 0..2 {
                let left = self.rows.saturating_sub(self.row + half * 16).min(16);
                let lanes = ((1u32 << left) - 1) as u16;
                for i in 0..N {
                    let out = self.batch.out.at(self.slot + i, self.row).wrapping_add(half * 16);
                    let before = _mm512_maskz_loadu_ps(if self.at == 0 { 0 } else { lanes }, out);
                    let d = if blocks { 1.0 } else { *acts.d.as_ptr().add(values[i] / 256) };
                    _mm512_mask_storeu_ps(out, lanes, _mm512_fmadd_ps(totals[i][half], _mm512_set1_ps(d), before));
                }
            }
        }
    }
}

/// What the offsets or mins of the weights take away from each sub-block: i32, or the bits of f32 where there are mins.
#[repr(C, align(64))]
struct Corrections<const N: usize>([[i32; DEPTH / 16]; N]);
