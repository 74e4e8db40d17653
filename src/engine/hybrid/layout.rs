//! Which experts may lie on which GPUs: slots for what is left of the GPUs' memory.
//!
//! Slots are shared out over the layouts by the bytes of their experts, so that every layout has the same part of its
//! experts resident at most. Any GPU may hold any expert of any layer, wherever the layer's other steps run.
//! What is left depends on the context: there are slots for each size of the caches, most of them for the smallest.

use super::Probe;
use crate::engine::{EngineConfig, kept_gpu_rates};
use crate::experts::rates::Rates;
use crate::experts::waves::{Expert, WaveRates, share_evenly};
use crate::experts::{Grid, PoolSpec};
use crate::gpu::{AdapterReport, SlotPool, expert_slot_bytes};
use crate::plan::{Plan, Side};

/// Bytes of each GPU that are left for slots when the caches have room for so many pages.
#[derive(Clone, Debug)]
pub struct Rooms {
    pub pages: usize,
    pub bytes: Vec<u64>, // by GPU
}

/// Slots that the pager's pools have when the caches have room for so many pages.
#[derive(Clone, Debug)]
pub struct Stage {
    pub pages: usize,
    pub slots: Vec<usize>, // by the pager's pool
}

/// Slots of all GPUs for one placed plan.
#[derive(Clone, Debug)]
pub struct SlotPlan {
    pub grid: Grid,
    /// By mixture layer: its experts' step, and the GPU of its other steps, if that is not the CPU. `None` when no GPU can
    /// compute its experts.
    pub layers: Vec<Option<(usize, Option<usize>)>>,
    /// By GPU.
    pub on_gpu: Vec<Vec<SlotPool>>,
    /// The pager's pools, as they are at the start.
    pub pools: Vec<PoolSpec>,
    /// By the pager's pool: the GPU and the pool there.
    pub at: Vec<(usize, usize)>,
    /// From the start to the whole context.
    pub stages: Vec<Stage>,
    /// By GPU: by what it is decided which missing experts of a prompt pass through it; `None`: the CPU computes all.
    pub waves: Vec<Option<WaveRates>>,
}

/// What is known when room for waves is set aside.
#[derive(Clone, Debug)]
pub struct WaveRoom<'a> {
    /// Tokens of a run, at most.
    batch: usize,
    /// By GPU; `None` where experts should not pass, or nothing says how fast that is.
    rates: Vec<Option<WaveRates>>,
    probe: &'a Probe,
}

impl<'a> WaveRoom<'a> {
    /// By the rates that are kept of the machine and of these GPUs.
    pub fn new(config: &'a EngineConfig, adapters: &[AdapterReport], batch: usize) -> WaveRoom<'a> {
        let probe = &config.experts.probe;
        let kept = |adapter: &AdapterReport| {
            let home = config.rates.as_ref()?;
            Some(WaveRates::new(&Rates::load(home, config.threads())?, &kept_gpu_rates(adapter, home)?))
        };
        let rates = |adapter: &AdapterReport| {
            // With unified memory a copy brings an expert nowhere: the same RAM feeds both sides.
            let passes = !adapter.unified_memory || probe.wave.is_some();
            passes.then(|| probe.rates.or_else(|| kept(adapter))).flatten()
        };
        WaveRoom { batch, rates: adapters.iter().map(rates).collect(), probe }
    }

    /// Experts of a wave that has room twice in this many bytes; 0 where waves would not pay.
    fn slots(&self, gpu: usize, expert: Expert, [experts, used]: [usize; 2], slot_bytes: u64, room: u64) -> usize {
        let pays = |rates: &WaveRates| !share_evenly(rates, expert, [experts, used], self.batch).streamed.is_empty();
        if let Some(slots) = self.probe.wave {
            return slots;
        }
        if self.probe.passing.is_none() && !self.rates[gpu].as_ref().is_some_and(pays) {
            return 0;
        }
        let fits = (room / (2 * slot_bytes)) as usize;
        let slots = fits.min(experts.div_ceil(WAVES_A_LAYER).max(used));
        // Less would be more submissions than work.
        if slots < used { 0 } else { slots }
    }
}

/// A layer whose experts are all missing passes in so many waves, where there is room.
const WAVES_A_LAYER: usize = 8;
/// What waves take of the bytes that are there for experts: one in so many at most.
const WAVES_PART: u64 = 4;

impl SlotPlan {
    /// Slots in these bytes, the smallest caches first; or `slots` at the start, of which larger caches take what they would
    /// of those bytes. `None` when no layer's experts could lie there.
    pub fn new(plan: &Plan, rooms: &[Rooms], slots: Option<&[usize]>, waves: &WaveRoom) -> Option<SlotPlan> {
        let first = rooms.first()?;
        let mut layouts = vec![];
        let mut layers = vec![];
        let mut slot_bytes = vec![]; // by layer
        let mut weights = vec![]; // of an expert, by layer
        let (mut experts, mut used) = (0, 0);
        for mixture in &plan.mixtures {
            let (op, at) = (mixture.experts, mixture.experts_at);
            let parts = [op.gate, op.up, op.down].map(|id| plan.weight(id));
            (experts, used) = (parts[0].experts, op.used);
            let bytes = parts.iter().map(|weight| weight.expert_bytes() as u64).sum::<u64>();
            weights.push(parts.iter().map(|weight| (weight.rows * weight.k) as u64).sum::<u64>());
            layouts.push((parts.map(|weight| weight.format.name()).join(" "), bytes));
            let home = match mixture.side {
                Side::Gpu(gpu) if (gpu as usize) < first.bytes.len() => Some(gpu as usize),
                Side::Gpu(_) | Side::Cpu => None,
            };
            let bytes = expert_slot_bytes(plan, at).ok();
            slot_bytes.push(bytes);
            layers.push(bytes.map(|_| (at, home)));
        }
        // Who keeps all layers from GPUs wants none of them used.
        if !layers.iter().flatten().any(|(_, home)| home.is_some()) {
            return None;
        }
        let grid = Grid::new(experts, used, layouts);
        let total: u64 = slot_bytes.iter().flatten().map(|bytes| bytes * experts as u64).sum();
        let mut on_gpu = vec![vec![]; first.bytes.len()];
        let (mut pools, mut at) = (vec![], vec![]);
        let mut stages: Vec<Stage> = rooms.iter().map(|room| Stage { pages: room.pages, slots: vec![] }).collect();
        for gpu in 0..first.bytes.len() {
            // A part of what there is at the start, and no more than is left when the whole context is used.
            let for_waves = rooms.iter().map(|room| room.bytes[gpu]).fold(first.bytes[gpu] / WAVES_PART, u64::min);
            // Layers pass through the GPU of their other steps.
            let wave = |class: usize| {
                let mut of_class = grid.class_layers(class);
                let layer = of_class.find(|&l| layers[l].is_some_and(|(_, home)| home == Some(gpu)));
                let Some((layer, bytes)) = layer.and_then(|layer| Some((layer, slot_bytes[layer]?))) else {
                    return (0, 0);
                };
                let expert = Expert { bytes: grid.bytes(layer), weights: weights[layer] };
                let slots = waves.slots(gpu, expert, [experts, used], bytes, for_waves / grid.class_bytes.len() as u64);
                (slots, 2 * slots as u64 * bytes)
            };
            let passing: Vec<(usize, u64)> = (0..grid.class_bytes.len()).map(wave).collect();
            let waves_bytes: u64 = passing.iter().map(|(_, bytes)| bytes).sum();
            let left = |room: &Rooms| room.bytes[gpu].saturating_sub(waves_bytes);
            for class in 0..grid.class_bytes.len() {
                let of_class: Vec<usize> = grid.class_layers(class).filter(|&l| slot_bytes[l].is_some()).collect();
                let Some(bytes) = of_class.first().and_then(|&layer| slot_bytes[layer]) else { continue };
                let entries = of_class.len() * experts;
                // Bytes of this class in so many of all.
                let part =
                    |room: u64| u128::from(room) * u128::from(bytes) * entries as u128 / u128::from(total.max(1));
                let count = |room: u64| match slots {
                    Some(slots) => {
                        let start = (slots[gpu] * entries).div_ceil(grid.entries());
                        let taken = part(left(first).saturating_sub(room)).div_ceil(u128::from(bytes));
                        start.min(entries).saturating_sub(taken as usize)
                    }
                    None => ((part(room) / u128::from(bytes)) as usize).min(entries),
                };
                let counts: Vec<usize> = rooms.iter().map(|room| count(left(room))).collect();
                stages.iter_mut().zip(&counts).for_each(|(stage, &slots)| stage.slots.push(slots));
                let steps = of_class.iter().filter_map(|&layer| layers[layer].map(|(step, _)| step)).collect();
                at.push((gpu, on_gpu[gpu].len()));
                // Down to none, when memory is short of what was planned.
                let (slots, cuts, wave) = (counts[0], counts[1..].to_vec(), passing[class].0);
                on_gpu[gpu].push(SlotPool { steps, slots, cuts, wave });
                pools.push(PoolSpec { device: gpu as u8, layers: of_class, slots: counts[0] });
            }
        }
        Some(SlotPlan { grid, layers, on_gpu, pools, at, stages, waves: waves.rates.clone() })
    }

    /// Slots of all GPUs at the start.
    pub fn slots(&self) -> usize {
        self.pools.iter().map(|pool| pool.slots).sum()
    }

    /// Slots of all GPUs when the caches have room for the whole context.
    pub fn slots_at_full_context(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.slots.iter().sum())
    }
}
