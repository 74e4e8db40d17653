//! The wgpu executor: runs a plan's steps by replaying dispatches that were prepared at load.
//!
//! Weights lie in banks below the binding limit, laid out for the kernels at upload (`layout`, `upload`, `matrix`).
//! Pipelines, bind groups and parameters are made once (`pipelines`, `ops`); a run writes one small buffer, records one
//! command buffer and reads back logits only (`run`). Kernels are WGSL files put together by `shaders` as `kernels` says.
//! Between runs caches and expert slots can trade memory (`elastic`). One `Gpu` is one device and one side of a plan; several may be open on one adapter. It knows no architecture, and
//! refuses by `refusal` what it can not run: placement leaves that on the CPU.

mod adapters;
mod counts;
mod device;
mod elastic;
mod error;
mod expert_slots;
pub mod kernels;
mod layout;
mod matrix;
mod ops;
mod pages;
mod pipelines;
mod rates;
pub mod room;
mod run;
pub mod shaders;
mod slots;
mod timer;
mod upload;
mod vectors;
mod waves;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

pub use adapters::{AdapterReport, Devices, Listing, quiet_drivers};
pub use counts::dispatches;
pub use device::{Counters, Device, Handicap};
pub use error::GpuError;
pub use expert_slots::{ExpertUploader, NO_SLOT, SlotPool, Ticket, expert_slot_bytes};
pub use layout::Layout;
pub use ops::refusal;
pub use rates::measure;
pub use timer::Times;

use self::expert_slots::Pool;
use self::ops::{Adder, Best, KvBuffers, Prepared, Setup, TileSets};
use self::slots::{Slots, values_bytes};
use self::timer::Timer;
use self::vectors::Vectors;
use self::waves::Waves;
use crate::backend::{Backend, BackendError, Env, KvFormat};
use crate::plan::{self, Memory, Op, Plan, Side, Slot};
use crate::weights::Weights;

/// How to set up the executor.
#[derive(Clone, Copy, Debug)]
pub struct GpuConfig {
    /// The steps it runs: those placed on `Side::Gpu(index)`.
    pub index: u8,
    /// Tokens of a run, at most.
    pub batch: usize,
    /// Cache pages, over all sequences, at most.
    pub pages: usize,
    /// Of these, the pages that the caches have room for at the start.
    pub first_pages: usize,
    pub kv: KvFormat,
}

/// One device with the weights, caches and prepared steps of its side.
pub struct Gpu {
    device: Device,
    plan: Arc<Plan>,
    batch: usize,
    steps: Vec<Option<Prepared>>, // by step; None on another side
    waves: Option<Waves>,
    slots: Slots,
    kv: Vec<Option<KvBuffers>>, // by cache
    cache_pages: usize,         // that every cache has room for
    tile_sets: TileSets,
    ropes_used: Vec<bool>,
    env: wgpu::Buffer,
    tables_at: usize, // words of env before the page tables
    angles: wgpu::Buffer,
    page: wgpu::Buffer,
    pending: Vec<run::ReadBack>,
    spare: Vec<wgpu::Buffer>, // for read-backs
    pools: Arc<[Pool]>,
    best: Option<Best>, // where the logits are
    best_pending: Option<run::ReadBack>,
    adders: HashMap<Slot, Adder>,
    adds: Vec<Slot>, // rows of the host that the next submission adds
    pad: run::Scratchpad,
    counters: Counters,
    timer: Option<Timer>,
    uploaded_bytes: u64,
}

impl Gpu {
    /// Uploads the weights of this side's steps and prepares them.
    pub fn new(device: Device, weights: &Weights, config: &GpuConfig) -> Result<Gpu, GpuError> {
        Gpu::with_pools(device, weights, config, &[])
    }

    /// The same, where the experts of some steps lie in slots. Such a step adds the share of the experts that have one; it
    /// is prepared even when it is another side's, for a partial sum.
    pub fn with_pools(
        device: Device,
        weights: &Weights,
        config: &GpuConfig,
        pools: &[SlotPool],
    ) -> Result<Gpu, GpuError> {
        let plan = Arc::clone(weights.plan());
        let is_mine = |step: usize| {
            let pooled = pools.iter().any(|pool| pool.steps.contains(&step));
            pooled || plan.steps[step].side == Side::Gpu(config.index)
        };
        let ops = || plan.steps.iter().enumerate().filter(|(at, _)| is_mine(*at)).map(|(_, step)| &step.op);
        let tile_sets = TileSets::new(ops());
        let mut ropes_used = vec![false; plan.ropes.len()];
        let mut kv_used = vec![false; plan.kv.len()];
        for op in ops() {
            for memory in op.memories() {
                match memory {
                    Memory::Kv(kv) => kv_used[kv.0 as usize] = true,
                    Memory::State(_) => {
                        let why = "no kernel here keeps a recurrent state".to_owned();
                        return Err(GpuError::Unsupported { what: format!("the operation '{}'", op.name()), why });
                    }
                }
            }
            if let Op::RopeStore(plan::RopeStore { rope: Some(rope), .. }) = op {
                ropes_used[rope.0 as usize] = true;
            }
        }
        let tile_words = tile_sets.most_words(config.batch);
        let (tables_at, env_words) = run::env_words(&plan, config.batch, tile_words, config.pages);
        let env = device.storage("the environment", (env_words * 4) as u64, "lower -c or -b")?;
        let pairs: usize = plan.ropes.iter().zip(&ropes_used).filter(|(_, u)| **u).map(|(r, _)| r.inv_freq.len()).sum();
        let angles = device.storage("rotary angles", values_bytes(2 * pairs * config.batch), "lower -b")?;
        let first_pages = config.first_pages.min(config.pages);
        let kv: Vec<Option<KvBuffers>> = plan
            .kv
            .iter()
            .zip(&kv_used)
            .map(|(kv, used)| {
                used.then(|| KvBuffers::new(&device, kv, config.kv, [first_pages, config.pages])).transpose()
            })
            .collect::<Result<_, _>>()?;
        let page_bytes = kv.iter().flatten().map(|kv| kv.key_page_bytes.max(kv.value_page_bytes)).max().unwrap_or(16);
        let page = device.storage("a cache page", page_bytes, "use --kv q8_0")?;
        let slots = Slots::new(&device, &plan, ops(), config.batch)?;
        let vectors = Vectors::new(&device, weights, ops())?;

        let pools: Arc<[Pool]> =
            pools.iter().map(|pool| Pool::new(&device, &plan, pool)).collect::<Result<_, GpuError>>()?;
        let mut setup = Setup::new(
            &device,
            weights,
            &slots,
            &vectors,
            [&env, &angles],
            (&kv, config.kv),
            &tile_sets,
            config.batch,
            &pools,
        );
        ops().for_each(|op| Prepared::announce(&mut setup, op));
        let steps = (0..plan.steps.len())
            .map(|step| is_mine(step).then(|| Prepared::new(&mut setup, step)).transpose())
            .collect::<Result<_, _>>()?;
        let waves = waves::prepare(&mut setup, &pools)?;
        let logits = plan.logits;
        let best = slots.get(logits).is_some().then(|| Best::new(&setup, logits)).transpose()?;
        let mut adders = HashMap::new();
        for op in ops() {
            if let Op::Experts(plan::Experts { out, .. }) = op
                && !adders.contains_key(out)
            {
                adders.insert(*out, Adder::new(&setup, *out)?);
            }
        }
        let uploaded_bytes = setup.uploader.finish()?;
        Ok(Gpu {
            device,
            batch: config.batch,
            steps,
            waves,
            slots,
            kv,
            cache_pages: first_pages,
            tile_sets,
            ropes_used,
            env,
            tables_at,
            angles,
            page,
            pending: vec![],
            spare: vec![],
            pools,
            best,
            best_pending: None,
            adders,
            adds: vec![],
            pad: run::Scratchpad::default(),
            counters: Counters::default(),
            timer: None,
            uploaded_bytes,
            plan,
        })
    }

    /// What was counted since the last `reset_counters`.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Starts counting anew.
    pub fn reset_counters(&mut self) {
        self.counters = Counters::default();
    }

    /// Times every kernel from now on, or no longer; false where the device has no timestamps.
    pub fn time_kernels(&mut self, on: bool) -> bool {
        self.timer = if on { Timer::new(&self.device) } else { None };
        self.timer.is_some() == on
    }

    /// What every kernel took since `time_kernels(true)`, the longest first.
    pub fn times(&self) -> Vec<Times> {
        self.timer.as_ref().map(Timer::times).unwrap_or_default()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of weights that were uploaded.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes
    }

    /// Host memory that experts pass through, with so many uploads on their way at once.
    pub fn staging_bytes(&self, in_flight: usize) -> u64 {
        let largest = self.pools.iter().map(Pool::slot_bytes).max().unwrap_or(0);
        in_flight as u64 * largest + self.waves.as_ref().map_or(0, Waves::staging_bytes)
    }

    /// An uploader for the slots of this device's pools, with so many uploads on their way at once.
    pub fn expert_uploader(&self, in_flight: usize) -> Result<ExpertUploader, GpuError> {
        ExpertUploader::new(&self.device, &self.pools, in_flight)
    }

    /// Sets which slot each expert of a step lies in, or `NO_SLOT`, from the next submission on.
    pub fn set_expert_slots(&mut self, step: usize, slots: &[u32]) -> Result<(), GpuError> {
        let Some((pool, at)) = self.pools.iter().find_map(|pool| Some((pool, pool.map_at(step)?))) else {
            let why = "it belongs to no pool".to_owned();
            return Err(GpuError::Unsupported { what: format!("expert slots for step {step}"), why });
        };
        pool.set(&self.device, at, slots);
        self.counters.written_bytes += slots.len() as u64 * 4;
        self.device.check()
    }

    /// Number of pipelines that the device has made.
    pub fn pipelines(&self) -> usize {
        self.device.pipelines().len()
    }
}

impl Backend for Gpu {
    fn run(&mut self, steps: Range<usize>, env: &Env) -> Result<(), BackendError> {
        let logits = self.plan.logits;
        let mine = steps.clone().rfind(|&step| self.steps[step].is_some());
        let Some(last) = mine.filter(|_| !env.tokens.is_empty()) else { return Ok(()) };
        let ends_in_logits = self.plan.steps[last].op.writes().contains(&logits);
        self.begin(env)?;
        self.submit(steps, if ends_in_logits { std::slice::from_ref(&logits) } else { &[] })
    }

    fn run_best(
        &mut self,
        steps: Range<usize>,
        env: &Env,
        _: (Slot, usize),
        best: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        self.begin(env)?;
        self.submit_best(steps, &[])?;
        self.read_best(best)
    }

    fn read(&mut self, slot: Slot, out: &mut [f32]) -> Result<(), BackendError> {
        Ok(self.read_slot(slot, out)?)
    }

    fn write(&mut self, slot: Slot, rows: &[f32]) -> Result<(), BackendError> {
        Ok(self.write_slot(slot, rows)?)
    }

    fn read_u32(&mut self, slot: Slot, out: &mut [u32]) -> Result<(), BackendError> {
        Ok(self.read_slot(slot, out)?)
    }

    fn write_u32(&mut self, slot: Slot, rows: &[u32]) -> Result<(), BackendError> {
        Ok(self.write_slot(slot, rows)?)
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.caches_of(group).map(|kv| kv.key_page_bytes + kv.value_page_bytes).sum::<u64>() as usize
    }

    fn save_page(&mut self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        Ok(self.save_cache_page(group, page, out)?)
    }

    fn load_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<(), BackendError> {
        Ok(self.load_cache_page(group, page, bytes)?)
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) -> Result<(), BackendError> {
        Ok(self.copy_cache_page(group, from, to)?)
    }
}
