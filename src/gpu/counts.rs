//! How many dispatches a step is for one token, told from the plan alone.
//!
//! The prepared steps are the truth, and `tests/gpu_counts.rs` holds this against what they count; this exists so that
//! models can be judged from their headers, without their weights or a GPU.

use super::matrix::Rows;
use super::ops::{EXPERT_BANKS, attention_dispatches, has_tail};
use super::slots::stacks;
use crate::plan::{Op, Plan, WeightId};

/// Dispatches for one token whose context fills so many pages, on an adapter that binds `bank_bytes` at once.
pub fn dispatches(plan: &Plan, op: &Op, bank_bytes: u64, pages: usize) -> usize {
    let banks = |rows: Rows| rows.banks(plan, bank_bytes);
    let one = |id: WeightId| banks(Rows::Stacked(vec![id]));
    let tail = |ids: &[WeightId]| ids.iter().any(|&id| has_tail(plan.weight(id).format, plan.weight(id).k));
    // A norm is part of the product, but for rows that end within a unit.
    let norm = |has: bool, ids: &[WeightId]| usize::from(has && tail(ids));
    match op {
        Op::Embed(op) => one(op.table),
        Op::Linear(op) => {
            let ids: Vec<WeightId> = op.parts.iter().map(|part| part.weight).collect();
            let stacks = stacks(plan, &op.parts).into_iter();
            let products = stacks.map(|stack| banks(Rows::Stacked(stack.iter().map(|part| part.weight).collect())));
            norm(op.norm.is_some(), &ids) + products.sum::<usize>()
        }
        Op::GatedUp(op) => {
            let pair = Rows::Paired(op.gate, op.up);
            let products = if pair.problem(plan).is_none() { banks(pair) } else { one(op.gate) + one(op.up) + 1 };
            norm(op.norm.is_some(), &[op.gate, op.up]) + products
        }
        Op::Attention(op) => attention_dispatches(op.heads, op.window, pages),
        Op::Router(op) => one(op.weight) + 1,
        Op::Experts(op) => {
            // One dispatch binds several banks.
            banks(Rows::Paired(op.gate, op.up)).div_ceil(EXPERT_BANKS) + one(op.down).div_ceil(EXPERT_BANKS)
        }
        Op::RmsNorm(_) | Op::RopeStore(_) | Op::TakeRows(_) => 1,
        // Computed by the CPU, see `refusal`.
        Op::ShortConv(_) | Op::DeltaRule(_) | Op::Gate(_) | Op::Split(_) => 0,
        Op::Move(_) => 0,
    }
}
