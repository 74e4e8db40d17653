//! How fast this machine's GPUs are: what is kept of them, measured where nothing is.

use super::EngineError;
use crate::catalog::Home;
use crate::experts::rates::{GpuRates, Rates};
use crate::gpu::{AdapterReport, Devices, Handicap, measure};

/// What is kept of an adapter; `None` when it was never measured.
pub fn kept_gpu_rates(adapter: &AdapterReport, home: &Home) -> Option<GpuRates> {
    Rates::gpu(home, &adapter.rates_key())
}

/// Measures an adapter and keeps the figures. It takes half a second and, while it lasts, up to half a gigabyte of the
/// GPU's memory, or half of `budget` bytes.
pub fn measure_gpu(
    devices: &Devices,
    adapter: &AdapterReport,
    home: &Home,
    threads: usize,
    budget: Option<u64>,
) -> Result<GpuRates, EngineError> {
    // A device of its own: with it goes all that was allocated.
    let device = devices.open(adapter.index, budget, Handicap::default())?;
    let rates = measure(&device)?;
    Rates::keep_gpu(home, threads, &adapter.rates_key(), rates);
    Ok(rates)
}
