//! Prompts: which of a layer's missing experts pass through VRAM in waves, and which the CPU computes where they lie.
//!
//! A batch of prompt tokens picks nearly every expert. To bring one to VRAM costs its bytes over the bus whatever the number
//! of tokens that picked it; to compute it on the CPU costs its bytes in RAM or the tokens' arithmetic. Both sides work
//! at once, so the experts with the most tokens pass, as many as make the two sides end together; all or none of them are
//! cases of that. What the sides take from each other in RAM is not counted: a measured bus rate has the packing in it.

use super::rates::{GpuRates, Rates};

/// Effective rates of the two sides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WaveRates {
    /// Bytes a second from host memory into VRAM.
    pub bus: f64,
    /// Multiplications and additions a second of the GPU in a batch; infinite where unknown.
    pub gpu_ops: f64,
    /// The same of the CPU.
    pub cpu_ops: f64,
    /// Bytes a second that the CPU reads weights at.
    pub ram: f64,
    /// The same for weights that lie on disk; infinite where none do or nothing is known.
    pub disk: f64,
    /// The GPU copies while it computes. A device with one queue does one after the other.
    pub overlap: bool,
}

/// Weights that are read once, and what is done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub bytes: f64,
    /// Multiplications and additions.
    pub ops: f64,
}

/// One expert of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert {
    pub bytes: u64,
    pub weights: u64,
}

/// How a layer's missing experts are shared out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Share {
    /// Those that pass through VRAM, most tokens first.
    pub streamed: Vec<usize>,
    /// Seconds of the GPU, its resident experts included.
    pub stream_seconds: f64,
    /// Seconds of the CPU.
    pub compute_seconds: f64,
}

impl WaveRates {
    /// Of measured rates, for weights in RAM. wgpu opens one queue a device, so copies and kernels take turns.
    pub fn new(machine: &Rates, gpu: &GpuRates) -> WaveRates {
        WaveRates {
            bus: gpu.bus_bytes_per_second,
            gpu_ops: gpu.batch_ops_per_second,
            cpu_ops: machine.batch_ops_per_second,
            ram: machine.ram_bytes_per_second,
            disk: f64::INFINITY,
            overlap: false,
        }
    }

    /// Seconds to bring weights to VRAM and to compute with them there.
    pub fn stream(&self, work: Work) -> f64 {
        let (copies, kernels) = (work.bytes / self.bus, work.ops / self.gpu_ops);
        if self.overlap { copies.max(kernels) } else { copies + kernels }
    }

    /// Seconds to compute with weights where they lie in RAM.
    pub fn compute(&self, work: Work) -> f64 {
        (work.bytes / self.ram).max(work.ops / self.cpu_ops)
    }

    /// Seconds to read weights from disk, and to compute with them as they come.
    pub fn read(&self, work: Work) -> f64 {
        self.compute(work).max(work.bytes / self.disk)
    }
}

impl Expert {
    /// For this many tokens.
    pub fn work(&self, tokens: f64) -> Work {
        Work { bytes: self.bytes as f64, ops: 2.0 * self.weights as f64 * tokens }
    }
}

/// Experts of a layer that so many tokens pick at least once, when all are as likely.
pub fn touched(experts: f64, used: f64, tokens: f64) -> f64 {
    if experts == 0.0 { 0.0 } else { experts * (1.0 - (1.0 - used / experts).powf(tokens)) }
}

/// What the sides do for a layer in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settled {
    /// Picks of experts that the GPU holds.
    pub resident: u64,
    /// Seconds of the CPU, for experts that can not pass.
    pub cpu_seconds: f64,
}

/// Shares out missing experts, given as (expert, tokens that picked it), so that the slower side ends soonest, beside what
/// either does anyway.
pub fn share(rates: &WaveRates, expert: Expert, missing: &[(usize, u32)], settled: Settled) -> Share {
    let mut order: Vec<(usize, u32)> = missing.iter().copied().filter(|(_, tokens)| *tokens > 0).collect();
    order.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let compute = |tokens: u32| rates.compute(expert.work(f64::from(tokens)));
    let resident_ops = expert.work(settled.resident as f64).ops;
    let mut left = settled.cpu_seconds + order.iter().map(|(_, tokens)| compute(*tokens)).sum::<f64>();
    let mut passing = Work { bytes: 0.0, ops: resident_ops };
    let mut best = (0, rates.stream(passing), left);
    for (i, &(_, tokens)) in order.iter().enumerate() {
        let work = expert.work(f64::from(tokens));
        passing = Work { bytes: passing.bytes + work.bytes, ops: passing.ops + work.ops };
        // Sums of differences must not leave a residue where nothing is left.
        left = if i + 1 == order.len() { settled.cpu_seconds } else { left - compute(tokens) };
        let stream = rates.stream(passing);
        if stream.max(left) < best.1.max(best.2) {
            best = (i + 1, stream, left);
        }
    }
    let streamed = order[..best.0].iter().map(|(expert, _)| *expert).collect();
    Share { streamed, stream_seconds: best.1, compute_seconds: best.2 }
}

/// Shares out `experts` experts that are all missing and picked alike by so many tokens.
pub fn share_evenly(rates: &WaveRates, expert: Expert, [experts, used]: [usize; 2], tokens: usize) -> Share {
    let picked = touched(experts as f64, used as f64, tokens as f64).round().max(1.0);
    let each = ((tokens * used) as f64 / picked).round().max(1.0) as u32;
    let missing: Vec<(usize, u32)> = (0..picked as usize).map(|expert| (expert, each)).collect();
    share(rates, expert, &missing, Settled::default())
}
