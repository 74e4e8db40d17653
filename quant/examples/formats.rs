//! Megabytes of f32 weights a second, by format: `cargo run --release -p rynd-quant --example formats`.
//!
//! One thread, synthetic weights: for comparing formats and versions on one machine, not machines.

use std::time::{Duration, Instant};

use rynd_quant::{EncodeError, Format};

const K: usize = 1024;
const ROWS: usize = 64;

/// Runs `work` for a quarter of a second; megabytes of weights a second.
fn rate(mut work: impl FnMut() -> Result<(), EncodeError>) -> Result<f64, EncodeError> {
    work()?;
    let start = Instant::now();
    let mut runs = 0;
    while start.elapsed() < Duration::from_millis(250) {
        work()?;
        runs += 1;
    }
    Ok((runs * K * ROWS * 4) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

fn main() -> Result<(), EncodeError> {
    // Sums of uniform numbers: near enough to the bell shape of real weights.
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let weights: Vec<f32> = (0..K * ROWS).map(|_| 0.05 * (0..6).map(|_| uniform()).sum::<f32>()).collect();
    println!("{:8} {:>6} {:>8} {:>8}", "format", "bits", "encode", "decode");
    for format in Format::all() {
        let mut blocks = vec![0; weights.len() / format.block_len() * format.block_bytes()];
        let encode = if format.has_encoder() {
            format!("{:.0}", rate(|| format.encode(&weights, K, &mut blocks, None))?)
        } else {
            "-".to_owned()
        };
        let mut decoded = vec![0.0; weights.len()];
        let decode = rate(|| {
            format.decode(&blocks, &mut decoded);
            Ok(())
        })?;
        println!("{format:8} {:>6.3} {encode:>8} {decode:>8.0}", format.bits_per_weight());
    }
    Ok(())
}
