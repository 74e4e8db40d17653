//! Norm weights and biases: f32, all of a side in one buffer, each at a whole vec4.
//!
//! A stacked projection wants its parts' biases one after the other, so a bias lies wherever its part does; a part
//! without one gets zeros.

use std::collections::HashMap;

use super::device::Device;
use super::error::GpuError;
use super::slots::{padded, stacks, values_bytes};
use crate::plan::{Norm, Op, Part, WeightId};
use crate::weights::Weights;

/// The buffer and where each vector starts in it, in f32.
pub(super) struct Vectors {
    pub buffer: wgpu::Buffer,
    norms: HashMap<WeightId, u32>,
    biases: HashMap<Vec<WeightId>, u32>, // by the weights of the stack
}

impl Vectors {
    /// All vectors of these steps.
    pub(super) fn new<'a>(
        device: &Device,
        weights: &Weights,
        ops: impl Iterator<Item = &'a Op>,
    ) -> Result<Vectors, GpuError> {
        let plan = weights.plan();
        let mut values: Vec<f32> = vec![];
        let (mut norms, mut biases) = (HashMap::new(), HashMap::new());
        let decode = |id: WeightId, values: &mut Vec<f32>| {
            let weight = plan.weight(id);
            let at = values.len();
            values.resize(at + padded(weight.k), 0.0);
            weight.format.decode(weights.bytes(id), &mut values[at..at + weight.k]);
            at as u32
        };
        for op in ops {
            for norm in norms_of(op) {
                norms.entry(norm.weight).or_insert_with(|| decode(norm.weight, &mut values));
            }
            let Op::Linear(op) = op else { continue };
            for stack in stacks(plan, &op.parts).iter().filter(|stack| stack.iter().any(|part| part.bias.is_some())) {
                let at = values.len() as u32;
                for part in stack {
                    match part.bias {
                        Some(bias) => {
                            decode(bias, &mut values);
                        }
                        None => values.resize(values.len() + padded(plan.weight(part.weight).rows), 0.0),
                    }
                }
                biases.insert(stack.iter().map(|part| part.weight).collect(), at);
            }
        }
        let buffer = device.storage("norms and biases", values_bytes(values.len()), "leave layers on the CPU")?;
        device.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&values));
        Ok(Vectors { buffer, norms, biases })
    }

    /// Where a norm's weight starts.
    pub(super) fn norm(&self, weight: WeightId) -> u32 {
        self.norms[&weight]
    }

    /// Where the biases of a stack start; `None` when it has none.
    pub(super) fn biases(&self, stack: &[Part]) -> Option<u32> {
        let key: Vec<WeightId> = stack.iter().map(|part| part.weight).collect();
        self.biases.get(&key).copied()
    }
}

fn norms_of(op: &Op) -> Vec<Norm> {
    match op {
        Op::RmsNorm(op) => vec![op.norm],
        Op::Linear(op) => op.norm.into_iter().collect(),
        Op::GatedUp(op) => op.norm.into_iter().collect(),
        Op::RopeStore(op) => op.q_norm.into_iter().chain(op.k_norm).collect(),
        Op::Embed(_)
        | Op::Attention(_)
        | Op::Router(_)
        | Op::Experts(_)
        | Op::ShortConv(_)
        | Op::DeltaRule(_)
        | Op::Gate(_)
        | Op::Split(_)
        | Op::TakeRows(_)
        | Op::Move(_) => vec![],
    }
}
