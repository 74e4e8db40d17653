//! How fast the kernels are, beside what the machine can do.
//!
//! `cargo bench -p rynd-quant --bench kernels [-- FORMAT.. [vec] [mat] [designs] [LEVEL]]`. Products with one token are
//! given in GB/s of weights that come from memory (more bytes than the caches hold) and as a share of the measured read
//! bandwidth; products with many tokens in G multiply-adds a second and as a share of the measured peak of `vpdpbusd`.
//! `designs` times the designs of a format in turn, piece by piece, and keeps each one's best: on a busy machine nothing
//! else compares. On a shared machine compare figures of one run only.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use rynd_quant::{ActKind, ActView, Acts, Format, Kernels, Level, OutView, Tokens};

const K: usize = 1536;
/// Bytes of weights that are read for one figure in GB/s.
const FROM_MEMORY: usize = 600 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let level = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon].into_iter().find(|level| has(level.name()));
    let kernels = level.map_or(Some(Kernels::get()), Kernels::at);
    let Some(kernels) = kernels else { return eprintln!("this machine does not run that level") };
    let named: Vec<Format> = args.iter().filter_map(|arg| Format::from_name(arg)).collect();
    let all = [
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::IQ4_NL,
        Format::IQ4_XS,
        Format::Q2_K,
        Format::Q3_K,
        Format::MXFP4,
        Format::BF16,
        Format::F16,
        Format::F32,
    ];
    let formats = if named.is_empty() { all.to_vec() } else { named };
    let everything = !has("vec") && !has("mat");

    let weights = noise_bytes(if has("designs") { FROM_MEMORY / 2 } else { FROM_MEMORY });
    if has("designs") {
        return designs(kernels, &formats, &weights);
    }
    let peak = dot_peak();
    println!("level {}; int8 dot peak of one thread: {peak:.0} GMAC/s", kernels.level().name());
    if has("vec") || everything {
        let reads = [1, 2].map(|threads| read_bandwidth(&weights, threads));
        println!("read bandwidth: {:.1} GB/s with 1 thread, {:.1} with 2", reads[0], reads[1]);
        println!("\n| one token | 1 thread GB/s | of read | 2 threads GB/s | of read | from cache GB/s |");
        println!("|--|--|--|--|--|--|");
        for format in &formats {
            let [one, two] = [1, 2].map(|threads| matvec(kernels, *format, &weights, threads));
            let cached = matvec(kernels, *format, &weights[..PIECE], 1);
            let [a, b] = [one / reads[0] * 100.0, two / reads[1] * 100.0];
            println!("| {format} | {one:.1} | {a:.0}% | {two:.1} | {b:.0}% | {cached:.1} |");
        }
    }
    if has("mat") || everything {
        println!("\n| GMAC/s, 1 thread | 1 token | 2 | 8 | 64 | 512 | of peak | 512, k = 8960 |");
        println!("|--|--|--|--|--|--|--|--|");
        for format in &formats {
            let rates = [1, 2, 8, 64, 512].map(|tokens| matmul(kernels, *format, &weights, K, tokens));
            let deep = matmul(kernels, *format, &weights, 8960, 512);
            let rates_text = rates.map(|rate| format!("{rate:.1}")).join(" | ");
            println!("| {format} | {rates_text} | {:.0}% | {deep:.1} |", rates[4] / peak * 100.0);
        }
    }
}

/// Bytes whose every even-aligned pair is a small positive f16, so that all scales are sane.
fn noise_bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state & 0x2fff_2fff_2fff_2fff).to_le_bytes());
    }
    bytes
}

/// Seconds of a typical undisturbed piece of work: the 10th percentile. The machine is often shared, and pieces of
/// less than a millisecond are mostly either disturbed or not.
fn typical(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 10).copied().unwrap_or(f64::NAN)
}

/// Times each of `pieces` on `threads` threads that start each piece together; the slowest thread counts.
fn timed(threads: usize, pieces: usize, work: impl Fn(usize, usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let times: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let run = |thread| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                let piece = |piece| {
                    if threads > 1 {
                        barrier.wait();
                    }
                    let start = Instant::now();
                    work(thread, piece);
                    start.elapsed().as_secs_f64()
                };
                (0..pieces).map(piece).collect()
            })
        };
        let handles: Vec<_> = (0..threads).map(run).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    typical((0..pieces).map(|piece| times.iter().map(|times| times[piece]).fold(0.0, f64::max)).collect())
}

/// Bytes of weights in a piece of reading.
const PIECE: usize = 8 << 20;

/// Sums the first word of every cache line, which costs nothing beside the reading; four streams and prefetching give
/// the machine every chance.
fn read_bandwidth(bytes: &[u8], threads: usize) -> f64 {
    let share = PIECE / threads;
    let seconds = timed(threads, bytes.len() / PIECE, |thread, piece| {
        let lines = bytes[piece * PIECE + thread * share..][..share].as_chunks::<64>().0;
        let streams: Vec<&[[u8; 64]]> = lines.chunks_exact(lines.len() / 4).collect();
        let mut sum = 0u64;
        for i in 0..streams[0].len() {
            for stream in &streams {
                #[cfg(target_arch = "x86_64")]
                {
                    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    // SAFETY: a hint only; it never faults.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(stream.as_ptr().wrapping_add(i + 32).cast()) };
                }
                sum = sum.wrapping_add(u64::from(stream[i][0]));
            }
        }
        black_box(sum);
    });
    PIECE as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
fn dot_peak() -> f64 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn spin(rounds: usize) -> i32 {
        let mut sums = [_mm512_set1_epi32(1); 14];
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi32(sum)).sum()
    }
    if Level::Avx512.available() {
        const ROUNDS: usize = 20_000;
        // SAFETY: the features were detected.
        let seconds = timed(1, 300, |_, _| _ = black_box(unsafe { spin(ROUNDS) }));
        return (ROUNDS * 14 * 64) as f64 / seconds / 1e9;
    }
    f64::NAN
}

#[cfg(not(target_arch = "x86_64"))]
fn dot_peak() -> f64 {
    f64::NAN
}

fn activations(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 251) as f32 / 125.0 - 1.0).collect()
}

fn view<'a>(kind: ActKind, k: usize, x: &'a [f32], acts: &'a mut Acts) -> ActView<'a> {
    if kind == ActKind::F32 { ActView::f32(x, k) } else { acts.quantise(kind, k, x) }
}

fn matvec(kernels: &Kernels, format: Format, weights: &[u8], threads: usize) -> f64 {
    let linear = kernels.linear(format);
    let row_bytes = format.row_bytes(K).unwrap_or_default();
    let (x, mut acts) = (activations(K), Acts::default());
    let act = view(linear.act(), K, &x, &mut acts).row(0);
    let calls = PIECE / threads / (64 * row_bytes);
    let pieces = weights.len() / PIECE;
    let seconds = timed(threads, if pieces > 1 { pieces } else { 50 }, |thread, piece| {
        let mut out = [0f32; 64];
        for call in 0..calls {
            let first = if pieces > 1 { piece * PIECE + (thread * calls + call) * 64 * row_bytes } else { 0 };
            linear.matvec(&weights[first..][..64 * row_bytes], K, act, &mut out);
        }
        black_box(out);
    });
    (calls * threads * 64 * row_bytes) as f64 / seconds / 1e9
}

fn matmul(kernels: &Kernels, format: Format, weights: &[u8], k: usize, tokens: usize) -> f64 {
    let linear = kernels.linear(format);
    let k = k / format.block_len() * format.block_len();
    let row_bytes = format.row_bytes(k).unwrap_or_default();
    let (x, mut acts) = (activations(k * tokens), Acts::default());
    let acts = view(linear.act(), k, &x, &mut acts);
    let mut out = vec![0f32; 64 * tokens];
    // 64 rows a call, as the executor does; pieces of some 100 microseconds, their weights from memory.
    let calls = (20_000_000 / (64 * tokens * k)).max(1);
    let bytes = 64 * row_bytes;
    let mut at = 0;
    let piece = |_| {
        let start = Instant::now();
        for _ in 0..calls {
            at = if at + 2 * bytes > weights.len() { 0 } else { at + bytes };
            let into = OutView::new(&mut out, 64);
            // SAFETY: `out` is alive and ours.
            unsafe { linear.matmul(&weights[at..][..bytes], k, 64, &acts, Tokens::all(&acts), into) };
        }
        start.elapsed().as_secs_f64()
    };
    let seconds = typical((0..200).map(piece).collect());
    (calls * 64 * k * tokens) as f64 / seconds / 1e9
}

/// Best GB/s of weights of each design for 1 to 16 tokens, from memory and from the caches.
fn designs(kernels: &Kernels, formats: &[Format], weights: &[u8]) {
    const ROWS: usize = 64;
    // Tokens, and whether the weights come from memory.
    const CASES: [(usize, bool); 9] =
        [(1, true), (2, true), (3, true), (4, true), (8, true), (16, true), (1, false), (2, false), (4, false)];
    println!("level {}, 1 thread; GB/s of weights, best of many pieces in turn", kernels.level().name());
    println!("| format | design | from memory: 1 | 2 | 3 | 4 | 8 | 16 | from cache: 1 | 2 | 4 |");
    println!("|--|--|--|--|--|--|--|--|--|--|--|");
    for format in formats {
        let mut weights = weights.to_vec();
        if *format == Format::MXFP4 {
            // Exponents near 1: products below the normal numbers would take microcode.
            weights.chunks_mut(format.block_bytes()).for_each(|block| block[0] = 120);
        }
        let designs = kernels.designs(*format);
        let row_bytes = format.row_bytes(K).unwrap_or_default();
        let bytes = ROWS * row_bytes;
        let mut rates = vec![String::new(); designs.len()];
        for (tokens, from_memory) in CASES {
            let x = activations(K * tokens);
            let calls = (16 / tokens).max(1);
            let mut best = vec![f64::INFINITY; designs.len()];
            let mut at = 0;
            for _ in 0..if from_memory { 200 } else { 60 } {
                for ((_, linear), best) in designs.iter().zip(&mut best) {
                    let mut acts = Acts::default();
                    let acts = view(linear.act(), K, &x, &mut acts);
                    let mut out = vec![0f32; ROWS * tokens];
                    let start = Instant::now();
                    for _ in 0..calls {
                        if from_memory {
                            at = if at + 2 * bytes > weights.len() { 0 } else { at + bytes };
                        }
                        if tokens == 1 {
                            linear.matvec(&weights[at..][..bytes], K, acts.row(0), &mut out);
                        } else {
                            let into = OutView::new(&mut out, ROWS);
                            // SAFETY: `out` is alive and ours.
                            unsafe { linear.matmul(&weights[at..][..bytes], K, ROWS, &acts, Tokens::all(&acts), into) };
                        }
                    }
                    *best = best.min(start.elapsed().as_secs_f64() / (calls * bytes) as f64);
                    black_box(out);
                }
            }
            for (rates, best) in rates.iter_mut().zip(best) {
                rates.push_str(&format!(" {:.1} |", 1e-9 / best));
            }
        }
        for ((design, _), rates) in designs.iter().zip(rates) {
            println!("| {format} | {} |{rates}", design.name());
        }
    }
}
