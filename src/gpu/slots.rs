//! Where a plan's slots lie in GPU memory.
//!
//! Slots share buffers as the plan says. Where a projection's outputs (q, k, v) come from one stacked matrix, they are
//! columns of one buffer of their own, so that one dispatch writes them all. A router's ids and weights follow each other in
//! one buffer too, which is one binding. Rows are padded to vec4s, but for those, buffers by one unit: kernels read whole
//! units, and what they read past a row meets weights of zero.

use std::collections::HashMap;

use super::device::Device;
use super::error::GpuError;
use super::layout::UNIT;
use super::matrix::Rows;
use crate::plan::{self, Op, Part, Plan, Slot};

/// Columns `at..at + width` of rows of `stride` words, of which the first is at `base` in the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub base: usize,
    pub at: usize,
    pub stride: usize,
    pub width: usize,
}

impl View {
    /// A buffer's only columns.
    pub(super) fn alone(width: usize) -> View {
        View { base: 0, at: 0, stride: padded(width), width }
    }
}

/// All slots of the steps that run here.
pub(super) struct Slots {
    views: HashMap<Slot, (usize, View)>, // index of its buffer
    buffers: Vec<wgpu::Buffer>,
    /// Rows of a slot after `TakeRows`: logits of a whole batch can be larger than a binding.
    pub taken_rows: usize,
}

/// Neighbouring parts that can be one matrix: same format, whole vec4s wide.
pub(super) fn stacks(plan: &Plan, parts: &[Part]) -> Vec<Vec<Part>> {
    let mut stacks: Vec<Vec<Part>> = vec![];
    for part in parts {
        let joins = stacks.last().is_some_and(|stack: &Vec<Part>| {
            let ids = stack.iter().chain([part]).map(|p| p.weight).collect();
            stack.iter().all(|p| plan.weight(p.weight).rows.is_multiple_of(4))
                && Rows::Stacked(ids).problem(plan).is_none()
        });
        match stacks.last_mut() {
            Some(stack) if joins => stack.push(*part),
            _ => stacks.push(vec![*part]),
        }
    }
    stacks
}

impl Slots {
    /// Buffers for the slots of these steps, `batch` rows each.
    pub(super) fn new<'a>(
        device: &Device,
        plan: &Plan,
        ops: impl Iterator<Item = &'a Op> + Clone,
        batch: usize,
    ) -> Result<Slots, GpuError> {
        let mut views: HashMap<Slot, (usize, View)> = HashMap::new();
        let mut widths: Vec<(usize, bool)> = vec![]; // stride, taken
        let mut columns: HashMap<Vec<u32>, usize> = HashMap::new(); // plan buffers of the columns -> buffer
        for op in ops.clone() {
            let Op::Linear(plan::Linear { parts, add: false, .. }) = op else { continue };
            for stack in stacks(plan, parts).iter().filter(|stack| stack.len() > 1) {
                if stack.iter().any(|part| views.contains_key(&part.out)) {
                    let why = "a slot is the output of two projections".to_owned();
                    return Err(GpuError::Unsupported { what: "this plan".to_owned(), why });
                }
                let stride: usize = stack.iter().map(|part| padded(plan.slot(part.out).width)).sum();
                let key = stack.iter().map(|part| plan.slot(part.out).buffer).collect();
                let buffer = *columns.entry(key).or_insert_with(|| {
                    widths.push((0, false));
                    widths.len() - 1
                });
                widths[buffer].0 = widths[buffer].0.max(stride);
                let mut at = 0;
                for part in stack {
                    let width = plan.slot(part.out).width;
                    views.insert(part.out, (buffer, View { base: 0, at, stride, width }));
                    at += padded(width);
                }
            }
        }
        for op in ops.clone() {
            let Some([ids, weights]) = picks_of(op) else { continue };
            if views.contains_key(&ids) {
                continue;
            }
            let [used, other] = [ids, weights].map(|slot| plan.slot(slot).width);
            let key = [ids, weights].map(|slot| plan.slot(slot).buffer).to_vec();
            let buffer = *columns.entry(key).or_insert_with(|| {
                widths.push((0, false));
                widths.len() - 1
            });
            widths[buffer].0 = widths[buffer].0.max(used + other);
            views.insert(ids, (buffer, View { base: 0, at: 0, stride: used, width: used }));
            views.insert(weights, (buffer, View { base: batch * used, at: 0, stride: other, width: other }));
        }
        let mut shared: HashMap<u32, usize> = HashMap::new(); // plan buffer -> buffer
        for slot in ops.flat_map(|op| op.reads().into_iter().chain(op.writes())) {
            let info = plan.slot(slot);
            if views.contains_key(&slot) {
                continue;
            }
            let buffer = *shared.entry(info.buffer).or_insert_with(|| {
                widths.push((0, info.taken));
                widths.len() - 1
            });
            let view = View::alone(info.width);
            widths[buffer].0 = widths[buffer].0.max(view.stride);
            views.insert(slot, (buffer, view));
        }
        let widest_taken = widths.iter().filter(|(_, taken)| *taken).map(|(stride, _)| *stride).max().unwrap_or(1);
        let taken_rows = taken_rows(device.binding_bytes(), widest_taken, batch);
        let buffers = widths
            .iter()
            .map(|&(stride, taken)| {
                let rows = if taken { taken_rows } else { batch };
                device.storage("activations", values_bytes(rows * stride), "lower -b")
            })
            .collect::<Result<_, _>>()?;
        Ok(Slots { views, buffers, taken_rows })
    }

    /// The slot's place; `None` when no step here touches it.
    pub(super) fn get(&self, slot: Slot) -> Option<(View, &wgpu::Buffer)> {
        let &(buffer, view) = self.views.get(&slot)?;
        Some((view, &self.buffers[buffer]))
    }

    /// The place of a slot that a step here touches.
    pub(super) fn of(&self, slot: Slot) -> (View, &wgpu::Buffer) {
        let (buffer, view) = self.views[&slot];
        (view, &self.buffers[buffer])
    }
}

/// The ids and weights that a router writes or a mixture reads.
fn picks_of(op: &Op) -> Option<[Slot; 2]> {
    match op {
        Op::Router(op) => Some([op.ids, op.weights]),
        Op::Experts(op) => Some([op.ids, op.weights]),
        Op::Embed(_)
        | Op::RmsNorm(_)
        | Op::Linear(_)
        | Op::RopeStore(_)
        | Op::Attention(_)
        | Op::GatedUp(_)
        | Op::TakeRows(_)
        | Op::ShortConv(_)
        | Op::DeltaRule(_)
        | Op::Gate(_)
        | Op::Split(_)
        | Op::Move(_) => None,
    }
}

/// Bytes that the logits may take on a GPU: those of more rows are computed in rounds.
const TAKEN_BYTES: u64 = 128 << 20;

/// Rows after `TakeRows` that are kept at once, of so many f32 each.
pub(super) fn taken_rows(binding_bytes: u64, width: usize, batch: usize) -> usize {
    let fit = (binding_bytes.min(TAKEN_BYTES) as usize / 4 - UNIT) / width.max(1);
    batch.min(fit).max(1)
}

/// f32 of a row that is read in vec4s.
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// Bytes of a buffer of so many f32, with one unit behind its end.
pub(super) fn values_bytes(values: usize) -> u64 {
    (values + UNIT) as u64 * 4
}
