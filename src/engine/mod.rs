//! A loaded model (`Engine`) and one timeline of tokens in it (`Session`).
//!
//! The engine owns the file, the plan, the backend and the pool of cache pages; a session owns its ids and pages. Only
//! what differs from what a session already holds is computed: `Session::sync` keeps the longest common prefix, so
//! edits, regenerations and the turns of a chat cost their new tokens only.

mod disk;
mod finite;
mod gpu_rates;
mod gpus;
mod heat;
mod hybrid;
mod memory;
mod past;
mod pool;
mod record;
mod rival;
mod run;
mod session;
mod split;
mod text;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use disk::DiskOptions;
pub use gpu_rates::{kept_gpu_rates, measure_gpu};
pub use gpus::{GpuChoice, GpuOptions, GpuShare, Outline};
pub use hybrid::{
    CacheReport, ExpertChoice, ExpertOptions, ExpertReport, Passing, Probe, Prompts, RivalProbe, Rooms, SlotPlan,
    WaveRoom,
};
pub use memory::{Memory, Usage};
pub use past::Costs;
pub use record::{expert_header, header_of, router_key};
pub use run::{Rows, Span, Wanted, advance, advance_unless};
pub use session::{Session, common_prefix};
pub use split::Split;
pub use text::Parted;

use self::disk::Disk;
use self::gpus::Sizes;
use self::heat::{Known, Watch};
use self::hybrid::{Hybrid, page_experts};
use self::past::Want;
use self::record::Recorder;
use self::run::Results;
use crate::backend::{Backend, BackendError, Env, KvFormat, Phase, PickLog, Seq, StateStep, Token};
use crate::cache::CacheError;
use crate::catalog::Home;
use crate::cores;
use crate::cpu::{Cpu, CpuConfig, InputSums};
use crate::experts::Rival;
use crate::experts::rates;
use crate::experts::store::Counters as TierCounters;
use crate::experts::tier::{Tier, TierError, Tiers};
use crate::gguf::{Gguf, GgufError};
use crate::gpu::GpuError;
pub use crate::gpu::{AdapterReport, Counters, Devices, Gpu, Handicap, Listing, Times, quiet_drivers};
use crate::models::{self, RopeOverride};
pub use crate::plan::Side;
use crate::plan::{Op, PAGE_TOKENS, Plan, PlanError, Slot, SlotKind};
use crate::weights::Weights;

/// Why a model can not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(
        "{wanted} layers were to go to GPUs, the head counted as one, but their memory ({budget} bytes in all) has room \
         for {fits}; lower --gpu-layers, -c or -b, raise --gpu-memory, or use --cpu-experts or --gpu off"
    )]
    LayersDoNotFit { wanted: usize, fits: usize, budget: u64 },
    #[error("an importance matrix is collected on the CPU; use --gpu off")]
    ObservedOnGpu,
    #[error(transparent)]
    Tier(#[from] TierError),
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    #[error("{tokens} tokens do not fit the context of {context}; shorten the prompt or raise it with -c")]
    ContextFull { tokens: usize, context: usize },
    #[error("no cache pages are left for another session; raise the context with -c")]
    NoPages,
    #[error("{tokens} tokens are more than one run of {batch} holds; raise it with -b")]
    BatchFull { tokens: usize, batch: usize },
    #[error("can not write the trace {path}: {cause}")]
    Trace { path: PathBuf, cause: std::io::Error },
    #[error("{file}: the model has no experts, so there is nothing to trace; leave --trace out")]
    NothingToTrace { file: PathBuf },
    #[error("{file}: {cause}; leave --experts-profile out, or give a profile of this model")]
    Profile { file: PathBuf, cause: String },
    #[error(
        "{}: {what} {value}; the file is damaged or was converted wrongly (get it again), or a flag made the model compute \
         what it can not", .file.display()
    )]
    NotFinite { file: PathBuf, what: String, value: &'static str },
    #[error("the executors were given up and could not be made again; load the model anew")]
    Unloaded,
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl EngineError {
    /// Whether the CPU could do what failed.
    fn is_of_gpu(&self) -> bool {
        matches!(
            self,
            EngineError::Gpu(_) | EngineError::LayersDoNotFit { .. } | EngineError::Backend(BackendError::Lost(_))
        )
    }
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Worker threads; `None` is the number of physical cores.
    pub threads: Option<usize>,
    /// Tokens of context; `None` is the smaller of the model's and `DEFAULT_CONTEXT`.
    pub context: Option<usize>,
    /// Tokens of one prefill run.
    pub batch: usize,
    /// Tokens of one where missing experts of a prompt pass through GPUs, at most; `None` is `batch`. They pass once a run, so
    /// longer runs bring fewer bytes a token.
    pub most_batch: Option<usize>,
    pub kv: KvFormat,
    /// f32 activations and cache, weights widened to f32.
    pub exact: bool,
    pub rope: RopeOverride,
    /// Sequences that may be full at once.
    pub sessions: usize,
    /// Bytes of caches beyond what these need, for sequences that are over; only while no GPU holds caches.
    pub past_bytes: u64,
    /// Bytes of recurrent states, at most, as long as every running sequence has its own.
    pub state_bytes: u64,
    /// Sum up the squared inputs of all matrices, for an importance matrix.
    pub observe_inputs: bool,
    /// A memory budget: experts beyond it stay on disk and are read when they are picked.
    pub tiers: Option<Tiers>,
    /// Write what the routers pick to this file.
    pub trace: Option<PathBuf>,
    pub gpu: GpuOptions,
    pub experts: ExpertOptions,
    /// Where the rates of the machine and its GPUs are kept; `None` measures none.
    pub rates: Option<Home>,
    /// Hears when the model moves to the CPU because a GPU could not be used.
    pub notice: fn(&str),
}

impl EngineConfig {
    /// The format that the cache really has.
    pub fn cache_format(&self) -> KvFormat {
        self.kv.of_run(self.exact)
    }

    fn threads(&self) -> usize {
        cores::threads(self.threads)
    }

    /// Says why no GPU is used; that there is none is news only to who asked.
    fn tell_of_cpu(&self, e: &EngineError) {
        if self.gpu.asked || !matches!(e, EngineError::Gpu(GpuError::NoAdapter { .. })) {
            (self.notice)(&format!("running on the CPU: {e}"));
        }
    }

    /// Pages for sequences that are over.
    fn past_pages(&self, plan: &Plan, kv: KvFormat) -> usize {
        let page = plan.kv_bytes_per_token(kv.bytes_per_value()) * PAGE_TOKENS as f64;
        let on_cpu = plan.steps.iter().all(|step| step.side == Side::Cpu);
        if on_cpu && page > 0.0 { (self.past_bytes as f64 / page) as usize } else { 0 }
    }

    /// Tokens of context for this plan.
    fn context(&self, plan: &Plan) -> usize {
        self.context.unwrap_or(plan.context.min(DEFAULT_CONTEXT)).max(1)
    }
}

/// Tokens of a run when the user does not say, and where nothing makes longer ones worth their memory.
pub const DEFAULT_BATCH: usize = 512;

/// Context when neither the user nor a smaller model says otherwise.
pub const DEFAULT_CONTEXT: usize = 32_768;

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            threads: None,
            context: None,
            batch: DEFAULT_BATCH,
            most_batch: None,
            kv: KvFormat::default(),
            exact: false,
            rope: RopeOverride::default(),
            sessions: 1,
            past_bytes: 0,
            state_bytes: 1 << 30,
            observe_inputs: false,
            gpu: GpuOptions::default(),
            experts: ExpertOptions::default(),
            rates: None,
            notice: |_| {},
            tiers: None,
            trace: None,
        }
    }
}

/// What the CPU executor tells on the side.
struct Observers {
    input_sums: Option<Arc<InputSums>>,
    picks: Option<Arc<PickLog>>,
    tier: Option<Arc<Tier>>,
    heat: Option<Watch>,
}

/// A loaded model.
pub struct Engine {
    gguf: Gguf,
    /// As the executors run it.
    plan: Arc<Plan>,
    /// Before anything was placed.
    unplaced: Arc<Plan>,
    /// `None` after it could not be made again.
    backend: Option<Split>,
    memory: Memory,
    context: usize,
    batch: usize,
    threads: usize,
    results: Results,
    config: EngineConfig,
    input_sums: Option<Arc<InputSums>>,
    tier: Option<Arc<Tier>>,
    heat: Option<Watch>,
    recorder: Option<Recorder>,
    /// The comparison of paged experts with whole layers, and what the pager had done when they were tried.
    rival: Rival,
    paged: Option<ExpertReport>,
    /// When the run before began, if every timeline got one token in it.
    began: Option<Instant>,
    /// Requests wait beside the one that runs.
    busy: bool,
    disk: Option<Disk>,
}

impl Engine {
    /// Opens a model file (any shard of a split one) and prepares to run it.
    pub fn load(path: &Path, config: &EngineConfig) -> Result<Engine, EngineError> {
        Engine::new(Gguf::open(path)?, config)
    }

    /// Prepares to run the model in an open file.
    pub fn new(gguf: Gguf, config: &EngineConfig) -> Result<Engine, EngineError> {
        if config.observe_inputs && matches!(config.gpu.choice, GpuChoice::These(_)) {
            return Err(EngineError::ObservedOnGpu);
        }
        let unplaced = Arc::new(models::plan(&gguf, &config.rope)?);
        let outline = Outline::measured(&unplaced, config);
        // Whatever replaces these executors later runs as many tokens.
        let longer = outline.as_ref().ok().and_then(|outline| outline.batch);
        let usual = config.batch;
        let mut config = EngineConfig { batch: longer.unwrap_or(usual), most_batch: None, ..config.clone() };
        let (plan, backend, Observers { input_sums, picks, tier, heat }) =
            match Engine::backend(&gguf, outline, &config) {
                Ok(made) => made,
                Err(e) if config.gpu.choice == GpuChoice::Auto && e.is_of_gpu() => {
                    config.tell_of_cpu(&e);
                    config.batch = usual;
                    Engine::backend(&gguf, Ok(Outline::cpu(Arc::clone(&unplaced))), &config)?
                }
                Err(e) => return Err(e),
            };
        let context = config.context(&plan);
        let batch = Sizes::new(&plan, &config).batch;
        let memory = sequence_memory(&plan, &config);
        let recorder = match (&config.trace, picks) {
            (Some(path), Some(log)) => Some(Recorder::create(path, &gguf, &plan, log)?),
            _ => None,
        };
        Ok(Engine {
            gguf,
            plan,
            unplaced,
            backend: Some(backend),
            memory,
            context,
            batch,
            threads: config.threads(),
            results: Results::default(),
            config,
            input_sums,
            tier,
            heat,
            recorder,
            rival: Rival::default(),
            paged: None,
            began: None,
            busy: false,
            disk: None,
        })
    }

    /// The placement that `new` would choose, from the header alone.
    pub fn outline(gguf: &Gguf, config: &EngineConfig) -> Result<Outline, EngineError> {
        let plan = Arc::new(models::plan(gguf, &config.rope)?);
        match Outline::new(&plan, config) {
            Err(e) if config.gpu.choice == GpuChoice::Auto && e.is_of_gpu() => {
                config.tell_of_cpu(&e);
                Ok(Outline::cpu(plan))
            }
            outline => outline,
        }
    }

    /// The executors of an outline.
    fn backend(
        gguf: &Gguf,
        outline: Result<Outline, EngineError>,
        config: &EngineConfig,
    ) -> Result<(Arc<Plan>, Split, Observers), EngineError> {
        let outline = outline?;
        let plan = Arc::clone(&outline.plan);
        let Sizes { batch, pages, states, kv } = Sizes::new(&plan, config);
        let weights = Weights::new(gguf.clone(), Arc::clone(&plan));
        let mut gpus = outline.open(&weights, config)?;
        let mut known = Known::read(gguf, &plan, config)?;
        let start = known.as_ref().and_then(|known| known.start.clone());
        let cpu_config = CpuConfig { threads: config.threads(), batch, pages, states, kv, exact: config.exact };
        let mut cpu = Cpu::new(weights.clone(), &cpu_config)?;
        let tier = match &config.tiers {
            // Vocabulary and the like come after this and are small.
            Some(tiers) => {
                let staging: u64 = gpus.iter().map(|gpu| gpu.staging_bytes(hybrid::IN_FLIGHT)).sum();
                let other = cpu.buffer_bytes() + staging + rates::own_bytes();
                Tier::open(&weights, tiers, other)?.map(Arc::new)
            }
            None => None,
        };
        if let (Some(tier), Some(start)) = (&tier, &start) {
            tier.store.seed(start);
        }
        if let Some(tier) = &tier {
            cpu.set_tier(Arc::clone(tier));
        }
        let hybrid = match &outline.slots {
            Some(slots) => Some(page_experts(slots, &weights, &mut gpus, tier.as_ref(), known.take(), config)?),
            None => None,
        };
        if config.experts.profile.is_some() && tier.is_none() && hybrid.is_none() {
            (config.notice)("--experts-profile is not used: no expert moves here");
        }
        let input_sums = config.observe_inputs.then(|| Arc::new(InputSums::new(&plan)));
        if let Some(sums) = &input_sums {
            cpu.observe(Arc::clone(sums));
        }
        // Picks that lie on a GPU would have to be read back.
        let saved = known.and_then(|known| known.saved).filter(|_| gpus.is_empty());
        let mut split = Split::new(Arc::clone(&plan), cpu, gpus);
        if let Some(hybrid) = hybrid {
            split.page_experts(hybrid);
        }
        let picks = (config.trace.is_some() || saved.is_some()).then(|| Arc::new(PickLog::new(&plan)));
        if let Some(log) = &picks {
            split.log_picks(Arc::clone(log));
        }
        let heat = picks.clone().zip(saved).map(|(log, saved)| Watch::new(log, saved, config.notice));
        Ok((plan, split, Observers { input_sums, picks, tier, heat }))
    }

    /// The GPUs that are in use.
    pub fn gpus(&self) -> &[Gpu] {
        self.backend.as_ref().map_or(&[][..], Split::gpus)
    }

    /// What each GPU holds.
    pub fn gpu_shares(&self) -> Vec<GpuShare> {
        let gpus = (0..).zip(self.gpus());
        gpus.map(|(side, gpu)| GpuShare::new(&self.plan, Side::Gpu(side), gpu, self.config.gpu.memory)).collect()
    }

    /// Goes on without GPUs after one was lost, where they were nobody's explicit choice; else returns the error.
    fn leave_gpus(&mut self, e: EngineError) -> Result<(), EngineError> {
        let lost = matches!(e, EngineError::Backend(BackendError::Lost(_)));
        if !lost || self.config.gpu.choice != GpuChoice::Auto || self.gpus().is_empty() {
            return Err(e);
        }
        (self.config.notice)(&format!("going on with the CPU: {e}"));
        self.rival.fail();
        self.paged = None;
        self.replace(Outline::cpu(Arc::clone(&self.unplaced)))
    }

    /// Other executors; what the old ones cached is gone.
    fn replace(&mut self, outline: Outline) -> Result<(), EngineError> {
        self.flush_to_disk();
        // Their memory is needed.
        (self.backend, self.tier, self.heat) = (None, None, None);
        let (plan, backend, Observers { input_sums, picks, tier, heat }) =
            Engine::backend(&self.gguf, Ok(outline), &self.config)?;
        (self.plan, self.backend, self.input_sums, self.tier) = (plan, Some(backend), input_sums, tier);
        self.heat = heat;
        if let (Some(recorder), Some(picks)) = (&mut self.recorder, picks) {
            recorder.follow(picks);
        }
        // What the old ones held is of no pool any more.
        self.memory = sequence_memory(&self.plan, &self.config);
        Ok(())
    }

    /// What the cache of experts did so far; `None` when experts do not move.
    pub fn expert_report(&self) -> Option<ExpertReport> {
        let paged = self.backend.as_ref().and_then(Split::hybrid).map(Hybrid::report).or(self.paged)?;
        Some(ExpertReport { rival: self.rival.standing(), ..paged })
    }

    /// Times every kernel from now on, or no longer; false where a GPU has no timestamps.
    pub fn time_kernels(&mut self, on: bool) -> bool {
        self.backend.iter_mut().flat_map(Split::gpus_mut).all(|gpu| gpu.time_kernels(on))
    }

    /// Starts counting anew on all GPUs.
    pub fn reset_counters(&mut self) {
        self.backend.iter_mut().flat_map(Split::gpus_mut).for_each(Gpu::reset_counters);
    }

    /// What an expert in the RAM tier is worth, in picks made now; `None` when all weights are computed from the mapping.
    pub fn tier_worth(&self, layer: usize, expert: usize) -> Option<f64> {
        self.tier.as_ref().map(|tier| tier.store.worth(layer, expert))
    }

    /// What the RAM tier did so far; `None` when all weights are computed from the mapping.
    pub fn tier_counters(&self) -> Option<TierCounters> {
        self.tier.as_ref().map(|tier| tier.store.counters())
    }

    /// The model file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The forward pass.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The squared inputs of all matrices so far, if the configuration asks for them.
    pub fn input_sums(&self) -> Option<&InputSums> {
        self.input_sums.as_deref()
    }

    /// Tokens of one timeline, at most.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of one prefill run, at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Appends the run to the trace, and to what is known of the experts, if there are such.
    fn record(&mut self, env: &Env) -> Result<(), EngineError> {
        if let Some(heat) = &mut self.heat {
            heat.see(env);
        }
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.run(env))
    }

    /// A sequence that already remembers as much of how these ids begin as others computed, all but the last at most.
    pub fn attach(&mut self, ids: &[u32]) -> Session {
        self.memory.attach(ids)
    }

    /// Tokens of how these ids begin that are remembered.
    pub fn remembered(&self, ids: &[u32]) -> usize {
        self.memory.kept(ids)
    }

    /// Lets others begin with what a sequence remembers, for as long as its memory is not needed for something that costs more
    /// to compute again.
    pub fn keep(&mut self, session: &Session) {
        self.keep_said(session, &[]);
    }

    /// The same, with ids that were said behind it and are not computed: by its text all of it is found again.
    pub fn keep_said(&mut self, session: &Session, said: &[u32]) {
        self.memory.keep(session, said);
        let Engine { memory, backend, disk, .. } = self;
        let (costs, shape) = (memory.costs(), Arc::clone(memory.shape()));
        memory.limit_tree(|past, victim| {
            if let (Some(disk), Some(backend)) = (&disk, backend.as_mut()) {
                disk.lose(backend, past, victim, &costs, &shape.windows);
            }
        });
    }

    /// Whether a sequence's memory is still there: it is gone where executors were replaced since.
    pub fn holds(&self, session: &Session) -> bool {
        session.is_of(&self.memory)
    }

    /// The memory of all sequences.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Forgets all sequences that are over.
    pub fn forget(&mut self) {
        self.memory.clear();
    }

    /// Runs one batch step by step on a fresh timeline; `see` gets each step's index and the rows of every slot that it
    /// wrote, numbers of experts as f32. For finding the first step at which two implementations part: nothing learns from such a run.
    pub fn trace(
        &mut self,
        ids: &[u32],
        mut see: impl FnMut(usize, Slot, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if ids.len() > self.batch {
            return Err(EngineError::BatchFull { tokens: ids.len(), batch: self.batch });
        }
        let mut session = Session::new();
        self.reserve(&mut session, ids.len())?;
        let tokens: Vec<Token> =
            ids.iter().enumerate().map(|(pos, &id)| Token { id, seq: 0, pos: pos as u32 }).collect();
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        let tables: Vec<&[u32]> = session.tables.iter().map(|table| &table.numbers[..]).collect();
        let state = if self.memory.shape().states { Some(self.take(Want::State)?) } else { None };
        let state = state.as_ref().map(|to| StateStep { from: None, to: to.place() });
        let seqs = [Seq { tables: &tables, state, phase: Phase::Prompt }];
        let env = Env::new(&tokens, &rows, &seqs);
        let mut result = self.fit_cache().and_then(|()| Ok(split(&mut self.backend)?.begin(&env)?));
        let mut values = vec![];
        let steps = if result.is_ok() { self.plan.sections.forward() } else { 0..0 };
        'steps: for at in steps {
            if let Err(e) = split(&mut self.backend)?.run(at..at + 1, &env) {
                result = Err(e.into());
                break;
            }
            // A value on its way is the same on both sides.
            let moved = matches!(self.plan.steps[at].op, Op::Move(_));
            for slot in self.plan.steps[at].op.writes().into_iter().filter(|_| !moved) {
                if let Err(e) = read_values(split(&mut self.backend)?, &self.plan, (slot, ids.len()), &mut values) {
                    result = Err(e.into());
                    break 'steps;
                }
                if see(at, slot, &values).is_break() {
                    break 'steps;
                }
            }
        }
        result
    }

    /// Gives the trace file its name. Dropping the engine does the same, but can not say what went wrong.
    pub fn finish_trace(&mut self) -> Result<(), EngineError> {
        self.recorder.take().map_or(Ok(()), Recorder::finish)
    }
}

impl Drop for Engine {
    /// What is remembered goes to the disk.
    fn drop(&mut self) {
        self.flush_to_disk();
    }
}

/// So many rows of a slot as f32: numbers of experts are small enough to be told exactly.
fn read_values(
    backend: &mut Split,
    plan: &Plan,
    (slot, rows): (Slot, usize),
    values: &mut Vec<f32>,
) -> Result<(), BackendError> {
    let info = plan.slot(slot);
    values.resize(rows * info.width, 0.0);
    match info.kind {
        SlotKind::F32 => backend.read(slot, values),
        SlotKind::U32 => {
            let mut ids = vec![0; values.len()];
            backend.read_u32(slot, &mut ids)?;
            values.iter_mut().zip(ids).for_each(|(value, id)| *value = id as f32);
            Ok(())
        }
    }
}

/// The executors that are in use.
fn split(backend: &mut Option<Split>) -> Result<&mut Split, EngineError> {
    backend.as_mut().ok_or(EngineError::Unloaded)
}

/// Pools for the sequences of a loaded plan.
fn sequence_memory(plan: &Plan, config: &EngineConfig) -> Memory {
    let Sizes { pages, states, kv, .. } = Sizes::new(plan, config);
    let bytes = plan.kv_bytes_per_token(kv.bytes_per_value()) * PAGE_TOKENS as f64;
    Memory::new(plan, &vec![pages; plan.groups.len()], states, bytes as usize)
}
