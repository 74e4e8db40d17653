//! What a machine has: memory by tier, and the rates at which rynd can really use it.
//!
//! Rates are effective ones. Of the peaks that makers print, kernels reach about 65% on graphics memory and 72 to 75%
//! on RAM; a measured rate needs no such factor. Sizes are bytes; "24G" is 24 times 2^30, as memory is sold.

use super::rates::GpuRates;

/// Memory that rynd may fill with weights, cache and state, and its speeds.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Rig {
    pub name: String,
    /// One number a graphics card: bytes that can be used of it.
    pub vram_bytes: Vec<u64>,
    /// Bytes a second of one card.
    pub vram_rate: f64,
    /// Bytes of RAM that can be used.
    pub ram_bytes: u64,
    /// Bytes a second that the CPU reads weights at.
    pub ram_rate: f64,
    /// Bytes a second between RAM and one card.
    pub bus_rate: f64,
    /// Bytes a second of explicit reads from the disk.
    pub disk_rate: f64,
    /// The GPU uses the same memory as the CPU: `vram_bytes` is all of it, `ram_bytes` is 0.
    pub unified: bool,
    /// Seconds that a layer loses to launches and to meeting the other side; 0 without a GPU.
    pub sync_seconds: f64,
    /// Multiplications and additions a second in a batch of prompt tokens, of all cards together; `None` where unknown,
    /// and then only bytes are counted.
    pub gpu_ops: Option<f64>,
    /// The same of the CPU.
    pub cpu_ops: Option<f64>,
    /// The figures were measured on this machine, not taken from a data sheet.
    pub measured: bool,
}

/// What graphics memory keeps for itself: the desktop, the driver, staging, activations; and a tenth against
/// fragments.
fn usable_vram(bytes: u64) -> u64 {
    (bytes / 10 * 9).saturating_sub(1_000_000_000)
}

/// What the operating system needs beside rynd.
fn usable_ram(bytes: u64) -> u64 {
    bytes - (bytes / 50).max(1 << 30).min(bytes)
}

/// Launches and meetings of one layer, from the hybrid runs of others.
pub const SYNC_SECONDS: f64 = 95e-6;
/// Dispatches of one layer of a mixture: 461 of 48 layers, the head counted in, in the Qwen3 30B.
const DISPATCHES: f64 = 9.6;
/// Shares of the peak that kernels reach.
pub const VRAM_SHARE: f64 = 0.65;
pub const RAM_SHARE: f64 = 0.75;
/// Eight channels are harder to fill than two.
pub const MANY_CHANNEL_SHARE: f64 = 0.725;
/// Of the half-precision peak, in a batch.
pub const OPS_SHARE: f64 = 0.5;
const GIB: u64 = 1 << 30;

/// Names of the built-in rigs, with what they are.
pub const RIGS: [(&str, &str); 4] = [
    ("m3-ultra-256", "M3 Ultra, 256 GB unified at 819 GB/s, SSD 5.5 GB/s"),
    ("4x24g-256-8ch", "4 cards of 24 GB at 936 GB/s, 256 GB DDR5-5600 in 8 channels, PCIe 4"),
    ("4x24g-256-2ch", "4 cards of 24 GB at 936 GB/s, 256 GB DDR5-5600 in 2 channels, PCIe 4"),
    ("1x24g-128", "1 card of 24 GB at 936 GB/s, 128 GB DDR5-5600 in 2 channels, PCIe 4, NVMe 6.5 GB/s"),
];

impl Rig {
    /// A built-in rig.
    pub fn named(name: &str) -> Option<Rig> {
        let cards = |n: usize| vec![usable_vram(24 * GIB); n];
        let base = Rig {
            name: RIGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?.0.to_owned(),
            vram_bytes: vec![],
            vram_rate: 936e9 * VRAM_SHARE,
            ram_bytes: 0,
            ram_rate: 89.6e9 * RAM_SHARE,
            bus_rate: 25e9,
            disk_rate: 6.5e9,
            unified: false,
            sync_seconds: SYNC_SECONDS,
            gpu_ops: None,
            cpu_ops: None,
            measured: false,
        };
        Some(match base.name.as_str() {
            "m3-ultra-256" => Rig {
                vram_bytes: vec![usable_ram(256 * GIB)],
                vram_rate: 819e9 * VRAM_SHARE,
                bus_rate: 819e9 * VRAM_SHARE,
                disk_rate: 5.5e9,
                gpu_ops: Some(28e12 * OPS_SHARE),
                unified: true,
                ..base
            },
            "4x24g-256-8ch" => Rig {
                vram_bytes: cards(4),
                gpu_ops: Some(4.0 * 71e12 * OPS_SHARE),
                ram_bytes: usable_ram(256 * GIB),
                ram_rate: 358.4e9 * MANY_CHANNEL_SHARE,
                ..base
            },
            "4x24g-256-2ch" => Rig {
                vram_bytes: cards(4),
                ram_bytes: usable_ram(256 * GIB),
                gpu_ops: Some(4.0 * 71e12 * OPS_SHARE),
                ..base
            },
            _ => {
                Rig { vram_bytes: cards(1), ram_bytes: usable_ram(128 * GIB), gpu_ops: Some(71e12 * OPS_SHARE), ..base }
            }
        })
    }

    /// A machine without cards, by what was measured or is assumed of it.
    pub fn cpu_only(name: &str, ram_bytes: u64, ram_rate: f64, disk_rate: f64) -> Rig {
        Rig {
            name: name.to_owned(),
            vram_bytes: vec![],
            vram_rate: 936e9 * VRAM_SHARE,
            ram_bytes,
            ram_rate,
            bus_rate: 25e9,
            disk_rate,
            unified: false,
            sync_seconds: 0.0,
            gpu_ops: None,
            cpu_ops: None,
            measured: false,
        }
    }

    /// Gives the rig these cards, by their nominal sizes.
    pub fn set_cards(&mut self, bytes: &[u64]) {
        self.vram_bytes = bytes.iter().map(|&n| usable_vram(n)).collect();
        self.sync_seconds = if bytes.is_empty() { 0.0 } else { SYNC_SECONDS };
        self.unified = false;
    }

    /// Gives the rig GPUs that were measured: bytes of each that can be used, and its rates. `unified` ones share the
    /// memory of the CPU, which then is theirs.
    pub fn set_measured(&mut self, gpus: &[(u64, GpuRates)], unified: bool) {
        let Some((_, first)) = gpus.first() else { return };
        self.unified = unified;
        self.vram_bytes = gpus.iter().map(|(bytes, _)| *bytes).collect();
        if unified {
            self.vram_bytes = vec![std::mem::take(&mut self.ram_bytes)];
        }
        // What lies on several cards is read from one after the other.
        let (all, seconds) = gpus.iter().fold((0.0, 0.0), |(all, seconds), (bytes, rates)| {
            let bytes = (*bytes).max(1) as f64;
            (all + bytes, seconds + bytes / rates.vram_bytes_per_second)
        });
        self.vram_rate = all / seconds;
        let rates = || gpus.iter().map(|(_, rates)| rates);
        self.bus_rate = match unified {
            true => self.vram_rate,
            false => rates().map(|rates| rates.bus_bytes_per_second).fold(f64::INFINITY, f64::min),
        };
        let of_layer = |rates: &GpuRates| DISPATCHES * rates.dispatch_seconds + rates.read_back_seconds;
        self.sync_seconds = rates().map(of_layer).fold(of_layer(first), f64::max);
        self.gpu_ops = Some(rates().map(|rates| rates.batch_ops_per_second).sum());
    }

    /// All usable VRAM.
    pub fn vram(&self) -> u64 {
        self.vram_bytes.iter().sum()
    }

    /// What a card of so many bytes keeps for rynd.
    pub fn usable_vram(bytes: u64) -> u64 {
        usable_vram(bytes)
    }

    /// Bytes of RAM of which this is the usable part.
    pub fn usable_ram(bytes: u64) -> u64 {
        usable_ram(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(vram: f64, bus: f64) -> GpuRates {
        GpuRates {
            vram_bytes_per_second: vram,
            bus_bytes_per_second: bus,
            batch_ops_per_second: 1e13,
            dispatch_seconds: 2e-6,
            read_back_seconds: 4e-5,
        }
    }

    #[test]
    fn measured_gpus_take_the_place_of_what_is_assumed_of_cards() {
        let mut rig = Rig::cpu_only("here", 64 << 30, 5e10, 5e9);
        rig.set_measured(&[(8 << 30, gpu(8e11, 2e10)), (8 << 30, gpu(4e11, 1e10))], false);
        // Half of the bytes at each rate.
        assert!((rig.vram_rate - 2.0 / (1.0 / 8e11 + 1.0 / 4e11)).abs() < 1.0, "{rig:?}");
        assert_eq!((rig.bus_rate, rig.gpu_ops, rig.vram()), (1e10, Some(2e13), 16 << 30));
        assert!((rig.sync_seconds - 59.2e-6).abs() < 1e-9 && rig.ram_bytes == 64 << 30);
        let mut shared = Rig::cpu_only("here", 64 << 30, 5e10, 5e9);
        shared.set_measured(&[(1 << 30, gpu(1e11, 2e10))], true);
        assert_eq!((shared.vram(), shared.ram_bytes, shared.bus_rate), (64 << 30, 0, 1e11));
    }
}
