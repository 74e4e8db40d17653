//! What damage, a bad converter or malice does to a file.

use super::models::Base;

/// splitmix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    8,
    9,
    31,
    40,
    0x7f,
    1 << 16,
    1 << 20,
    1 << 30,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    (1 << 63) + 32,
    u64::MAX - 1,
    u64::MAX,
];
const FLOATS: [f32; 10] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -1.0, 1e30, 1e-30, f32::MAX, 1e-45];

/// One to three changes: most of them to a field of the header, the others anywhere in it or in the weights.
pub fn mutate(base: &Base, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = base.bytes.clone();
    for _ in 0..1 + rng.below(3) {
        let len = bytes.len();
        if len < 64 {
            break;
        }
        let at = match rng.below(8) {
            0..5 => base.fields[rng.below(base.fields.len())],
            5 | 6 => rng.below(base.header),
            _ => rng.below(len),
        };
        let at = at.min(len - 8);
        match rng.below(12) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next() as u8,
            2 | 3 => bytes[at..at + 8].copy_from_slice(&NUMBERS[rng.below(NUMBERS.len())].to_le_bytes()),
            4..7 => bytes[at..at + 4].copy_from_slice(&(NUMBERS[rng.below(NUMBERS.len())] as u32).to_le_bytes()),
            7 | 8 => bytes[at..at + 4].copy_from_slice(&FLOATS[rng.below(FLOATS.len())].to_le_bytes()),
            9 => bytes.truncate(rng.below(len)),
            10 => drop(bytes.drain(at..at + rng.below((len - at).min(64)))),
            _ => {
                let part = bytes[at..at + rng.below((len - at).min(128))].to_vec();
                let to = rng.below(len);
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}
