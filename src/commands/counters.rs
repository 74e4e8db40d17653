//! What a benchmark takes of each GPU: counters a token, and time by kernel.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use super::numbers;
use crate::engine::{Engine, Gpu, Times};

/// What one GPU did for a token of a test, on average.
#[derive(Debug, Serialize)]
pub struct GpuCounts {
    gpu: usize,
    weight_bytes: f64,
    dispatches: f64,
    passes: f64,
    submits: f64,
    read_backs: f64,
    read_back_bytes: f64,
    written_bytes: f64,
    /// Experts of a prompt that passed through, in the GPU's layout.
    streamed_bytes: f64,
    /// By kernel: with --profile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<KernelTime>,
}

/// Dispatches of a kernel in one run of a test, and what they took.
#[derive(Debug, Serialize)]
pub struct KernelTime {
    kernel: String,
    dispatches: u64,
    ms: f64,
}

/// The counters of every GPU, over so many tokens.
pub fn counts(engine: &Engine, tokens: usize) -> Vec<GpuCounts> {
    let each = |n: u64| n as f64 / tokens as f64;
    engine
        .gpus()
        .iter()
        .map(|gpu| {
            let c = gpu.counters();
            GpuCounts {
                gpu: gpu.device().report().index,
                weight_bytes: each(c.weight_bytes),
                dispatches: each(c.dispatches),
                passes: each(c.passes),
                submits: each(c.submits),
                read_backs: each(c.read_backs),
                read_back_bytes: each(c.read_back_bytes),
                written_bytes: each(c.written_bytes),
                streamed_bytes: each(c.streamed_bytes),
                kernels: vec![],
            }
        })
        .collect()
}

impl GpuCounts {
    /// The kernels' times of a run that was timed.
    pub fn add_times(&mut self, gpu: &Gpu) {
        let row = |t: Times| KernelTime { kernel: t.kernel, dispatches: t.dispatches, ms: t.seconds * 1e3 };
        self.kernels = gpu.times().into_iter().map(row).collect();
    }
}

/// What a token of each test takes of each GPU, and the kernels' times.
pub fn print(out: &mut impl Write, rows: &[(String, &GpuCounts)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<16} {:>3} {:>10} {:>10} {:>7} {:>8} {:>10} {:>10} {:>10} {:>10}",
        "a token of",
        "gpu",
        "weights",
        "dispatches",
        "passes",
        "submits",
        "read-backs",
        "read back",
        "written",
        "streamed"
    )?;
    for (test, gpu) in rows {
        let size = |bytes: f64| numbers::bytes(bytes as u64);
        writeln!(
            out,
            "{:<16} {:>3} {:>10} {:>10.1} {:>7.2} {:>8.2} {:>10.2} {:>10} {:>10} {:>10}",
            test,
            gpu.gpu,
            size(gpu.weight_bytes),
            gpu.dispatches,
            gpu.passes,
            gpu.submits,
            gpu.read_backs,
            size(gpu.read_back_bytes),
            size(gpu.written_bytes),
            size(gpu.streamed_bytes)
        )?;
    }
    for (test, gpu) in rows.iter().filter(|(_, gpu)| !gpu.kernels.is_empty()) {
        let total: f64 = gpu.kernels.iter().map(|kernel| kernel.ms).sum();
        writeln!(out, "\n{test} on gpu {}: {total:.2} ms in kernels", gpu.gpu)?;
        for kernel in &gpu.kernels {
            let share = 100.0 * kernel.ms / total;
            writeln!(
                out,
                "  {:<24} {:>7} dispatches {:>10.2} ms {share:>5.1}%",
                kernel.kernel, kernel.dispatches, kernel.ms
            )?;
        }
    }
    Ok(())
}
