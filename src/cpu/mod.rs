//! The CPU executor: walks the steps with a team of threads, straight from the mapped blocks.
//!
//! One token is a chain of matrix-vector products at memory bandwidth; a batch unpacks each tile of weights once and
//! uses it for all tokens. In exact mode weights are widened to f32 and activations stay f32: slow, and the reference
//! for everything else. It runs every operation; placement leaves here what a GPU refuses.

mod attention;
mod dense;
mod experts;
mod kv;
mod recurrent;
mod router;
mod sums;
mod threads;

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rynd_quant::attention::{PAGE, PageKernels};
use rynd_quant::{Kernels, Linear};

use self::kv::KvCache;
pub use self::sums::{InputSums, WeightSums};
use self::threads::{Shared, Team, Worker};
use crate::backend::{Backend, BackendError, Env, KvFormat, PickLog};
use crate::experts::tier::Tier;
use crate::plan::{
    self, KvId, Memory, Op, PAGE_TOKENS, Plan, RopeId, RopeLayout, Side, Slot, SlotKind, State, StateId, WeightId,
};
use crate::weights::Weights;

const _: () = assert!(PAGE == PAGE_TOKENS, "the page kernels and the plan agree on a page");

/// Tokens of a run that is worth breaking off between two layers.
const LONG_RUN: usize = 16;

/// How to set up the executor.
#[derive(Clone, Copy, Debug)]
pub struct CpuConfig {
    pub threads: usize,
    /// Tokens of a run, at most.
    pub batch: usize,
    /// Cache pages, over all sequences.
    pub pages: usize,
    /// Places for recurrent states, over all sequences.
    pub states: usize,
    pub kv: KvFormat,
    /// Weights widened to f32, activations and cache in f32.
    pub exact: bool,
}

/// The executor. Only `run` starts the team; between runs nobody else touches its buffers.
pub struct Cpu {
    weights: Weights,
    plan: Arc<Plan>,
    kernels: &'static Kernels,
    page_kernels: PageKernels,
    exact: bool,
    batch: usize,
    team: Team,
    buffers: Vec<Shared<f32>>, // by SlotInfo::buffer: (batch, width); empty where that holds u32
    ids: Vec<Shared<u32>>,     // the same, the other way round
    kv: Vec<KvCache>,
    own_kv: Arc<[bool]>,      // by cache: filled here, not on another side
    states: Vec<Shared<f32>>, // by state: (places, values)
    own_states: Vec<StateId>,
    /// Norm weights and biases as f32, by weight id; empty for matrices.
    vectors: Vec<Vec<f32>>,
    partials: Shared<f32>,
    angles: Vec<[Shared<f32>; 2]>, // per rope: cos, sin (batch, dims / 2)
    normed: Shared<f32>,           // (batch, widest input)
    acts: dense::ActSet,           // (batch, widest input)
    mixture: experts::Mixture,
    workers: Vec<UnsafeCell<WorkerState>>,
    /// Who wants to know what goes into the products.
    sums: Option<Arc<InputSums>>,
    /// Where experts lie that are not computed from the mapping.
    tier: Option<Arc<Tier>>,
    /// Who wants to know what the routers picked.
    picks: Option<Arc<PickLog>>,
}

// SAFETY: the cells are reached only from inside `run`, `workers[i]` by worker i alone; the rest is `Sync` by itself.
unsafe impl Sync for Cpu {}

/// A worker's own buffers.
#[derive(Default)]
struct WorkerState {
    attention: attention::Buffers,
    own: dense::ActSet,        // one token's input
    own_hidden: dense::ActSet, // one token's hidden values, by pick
    normed: Vec<f32>,
    tile: Vec<f32>,
    tile2: Vec<f32>,
    choice: router::Choice,
    groups: experts::Groups,
}

/// One run: the environment and what was prepared from it.
struct Run<'a> {
    cpu: &'a Cpu,
    env: &'a Env<'a>,
}

impl Run<'_> {
    /// Cosines and sines of a token's position: (dims / 2) each.
    fn rope(&self, id: RopeId, token: usize) -> (&[f32], &[f32], RopeLayout) {
        let table = &self.cpu.plan.ropes[id.0 as usize];
        let half = table.inv_freq.len();
        let range = token * half..(token + 1) * half;
        let [cos, sin] = &self.cpu.angles[id.0 as usize];
        // SAFETY: phase contract; angles are written only before the first barrier of a run.
        unsafe { (cos.get(range.clone()), sin.get(range), table.layout) }
    }

    /// Rows of a slot in this run.
    fn rows(&self, slot: Slot) -> usize {
        if self.cpu.plan.slot(slot).taken { self.env.rows.len() } else { self.env.tokens.len() }
    }
}

impl Cpu {
    /// An executor for the plan of these weights.
    pub fn new(weights: Weights, config: &CpuConfig) -> Result<Cpu, BackendError> {
        let plan = Arc::clone(weights.plan());
        let team = Team::new(config.threads.max(1))?;
        let kv_format = config.kv.of_run(config.exact);
        let kv = plan.kv.iter().map(|kv| KvCache::new(kv, kv_format, config.pages)).collect::<Result<_, _>>()?;
        let values = |(width, found): (usize, SlotKind), kind| if found == kind { width * config.batch } else { 0 };
        let of = |kind| plan.buffers().into_iter().map(move |buffer| values(buffer, kind));
        let buffers = of(SlotKind::F32).map(|n| Shared::zeroed(n, "activations")).collect::<Result<_, _>>()?;
        let ids = of(SlotKind::U32).map(|n| Shared::zeroed(n, "activations")).collect::<Result<_, _>>()?;
        let own = plan.memories(|_, step| step.side == Side::Cpu);
        let own_kv = (0..plan.kv.len() as u32).map(|id| own.contains(&Memory::Kv(KvId(id)))).collect();
        let own_states = (0..plan.states.len() as u32).filter(|&id| own.contains(&Memory::State(StateId(id))));
        let own_states: Vec<StateId> = own_states.map(StateId).collect();
        let state = |state: &State| Shared::zeroed(state.values * config.states, "recurrent states");
        let states = plan.states.iter().map(state).collect::<Result<_, _>>()?;
        let mut partials = 0;
        let mut narrow_heads = false;
        for step in &plan.steps {
            if let Op::Attention(plan::Attention { heads, .. }) = step.op {
                if !attention::supports(heads) {
                    return Err(BackendError::Device(format!(
                        "{} query heads over {} key-value heads are more than the attention kernel holds",
                        heads.heads, heads.kv_heads
                    )));
                }
                partials = partials.max(attention::partial_values(heads, team.size()));
                narrow_heads |= !heads.head_dim.is_multiple_of(16);
            }
        }
        let angles = plan
            .ropes
            .iter()
            .map(|rope| {
                let len = rope.inv_freq.len() * config.batch;
                Ok([Shared::zeroed(len, "activations")?, Shared::zeroed(len, "activations")?])
            })
            .collect::<Result<_, BackendError>>()?;
        let kernels = Kernels::get();
        let mut acts = dense::ActSet::default();
        acts.reserve(input_width(&plan) * config.batch);
        Ok(Cpu {
            vectors: vectors(&weights),
            mixture: experts::Mixture::new(&plan, config.batch)?,
            normed: Shared::zeroed(input_width(&plan) * config.batch, "activations")?,
            acts,
            kernels,
            page_kernels: PageKernels::new(narrow_heads),
            exact: config.exact,
            batch: config.batch,
            buffers,
            ids,
            kv,
            own_kv,
            states,
            own_states,
            partials: Shared::zeroed(partials, "activations")?,
            angles,
            workers: (0..team.size()).map(|_| UnsafeCell::default()).collect(),
            sums: None,
            tier: None,
            picks: None,
            team,
            plan,
            weights,
        })
    }

    /// From now on what the routers pick is copied here.
    pub fn log_picks(&mut self, log: Arc<PickLog>) {
        self.picks = Some(log);
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.team.size()
    }

    /// So many tokens went through the whole plan: what lies in the tier's slots ages. Tells of a read that failed.
    pub fn age_tier(&self, tokens: usize) -> Result<(), BackendError> {
        if let Some(tier) = &self.tier {
            tier.store.end_run(tokens)?;
        }
        Ok(())
    }

    /// Computes experts from this tier's slots and no longer from the mapping.
    pub fn set_tier(&mut self, tier: Arc<Tier>) {
        self.tier = Some(tier);
    }

    /// Bytes of the cache and of all buffers when they are full. Of logits one row counts: who wants them all is rare.
    pub fn buffer_bytes(&self) -> u64 {
        let one_row = |at: usize| {
            let mut slots = self.plan.slots.iter().filter(|slot| slot.buffer as usize == at);
            slots.all(|slot| slot.taken)
        };
        let rows = |(at, buffer): (usize, &Shared<f32>)| buffer.len() / if one_row(at) { self.batch.max(1) } else { 1 };
        let floats = self.buffers.iter().enumerate().map(rows).sum::<usize>()
            + self.ids.iter().map(Shared::len).sum::<usize>()
            + self.angles.iter().flatten().map(Shared::len).sum::<usize>()
            + self.partials.len()
            + self.normed.len();
        let acts = 2 * self.normed.len(); // two kinds of int8, scales included
        let states: usize = self.states.iter().map(|state| 4 * state.len()).sum();
        let cache: usize = self.kv.iter().map(KvCache::bytes).sum::<usize>() + states;
        (4 * floats + acts + self.mixture.bytes() + cache) as u64
    }

    fn buffer(&self, slot: Slot) -> &Shared<f32> {
        &self.buffers[self.plan.slot(slot).buffer as usize]
    }

    fn ids(&self, slot: Slot) -> &Shared<u32> {
        &self.ids[self.plan.slot(slot).buffer as usize]
    }

    /// Caches of a page group that steps of this side fill.
    fn caches_of(&self, group: usize) -> impl Iterator<Item = usize> + use<> {
        let plan = Arc::clone(&self.plan);
        let mine = self.own_kv.clone();
        (0..plan.kv.len()).filter(move |&at| mine[at] && plan.kv[at].group == group)
    }

    fn width(&self, slot: Slot) -> usize {
        self.plan.slot(slot).width
    }

    fn vector(&self, id: WeightId) -> &[f32] {
        &self.vectors[id.0 as usize]
    }

    fn cache(&self, id: KvId) -> &KvCache {
        &self.kv[id.0 as usize]
    }

    fn linear(&self, id: WeightId) -> &'static Linear {
        let format = self.plan.weight(id).format;
        if self.exact { self.kernels.exact(format) } else { self.kernels.linear(format) }
    }

    /// `1 / sqrt(mean(x^2) + eps)`.
    fn rms_scale(&self, x: &[f32], eps: f32) -> f32 {
        let mean = self.kernels.vector().dot(x, x) / x.len() as f32;
        1.0 / (mean + eps).sqrt()
    }

    /// The worker's own buffers.
    #[expect(clippy::mut_from_ref, reason = "each worker asks for its own cell only")]
    fn worker(&self, w: &Worker) -> &mut WorkerState {
        // SAFETY: cell i is reached by worker i alone, and no operation holds it across another's.
        unsafe { &mut *self.workers[w.index].get() }
    }

    fn step(&self, run: &Run, w: &Worker, op: &Op) {
        match op {
            Op::Embed(op) => self.embed(run, w, op),
            Op::RmsNorm(op) => self.rms_norm(run, w, op),
            Op::Linear(op) => self.run_linear(run, w, op),
            Op::RopeStore(op) => self.rope_store(run, w, op),
            Op::Attention(op) => self.attention(run, w, op),
            Op::GatedUp(op) => self.gated_up(run, w, op),
            Op::Router(op) => self.router(run, w, op),
            Op::Experts(op) => self.run_experts(run, w, op),
            Op::ShortConv(op) => self.short_conv(run, w, op),
            Op::TakeRows(op) => self.take_rows(run, w, op),
            // Values move between executors outside of a run.
            Op::Move(_) => {}
        }
    }

    /// Cosines and sines of every position of the run.
    fn prepare_angles(&self, run: &Run, w: &Worker) {
        for (table, [cos, sin]) in self.plan.ropes.iter().zip(&self.angles) {
            let half = table.inv_freq.len();
            for token in w.share(run.env.tokens.len()) {
                let pos = run.env.tokens[token].pos as f32;
                let range = token * half..(token + 1) * half;
                // SAFETY: phase contract; shares are disjoint, and a barrier follows.
                let (cos, sin) = unsafe { (cos.get_mut(range.clone()), sin.get_mut(range)) };
                for (i, f) in table.inv_freq.iter().enumerate() {
                    let (s, c) = f64::from(pos * f).sin_cos();
                    cos[i] = c as f32 * table.magnitude;
                    sin[i] = s as f32 * table.magnitude;
                }
            }
        }
        w.barrier();
    }
}

/// The widest input of a matrix product.
fn input_width(plan: &Plan) -> usize {
    let width = |op: &Op| match op {
        Op::Linear(op) => plan.slot(op.x).width,
        Op::GatedUp(op) => plan.slot(op.x).width,
        Op::Router(op) => plan.slot(op.x).width,
        Op::Experts(op) => plan.slot(op.x).width,
        Op::Embed(_)
        | Op::RmsNorm(_)
        | Op::RopeStore(_)
        | Op::Attention(_)
        | Op::ShortConv(_)
        | Op::TakeRows(_)
        | Op::Move(_) => 0,
    };
    plan.steps.iter().map(|step| width(&step.op)).max().unwrap_or(0)
}

/// One-dimensional weights, widened once: norms and biases are a few kilobytes a layer.
fn vectors(weights: &Weights) -> Vec<Vec<f32>> {
    let plan = weights.plan();
    (0..plan.weights.len() as u32)
        .map(|id| {
            let weight = plan.weight(WeightId(id));
            if weight.rows * weight.experts > 1 {
                return vec![];
            }
            let mut values = vec![0.0; weight.k];
            weight.format.decode(weights.bytes(WeightId(id)), &mut values);
            values
        })
        .collect()
}

impl Backend for Cpu {
    fn run(&mut self, steps: Range<usize>, env: &Env) -> Result<(), BackendError> {
        assert!(env.tokens.len() <= self.batch && env.rows.len() <= self.batch, "the engine cuts batches to size");
        let remembered = self.plan.states.is_empty() || env.seqs.iter().all(|seq| seq.state.is_some());
        assert!(remembered, "every sequence of a plan with states has one");
        if let Some(token) = env.tokens.iter().find(|token| token.id as usize >= self.plan.vocab) {
            return Err(BackendError::UnknownToken { id: token.id, vocab: self.plan.vocab });
        }
        let this = &*self;
        let run = Run { cpu: this, env };
        let halted = AtomicBool::new(false);
        this.team.run(|w| {
            this.prepare_angles(&run, w);
            let mut layer = None;
            for step in &this.plan.steps[steps.clone()] {
                if env.tokens.len() >= LONG_RUN && std::mem::replace(&mut layer, step.layer) != step.layer {
                    // One worker looks, so that all of them leave at the same step.
                    if w.index == 0 && env.is_stopped() {
                        halted.store(true, Ordering::Relaxed);
                    }
                    w.barrier();
                    if halted.load(Ordering::Relaxed) {
                        return;
                    }
                }
                let nothing_to_do = step.op.writes().first().is_some_and(|slot| run.rows(*slot) == 0);
                if !nothing_to_do {
                    this.step(&run, w, &step.op);
                }
            }
        });
        if halted.into_inner() {
            return Err(BackendError::Stopped);
        }
        // How many tokens went by only the caller knows: others may compute their other steps.
        self.age_tier(0)
    }

    fn read(&mut self, slot: Slot, out: &mut [f32]) -> Result<(), BackendError> {
        let buffer = self.plan.slot(slot).buffer as usize;
        out.copy_from_slice(&self.buffers[buffer].as_mut()[..out.len()]);
        Ok(())
    }

    fn write(&mut self, slot: Slot, rows: &[f32]) -> Result<(), BackendError> {
        let buffer = self.plan.slot(slot).buffer as usize;
        self.buffers[buffer].as_mut()[..rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn read_u32(&mut self, slot: Slot, out: &mut [u32]) -> Result<(), BackendError> {
        let buffer = self.plan.slot(slot).buffer as usize;
        out.copy_from_slice(&self.ids[buffer].as_mut()[..out.len()]);
        Ok(())
    }

    fn write_u32(&mut self, slot: Slot, rows: &[u32]) -> Result<(), BackendError> {
        let buffer = self.plan.slot(slot).buffer as usize;
        self.ids[buffer].as_mut()[..rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.caches_of(group).map(|at| self.kv[at].page_bytes()).sum()
    }

    fn save_page(&mut self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        self.caches_of(group).for_each(|at| self.kv[at].save_page(page, out));
        Ok(())
    }

    fn load_page(&mut self, group: usize, page: u32, mut bytes: &[u8]) -> Result<(), BackendError> {
        for at in self.caches_of(group) {
            bytes = self.kv[at].load_page(page, bytes);
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.own_states.iter().map(|id| self.plan.states[id.0 as usize].bytes() as usize).sum()
    }

    fn save_state(&mut self, place: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        for id in &self.own_states {
            let values = self.plan.states[id.0 as usize].values;
            let at = place as usize * values;
            out.extend_from_slice(bytemuck::cast_slice(&self.states[id.0 as usize].as_mut()[at..at + values]));
        }
        Ok(())
    }

    fn load_state(&mut self, place: u32, mut bytes: &[u8]) -> Result<(), BackendError> {
        for id in &self.own_states {
            let values = self.plan.states[id.0 as usize].values;
            let at = place as usize * values;
            let (here, rest) = bytes.split_at(4 * values);
            let to = &mut self.states[id.0 as usize].as_mut()[at..at + values];
            bytemuck::cast_slice_mut(to).copy_from_slice(here);
            bytes = rest;
        }
        Ok(())
    }

    fn copy_page(&mut self, group: usize, from: u32, to: u32) -> Result<(), BackendError> {
        self.caches_of(group).for_each(|at| self.kv[at].copy_page(from, to));
        Ok(())
    }
}
