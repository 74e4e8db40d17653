//! x86-64 with AVX2, FMA and F16C: int8 products by `vpmaddubsw`, which multiplies unsigned by signed.
//!
//! Weights that are unsigned as they lie (the K formats, their offsets cancelled by the activations' sums) go in as they
//! are; signed ones as magnitudes, with their signs moved to the activations. No pair of products leaves 16 bits: 2 x 128
//! x 127 is below 2^15. Formats without a kernel of their own read each block into integers by the scalar code and
//! multiply those; a matmul does so for all, since the reading is then shared by its tokens.

use std::arch::x86_64::*;

use half::f16;

use crate::acts::ActRow;
use crate::format::Format;
use crate::ints::IQ4_VALUES;
use crate::kernels::{Matvec, Rows};

/// The kernel of a format that has its own.
pub(super) fn matvec(format: Format) -> Option<Matvec> {
    Some(match format {
        Format::Q4_K => q4_k,
        Format::Q5_K => q5_k,
        Format::Q6_K => q6_k,
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::IQ4_NL => iq4_nl,
        Format::IQ4_XS => iq4_xs,
        _ => return None,
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(q: &[i8]) -> __m256i {
    assert!(q.len() >= 32);
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(q: &[u8]) -> __m256i {
    assert!(q.len() >= 32);
    // SAFETY: 32 bytes are there.
    unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
}

/// The low nibbles of 16 bytes, then the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(q: &[u8]) -> __m256i {
    assert!(q.len() >= 16);
    // SAFETY: 16 bytes are there.
    let q = unsafe { _mm_loadu_si128(q.as_ptr().cast()) };
    _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(q), q), _mm256_set1_epi8(15))
}

/// Products of unsigned weights and signed activations, times a 16-bit factor a lane, as eight 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_unsigned(q: __m256i, a: __m256i, factors: __m256i) -> __m256i {
    _mm256_madd_epi16(_mm256_maddubs_epi16(q, a), factors)
}

/// Products of signed weights and activations as eight 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_signed(q: __m256i, a: __m256i) -> __m256i {
    dot_unsigned(_mm256_abs_epi8(q), _mm256_sign_epi8(a, q), _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_i32(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_f32(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The eight 6-bit scales and mins of Q4_K and Q5_K.
fn six_bit(s: &[u8]) -> ([i16; 8], [i32; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = i16::from(s[j] & 63);
        mins[j] = i32::from(s[j + 4] & 63);
        scales[j + 4] = i16::from(s[j + 8] & 15 | s[j] >> 6 << 4);
        mins[j + 4] = i32::from(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
    (scales, mins)
}

fn offsets(mins: &[i32; 8], sums: &[i16]) -> i32 {
    mins.iter().zip(sums).map(|(min, sum)| min * i32::from(*sum)).sum()
}

#[target_feature(enable = "avx2,fma")]
fn q4_k(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let low = _mm256_set1_epi8(15);
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(144).enumerate() {
            let (scales, mins) = six_bit(&block[4..16]);
            let a = &act.q[b * 256..];
            let mut acc = _mm256_setzero_si256();
            for pair in 0..4 {
                let q = load_bytes(&block[16 + 32 * pair..]);
                let a = &a[64 * pair..];
                let first = dot_unsigned(_mm256_and_si256(q, low), load(a), _mm256_set1_epi16(scales[2 * pair]));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(q), low);
                let second = dot_unsigned(high, load(&a[32..]), _mm256_set1_epi16(scales[2 * pair + 1]));
                acc = _mm256_add_epi32(acc, _mm256_add_epi32(first, second));
            }
            let offset = offsets(&mins, &act.sums32[b * 8..]);
            sum += act.d[b] * (half_at(block, 0) * sum_i32(acc) as f32 - half_at(block, 2) * offset as f32);
        }
        *out = sum;
    }
}

#[target_feature(enable = "avx2,fma")]
fn q5_k(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let (low, bit) = (_mm256_set1_epi8(15), _mm256_set1_epi8(1));
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(176).enumerate() {
            let (scales, mins) = six_bit(&block[4..16]);
            let mut high = load_bytes(&block[16..]);
            let mut acc = _mm256_setzero_si256();
            for j in 0..8 {
                let q = load_bytes(&block[48 + 32 * (j / 2)..]);
                let q = if j % 2 == 0 { q } else { _mm256_srli_epi16::<4>(q) };
                let fifth = _mm256_slli_epi16::<4>(_mm256_and_si256(high, bit));
                high = _mm256_srli_epi16::<1>(high);
                let q = _mm256_or_si256(_mm256_and_si256(q, low), fifth);
                let dot = dot_unsigned(q, load(&act.q[b * 256 + 32 * j..]), _mm256_set1_epi16(scales[j]));
                acc = _mm256_add_epi32(acc, dot);
            }
            let offset = offsets(&mins, &act.sums32[b * 8..]);
            sum += act.d[b] * (half_at(block, 0) * sum_i32(acc) as f32 - half_at(block, 2) * offset as f32);
        }
        *out = sum;
    }
}

#[target_feature(enable = "avx2,fma")]
fn q6_k(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    let (low, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(3));
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(210).enumerate() {
            let mut acc = _mm256_setzero_si256();
            let mut offset = 0;
            for half in 0..2 {
                let mut high = load_bytes(&block[128 + 32 * half..]);
                for quarter in 0..4 {
                    let q = load_bytes(&block[64 * half + 32 * (quarter % 2)..]);
                    let q = if quarter < 2 { q } else { _mm256_srli_epi16::<4>(q) };
                    let top = _mm256_slli_epi16::<4>(_mm256_and_si256(high, two));
                    high = _mm256_srli_epi16::<2>(high);
                    let q = _mm256_or_si256(_mm256_and_si256(q, low), top);
                    let sub = 8 * half + 2 * quarter;
                    let scale = |i: usize| i16::from(block[192 + sub + i] as i8);
                    let scales = _mm256_set_m128i(_mm_set1_epi16(scale(1)), _mm_set1_epi16(scale(0)));
                    acc = _mm256_add_epi32(acc, dot_unsigned(q, load(&act.q[b * 256 + 16 * sub..]), scales));
                    for i in 0..2 {
                        offset += 32 * i32::from(scale(i)) * i32::from(act.sums16[b * 16 + sub + i]);
                    }
                }
            }
            sum += half_at(block, 208) * act.d[b] * (sum_i32(acc) - offset) as f32;
        }
        *out = sum;
    }
}

/// A matvec over blocks of 32 with one f16 scale: `$weights` reads a block's signed weights.
macro_rules! signed_32 {
    ($name:ident, $bytes:literal, $block:ident => $weights:expr) => {
        #[target_feature(enable = "avx2,fma")]
        fn $name(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
            for (r, out) in out.iter_mut().enumerate() {
                let mut sum = _mm256_setzero_ps();
                for (b, $block) in rows.row(r).chunks_exact($bytes).enumerate() {
                    let dot = _mm256_cvtepi32_ps(dot_signed($weights, load(&act.q[b * 32..])));
                    sum = _mm256_fmadd_ps(dot, _mm256_set1_ps(half_at($block, 0) * act.d[b]), sum);
                }
                *out = sum_f32(sum);
            }
        }
    };
}

/// As `signed_32`, for unsigned weights with an offset: scale at byte 0, offset at byte 2.
macro_rules! offset_32 {
    ($name:ident, $bytes:literal, $block:ident => $weights:expr) => {
        #[target_feature(enable = "avx2,fma")]
        fn $name(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
            let ones = _mm256_set1_epi16(1);
            for (r, out) in out.iter_mut().enumerate() {
                let mut sum = _mm256_setzero_ps();
                let mut offset = 0.0;
                for (b, $block) in rows.row(r).chunks_exact($bytes).enumerate() {
                    let dot = _mm256_cvtepi32_ps(dot_unsigned($weights, load(&act.q[b * 32..]), ones));
                    sum = _mm256_fmadd_ps(dot, _mm256_set1_ps(half_at($block, 0) * act.d[b]), sum);
                    offset += half_at($block, 2) * act.d[b] * f32::from(act.sums32[b]);
                }
                *out = sum_f32(sum) + offset;
            }
        }
    };
}

/// Bit i of four bytes as the value 16 in byte i.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(bits: &[u8]) -> __m256i {
    let bits = _mm256_set1_epi32(i32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]));
    // Each lane of eight gets the byte that holds its bits.
    let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bytes = _mm256_shuffle_epi8(bits, spread);
    let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

/// The values that IQ4 nibbles stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn iq4(q: &[u8]) -> __m256i {
    // SAFETY: the table is sixteen bytes.
    let table = unsafe { _mm_loadu_si128(IQ4_VALUES.as_ptr().cast()) };
    _mm256_shuffle_epi8(_mm256_set_m128i(table, table), nibbles(q))
}

signed_32!(q8_0, 34, block => load_bytes(&block[2..]));
signed_32!(q4_0, 18, block => _mm256_sub_epi8(nibbles(&block[2..]), _mm256_set1_epi8(8)));
signed_32!(q5_0, 22, block => {
    _mm256_sub_epi8(_mm256_or_si256(nibbles(&block[6..]), fifth_bits(&block[2..])), _mm256_set1_epi8(16))
});
signed_32!(iq4_nl, 18, block => iq4(&block[2..]));
offset_32!(q4_1, 20, block => nibbles(&block[4..]));
offset_32!(q5_1, 24, block => _mm256_or_si256(nibbles(&block[8..]), fifth_bits(&block[4..])));

#[target_feature(enable = "avx2,fma")]
fn iq4_xs(rows: &Rows<'_>, act: &ActRow<'_>, out: &mut [f32]) {
    for (r, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0;
        for (b, block) in rows.row(r).chunks_exact(136).enumerate() {
            let top = u16::from_le_bytes([block[2], block[3]]);
            let mut acc = _mm256_setzero_si256();
            for j in 0..8 {
                let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
                let scale = i32::from(low | ((top >> (2 * j) & 3) as u8) << 4) - 32;
                let dot = dot_signed(iq4(&block[8 + 16 * j..]), load(&act.q[b * 256 + 32 * j..]));
                acc = _mm256_add_epi32(acc, _mm256_mullo_epi32(dot, _mm256_set1_epi32(scale)));
            }
            sum += half_at(block, 0) * act.d[b] * sum_i32(acc) as f32;
        }
        *out = sum;
    }
}
