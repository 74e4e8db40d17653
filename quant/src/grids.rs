//! The codebooks of the IQ1, IQ2 and IQ3 formats, unpacked to the bytes that kernels multiply with, and their signs.
//!
//! The codes are in `grids/codes.rs`; here they are expanded at compile time, one little-endian word an entry: byte `j`
//! is coordinate `j`. Signs of eight neighbours are one byte; the formats that have only 7 bits for it store an even
//! number of minus signs, so that the eighth follows from the parity.

pub mod codes;

/// Magnitudes that the coordinates 0..=2 of the IQ2 lattices stand for.
pub const IQ2_VALUES: [u8; 3] = [8, 25, 43];
/// Magnitudes that the coordinates 0..=7 of the IQ3_XXS lattice stand for.
pub const IQ3_XXS_VALUES: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// Magnitudes that the coordinates 0..=7 of the IQ3_S lattice stand for.
pub const IQ3_S_VALUES: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
/// Signed values (as two's-complement bytes) that the coordinates 0..=2 of the IQ1 lattice stand for.
const IQ1_VALUES: [u8; 3] = [0xff, 0x00, 0x01];

/// Eight magnitudes an entry.
pub static IQ2_XXS: [u64; 256] = expand8(&codes::IQ2_XXS, &IQ2_VALUES);
pub static IQ2_XS: [u64; 512] = expand8(&codes::IQ2_XS, &IQ2_VALUES);
pub static IQ2_S: [u64; 1024] = expand8(&codes::IQ2_S, &IQ2_VALUES);
/// Eight values of -1, 0, 1 as i8 an entry.
pub static IQ1: [u64; 2048] = expand8(&codes::IQ1, &IQ1_VALUES);
/// Four magnitudes an entry.
pub static IQ3_XXS: [u32; 256] = expand4(&codes::IQ3_XXS, &IQ3_XXS_VALUES);
pub static IQ3_S: [u32; 512] = expand4(&codes::IQ3_S, &IQ3_S_VALUES);

/// Sign bytes by their 7 stored bits: bit 7 makes the number of minus signs even.
pub static EVEN_SIGNS: [u8; 128] = even_signs();

const fn expand8<const N: usize>(codes: &[u16; N], values: &[u8; 3]) -> [u64; N] {
    let mut grid = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 8 {
            grid[i] |= (values[(codes[i] >> (2 * j)) as usize & 3] as u64) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    grid
}

const fn expand4<const N: usize>(codes: &[u16; N], values: &[u8; 8]) -> [u32; N] {
    let mut grid = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 4 {
            grid[i] |= (values[(codes[i] >> (3 * j)) as usize & 7] as u32) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    grid
}

const fn even_signs() -> [u8; 128] {
    let mut signs = [0; 128];
    let mut i = 0;
    while i < 128 {
        signs[i] = i as u8 | ((i.count_ones() as u8 & 1) << 7);
        i += 1;
    }
    signs
}

/// `dst[j] = scale * magnitudes[j]`, negated where bit `j` of `signs` is set. `dst` has at most 8 values.
#[inline(always)]
pub(crate) fn signed(magnitudes: u64, signs: u8, scale: f32, dst: &mut [f32]) {
    let magnitudes = magnitudes.to_le_bytes();
    for (j, dst) in dst.iter_mut().enumerate() {
        let sign = u32::from(signs >> j & 1) << 31;
        *dst = f32::from_bits((scale * f32::from(magnitudes[j])).to_bits() ^ sign);
    }
}
