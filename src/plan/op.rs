//! The operations a forward pass is made of, with the shapes they read and write.
//!
//! A closed set: executors match on it exhaustively, so the compiler lists what a new operation needs. Fused kernels
//! are operations that the `Builder` emits; nothing rewrites the list afterwards. Shapes are row-major, `t` is the
//! number of tokens of the run, `r` the number of rows whose logits are wanted.

use super::{KvId, RopeId, Slot, WeightId};

/// Root-mean-square norm of a row: `x / sqrt(mean(x^2) + eps) * weight` (weight: (n)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub weight: WeightId,
    pub eps: f32,
}

/// One matrix of a `Linear`: `out = weight x + bias` (weight: (n, k), bias: (n), out: (t, n)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    pub weight: WeightId,
    pub bias: Option<WeightId>,
    pub out: Slot,
}

/// The gate's activation function in a gated feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2), in f32.
    GeluTanh,
}

/// How router logits become expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts, then the top k.
    Softmax,
}

/// What a rope step turns: all heads of q (t, heads * head_dim) and of k (t, kv_heads * head_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// One step's operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out (t, n) = table[id] * scale`; table: (vocab, n).
    Embed { table: WeightId, scale: f32, out: Slot },
    /// `out (t, n) = norm(x (t, n))`, or `out += norm(x)` when `add` is set (sandwich norms).
    RmsNorm { x: Slot, norm: Norm, out: Slot, add: bool },
    /// Each part: `out (t, n_i) = W_i y + b_i`, or `out += ...` when `add` is set; `y = norm(x)` or `x (t, k)`.
    Linear { x: Slot, norm: Option<Norm>, parts: Vec<Part>, add: bool },
    /// Per head: q and k are normed (if any norm), turned by the rotary embedding (if any); k and v go to the cache at
    /// the token's position. q (t, heads * head_dim) is changed in place; k, v: (t, kv_heads * head_dim).
    RopeStore {
        q: Slot,
        k: Slot,
        v: Slot,
        heads: Heads,
        q_norm: Option<Norm>,
        k_norm: Option<Norm>,
        rope: Option<RopeId>,
        kv: KvId,
    },
    /// Causal attention over the cache, `out (t, heads * head_dim) = softmax(scale q k^T) v`; with a window, token i
    /// sees the last `window` positions, its own included.
    Attention { q: Slot, heads: Heads, kv: KvId, scale: f32, window: Option<u32>, out: Slot },
    /// `out (t, n) = act(gate y) * (up y)`; gate, up: (n, k); `y = norm(x)` or `x (t, k)`.
    GatedUp { x: Slot, norm: Option<Norm>, gate: WeightId, up: WeightId, act: Activation, out: Slot },
    /// Picks `used` experts a token from `weight x` (weight: (experts, k), x: (t, k)). `picks` (t, 2 * used): `used`
    /// ids as u32 bits by falling weight, then their mixing weights, normalised to sum 1 when `normalize` is set and
    /// times `scale`.
    Router { x: Slot, weight: WeightId, used: usize, gating: Gating, normalize: bool, scale: f32, picks: Slot },
    /// `out (t, n) += sum over the picks of w * down_e (act(gate_e x) * (up_e x))`; gate, up: (experts, ff, n),
    /// down: (experts, n, ff), x: (t, n). The one step that may run on several sides at once.
    Experts {
        x: Slot,
        picks: Slot,
        used: usize,
        gate: WeightId,
        up: WeightId,
        down: WeightId,
        act: Activation,
        out: Slot,
    },
    /// `out (r, n)` = the rows of `x (t, n)` whose logits are wanted. Later steps run on r rows.
    TakeRows { x: Slot, out: Slot },
    /// The slot's value is copied to the other side; emitted by placement only.
    Move { slot: Slot },
}

impl Op {
    /// The operation's name, as `inspect --plan` prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Linear { .. } => "linear",
            Op::RopeStore { .. } => "rope_store",
            Op::Attention { .. } => "attention",
            Op::GatedUp { .. } => "gated_up",
            Op::Router { .. } => "router",
            Op::Experts { .. } => "experts",
            Op::TakeRows { .. } => "take_rows",
            Op::Move { .. } => "move",
        }
    }

    /// Slots the operation reads, in the order of its fields; a slot changed in place is in both lists.
    pub fn reads(&self) -> Vec<Slot> {
        match self {
            Op::Embed { .. } => vec![],
            Op::RmsNorm { x, out, add, .. } => with_if(vec![*x], *out, *add),
            Op::Linear { x, parts, add, .. } => {
                let mut slots = vec![*x];
                if *add {
                    slots.extend(parts.iter().map(|part| part.out));
                }
                slots
            }
            Op::RopeStore { q, k, v, .. } => vec![*q, *k, *v],
            Op::Attention { q, .. } => vec![*q],
            Op::GatedUp { x, .. } => vec![*x],
            Op::Router { x, .. } => vec![*x],
            Op::Experts { x, picks, out, .. } => vec![*x, *picks, *out],
            Op::TakeRows { x, .. } => vec![*x],
            Op::Move { slot } => vec![*slot],
        }
    }

    /// Slots the operation writes.
    pub fn writes(&self) -> Vec<Slot> {
        match self {
            Op::Embed { out, .. }
            | Op::RmsNorm { out, .. }
            | Op::Attention { out, .. }
            | Op::GatedUp { out, .. }
            | Op::Experts { out, .. }
            | Op::TakeRows { out, .. } => vec![*out],
            Op::Linear { parts, .. } => parts.iter().map(|part| part.out).collect(),
            Op::RopeStore { q, .. } => vec![*q],
            Op::Router { picks, .. } => vec![*picks],
            Op::Move { slot } => vec![*slot],
        }
    }

    /// Weights the operation reads, norms and biases included.
    pub fn weights(&self) -> Vec<WeightId> {
        let norm = |norm: &Option<Norm>| norm.map(|norm| norm.weight);
        match self {
            Op::Embed { table, .. } => vec![*table],
            Op::RmsNorm { norm, .. } => vec![norm.weight],
            Op::Linear { norm: n, parts, .. } => {
                norm(n).into_iter().chain(parts.iter().flat_map(|p| [Some(p.weight), p.bias]).flatten()).collect()
            }
            Op::RopeStore { q_norm, k_norm, .. } => norm(q_norm).into_iter().chain(norm(k_norm)).collect(),
            Op::GatedUp { norm: n, gate, up, .. } => norm(n).into_iter().chain([*gate, *up]).collect(),
            Op::Router { weight, .. } => vec![*weight],
            Op::Experts { gate, up, down, .. } => vec![*gate, *up, *down],
            Op::Attention { .. } | Op::TakeRows { .. } | Op::Move { .. } => vec![],
        }
    }
}

fn with_if(mut slots: Vec<Slot>, slot: Slot, condition: bool) -> Vec<Slot> {
    if condition {
        slots.push(slot);
    }
    slots
}
