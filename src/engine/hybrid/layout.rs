//! Which experts may lie on which GPUs: slots for what is left of the GPUs' memory.
//!
//! Slots are shared out over the layouts by the bytes of their experts, so that every layout has the same part of its
//! experts resident at most. Only layers whose other steps run on a GPU take part; any GPU may hold any of their experts.

use super::{ExpertOptions, Probe};
use crate::experts::waves::{Expert, WaveRates, share_evenly};
use crate::experts::{Grid, PoolSpec};
use crate::gpu::{SlotPool, expert_slot_bytes};
use crate::plan::{Op, Plan, Side};

/// Slots of all GPUs for one placed plan.
#[derive(Clone, Debug)]
pub struct SlotPlan {
    pub grid: Grid,
    /// By mixture layer: its `Op::Experts` step, and the GPU of its other steps; `None` when that is the CPU.
    pub layers: Vec<Option<(usize, usize)>>,
    /// By GPU.
    pub on_gpu: Vec<Vec<SlotPool>>,
    /// The pager's pools.
    pub pools: Vec<PoolSpec>,
    /// By the pager's pool: the GPU and the pool there.
    pub at: Vec<(usize, usize)>,
}

/// What is known when room for waves is set aside.
#[derive(Clone, Copy, Debug)]
pub struct WaveRoom<'a> {
    /// Tokens of a run, at most.
    pub batch: usize,
    pub rates: Option<WaveRates>,
    /// By GPU: whether its memory is the CPU's.
    pub unified: &'a [bool],
    pub probe: &'a Probe,
}

impl<'a> WaveRoom<'a> {
    /// `tiered`: experts may have to be read from the disk.
    pub fn new(options: &'a ExpertOptions, batch: usize, tiered: bool, unified: &'a [bool]) -> WaveRoom<'a> {
        // A wave reads the mapping; what a RAM tier keeps is not there, and page faults are no way to read a disk.
        WaveRoom { batch, rates: options.waves.filter(|_| !tiered), unified, probe: &options.probe }
    }

    /// Experts of a wave that has room twice in a quarter of this many bytes; 0 where waves would not pay.
    fn slots(&self, gpu: usize, expert: Expert, [experts, used]: [usize; 2], slot_bytes: u64, room: u64) -> usize {
        // With unified memory a copy brings an expert nowhere: the same RAM feeds both sides.
        let pays = |rates: &WaveRates| {
            !self.unified[gpu] && !share_evenly(rates, expert, [experts, used], self.batch).streamed.is_empty()
        };
        if let Some(slots) = self.probe.wave {
            return slots;
        }
        if self.probe.passing.is_none() && !self.rates.as_ref().is_some_and(pays) {
            return 0;
        }
        let fits = (room / 4 / (2 * slot_bytes)) as usize;
        let slots = fits.min(experts.div_ceil(WAVES_A_LAYER).max(used));
        // Less would be more submissions than work.
        if slots < used { 0 } else { slots }
    }
}

/// A layer whose experts are all missing passes in so many waves, where there is room.
const WAVES_A_LAYER: usize = 8;

impl SlotPlan {
    /// Slots in these bytes of each GPU, or in this number of slots; `None` when no layer's experts could lie there.
    pub fn new(plan: &Plan, rooms: &[u64], slots: Option<&[usize]>, waves: &WaveRoom) -> Option<SlotPlan> {
        let mut layouts = vec![];
        let mut layers = vec![];
        let mut slot_bytes = vec![]; // by layer
        let mut weights = vec![]; // of an expert, by layer
        let (mut experts, mut used) = (0, 0);
        for (at, step) in plan.steps.iter().enumerate() {
            let Op::Experts { gate, up, down, used: k, .. } = &step.op else { continue };
            let parts = [*gate, *up, *down].map(|id| plan.weight(id));
            (experts, used) = (parts[0].experts, *k);
            let bytes = parts.iter().map(|weight| weight.expert_bytes() as u64).sum::<u64>();
            weights.push(parts.iter().map(|weight| (weight.rows * weight.k) as u64).sum::<u64>());
            layouts.push((parts.map(|weight| weight.format.name()).join(" "), bytes));
            let home = match step.side {
                Side::Gpu(gpu) if (gpu as usize) < rooms.len() => Some((at, gpu as usize)),
                Side::Gpu(_) | Side::Cpu => None,
            };
            slot_bytes.push(home.and_then(|(step, _)| expert_slot_bytes(plan, step).ok()));
            layers.push(home);
        }
        if layers.iter().all(Option::is_none) {
            return None;
        }
        let grid = Grid::new(experts, used, layouts);
        let total: u64 = slot_bytes.iter().flatten().map(|bytes| bytes * experts as u64).sum();
        let mut on_gpu = vec![vec![]; rooms.len()];
        let (mut pools, mut at) = (vec![], vec![]);
        for (gpu, &room) in rooms.iter().enumerate() {
            // Layers pass through the GPU of their other steps.
            let wave = |class: usize| {
                let mut of_class = grid.class_layers(class);
                let layer = of_class.find(|&l| slot_bytes[l].is_some() && layers[l].is_some_and(|(_, at)| at == gpu));
                let Some((layer, bytes)) = layer.and_then(|layer| Some((layer, slot_bytes[layer]?))) else {
                    return (0, 0);
                };
                let expert = Expert { bytes: grid.bytes(layer), weights: weights[layer] };
                let room = room / grid.class_bytes.len() as u64;
                let slots = waves.slots(gpu, expert, [experts, used], bytes, room);
                (slots, 2 * slots as u64 * bytes)
            };
            let passing: Vec<(usize, u64)> = (0..grid.class_bytes.len()).map(wave).collect();
            let room = room.saturating_sub(passing.iter().map(|(_, bytes)| bytes).sum());
            for class in 0..grid.class_bytes.len() {
                let of_class: Vec<usize> = grid.class_layers(class).filter(|&l| slot_bytes[l].is_some()).collect();
                let Some(bytes) = of_class.first().and_then(|&layer| slot_bytes[layer]) else { continue };
                let entries = of_class.len() * experts;
                let share = bytes * entries as u64;
                let count = match slots {
                    Some(slots) => (slots[gpu] * entries).div_ceil(grid.entries()),
                    None => {
                        (u128::from(room) * u128::from(share) / u128::from(total.max(1)) / u128::from(bytes)) as usize
                    }
                }
                .min(entries);
                let steps = of_class.iter().filter_map(|&layer| layers[layer].map(|(step, _)| step)).collect();
                at.push((gpu, on_gpu[gpu].len()));
                on_gpu[gpu].push(SlotPool { steps, slots: count, wave: passing[class].0 });
                pools.push(PoolSpec { device: gpu as u8, layers: of_class, slots: count });
            }
        }
        Some(SlotPlan { grid, layers, on_gpu, pools, at })
    }

    /// Slots of all GPUs.
    pub fn slots(&self) -> usize {
        self.pools.iter().map(|pool| pool.slots).sum()
    }
}
