//! Builds a plan: each call appends a step and returns the slot it wrote.
//!
//! The builder is the only place that looks tensors up by name, and it checks every shape there, so an executor may
//! trust the plan. When the list is complete, slots whose lives do not overlap are given one buffer.

use std::collections::HashMap;

use super::{
    Activation, Attention, Embed, Experts, GatedUp, Heads, Kv, KvId, Linear, Norm, Op, PageGroup, Part, Plan, RmsNorm,
    RopeId, RopeStore, RopeTable, Router, Routing, Sections, ShortConv, Side, Slot, SlotInfo, SlotKind, State, StateId,
    Step, TakeRows, Weight, WeightId, mixtures,
};
use crate::gguf::Gguf;

/// Tokens that a short convolution sees, at most.
const MAX_TAPS: usize = 16;

/// Why a plan can not be built from a file.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{file}: tensor '{tensor}' is missing, and the architecture '{arch}' needs it; the file is incomplete or was \
         converted for another version of the architecture: download it again or convert it anew"
    )]
    MissingTensor { file: String, tensor: String, arch: String },
    #[error(
        "{file}: tensor '{tensor}' has the shape {found:?}, but the metadata says {expected:?} (innermost first); the \
         file is damaged or was converted wrongly: convert it anew"
    )]
    WrongShape { file: String, tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("{file}: {problem}")]
    Unsupported { file: String, problem: String },
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
}

/// A plan in the making, over the tensor table of one model file.
pub struct Builder<'a> {
    gguf: &'a Gguf,
    arch: String,
    steps: Vec<Step>,
    slots: Vec<(usize, Kind)>, // width, kind
    weights: Vec<Weight>,
    by_name: HashMap<String, WeightId>,
    kv: Vec<Kv>,
    groups: Vec<PageGroup>,
    states: Vec<State>,
    ropes: Vec<RopeTable>,
    layer: Option<u32>,
    layers: usize,
    /// Where the head begins, once it has.
    head_at: Option<usize>,
    taken: bool,
}

impl<'a> Builder<'a> {
    /// An empty plan over a file of the given architecture (named in errors).
    pub fn new(gguf: &'a Gguf, arch: &str) -> Builder<'a> {
        Builder {
            gguf,
            arch: arch.to_owned(),
            steps: vec![],
            slots: vec![],
            weights: vec![],
            by_name: HashMap::new(),
            kv: vec![],
            groups: vec![],
            states: vec![],
            ropes: vec![],
            layer: None,
            layers: 0,
            head_at: None,
            taken: false,
        }
    }

    /// The file the plan is built from.
    pub fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    /// Steps and tensor names (`blk.N.`) that follow belong to this layer.
    pub fn begin_layer(&mut self, layer: usize) {
        self.layer = Some(layer as u32);
        self.layers = self.layers.max(layer + 1);
    }

    /// Steps and tensor names that follow belong to no layer: the head begins.
    pub fn end_layers(&mut self) {
        self.head_at = Some(self.steps.len());
        self.layer = None;
    }

    /// The file's name for a tensor of the current layer: `blk.3.attn_q.weight` for `attn_q.weight`.
    pub fn name(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("blk.{layer}.{name}"),
            None => name.to_owned(),
        }
    }

    /// Whether the current layer (or the model) has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(&self.name(name)).is_some()
    }

    /// A tensor that must be there with this shape, innermost dimension first (GGML order).
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<WeightId, PlanError> {
        let name = self.name(name);
        match self.find(&name, shape)? {
            Some(id) => Ok(id),
            None => Err(PlanError::MissingTensor { file: self.file(), tensor: name, arch: self.arch.clone() }),
        }
    }

    /// A tensor that may be absent; when it is there, its shape must be right.
    pub fn optional_weight(&mut self, name: &str, shape: &[usize]) -> Result<Option<WeightId>, PlanError> {
        let name = self.name(name);
        self.find(&name, shape)
    }

    fn find(&mut self, name: &str, shape: &[usize]) -> Result<Option<WeightId>, PlanError> {
        if let Some(&id) = self.by_name.get(name) {
            return Ok(Some(id));
        }
        let Some(index) = self.gguf.tensor_index(name) else { return Ok(None) };
        let tensor = &self.gguf.tensors()[index];
        let mut found: Vec<u64> = tensor.shape.to_vec();
        while found.len() > shape.len() && found.last() == Some(&1) {
            found.pop();
        }
        let expected: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        if found != expected {
            return Err(PlanError::WrongShape { file: self.file(), tensor: name.to_owned(), found, expected });
        }
        let id = WeightId(self.weights.len() as u32);
        self.weights.push(Weight {
            name: name.to_owned(),
            tensor: index,
            format: tensor.format,
            k: shape[0],
            rows: shape.get(1).copied().unwrap_or(1),
            experts: shape.get(2).copied().unwrap_or(1),
        });
        self.by_name.insert(name.to_owned(), id);
        Ok(Some(id))
    }

    /// A norm over n values with a weight that must be there.
    pub fn norm(&mut self, name: &str, n: usize, eps: f32) -> Result<Norm, PlanError> {
        Ok(Norm { weight: self.weight(name, &[n])?, eps })
    }

    /// A norm that is there only when its tensor is.
    pub fn optional_norm(&mut self, name: &str, n: usize, eps: f32) -> Result<Option<Norm>, PlanError> {
        Ok(self.optional_weight(name, &[n])?.map(|weight| Norm { weight, eps }))
    }

    /// A part of a `linear`: `NAME.weight` (n, k) and, where the file has it, `NAME.bias` (n).
    pub fn part(&mut self, name: &str, k: usize, n: usize) -> Result<Part, PlanError> {
        let weight = self.weight(&format!("{name}.weight"), &[k, n])?;
        let bias = self.optional_weight(&format!("{name}.bias"), &[n])?;
        Ok(Part { weight, bias, out: self.slot(n) })
    }

    /// Registers a rotary embedding; equal tables share one id.
    pub fn rope(&mut self, table: RopeTable) -> RopeId {
        let at = self.ropes.iter().position(|known| *known == table).unwrap_or_else(|| {
            self.ropes.push(table);
            self.ropes.len() - 1
        });
        RopeId(at as u32)
    }

    /// A cache for the current layer. Caches of one window share their page tables. A window of 0 is how files say that there
    /// is none.
    pub fn kv(&mut self, kv_heads: usize, head_dim: usize, window: Option<u32>) -> KvId {
        let window = window.filter(|&tokens| tokens > 0);
        let group = PageGroup { window };
        let at = self.groups.iter().position(|known| *known == group).unwrap_or_else(|| {
            self.groups.push(group);
            self.groups.len() - 1
        });
        self.kv.push(Kv { kv_heads, head_dim, window, group: at });
        KvId(self.kv.len() as u32 - 1)
    }

    /// A recurrent state of so many f32 a sequence.
    pub fn state(&mut self, values: usize) -> StateId {
        self.states.push(State { values });
        StateId(self.states.len() as u32 - 1)
    }

    /// The embedding rows of the tokens, times `scale`: (t, n).
    pub fn embed(&mut self, table: WeightId, n: usize, scale: f32) -> Slot {
        let out = self.slot(n);
        self.push(Op::Embed(Embed { table, scale, out }));
        out
    }

    /// `norm(x)` into a slot of its own.
    pub fn rms_norm(&mut self, x: Slot, norm: Norm) -> Slot {
        let out = self.slot(self.slots[x.0 as usize].0);
        self.push(Op::RmsNorm(RmsNorm { x, norm, out, add: false }));
        out
    }

    /// `onto += norm(x)`.
    pub fn add_rms_norm(&mut self, x: Slot, norm: Norm, onto: Slot) {
        self.push(Op::RmsNorm(RmsNorm { x, norm, out: onto, add: true }));
    }

    /// One product an output, sharing the (normed) input.
    pub fn linear(&mut self, x: Slot, norm: Option<Norm>, parts: Vec<Part>) {
        self.push(Op::Linear(Linear { x, norm, parts, add: false }));
    }

    /// `onto += W x + b`.
    pub fn add_linear(&mut self, x: Slot, part: Part, onto: Slot) {
        self.push(Op::Linear(Linear { x, norm: None, parts: vec![Part { out: onto, ..part }], add: true }));
    }

    /// Norms and turns q and k, stores k and v.
    pub fn rope_store(
        &mut self,
        [q, k, v]: [Slot; 3],
        heads: Heads,
        [q_norm, k_norm]: [Option<Norm>; 2],
        rope: Option<RopeId>,
        kv: KvId,
    ) {
        self.push(Op::RopeStore(RopeStore { q, k, v, heads, q_norm, k_norm, rope, kv }));
    }

    /// Attention over what is stored: (t, heads * head_dim).
    pub fn attention(&mut self, q: Slot, heads: Heads, kv: KvId, scale: f32) -> Slot {
        let out = self.slot(heads.heads * heads.head_dim);
        let window = self.kv[kv.0 as usize].window;
        self.push(Op::Attention(Attention { q, heads, kv, scale, window, out }));
        out
    }

    /// The gated half of a feed-forward network: (t, ff).
    pub fn gated_up(
        &mut self,
        x: Slot,
        norm: Option<Norm>,
        n: usize,
        ff: usize,
        act: Activation,
    ) -> Result<Slot, PlanError> {
        let gate = self.weight("ffn_gate.weight", &[n, ff])?;
        let up = self.weight("ffn_up.weight", &[n, ff])?;
        let out = self.slot(ff);
        self.push(Op::GatedUp(GatedUp { x, norm, gate, up, act, out }));
        Ok(out)
    }

    /// The ids of the experts that the router picks, and their weights: (t, used) each.
    pub fn router(&mut self, x: Slot, weight: WeightId, routing: Routing) -> Result<[Slot; 2], PlanError> {
        let weight_info = &self.weights[weight.0 as usize];
        if let Some(problem) = routing.problem(weight_info.rows) {
            let name = weight_info.name.clone();
            return Err(self.unsupported(format!("the router '{name}': {problem}")));
        }
        let ids = self.slot_of(routing.used, SlotKind::U32);
        let weights = self.slot(routing.used);
        self.push(Op::Router(Router { x, weight, routing, ids, weights }));
        Ok([ids, weights])
    }

    /// `onto +=` the picked experts' weighted outputs; expert tensors `ffn_{gate,up,down}_exps.weight`.
    pub fn add_experts(
        &mut self,
        x: Slot,
        [ids, weights]: [Slot; 2],
        [n, ff, experts, used]: [usize; 4],
        act: Activation,
        onto: Slot,
    ) -> Result<(), PlanError> {
        let gate = self.weight("ffn_gate_exps.weight", &[n, ff, experts])?;
        let up = self.weight("ffn_up_exps.weight", &[n, ff, experts])?;
        let down = self.weight("ffn_down_exps.weight", &[ff, n, experts])?;
        self.push(Op::Experts(Experts { x, ids, weights, used, gate, up, down, act, out: onto }));
        Ok(())
    }

    /// The convolution of a sequence's last inputs with `name` (n, taps): (t, n).
    pub fn short_conv(
        &mut self,
        x: Slot,
        name: &str,
        [n, taps]: [usize; 2],
        gated: bool,
        act: Option<Activation>,
    ) -> Result<Slot, PlanError> {
        if !(2..=MAX_TAPS).contains(&taps) {
            let name = self.name(name);
            return Err(
                self.unsupported(format!("the convolution '{name}' over {taps} tokens is not of 2 to {MAX_TAPS}"))
            );
        }
        let weight = self.weight(name, &[taps, n])?;
        let state = self.state((taps - 1) * n);
        let out = self.slot(n);
        self.push(Op::ShortConv(ShortConv { x, weight, gated, act, state, out }));
        Ok(out)
    }

    /// Only the rows whose logits are wanted go on: (r, n).
    pub fn take_rows(&mut self, x: Slot) -> Slot {
        self.taken = true;
        let out = self.slot(self.slots[x.0 as usize].0);
        self.push(Op::TakeRows(TakeRows { x, out }));
        out
    }

    /// The finished plan; `hidden` is the residual stream, `logits` (r, vocab).
    pub fn finish(self, hidden: Slot, logits: Slot, context: usize) -> Plan {
        let slots = share_buffers(&self.steps, &self.slots, &[hidden, logits]);
        let vocab = self.slots[logits.0 as usize].0;
        let end = self.steps.len();
        let head_at = self.head_at.unwrap_or(end);
        Plan {
            mixtures: mixtures(&self.steps),
            sections: Sections { body: 0..head_at, head: head_at..end, draft: end..end },
            steps: self.steps,
            slots,
            weights: self.weights,
            kv: self.kv,
            groups: self.groups,
            states: self.states,
            ropes: self.ropes,
            layers: self.layers,
            vocab,
            hidden,
            logits,
            context,
        }
    }

    /// An error about this file that no other variant describes.
    pub fn unsupported(&self, problem: impl Into<String>) -> PlanError {
        PlanError::Unsupported { file: self.file(), problem: problem.into() }
    }

    fn file(&self) -> String {
        self.gguf.path().display().to_string()
    }

    fn slot(&mut self, width: usize) -> Slot {
        self.slot_of(width, SlotKind::F32)
    }

    fn slot_of(&mut self, width: usize, values: SlotKind) -> Slot {
        self.slots.push((width, Kind { values, taken: self.taken }));
        Slot(self.slots.len() as u32 - 1)
    }

    fn push(&mut self, op: Op) {
        self.steps.push(Step { op, layer: self.layer, side: Side::Cpu });
    }
}

/// What slots that may share a buffer have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    values: SlotKind,
    taken: bool,
}

impl Kind {
    fn slot(self, width: usize, buffer: u32) -> SlotInfo {
        SlotInfo { width, kind: self.values, buffer, taken: self.taken }
    }
}

/// Gives each slot a buffer: the first free one of its kind, the pinned slots one of their own.
fn share_buffers(steps: &[Step], wanted: &[(usize, Kind)], pinned: &[Slot]) -> Vec<SlotInfo> {
    let mut last_use = vec![0; wanted.len()];
    for (at, step) in steps.iter().enumerate() {
        for slot in step.op.reads().into_iter().chain(step.op.writes()) {
            last_use[slot.0 as usize] = at;
        }
    }
    for slot in pinned {
        last_use[slot.0 as usize] = usize::MAX;
    }
    let mut infos: Vec<Option<SlotInfo>> = vec![None; wanted.len()];
    let mut busy_until: Vec<(usize, Kind)> = vec![]; // per buffer: last use, kind
    for (at, step) in steps.iter().enumerate() {
        for slot in step.op.writes() {
            let index = slot.0 as usize;
            if infos[index].is_some() {
                continue;
            }
            let (width, kind) = wanted[index];
            let buffer = match busy_until.iter().position(|&(until, known)| until < at && known == kind) {
                Some(free) => free,
                None => {
                    busy_until.push((0, kind));
                    busy_until.len() - 1
                }
            };
            busy_until[buffer].0 = last_use[index];
            infos[index] = Some(kind.slot(width, buffer as u32));
        }
    }
    // A slot that no step writes is read by none either: it needs no memory.
    infos.into_iter().zip(wanted).map(|(info, &(_, kind))| info.unwrap_or(kind.slot(0, 0))).collect()
}
