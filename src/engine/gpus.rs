//! Which GPUs a model runs on, and what goes where.
//!
//! Everything here is decided from the header of the file and what the adapters say of themselves, before a weight is
//! read: `outline` is all that showing a placement takes, `open` then uploads. Asked for `auto`, any failure leaves the
//! model on the CPU and says so in one line; what was asked for by number fails with an error.

use std::sync::Arc;

use super::gpu_rates::{kept_gpu_rates, measure_gpu};
use super::hybrid::{ExpertChoice, Rooms, SlotPlan, WaveRoom, sizes as cache_sizes};
use super::{EngineConfig, EngineError};
use crate::backend::KvFormat;
use crate::experts::rates::Rates;
use crate::experts::tier::Ram;
use crate::gpu::{AdapterReport, Devices, Gpu, GpuConfig, GpuError, Handicap, Listing, dispatches, refusal, room};
use crate::plan::{Memory, Move, Op, PAGE_TOKENS, Plan, Room, Side, Sides, State, Step, WeightId, place};
use crate::weights::Weights;

/// Tokens that the caches have room for at the start, where experts give way as the context grows. Most chats stay below.
const FIRST_TOKENS: usize = 4096;
/// Of every memory, activations of longer runs than usual take one byte in so many at most.
const RUNS_PART: u64 = 16;

/// Which GPUs may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuChoice {
    #[default]
    Off,
    /// Hardware that is there, as far as it goes; the CPU when that fails.
    Auto,
    /// These adapters, or an error.
    These(Vec<usize>),
}

/// How GPUs are used.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    pub choice: GpuChoice,
    /// Whether the absence of GPUs is worth telling.
    pub asked: bool,
    /// Layers on GPUs, the head counted as one; `None` is as many as have room.
    pub layers: Option<usize>,
    /// Bytes of each GPU's memory, at most; `None` is nine tenths of what it has.
    pub memory: Option<u64>,
    /// Experts stay on the CPU, whatever else its layer does.
    pub experts_on_cpu: bool,
    /// A placement in place of the one that fits best.
    pub sides: Option<Sides>,
    pub handicap: Handicap,
    /// How adapters are listed, in place of what the environment says.
    pub listing: Option<Listing>,
}

/// A placed plan and the adapters of its sides.
pub struct Outline {
    pub plan: Arc<Plan>,
    /// By the number of the side.
    pub adapters: Vec<AdapterReport>,
    /// What each may hold.
    pub budgets: Vec<Option<u64>>,
    /// Slots for experts, when those do not all fit: as many as at the start, while the context is short.
    pub slots: Option<SlotPlan>,
    /// Tokens of a run, where waves of experts make longer ones than usual worth their memory.
    pub batch: Option<usize>,
    devices: Option<Devices>,
}

/// What one GPU holds of a loaded model.
#[derive(Clone, Debug)]
pub struct GpuShare {
    /// Of `rynd devices`.
    pub index: usize,
    pub name: String,
    /// Layers, the head counted as one.
    pub layers: usize,
    /// Of all its buffers: weights, caches, activations.
    pub bytes: u64,
    pub budget: Option<u64>,
}

impl GpuShare {
    /// Of the GPU of this side.
    pub(super) fn new(plan: &Plan, side: Side, gpu: &Gpu, budget: Option<u64>) -> GpuShare {
        let here = |layer: Option<u32>| plan.steps.iter().any(|step| step.layer == layer && step.side == side);
        let layers = (0..plan.layers as u32).filter(|&layer| here(Some(layer))).count();
        let head = plan.steps.last().is_some_and(|step| step.side == side);
        let report = gpu.device().report();
        GpuShare {
            index: report.index,
            name: report.name.clone(),
            layers: layers + usize::from(head),
            bytes: gpu.device().allocated_bytes(),
            budget,
        }
    }
}

/// States that a running sequence holds at once: where it came from, what it leaves, what trails for rollback.
const STATES_OF_A_SEQUENCE: usize = 8;
/// Checkpoints that are worth keeping, whatever the budget.
const MOST_STATES: usize = 4096;

/// Sizes of a loaded model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub pages: usize,
    /// Places for recurrent states.
    pub states: usize,
    pub kv: KvFormat,
}

impl Sizes {
    /// Of a configuration for this plan.
    pub fn new(plan: &Plan, config: &EngineConfig) -> Sizes {
        let context = config.context(plan);
        let kv = config.cache_format();
        let pages = context.div_ceil(PAGE_TOKENS) * config.sessions.max(1);
        // Those of the runs themselves, and checkpoints as far as the budget goes.
        let state_bytes: u64 = plan.states.iter().map(State::bytes).sum();
        let afforded = config.state_bytes.checked_div(state_bytes).unwrap_or(0) as usize;
        let least = config.sessions.max(1) * STATES_OF_A_SEQUENCE;
        let states = if state_bytes > 0 { afforded.clamp(least, MOST_STATES.max(least)) } else { 0 };
        let pages = pages + config.past_pages(plan, kv);
        Sizes { batch: config.batch.clamp(1, context), pages, states, kv }
    }
}

impl Outline {
    /// Everything on the CPU.
    pub fn cpu(plan: Arc<Plan>) -> Outline {
        Outline { plan, adapters: vec![], budgets: vec![], slots: None, batch: None, devices: None }
    }

    /// The placement that the configuration asks for.
    pub fn new(plan: &Arc<Plan>, config: &EngineConfig) -> Result<Outline, EngineError> {
        // A GPU's memory is for what runs.
        let config = &EngineConfig { past_bytes: 0, ..config.clone() };
        let gpu = &config.gpu;
        let devices = match &gpu.choice {
            GpuChoice::Off => return Ok(Outline::cpu(Arc::clone(plan))),
            // Inputs are observed where the CPU computes.
            GpuChoice::Auto if config.observe_inputs => return Ok(Outline::cpu(Arc::clone(plan))),
            GpuChoice::Auto | GpuChoice::These(_) => {
                Devices::list_as(gpu.listing.unwrap_or(Listing::from_environment()))
            }
        };
        let indices = match &gpu.choice {
            GpuChoice::These(indices) => indices.clone(),
            GpuChoice::Off | GpuChoice::Auto => devices.automatic()?,
        };
        let adapters: Vec<AdapterReport> =
            indices.iter().map(|&index| devices.report(index).cloned()).collect::<Result<_, _>>()?;
        let sizes = Sizes::new(plan, config);
        let budgets: Vec<Option<u64>> =
            adapters.iter().map(|adapter| gpu.memory.or(adapter.memory_bytes.map(|bytes| bytes / 10 * 9))).collect();
        let gpu = &GpuOptions {
            experts_on_cpu: gpu.experts_on_cpu || config.experts.choice == ExpertChoice::Cpu,
            ..gpu.clone()
        };
        let fits = match &gpu.sides {
            Some(sides) => Ok(sides.clone()),
            None => fit(plan, gpu, &budgets, sizes),
        };
        let with = |batch: usize| {
            let sizes = Sizes { batch, ..sizes };
            paged(plan, config, gpu, &fits, (&adapters, &budgets), sizes)
        };
        let longer = longer_runs(plan, config, &budgets, sizes).find_map(|batch| {
            let (placed, slots) = with(batch)?;
            slots.on_gpu.iter().flatten().any(|pool| pool.wave > 0).then_some((Some(batch), placed, slots))
        });
        if let Some((batch, placed, slots)) = longer.or_else(|| with(sizes.batch).map(|(p, s)| (None, p, s))) {
            let slots = Some(slots);
            return Ok(Outline { plan: Arc::new(placed), adapters, budgets, slots, batch, devices: Some(devices) });
        }
        let sides = fits?;
        let used = sides.layers.iter().chain([&sides.head, &sides.embed]).filter_map(|side| match side {
            Side::Gpu(gpu) => Some(*gpu as usize + 1),
            Side::Cpu => None,
        });
        let used = used.max().unwrap_or(0).min(adapters.len());
        let placed = place(plan, &sides, &|op| refusal(plan, op, sizes.kv).is_some());
        Ok(Outline {
            plan: Arc::new(placed),
            adapters: adapters.into_iter().take(used).collect(),
            budgets: budgets.into_iter().take(used).collect(),
            slots: None,
            batch: None,
            devices: Some(devices),
        })
    }

    /// The same, by figures of the GPUs, which are measured where none are kept.
    pub fn measured(plan: &Arc<Plan>, config: &EngineConfig) -> Result<Outline, EngineError> {
        let outline = Outline::new(plan, config)?;
        if outline.measure(config) { Outline::new(plan, config) } else { Ok(outline) }
    }

    /// Of a move, the side it comes from.
    pub fn moved_from(&self, step: usize) -> Option<Side> {
        let Op::Move(Move { slot }) = self.plan.steps[step].op else { return None };
        let mut before = self.plan.steps[..step].iter().rev();
        let written = |s: &&Step| !matches!(s.op, Op::Move(_)) && s.op.writes().contains(&slot);
        before.find(written).map(|step| step.side)
    }

    /// Dispatches of a step for one token in a context of so many tokens; 0 on the CPU.
    pub fn dispatches(&self, step: usize, context: usize) -> usize {
        let step = &self.plan.steps[step];
        match step.side {
            Side::Cpu => 0,
            Side::Gpu(gpu) => {
                let adapter = &self.adapters[gpu as usize];
                dispatches(&self.plan, &step.op, adapter.bank_bytes(), context.div_ceil(PAGE_TOKENS))
            }
        }
    }

    /// Measures GPUs that experts will be paged to and that never were, before their memory is full, and says whether there
    /// are new figures. That it failed is told: then only what needs the figures is left out.
    fn measure(&self, config: &EngineConfig) -> bool {
        let (Some(devices), Some(home), Some(_)) = (&self.devices, &config.rates, &self.slots) else { return false };
        let threads = config.threads();
        let mut is_new = Rates::load(home, threads).is_none();
        if is_new {
            Rates::measure(threads).save(home);
        }
        for adapter in &self.adapters {
            if kept_gpu_rates(adapter, home).is_some() {
                continue;
            }
            let (index, name) = (adapter.index, &adapter.name);
            match measure_gpu(devices, adapter, home, threads, config.gpu.memory) {
                Ok(rates) => {
                    is_new = true;
                    (config.notice)(&format!("GPU {index} ({name}) was measured: {rates}"));
                }
                Err(e) => (config.notice)(&format!("GPU {index} ({name}) could not be measured: {e}")),
            }
        }
        is_new
    }

    /// Opens the devices and uploads the weights.
    pub fn open(&self, weights: &Weights, config: &EngineConfig) -> Result<Vec<Gpu>, GpuError> {
        let Some(devices) = &self.devices else { return Ok(vec![]) };
        let sizes = Sizes::new(&self.plan, config);
        let mut gpus = vec![];
        for (index, (adapter, budget)) in (0..).zip(self.adapters.iter().zip(&self.budgets)) {
            // Without --gpu-memory the driver is the judge of what fits.
            let budget = config.gpu.memory.and(*budget);
            let int8 = if config.exact { Some(false) } else { config.gpu.handicap.int8 };
            let device = devices.open(adapter.index, budget, Handicap { int8, ..config.gpu.handicap })?;
            let first_pages =
                self.slots.as_ref().and_then(|slots| slots.stages.first()).map_or(sizes.pages, |s| s.pages);
            let gpu = GpuConfig { index, batch: sizes.batch, pages: sizes.pages, first_pages, kv: sizes.kv };
            let pools = self.slots.as_ref().map_or(&[][..], |slots| &slots.on_gpu[usize::from(index)]);
            gpus.push(Gpu::with_pools(device, weights, &gpu, pools)?);
        }
        Ok(gpus)
    }
}

/// Tokens of a run that are more than asked for, the most first, as far as their activations are a small part of every
/// memory.
fn longer_runs(
    plan: &Plan,
    config: &EngineConfig,
    budgets: &[Option<u64>],
    sizes: Sizes,
) -> impl Iterator<Item = usize> {
    let most = config.most_batch.unwrap_or(0).min(config.context(plan));
    let ram = config.tiers.as_ref().map(|tiers| match tiers.ram {
        Ram::Total(bytes) | Ram::Experts(bytes) => bytes,
    });
    let least = budgets.iter().copied().chain([ram]).flatten().min().unwrap_or(u64::MAX);
    std::iter::successors(Some(most), |batch| Some(batch / 2))
        .take_while(move |batch| *batch > sizes.batch)
        .filter(move |batch| room::activation_bytes(plan, *batch) <= least / RUNS_PART)
}

/// The placement that pages experts: attention and dense layers by `fit`, slots for experts in the rest of the memory. `None`
/// when all experts fit with their layers, there are none, or the user wants it otherwise.
fn paged(
    plan: &Plan,
    config: &EngineConfig,
    gpu: &GpuOptions,
    fits: &Result<Sides, EngineError>,
    (adapters, budgets): (&[AdapterReport], &[Option<u64>]),
    sizes: Sizes,
) -> Option<(Plan, SlotPlan)> {
    let experts = &config.experts;
    let pages = matches!(experts.choice, ExpertChoice::Auto | ExpertChoice::Always);
    if plan.mixtures.is_empty() || !pages || gpu.experts_on_cpu || gpu.sides.is_some() {
        return None;
    }
    let all_fit = fits.as_ref().is_ok_and(|sides| !sides.layers.contains(&Side::Cpu));
    if all_fit && experts.probe.slots.is_none() {
        return None;
    }
    let dense = GpuOptions { experts_on_cpu: true, ..gpu.clone() };
    let sides = Sides { experts: None, ..fit(plan, &dense, budgets, sizes).ok()? };
    let placed = place(plan, &sides, &|op| refusal(plan, op, sizes.kv).is_some());
    let activations = room::activation_bytes(plan, sizes.batch);
    let first = FIRST_TOKENS.max(sizes.batch).div_ceil(PAGE_TOKENS);
    let step = experts.probe.cache_step;
    let mut smaller = 0;
    let rooms: Vec<Rooms> = cache_sizes(step.unwrap_or(first), sizes.pages, step)
        .into_iter()
        .map(|pages| {
            let room = |(index, budget): (u8, &Option<u64>)| {
                // A thousandth for what allocators round up.
                let budget = budget.map_or(u64::MAX / 64, |bytes| bytes - bytes / 1000);
                let dense = dense_bytes(&placed, Side::Gpu(index), Sizes { pages, ..sizes });
                // While a cache changes its size, one buffer of the smaller is there beside the larger.
                let copied = largest_cache_bytes(&placed, Side::Gpu(index), Sizes { pages: smaller, ..sizes }) / 2;
                budget.saturating_sub(activations + dense + copied)
            };
            let bytes = (0..).zip(budgets).map(room).collect();
            smaller = pages;
            Rooms { pages, bytes }
        })
        .collect();
    let waves = WaveRoom::new(config, adapters, sizes.batch);
    let slots = SlotPlan::new(&placed, &rooms, experts.probe.slots.as_deref(), &waves)?;
    Some((placed, slots))
}

/// Bytes of the largest layer's cache on a side.
fn largest_cache_bytes(plan: &Plan, side: Side, sizes: Sizes) -> u64 {
    let memories = plan.memories(|_, step| step.side == side).into_iter();
    memories.map(|memory| room::memory_bytes(plan, memory, sizes.kv, sizes.pages)).max().unwrap_or(0)
}

/// Bytes of weights and caches on a side, experts left out.
fn dense_bytes(plan: &Plan, side: Side, sizes: Sizes) -> u64 {
    let is_dense = |step: &Step| step.side == side && !step.op.is_experts();
    let dense = plan.steps.iter().filter(|step| is_dense(step));
    let mut weights: Vec<WeightId> = dense.flat_map(|step| step.op.weights()).collect();
    weights.sort_unstable();
    weights.dedup();
    let memories = plan.memories(|_, step| is_dense(step)).into_iter();
    memories.map(|memory| room::memory_bytes(plan, memory, sizes.kv, sizes.pages)).sum::<u64>()
        + weights.iter().map(|id| room::weight_bytes(plan.weight(*id))).sum::<u64>()
}

/// The layers that have room, and an error when that is not what was asked for.
fn fit(plan: &Plan, gpu: &GpuOptions, budgets: &[Option<u64>], sizes: Sizes) -> Result<Sides, EngineError> {
    let activations = room::activation_bytes(plan, sizes.batch);
    let rooms: Vec<u64> = budgets.iter().map(|b| b.map_or(u64::MAX / 64, |b| b.saturating_sub(activations))).collect();
    let memory_bytes = |memory: Memory| room::memory_bytes(plan, memory, sizes.kv, sizes.pages);
    let weight_bytes = |id: WeightId| room::weight_bytes(plan.weight(id));
    let all = plan.layers + 1;
    let spread = matches!(gpu.choice, GpuChoice::These(_));
    let on = |count: usize| {
        let room = Room {
            gpus: &rooms[..count],
            gpu_layers: gpu.layers,
            memory_bytes: &memory_bytes,
            weight_bytes: &weight_bytes,
            experts_on_cpu: gpu.experts_on_cpu,
            spread,
        };
        Sides::fit(plan, &room)
    };
    let wanted = gpu.layers.unwrap_or(all).min(all);
    // Every device more is a hop more a token.
    let fewest = if spread { rooms.len() } else { 1 };
    let mut sides = on(fewest.min(rooms.len()));
    for count in fewest + 1..=rooms.len() {
        if sides.on_gpus() >= wanted {
            break;
        }
        sides = on(count);
    }
    let fits = sides.on_gpus();
    if (gpu.layers.is_some() && fits < wanted) || (wanted > 0 && fits == 0) {
        return Err(EngineError::LayersDoNotFit { wanted, fits, budget: budgets.iter().flatten().sum() });
    }
    Ok(sides)
}
