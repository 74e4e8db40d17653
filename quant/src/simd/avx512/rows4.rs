//! One token times the rows of the K formats, four rows at a time, straight from the blocks as they lie in memory.
//!
//! The bound is memory: a core reads some 18 GB/s, so a super-block of 144 bytes may take 24 cycles. Four rows share
//! the loads of the activations and the unpacking of scales, done in one register with a row in each 128-bit lane.
//! Products of 6-bit weights and int8 activations fit 16 bits in pairs (`vpmaddubsw`), and `vpdpwssd` then multiplies by
//! the integer scale, so a super-block needs one conversion to f32. `vgf2p8affineqb` picks any bits of a byte in one
//! instruction, other bits in the upper half of a vector than in the lower. The next four rows are prefetched in
//! address order: into the first level, and farther ahead into the second, where more requests may be under way.

use std::arch::x86_64::*;

use super::vector::sum4;
use crate::acts::ActRow;
use crate::kernels::Rows;

const ROWS: usize = 4;
/// How far the second-level cache is filled ahead, beyond the four rows that the first level holds already.
const FAR: usize = 16384;

/// The activations of one super-block.
#[derive(Clone, Copy)]
pub(super) struct Block256 {
    q: *const i8,       // (256)
    sums16: *const i16, // (16)
    sums32: *const i16, // (8)
    d: f32,
}

/// Sums so far of four rows.
pub(super) struct Sums {
    /// Any lane counts for its row.
    rows: [__m512; ROWS],
    /// 128-bit lane r counts for row r.
    lanes: __m512,
}

/// How a format multiplies one super-block of four rows.
pub(super) trait Rows4 {
    const BYTES: usize;

    /// # Safety
    /// Each row points at a readable block; the activations are whole.
    unsafe fn block(rows: [*const u8; ROWS], act: Block256, sums: &mut Sums, headers: &mut Headers);
}

/// # Safety
/// AVX-512 as in the module; sizes were checked by `Linear`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn matvec<F: Rows4>(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let start = rows.bytes.as_ptr();
    let mut headers = Headers { scales: [0; 2 * ROWS * 4], d: [0.0; ROWS] };
    for (group, out) in out.chunks_mut(ROWS).enumerate() {
        // Past the last row it stands in, and its products are dropped.
        let first = group * ROWS;
        let at = |r: usize| start.wrapping_add((first + r).min(rows.n - 1) * rows.row_bytes);
        let next = start.wrapping_add((first + ROWS) * rows.row_bytes);
        let mut sums = Sums { rows: [_mm512_setzero_ps(); ROWS], lanes: _mm512_setzero_ps() };
        for b in 0..rows.k / 256 {
            for line in 0..(ROWS * F::BYTES).div_ceil(64) {
                let next = next.wrapping_add(b * ROWS * F::BYTES + line * 64);
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(FAR).cast());
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
            }
            // SAFETY: block b of rows that exist, and of activations of the same k.
            unsafe {
                let act = Block256 {
                    q: act.q.as_ptr().add(b * 256),
                    sums16: act.sums16.as_ptr().add(b * 16),
                    sums32: act.sums32.as_ptr().add(b * 8),
                    d: *act.d.as_ptr().add(b),
                };
                F::block(std::array::from_fn(|r| at(r).add(b * F::BYTES)), act, &mut sums, &mut headers);
            }
        }
        let mut rows = sums.rows;
        for (r, sum) in rows.iter_mut().enumerate() {
            *sum = _mm512_mask_add_ps(*sum, 15 << (4 * r), *sum, sums.lanes);
        }
        let lanes = (1 << out.len()) - 1;
        // SAFETY: the mask keeps the store inside `out`.
        unsafe { _mm_mask_storeu_ps(out.as_mut_ptr(), lanes, sum4(rows)) };
    }
}

/// The bit matrix of `vgf2p8affineqb` that moves `count` bits from `from` up to `to` up, and clears the others.
const fn move_bits(count: u32, from: u32, to: u32) -> i64 {
    let mut matrix = 0u64;
    let mut n = 0;
    while n < count {
        matrix |= 1 << (from + n) << (8 * (7 - (to + n)));
        n += 1;
    }
    matrix as i64
}

/// One matrix for the lower half of a vector, one for the upper.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(low: i64, high: i64) -> __m512i {
    _mm512_set_epi64(high, high, high, high, low, low, low, low)
}

/// `sum + a . b` of pairs of words. The compiler would split `_mm512_dpwssd_epi32` into a product and a sum, which takes
/// one more slot of the two ports that everything here waits for.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_words(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: one arithmetic instruction, which exists.
    unsafe {
        std::arch::asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) sum, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Headers of Q4_K and Q5_K, unpacked for four rows, in memory: a broadcast costs nothing on the way of a load, but a
/// slot of the busiest port from a register.
#[repr(C, align(64))]
pub(super) struct Headers {
    /// Scales as pairs of equal words: [half][row][4], scale j of a row being number j % 4 of half j / 4.
    scales: [i32; 2 * ROWS * 4],
    /// d times that of the activations.
    d: [f32; ROWS],
}

/// Adds the products of chunk J (64 weights, two scales) of row r to two sums: with the scale of its lower half, and
/// with that of its upper half. The other half of either sum is dropped in the end.
///
/// # Safety
/// AVX-512 as in the module.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn scaled<const J: usize>(headers: &Headers, r: usize, products: __m512i, sums: &mut [__m512i; 2]) {
    let scales = &raw const headers.scales[r * 4];
    // SAFETY: instructions that exist; scales 2 J and 2 J + 1 of row r are in `headers`.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {0}, {2}, dword ptr [{3} + {4}]{{1to16}}",
            "vpdpwssd {1}, {2}, dword ptr [{3} + {4} + 4]{{1to16}}",
            inout(zmm_reg) sums[0], inout(zmm_reg) sums[1], in(zmm_reg) products, in(reg) scales,
            const J / 2 * ROWS * 16 + J % 2 * 8, options(pure, readonly, nostack, preserves_flags));
    }
}

/// Unpacks the headers and takes the mins into account.
///
/// # Safety
/// As `Rows4::block`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
unsafe fn unpack_headers(rows: [*const u8; ROWS], act: Block256, sums: &mut Sums, into: &mut Headers) {
    // SAFETY: by the caller.
    let (heads, totals) = unsafe {
        let head = |r: usize| _mm_loadu_si128(rows[r].cast());
        let heads = _mm512_castsi128_si512(head(0));
        let heads = _mm512_inserti32x4::<1>(heads, head(1));
        let heads = _mm512_inserti32x4::<2>(heads, head(2));
        let heads = _mm512_inserti32x4::<3>(heads, head(3));
        (heads, _mm512_broadcast_i32x4(_mm_loadu_si128(act.sums32.cast())))
    };
    let lanes = |a, b, c, d| _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d));
    // Dwords of a lane: d and dmin, then three of packed 6-bit numbers (see `ints.rs`): x, y, z.
    // Low four scales are in x, high ones in z and the top bits of x; low mins in y, high ones in z and the top of y.
    let plain = _mm512_shuffle_epi32::<0b11_10_11_01>(heads); // x z y z
    let plain = _mm512_and_si512(
        _mm512_srlv_epi32(plain, lanes(0, 0, 0, 4)),
        lanes(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f),
    );
    let tops = _mm512_srli_epi32::<2>(_mm512_shuffle_epi32::<0b10_00_01_00>(heads)); // . x . y
    let scales = _mm512_ternarylogic_epi32::<0xf8>(plain, tops, lanes(0, 0x30303030, 0, 0x30303030));

    // dmin of row r four times in the lower half, d once in the upper.
    const PICK: [u8; 64] = {
        let mut pick = [0; 64];
        let mut i = 0;
        while i < 64 {
            let (row, at) = if i < 32 { (i / 8, 2) } else { (i % 8 / 2, 0) };
            pick[i] = (row * 16 + at + i % 2) as u8;
            i += 1;
        }
        pick
    };
    // SAFETY: 64 bytes are read from 64.
    let halves = unsafe { _mm512_permutexvar_epi8(_mm512_loadu_si512(PICK.as_ptr().cast()), heads) };
    let act_d = _mm512_set1_ps(act.d);
    let dmin = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), act_d);
    let d = _mm_cvtph_ps(_mm256_castsi256_si128(_mm512_extracti64x4_epi64::<1>(halves)));

    let mins = _mm512_unpackhi_epi8(scales, _mm512_setzero_si512());
    let mins = _mm512_cvtepi32_ps(_mm512_madd_epi16(mins, totals));
    sums.lanes = _mm512_fnmadd_ps(mins, dmin, sums.lanes);

    let words = _mm512_unpacklo_epi8(scales, _mm512_setzero_si512());
    // SAFETY: the parts of `Headers` have these sizes. The empty assembly keeps the compiler from seeing through the
    // memory.
    unsafe {
        let scales = into.scales.as_mut_ptr().cast::<__m512i>();
        scales.write(_mm512_unpacklo_epi16(words, words));
        scales.add(1).write(_mm512_unpackhi_epi16(words, words));
        into.d.as_mut_ptr().cast::<__m128>().write(_mm_mul_ps(d, _mm_set1_ps(act.d)));
        std::arch::asm!("/* {0} */", in(reg) into, options(nostack, preserves_flags));
    }
}

/// Adds up a row: its scaled products, times d.
#[inline]
#[target_feature(enable = "avx512f")]
fn finish(headers: &Headers, r: usize, dots: [__m512i; 2], sums: &mut Sums) {
    let dot = _mm512_cvtepi32_ps(_mm512_mask_blend_epi32(0xff00, dots[0], dots[1]));
    sums.rows[r] = _mm512_fmadd_ps(dot, _mm512_set1_ps(headers.d[r]), sums.rows[r]);
}

pub(super) struct Q4K;

impl Rows4 for Q4K {
    const BYTES: usize = 144;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
    unsafe fn block(rows: [*const u8; ROWS], act: Block256, sums: &mut Sums, headers: &mut Headers) {
        let nibbles = halves(move_bits(4, 0, 0), move_bits(4, 4, 0));
        // SAFETY: by the caller; offsets stay inside a block.
        unsafe {
            unpack_headers(rows, act, sums, headers);
            let a: [__m512i; 4] = std::array::from_fn(|j| _mm512_loadu_si512(act.q.add(64 * j).cast()));
            for r in 0..ROWS {
                let products = |j: usize| {
                    let q = _mm512_broadcast_i64x4(_mm256_loadu_si256(rows[r].add(16 + 32 * j).cast()));
                    _mm512_maddubs_epi16(_mm512_gf2p8affine_epi64_epi8::<0>(q, nibbles), a[j])
                };
                let mut dots = [_mm512_setzero_si512(); 2];
                scaled::<0>(headers, r, products(0), &mut dots);
                scaled::<1>(headers, r, products(1), &mut dots);
                scaled::<2>(headers, r, products(2), &mut dots);
                scaled::<3>(headers, r, products(3), &mut dots);
                finish(headers, r, dots, sums);
            }
        }
    }
}

pub(super) struct Q5K;

impl Rows4 for Q5K {
    const BYTES: usize = 176;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
    unsafe fn block(rows: [*const u8; ROWS], act: Block256, sums: &mut Sums, headers: &mut Headers) {
        let nibbles = halves(move_bits(4, 0, 0), move_bits(4, 4, 0));
        let fifth = [
            halves(move_bits(1, 0, 4), move_bits(1, 1, 4)),
            halves(move_bits(1, 2, 4), move_bits(1, 3, 4)),
            halves(move_bits(1, 4, 4), move_bits(1, 5, 4)),
            halves(move_bits(1, 6, 4), move_bits(1, 7, 4)),
        ];
        // SAFETY: by the caller; offsets stay inside a block.
        unsafe {
            unpack_headers(rows, act, sums, headers);
            let a: [__m512i; 4] = std::array::from_fn(|j| _mm512_loadu_si512(act.q.add(64 * j).cast()));
            for r in 0..ROWS {
                let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(rows[r].add(16).cast()));
                let products = |j: usize| {
                    let q = _mm512_broadcast_i64x4(_mm256_loadu_si256(rows[r].add(48 + 32 * j).cast()));
                    let low = _mm512_gf2p8affine_epi64_epi8::<0>(q, nibbles);
                    let q = _mm512_or_si512(low, _mm512_gf2p8affine_epi64_epi8::<0>(high, fifth[j]));
                    _mm512_maddubs_epi16(q, a[j])
                };
                let mut dots = [_mm512_setzero_si512(); 2];
                scaled::<0>(headers, r, products(0), &mut dots);
                scaled::<1>(headers, r, products(1), &mut dots);
                scaled::<2>(headers, r, products(2), &mut dots);
                scaled::<3>(headers, r, products(3), &mut dots);
                finish(headers, r, dots, sums);
            }
        }
    }
}

pub(super) struct Q6K;

impl Rows4 for Q6K {
    const BYTES: usize = 210;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
    unsafe fn block(rows: [*const u8; ROWS], act: Block256, sums: &mut Sums, _headers: &mut Headers) {
        let two_bits = [halves(move_bits(2, 0, 4), move_bits(2, 2, 4)), halves(move_bits(2, 4, 4), move_bits(2, 6, 4))];
        let nibble = _mm512_set1_epi8(15);
        // Words of 16 scales for 64 weights each: four scales, each over a 128-bit lane.
        let spread = |first: i64| {
            let four = |scale: i64| scale * 0x0001_0001_0001_0001;
            let s = [four(first), four(first + 1), four(first + 2), four(first + 3)];
            _mm512_setr_epi64(s[0], s[0], s[1], s[1], s[2], s[2], s[3], s[3])
        };
        // SAFETY: by the caller; offsets stay inside a block.
        unsafe {
            let a: [__m512i; 4] = std::array::from_fn(|j| _mm512_loadu_si512(act.q.add(64 * j).cast()));
            // The offset of 32 is -16 times the sums times twice the scales: both fit 16 bits.
            let offset = _mm256_slli_epi16::<4>(_mm256_loadu_si256(act.sums16.cast()));
            let offset = _mm256_sub_epi16(_mm256_setzero_si256(), offset);
            let d = rows
                .iter()
                .rev()
                .fold(0, |all, row| all << 16 | u64::from(row.add(208).cast::<u16>().read_unaligned()));
            let d = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi64_si128(d as i64)), _mm_set1_ps(act.d));
            let d = _mm512_broadcast_f32x4(d);
            for r in 0..ROWS {
                let scales = _mm256_cvtepi8_epi16(_mm_loadu_si128(rows[r].add(192).cast()));
                let mut dot = _mm512_zextsi256_si512(_mm256_madd_epi16(_mm256_add_epi16(scales, scales), offset));
                let scales = _mm512_castsi256_si512(scales);
                for half in 0..2 {
                    let low = _mm512_loadu_si512(rows[r].add(64 * half).cast());
                    let top = _mm512_broadcast_i64x4(_mm256_loadu_si256(rows[r].add(128 + 32 * half).cast()));
                    for part in 0..2 {
                        let four = if part == 0 { low } else { _mm512_srli_epi16::<4>(low) };
                        let two = _mm512_gf2p8affine_epi64_epi8::<0>(top, two_bits[part]);
                        let q = _mm512_ternarylogic_epi32::<0xf8>(two, four, nibble); // two | four & nibble
                        let j = 2 * half + part;
                        let scale = _mm512_permutexvar_epi16(spread(4 * j as i64), scales);
                        dot = dot_words(dot, _mm512_maddubs_epi16(q, a[j]), scale);
                    }
                }
                let d = match r {
                    0 => _mm512_permute_ps::<0x00>(d),
                    1 => _mm512_permute_ps::<0x55>(d),
                    2 => _mm512_permute_ps::<0xaa>(d),
                    _ => _mm512_permute_ps::<0xff>(d),
                };
                sums.rows[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), d, sums.rows[r]);
            }
        }
    }
}
