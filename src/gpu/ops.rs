//! Prepared steps: what load makes of each `Op`, and how a run replays it.
//!
//! A step holds its calls for one token and for a batch; `record` picks by the number of tokens and fills in what
//! depends on the run. Nothing is allocated and no pipeline is made by a run.

mod add;
mod attention;
mod best;
mod dense;
mod experts;

use std::collections::HashMap;
use std::sync::Arc;

use rynd_quant::Format;

pub(super) use add::Adder;
pub(super) use attention::{
    Attention, KvBuffers, Part as KvPart, RopeStore, TileSets, dispatches as attention_dispatches, page_bytes,
};
pub(super) use best::Best;
pub(super) use dense::{Embed, Gated, Linear, NormStep, Product, TakeRows};
pub(super) use experts::{BANKS as EXPERT_BANKS, ExpertWeights, Experts, Router};

use super::device::Device;
use super::error::GpuError;
use super::expert_slots::Pool;
use super::kernels::Team;
use super::matrix::{Matrix, Rows};
use super::pipelines::Recorder;
use super::slots::{Slots, values_bytes};
use super::upload::Uploader;
use super::vectors::Vectors;
use crate::backend::KvFormat;
use crate::plan::{Op, Plan};
use crate::weights::Weights;

/// Tokens up to which a matrix-vector kernel serves each on its own: a matmul tile would stay almost empty.
pub(super) const FEW_TOKENS: usize = 4;

/// `NONE` of the shaders.
pub(super) const NONE: u32 = u32::MAX;

/// What a run tells the steps.
pub(super) struct RunShape<'a> {
    pub tokens: usize, // t
    /// Wanted rows of this round (of all, when their logits fit the device).
    pub rows: usize, // r
    /// Where in env the wanted rows' indices of this round start.
    pub rows_at: u32,
    /// Longest number of pages that a token of the run may see.
    pub pages: usize,
    /// Most neighbouring tokens of one sequence.
    pub run_tokens: usize,
    /// Per set of tiles: where in env they start, and how many there are.
    pub tiles: &'a [(u32, usize)],
    /// Per rope: its first pair in the angles.
    pub angles: &'a [u32],
}

/// Everything that preparing a step needs.
pub(super) struct Setup<'a> {
    pub device: &'a Device,
    pub weights: &'a Weights,
    pub plan: &'a Plan,
    pub uploader: Uploader,
    pub slots: &'a Slots,
    pub vectors: &'a Vectors,
    pub env: &'a wgpu::Buffer,
    pub angles: &'a wgpu::Buffer,
    pub kv: &'a [Option<KvBuffers>],
    pub kv_format: KvFormat,
    pub tile_sets: &'a TileSets,
    pub batch: usize,
    pub pools: &'a [Pool],
    matrices: HashMap<Rows, Arc<Matrix>>,
    scratch: HashMap<&'static str, wgpu::Buffer>,
    scratch_bytes: HashMap<&'static str, u64>,
}

/// A step, ready to be replayed.
pub(super) enum Prepared {
    Embed(Embed),
    Norm(NormStep),
    Linear(Linear),
    Gated(Gated),
    RopeStore(RopeStore),
    Attention(Box<Attention>),
    Router(Router),
    Experts(Box<Experts>),
    TakeRows(TakeRows),
    /// Values move between executors outside of a run.
    Move,
}

impl<'a> Setup<'a> {
    pub(super) fn new(
        device: &'a Device,
        weights: &'a Weights,
        slots: &'a Slots,
        vectors: &'a Vectors,
        [env, angles]: [&'a wgpu::Buffer; 2],
        (kv, kv_format): (&'a [Option<KvBuffers>], KvFormat),
        tile_sets: &'a TileSets,
        batch: usize,
        pools: &'a [Pool],
    ) -> Setup<'a> {
        Setup {
            device,
            weights,
            plan: weights.plan(),
            uploader: Uploader::new(device),
            slots,
            vectors,
            env,
            angles,
            kv,
            kv_format,
            tile_sets,
            batch,
            pools,
            matrices: HashMap::new(),
            scratch: HashMap::new(),
            scratch_bytes: HashMap::new(),
        }
    }

    /// How lanes add up on this device.
    pub(super) fn team(&self) -> Team {
        self.device.team()
    }

    /// The matrix of these rows, uploaded once however many steps use it (a tied embedding is used twice).
    pub(super) fn matrix(&mut self, rows: Rows) -> Result<Arc<Matrix>, GpuError> {
        if let Some(matrix) = self.matrices.get(&rows) {
            return Ok(Arc::clone(matrix));
        }
        let matrix = Arc::new(Matrix::upload(self.device, &mut self.uploader, self.weights, &rows)?);
        self.matrices.insert(rows, Arc::clone(&matrix));
        Ok(matrix)
    }

    /// Announces that a step will want this many f32 of a scratch buffer that all steps share.
    pub(super) fn want_scratch(&mut self, name: &'static str, values: usize) {
        let bytes = self.scratch_bytes.entry(name).or_default();
        *bytes = (*bytes).max(values_bytes(values));
    }

    /// The scratch buffer, as large as was announced in all.
    pub(super) fn scratch(&mut self, name: &'static str) -> Result<wgpu::Buffer, GpuError> {
        if let Some(buffer) = self.scratch.get(name) {
            return Ok(buffer.clone());
        }
        let bytes = self.scratch_bytes.get(name).copied().unwrap_or_default();
        let buffer = self.device.storage(name, bytes, "lower -b")?;
        self.scratch.insert(name, buffer.clone());
        Ok(buffer)
    }
}

impl Prepared {
    /// Announces the scratch memory that a step needs; called for all steps before any is prepared.
    pub(super) fn announce(setup: &mut Setup, op: &Op) {
        match op {
            Op::Linear(op) => dense::announce_input(setup, op.x, op.norm.is_some()),
            Op::GatedUp(op) => dense::announce_gated(setup, op),
            Op::Attention(op) => attention::announce(setup, op.heads),
            Op::Router(op) => experts::announce_router(setup, op),
            Op::Experts(op) => experts::announce(setup, op),
            Op::Embed(_)
            | Op::RmsNorm(_)
            | Op::RopeStore(_)
            | Op::ShortConv(_)
            | Op::DeltaRule(_)
            | Op::Gate(_)
            | Op::Split(_)
            | Op::TakeRows(_)
            | Op::Move(_) => {}
        }
    }

    /// Uploads what the step needs and makes its calls.
    pub(super) fn new(setup: &mut Setup, step: usize) -> Result<Prepared, GpuError> {
        let plan = setup.plan;
        Ok(match &plan.steps[step].op {
            Op::Embed(op) => Prepared::Embed(Embed::new(setup, op)?),
            Op::RmsNorm(op) => Prepared::Norm(NormStep::new(setup, op)?),
            Op::Linear(op) => Prepared::Linear(Linear::new(setup, op)?),
            Op::GatedUp(op) => Prepared::Gated(Gated::new(setup, op)?),
            Op::RopeStore(op) => Prepared::RopeStore(RopeStore::new(setup, op)?),
            Op::Attention(op) => Prepared::Attention(Box::new(Attention::new(setup, op)?)),
            Op::Router(op) => Prepared::Router(Router::new(setup, op)?),
            Op::Experts(op) => {
                let pooled = setup.pools.iter().find_map(|pool| Some(ExpertWeights::pooled(pool, pool.map_at(step)?)));
                let weights = match pooled {
                    Some(weights) => weights,
                    None => ExpertWeights::whole(setup, [op.gate, op.up, op.down])?,
                };
                Prepared::Experts(Box::new(Experts::new(setup, op, weights)?))
            }
            Op::TakeRows(op) => Prepared::TakeRows(TakeRows::new(setup, op)?),
            op @ (Op::ShortConv(_) | Op::DeltaRule(_) | Op::Gate(_) | Op::Split(_)) => return Err(left(op)),
            Op::Move(_) => Prepared::Move,
        })
    }

    /// Records the step's dispatches.
    pub(super) fn record(&self, recorder: &mut Recorder, run: &RunShape, taken: bool) {
        let rows = if taken { run.rows } else { run.tokens };
        match self {
            Prepared::Embed(step) => step.record(recorder, rows),
            Prepared::Norm(step) => step.record(recorder, rows),
            Prepared::Linear(step) => step.record(recorder, rows),
            Prepared::Gated(step) => step.record(recorder, rows),
            Prepared::RopeStore(step) => step.record(recorder, run),
            Prepared::Attention(step) => step.record(recorder, run),
            Prepared::Router(step) => step.record(recorder, rows),
            Prepared::Experts(step) => step.record(recorder, rows),
            Prepared::TakeRows(step) => step.record(recorder, run),
            Prepared::Move => {}
        }
    }
}

/// Why a GPU can not run this operation of this plan; `None` when it can. What it refuses stays on the CPU.
pub fn refusal(plan: &Plan, op: &Op, kv: KvFormat) -> Option<String> {
    let decodes =
        |ids: Vec<crate::plan::WeightId>| ids.into_iter().find_map(|id| Rows::Stacked(vec![id]).problem(plan));
    match op {
        Op::Embed(op) => decodes(vec![op.table]),
        Op::Linear(op) => decodes(op.parts.iter().map(|part| part.weight).collect()),
        Op::GatedUp(op) => decodes(vec![op.gate, op.up]),
        Op::RopeStore(op) => attention::refusal(op.heads, kv),
        Op::Attention(op) => attention::refusal(op.heads, kv),
        Op::Router(op) => decodes(vec![op.weight]).or_else(|| experts::router_refusal(plan, op)),
        Op::Experts(op) if [op.gate, op.up, op.down].iter().any(|&id| plan.weight(id).is_strided()) => {
            Some("gate and up of its experts are one tensor".to_owned())
        }
        Op::Experts(op) => {
            Rows::Paired(op.gate, op.up).problem(plan).or_else(|| decodes(vec![op.down])).or_else(|| {
                // The shader takes an expert count of at most 1024.
                (plan.weight(op.gate).experts > experts::MAX_EXPERTS).then(|| "it has too many experts".to_owned())
            })
        }
        Op::ShortConv(_) | Op::DeltaRule(_) | Op::Gate(_) | Op::Split(_) => Some(NO_KERNEL.to_owned()),
        Op::RmsNorm(_) | Op::TakeRows(_) | Op::Move(_) => None,
    }
}

/// Why placement leaves operations of recurrent layers, and gates beside them, on the CPU.
const NO_KERNEL: &str = "it has no kernel for it";

fn left(op: &Op) -> GpuError {
    GpuError::Unsupported { what: format!("'{}'", op.name()), why: NO_KERNEL.to_owned() }
}

/// The bytes that a product over these formats reads is whatever the matrix holds: banks whole.
pub(super) fn bank_bytes(matrix: &Matrix, bank: usize) -> u64 {
    (matrix.banks[bank].rows * matrix.row_bytes) as u64
}

/// Formats with a tail: rows that end within a unit, whose pad must not enter the norm's mean.
pub(super) fn has_tail(format: Format, k: usize) -> bool {
    format.block_len() == 1 && !k.is_multiple_of(super::layout::UNIT)
}
