//! What a side's steps will take of a GPU's memory beside the weights: known before anything is allocated.
//!
//! Sizes of activations and scratch memory are upper bounds, so that what placement puts on a GPU fits its budget.

use super::layout::{Layout, UNIT};
use super::ops::page_bytes;
use super::slots::taken_rows;
use crate::backend::KvFormat;
use crate::plan::{Kv, Memory, Op, Plan, Weight};

/// Staging buffers and what drivers keep for themselves.
const STAGING_BYTES: u64 = 64 << 20;

/// Bytes of one layer's cache.
pub fn cache_bytes(kv: &Kv, format: KvFormat, pages: usize) -> u64 {
    2 * page_bytes(kv, format) * pages as u64
}

/// Bytes of what sequences remember: one layer's cache of so many pages, or the state of one sequence.
pub fn memory_bytes(plan: &Plan, memory: Memory, format: KvFormat, pages: usize) -> u64 {
    match memory {
        Memory::Kv(id) => cache_bytes(&plan.kv[id.0 as usize], format, pages),
        Memory::State(id) => plan.states[id.0 as usize].bytes(),
    }
}

/// Bytes of a whole weight as the kernels want it; as in the file for what they do not decode.
pub fn weight_bytes(weight: &Weight) -> u64 {
    let rows = (weight.rows * weight.experts) as u64;
    let row_bytes = Layout::of(weight.format).map_or(weight.row_bytes(), |layout| layout.row_bytes(weight.k));
    rows * row_bytes as u64
}

/// Bytes that the steps of this plan take beside weights and caches, at most, for runs of `batch` tokens.
pub fn activation_bytes(plan: &Plan, batch: usize) -> u64 {
    let taken = plan.slots.iter().filter(|slot| slot.taken).map(|slot| slot.width);
    let taken_rows = taken_rows(u64::MAX, taken.clone().max().unwrap_or(0), batch);
    // The buffers that slots share; columns of a projection have buffers of their own beside them.
    let shared: usize = plan.buffers().iter().map(|(width, _)| width).sum::<usize>() - taken.clone().max().unwrap_or(0);
    let (mut widest, mut columns, mut experts, mut parts) = (0, 0, 0, 0);
    for step in &plan.steps {
        let width = |slot| plan.slot(slot).width;
        match &step.op {
            Op::Linear(op) => {
                widest = widest.max(width(op.x));
                if !plan.slot(op.x).taken {
                    columns = columns.max(op.parts.iter().map(|part| width(part.out)).sum());
                }
            }
            Op::GatedUp(op) => widest = widest.max(width(op.x).max(width(op.out))),
            Op::Router(op) => widest = widest.max(plan.weight(op.weight).rows),
            Op::Experts(op) => {
                experts = experts.max(op.used * (plan.weight(op.down).k + width(op.x) + 1) + width(op.x));
            }
            // The most workgroups times the most rows of one, see `ops::attention`.
            Op::Attention(op) => parts = parts.max(32 * 256 * (op.heads.head_dim + 2)),
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
    // Three widest rows of scratch: normed, gate and up.
    let a_token = shared + columns + 3 * widest + experts + 64;
    STAGING_BYTES + 4 * (batch * a_token + taken_rows * taken.sum::<usize>() + parts + 64 * UNIT) as u64
}
