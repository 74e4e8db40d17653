//! Which experts may lie on which GPUs: slots for what is left of the GPUs' memory.
//!
//! Slots are shared out over the layouts by the bytes of their experts, so that every layout has the same part of its
//! experts resident at most. Only layers whose other steps run on a GPU take part; any GPU may hold any of their experts.
//! What is left depends on the context: there are slots for each size of the caches, most of them for the smallest.

use crate::experts::{Grid, PoolSpec};
use crate::gpu::{SlotPool, expert_slot_bytes};
use crate::plan::{Op, Plan, Side};

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
    /// By mixture layer: its `Op::Experts` step, and the GPU of its other steps; `None` when that is the CPU.
    pub layers: Vec<Option<(usize, usize)>>,
    /// By GPU.
    pub on_gpu: Vec<Vec<SlotPool>>,
    /// The pager's pools, as they are at the start.
    pub pools: Vec<PoolSpec>,
    /// By the pager's pool: the GPU and the pool there.
    pub at: Vec<(usize, usize)>,
    /// From the start to the whole context.
    pub stages: Vec<Stage>,
}

impl SlotPlan {
    /// Slots in these bytes, the smallest caches first; or `slots` at the start, of which larger caches take what they would
    /// of those bytes. `None` when no layer's experts could lie there.
    pub fn new(plan: &Plan, rooms: &[Rooms], slots: Option<&[usize]>) -> Option<SlotPlan> {
        let first = rooms.first()?;
        let mut layouts = vec![];
        let mut layers = vec![];
        let mut slot_bytes = vec![]; // by layer
        let (mut experts, mut used) = (0, 0);
        for (at, step) in plan.steps.iter().enumerate() {
            let Op::Experts { gate, up, down, used: k, .. } = &step.op else { continue };
            let parts = [*gate, *up, *down].map(|id| plan.weight(id));
            (experts, used) = (parts[0].experts, *k);
            let bytes = parts.iter().map(|weight| weight.expert_bytes() as u64).sum::<u64>();
            layouts.push((parts.map(|weight| weight.format.name()).join(" "), bytes));
            let home = match step.side {
                Side::Gpu(gpu) if (gpu as usize) < first.bytes.len() => Some((at, gpu as usize)),
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
        let mut on_gpu = vec![vec![]; first.bytes.len()];
        let (mut pools, mut at) = (vec![], vec![]);
        let mut stages: Vec<Stage> = rooms.iter().map(|room| Stage { pages: room.pages, slots: vec![] }).collect();
        for gpu in 0..first.bytes.len() {
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
                        let taken = part(first.bytes[gpu].saturating_sub(room)).div_ceil(u128::from(bytes));
                        start.min(entries).saturating_sub(taken as usize)
                    }
                    None => ((part(room) / u128::from(bytes)) as usize).min(entries),
                };
                let counts: Vec<usize> = rooms.iter().map(|room| count(room.bytes[gpu])).collect();
                stages.iter_mut().zip(&counts).for_each(|(stage, &slots)| stage.slots.push(slots));
                let steps = of_class.iter().filter_map(|&layer| layers[layer].map(|(step, _)| step)).collect();
                at.push((gpu, on_gpu[gpu].len()));
                // Down to none, when memory is short of what was planned.
                on_gpu[gpu].push(SlotPool { steps, slots: counts[0], cuts: counts[1..].to_vec() });
                pools.push(PoolSpec { device: gpu as u8, layers: of_class, slots: counts[0] });
            }
        }
        Some(SlotPlan { grid, layers, on_gpu, pools, at, stages })
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
