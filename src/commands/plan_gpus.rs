//! The GPUs of this machine as `rynd plan` counts them.

use anyhow::Result;

use crate::catalog::Home;
use crate::engine::{Devices, kept_gpu_rates, measure_gpu};
use crate::experts::rig::Rig;

/// Gives the rig the GPUs that `--gpu auto` would use, measured now if they never were.
pub fn add(rig: &mut Rig, home: &Home, threads: usize, notes: &mut Vec<String>) -> Result<()> {
    let devices = Devices::list();
    // Without one the model runs on the CPU.
    let Ok(indices) = devices.automatic() else { return Ok(()) };
    let (mut gpus, mut unified) = (vec![], false);
    for index in indices {
        let adapter = devices.report(index)?;
        let known =
            kept_gpu_rates(adapter, home).map_or_else(|| measure_gpu(&devices, adapter, home, threads, None), Ok);
        let rates = match known {
            Ok(rates) => rates,
            Err(e) => {
                notes.push(format!("GPU {index} ({}) is left out, it could not be measured: {e}", adapter.name));
                continue;
            }
        };
        match (adapter.memory_bytes, adapter.unified_memory) {
            (bytes, true) => {
                unified = true;
                gpus.push((bytes.unwrap_or(rig.ram_bytes), rates));
            }
            (Some(bytes), false) => gpus.push((Rig::usable_vram(bytes), rates)),
            (None, false) => {
                notes.push(format!("GPU {index} ({}) is left out, it does not tell its memory: --vram", adapter.name));
                continue;
            }
        }
        notes.push(format!("GPU {index} ({}) measured here: {rates}", adapter.name));
    }
    rig.set_measured(&gpus, unified);
    Ok(())
}
