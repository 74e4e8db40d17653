//! The machine's read bandwidth, measured: what decode speed is held against.
//!
//! Each thread sums its own part of a buffer that no cache holds; the best of a few passes counts, because anything
//! else that runs only takes away.

use std::hint::black_box;
use std::time::Instant;

const BUFFER_BYTES: usize = 512 << 20;
const PASSES: usize = 6;

/// Bytes a second that `threads` threads read from memory.
pub fn read_bytes_per_second(threads: usize) -> f64 {
    // Written once, or every page would be the one zero page, which a cache does hold.
    let buffer = vec![1_u64; BUFFER_BYTES / size_of::<u64>()];
    let part = buffer.len().div_ceil(threads.max(1));
    let best = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for words in buffer.chunks(part) {
                    scope.spawn(move || black_box(sum(words)));
                }
            });
            start.elapsed()
        })
        .min();
    best.map_or(0.0, |time| BUFFER_BYTES as f64 / time.as_secs_f64())
}

/// Many sums at once, so that no addition waits for the one before.
fn sum(words: &[u64]) -> u64 {
    let (groups, rest) = words.as_chunks::<32>();
    let mut sums = [0_u64; 32];
    for group in groups {
        sums.iter_mut().zip(group).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}
