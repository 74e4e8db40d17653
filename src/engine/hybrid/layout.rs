//! Which experts may lie on which GPUs: slots for what is left of the GPUs' memory.
//!
//! Slots are shared out over the layouts by the bytes of their experts, so that every layout has the same part of its
//! experts resident at most. Only layers whose other steps run on a GPU take part; any GPU may hold any of their experts.

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

impl SlotPlan {
    /// Slots in these bytes of each GPU, or in this number of slots; `None` when no layer's experts could lie there.
    pub fn new(plan: &Plan, rooms: &[u64], slots: Option<&[usize]>) -> Option<SlotPlan> {
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
                on_gpu[gpu].push(SlotPool { steps, slots: count });
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
