//! What to compute: a forward pass as a list of steps over numbered slots.
//!
//! The list is built once, at load, by an architecture file through `Builder`; the executors replay it for every run.
//! So what a model does, what it reads and what crosses the bus are values: they can be printed, counted and asserted.
//! A plan holds no weights and no activations; it names them.

mod builder;
mod mixture;
mod op;
mod place;
mod rope;
mod routing;

pub use builder::{Builder, PlanError};
pub use mixture::{Mixture, mixtures};
pub use op::{
    Activation, Attention, DeltaHeads, DeltaRule, Embed, Experts, Gate, GatedUp, Heads, Linear, Move, Norm, Op, Part,
    RmsNorm, RopeStore, Router, ShortConv, Split, TakeRows,
};
pub use place::{Room, Sides, Stage, place, stages};
pub use rope::{RopeLayout, RopeScaling, RopeTable};
pub use routing::{Routing, Score};

use std::ops::Range;

use rynd_quant::Format;

/// Tokens in one page of the key-value cache.
pub const PAGE_TOKENS: usize = 64;

/// A value between steps: (t, width) f32 or u32, or (r, width) after `Op::TakeRows`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot(pub u32);

/// A tensor of the model file, index into `Plan::weights`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WeightId(pub u32);

/// One layer's cache of keys and values, index into `Plan::kv`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct KvId(pub u32);

/// A recurrent state of each sequence, index into `Plan::states`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StateId(pub u32);

/// What a sequence remembers from token to token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Memory {
    /// Grows with the sequence, by pages.
    Kv(KvId),
    /// Has one size, and is changed in place.
    State(StateId),
}

/// A rotary embedding, index into `Plan::ropes`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RopeId(pub u32);

/// Where a step runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    Cpu,
    Gpu(u8),
}

/// One step of the list.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    /// The layer it belongs to; `None` before the first and after the last.
    pub layer: Option<u32>,
    pub side: Side,
}

/// What a slot's values are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotKind {
    F32,
    /// Numbers of experts.
    U32,
}

/// A slot's description. Slots of the same `buffer` share memory: they are of one kind, and their lives do not overlap.
#[derive(Clone, Copy, Debug)]
pub struct SlotInfo {
    pub width: usize, // values a row
    pub kind: SlotKind,
    pub buffer: u32,
    /// Rows are the r rows of `TakeRows`, not the t tokens.
    pub taken: bool,
}

/// A weight tensor, or neighbouring rows of one, as a plan sees it: `experts` matrices of (rows, k), row-major.
#[derive(Clone, Debug)]
pub struct Weight {
    pub name: String,
    /// Index into `Gguf::tensors`.
    pub tensor: usize,
    pub format: Format,
    pub k: usize,
    pub rows: usize,
    pub experts: usize,
    /// Bytes of the tensor before its first row.
    pub offset: usize,
    /// Bytes from one expert's first row to the next one's.
    pub stride: usize,
}

impl Weight {
    /// Bytes of one row of k weights.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.k).unwrap_or(0)
    }

    /// Where an expert's matrix lies in the tensor, in bytes.
    pub fn expert_range(&self, expert: usize) -> Range<usize> {
        let first = self.offset + expert * self.stride;
        first..first + self.expert_bytes()
    }

    /// Whether other rows lie between one expert's and the next one's.
    pub fn is_strided(&self) -> bool {
        self.experts > 1 && self.stride != self.expert_bytes()
    }

    /// Bytes of one expert's matrix; of the whole tensor when it has one.
    pub fn expert_bytes(&self) -> usize {
        self.row_bytes() * self.rows
    }
}

/// One layer's cache: keys and values of `kv_heads * head_dim` a token.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions older than this many tokens are never read.
    pub window: Option<u32>,
    /// Whose page tables name its pages, index into `Plan::groups`.
    pub group: usize,
}

/// Caches whose pages are taken and given back together: of a sequence they all hold the same positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageGroup {
    /// Positions older than this many tokens are read by none of its caches.
    pub window: Option<u32>,
}

/// One recurrent state: so many f32 a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub values: usize,
}

impl State {
    /// Bytes of one sequence's.
    pub fn bytes(&self) -> u64 {
        4 * self.values as u64
    }
}

/// The parts of a forward pass, as ranges of its steps, one after the other.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sections {
    /// From the embedding to the last layer: (t) rows.
    pub body: Range<usize>,
    /// From the wanted rows to the logits: (r) rows.
    pub head: Range<usize>,
    /// What guesses tokens further on; empty when the model has no such layers.
    pub draft: Range<usize>,
}

impl Sections {
    /// What a run computes to get logits.
    pub fn forward(&self) -> Range<usize> {
        self.body.start..self.head.end
    }
}

/// The whole forward pass of one model.
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub sections: Sections,
    pub slots: Vec<SlotInfo>,
    pub weights: Vec<Weight>,
    pub kv: Vec<Kv>,
    pub groups: Vec<PageGroup>,
    pub states: Vec<State>,
    /// The mixture layers of `steps`, see `mixtures`.
    pub mixtures: Vec<Mixture>,
    pub ropes: Vec<RopeTable>,
    pub layers: usize,
    pub vocab: usize,
    /// The residual stream (t, n_embd): between two layers it is the hidden state.
    pub hidden: Slot,
    /// (r, vocab).
    pub logits: Slot,
    /// Tokens the model was made for, rope scaling included.
    pub context: usize,
}

impl Plan {
    /// The weight behind an id.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0 as usize]
    }

    /// The slot's description.
    pub fn slot(&self, slot: Slot) -> SlotInfo {
        self.slots[slot.0 as usize]
    }

    /// The buffers that slots share: the width of each (the widest slot in it), and what it holds.
    pub fn buffers(&self) -> Vec<(usize, SlotKind)> {
        let buffers = self.slots.iter().map(|slot| slot.buffer as usize + 1).max().unwrap_or(0);
        let mut widths = vec![(0, SlotKind::F32); buffers];
        for slot in &self.slots {
            let (width, kind) = &mut widths[slot.buffer as usize];
            (*width, *kind) = (slot.width.max(*width), slot.kind);
        }
        widths
    }

    /// The last step of a layer, after which `hidden` is the layer's output.
    pub fn last_step_of_layer(&self, layer: u32) -> Option<usize> {
        self.steps.iter().rposition(|step| step.layer == Some(layer))
    }

    /// Weight bytes one decoded token reads: dense weights whole, experts by what the router picks.
    pub fn bytes_per_token(&self) -> usize {
        self.steps.iter().map(|step| self.step_bytes(&step.op)).sum()
    }

    /// Weight bytes that one token reads in this operation.
    pub fn step_bytes(&self, op: &Op) -> usize {
        op.weights()
            .iter()
            .map(|&id| {
                let weight = self.weight(id);
                match op {
                    Op::Embed(_) => weight.row_bytes(),
                    Op::Experts(op) => weight.expert_bytes() * op.used,
                    Op::RmsNorm(_)
                    | Op::Linear(_)
                    | Op::RopeStore(_)
                    | Op::Attention(_)
                    | Op::GatedUp(_)
                    | Op::Router(_)
                    | Op::ShortConv(_)
                    | Op::DeltaRule(_)
                    | Op::Gate(_)
                    | Op::Split(_)
                    | Op::TakeRows(_)
                    | Op::Move(_) => weight.expert_bytes() * weight.experts,
                }
            })
            .sum()
    }

    /// What the steps that `is_wanted` says yes to read or write of a sequence's memory, each once.
    pub fn memories(&self, is_wanted: impl Fn(usize, &Step) -> bool) -> Vec<Memory> {
        let wanted = self.steps.iter().enumerate().filter(|(at, step)| is_wanted(*at, step));
        let mut memories: Vec<Memory> = wanted.flat_map(|(_, step)| step.op.memories()).collect();
        memories.sort_unstable();
        memories.dedup();
        memories
    }

    /// Cache bytes of one token, for `bytes_per_value` bytes a key or value.
    pub fn kv_bytes_per_token(&self, bytes_per_value: f64) -> f64 {
        self.kv.iter().map(|kv| (2 * kv.kv_heads * kv.head_dim) as f64 * bytes_per_value).sum()
    }
}
