//! Prompts in waves: the cost model that says which experts pass through VRAM.

use rynd::experts::waves::{Expert, Settled, WaveRates, Work, share, share_evenly};

/// An expert of Qwen3-Coder-480B at Q4_K_M, 160 a layer, 8 of them picked, 62 layers.
const BIG: Expert = Expert { bytes: 28_570_000, weights: 3 * 6144 * 2560 };
/// PCIe 4, one card's arithmetic, eight channels of RAM.
const RIG: WaveRates = WaveRates { bus: 25e9, gpu_ops: 142e12, cpu_ops: 2e12, ram: 260e9, disk: 6.5e9, overlap: true };

fn near(found: f64, expected: f64, part: f64) {
    assert!((found / expected - 1.0).abs() <= part, "{found} is not {expected}");
}

/// All ways to share so few experts, by brute force.
fn least(rates: &WaveRates, missing: &[(usize, u32)], resident: u64) -> f64 {
    (0..1u32 << missing.len())
        .map(|set| {
            let mut passing = Work { bytes: 0.0, ops: BIG.work(resident as f64).ops };
            let mut left = 0.0;
            for (i, &(_, tokens)) in missing.iter().enumerate() {
                let work = BIG.work(f64::from(tokens));
                if set >> i & 1 == 1 {
                    passing = Work { bytes: passing.bytes + work.bytes, ops: passing.ops + work.ops };
                } else {
                    left += rates.compute(work);
                }
            }
            rates.stream(passing).max(left)
        })
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn layers_of_the_480b_stream_over_pcie_4_at_the_known_rates() {
    for (tokens, known) in [(2048, 181.0), (4096, 361.0), (8192, 723.0)] {
        // Arithmetic takes less than the copies.
        let work = BIG.work((tokens * 8) as f64 / 160.0);
        let seconds = 62.0 * RIG.stream(Work { bytes: 160.0 * work.bytes, ops: 160.0 * work.ops });
        near(f64::from(tokens) / seconds, known, 0.05);
    }
}

#[test]
fn copies_and_kernels_add_up_where_they_take_turns() {
    let work = Work { bytes: 25e9, ops: 71e12 };
    near(RIG.stream(work), 1.0, 1e-9);
    near(WaveRates { overlap: false, ..RIG }.stream(work), 1.5, 1e-9);
}

#[test]
fn few_tokens_stay_on_the_cpu_and_many_pass() {
    // One token an expert: RAM is faster than the bus.
    let few = share_evenly(&RIG, BIG, [160, 8], 4);
    assert!(few.streamed.len() < 6, "{few:?}");
    let slow = WaveRates { ram: 25e9, cpu_ops: 1e10, ..RIG };
    assert_eq!(share_evenly(&slow, BIG, [160, 8], 8192).streamed.len(), 160);
    let no_bus = WaveRates { bus: 1.0, ..RIG };
    assert!(share_evenly(&no_bus, BIG, [160, 8], 8192).streamed.is_empty());
    assert_eq!(share(&RIG, BIG, &[], Settled::default()).streamed, Vec::<usize>::new());
    assert_eq!(share(&RIG, BIG, &[(3, 0)], Settled::default()).streamed, Vec::<usize>::new(), "nobody picked it");
}

#[test]
fn the_sides_end_together_and_the_most_picked_experts_pass() {
    let missing: Vec<(usize, u32)> = (0..120).map(|expert| (expert, 20 + (expert as u32 * 37) % 180)).collect();
    let found = share(&RIG, BIG, &missing, Settled::default());
    assert!(!found.streamed.is_empty() && found.streamed.len() < 120, "{found:?}");
    near(found.stream_seconds, found.compute_seconds, 0.05);
    let tokens = |expert: usize| missing[expert].1;
    let least_passing = found.streamed.iter().map(|&e| tokens(e)).min().unwrap_or(0);
    let most_left = (0..120).filter(|e| !found.streamed.contains(e)).map(tokens).max().unwrap_or(0);
    assert!(least_passing >= most_left);
    let alone = share(&WaveRates { bus: 1.0, ..RIG }, BIG, &missing, Settled::default());
    assert!(found.stream_seconds.max(found.compute_seconds) < 0.8 * alone.compute_seconds, "both work at once");
}

#[test]
fn no_other_share_is_faster_than_by_one_expert() {
    for seed in 1..30_u32 {
        let missing: Vec<(usize, u32)> =
            (0..10).map(|i| (i, seed.wrapping_mul(2_654_435_761).rotate_left(i as u32 * 3) % 400)).collect();
        let resident = u64::from(seed % 3) * 4000;
        for overlap in [false, true] {
            let rates = WaveRates { overlap, cpu_ops: 1e11 * f64::from(seed), ..RIG };
            let found = share(&rates, BIG, &missing, Settled { resident, cpu_seconds: 0.0 });
            let seconds = found.stream_seconds.max(found.compute_seconds);
            let most = rates.compute(BIG.work(400.0)).max(rates.stream(BIG.work(400.0)));
            assert!(seconds <= least(&rates, &missing, resident) + most, "{missing:?}");
        }
    }
}

#[test]
fn resident_experts_take_the_gpus_time() {
    let missing: Vec<(usize, u32)> = (0..60).map(|expert| (expert, 100)).collect();
    let free = share(&RIG, BIG, &missing, Settled::default()).streamed.len();
    let rates = WaveRates { gpu_ops: 10e12, overlap: false, ..RIG };
    let busy = share(&rates, BIG, &missing, Settled { resident: 200 * 500, cpu_seconds: 0.0 }).streamed.len();
    assert!(busy < free, "{busy} {free}");
}

#[test]
fn what_the_cpu_must_read_from_disk_leaves_the_rest_to_the_gpu() {
    let missing: Vec<(usize, u32)> = (0..60).map(|expert| (expert, 50)).collect();
    let free = share(&RIG, BIG, &missing, Settled::default()).streamed.len();
    let from_disk = 40.0 * RIG.read(BIG.work(50.0));
    near(from_disk, 40.0 * 28.57e6 / 6.5e9, 1e-9);
    let reading = share(&RIG, BIG, &missing, Settled { resident: 0, cpu_seconds: from_disk });
    assert!(free < 60 && reading.streamed.len() == 60, "{free}, {reading:?}");
    near(reading.compute_seconds, from_disk, 1e-9);
}
