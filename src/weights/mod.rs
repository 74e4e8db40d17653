//! The bytes behind a plan's weights: borrowed from the mapped file, never copied.
//!
//! A `Weights` keeps the file mapped for as long as any executor holds it.

use std::sync::Arc;

use crate::gguf::{Advice, Gguf};
use crate::plan::{Plan, WeightId};

/// A plan and the file its weights lie in.
#[derive(Clone)]
pub struct Weights {
    gguf: Gguf,
    plan: Arc<Plan>,
}

impl Weights {
    /// The weights of this plan, which was built from this file.
    pub fn new(gguf: Gguf, plan: Arc<Plan>) -> Weights {
        Weights { gguf, plan }
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The whole weight: (experts, rows, k) blocks, with what lies between the experts of a strided one.
    pub fn bytes(&self, id: WeightId) -> &[u8] {
        let weight = self.plan.weight(id);
        let end = weight.expert_range(weight.experts - 1).end;
        &self.gguf.bytes(&self.gguf.tensors()[weight.tensor])[weight.offset..end]
    }

    /// One expert's matrix: (rows, k) blocks.
    pub fn expert(&self, id: WeightId, expert: usize) -> &[u8] {
        let weight = self.plan.weight(id);
        &self.gguf.bytes(&self.gguf.tensors()[weight.tensor])[weight.expert_range(expert)]
    }

    /// Lets the kernel take the tensor's pages back; they are read from the file again when touched.
    pub fn release(&self, id: WeightId) {
        self.gguf.advise(&self.gguf.tensors()[self.plan.weight(id).tensor], Advice::DontNeed);
    }
}
