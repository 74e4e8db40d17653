//! The operations a forward pass is made of, with the shapes they read and write.
//!
//! A closed set: executors match on it exhaustively, so the compiler lists what a new operation needs. Each operation is a
//! struct of its own, which is what an executor's function takes. Fused kernels are operations that the `Builder`
//! emits; nothing rewrites the list afterwards. Shapes are row-major, `t` is the number of tokens of the run, `r` the
//! number of rows whose logits are wanted.

use super::{KvId, Memory, RopeId, Routing, Slot, StateId, WeightId};

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

/// The heads of q (t, heads * head_dim), and of k and v (t, kv_heads * head_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// `out (t, n) = table[id] * scale`; table: (vocab, n).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embed {
    pub table: WeightId,
    pub scale: f32,
    pub out: Slot,
}

/// `out (t, n) = norm(x (t, n))`, or `out += norm(x)` when `add` is set (sandwich norms).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    pub x: Slot,
    pub norm: Norm,
    pub out: Slot,
    pub add: bool,
}

/// Each part: `out (t, n_i) = W_i y + b_i`, or `out += ...` when `add` is set; `y = norm(x)` or `x (t, k)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    pub x: Slot,
    pub norm: Option<Norm>,
    pub parts: Vec<Part>,
    pub add: bool,
}

/// Per head: q and k are normed (if any norm), turned by the rotary embedding (if any); k and v go to the cache at the
/// token's position. q (t, heads * head_dim) is changed in place; k, v: (t, kv_heads * head_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeStore {
    pub q: Slot,
    pub k: Slot,
    pub v: Slot,
    pub heads: Heads,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub rope: Option<RopeId>,
    pub kv: KvId,
}

/// Causal attention over the cache, `out (t, heads * head_dim) = softmax(scale q k^T) v`; with a window, token i sees the
/// last `window` positions, its own included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub q: Slot,
    pub heads: Heads,
    pub kv: KvId,
    pub scale: f32,
    pub window: Option<u32>,
    pub out: Slot,
}

/// `out (t, n) = act(gate y) * (up y)`; gate, up: (n, k); `y = norm(x)` or `x (t, k)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedUp {
    pub x: Slot,
    pub norm: Option<Norm>,
    pub gate: WeightId,
    pub up: WeightId,
    pub act: Activation,
    pub out: Slot,
}

/// Picks `routing.used` experts a token from `weight x` (weight: (experts, k), x: (t, k)): `ids` (t, used) of u32 in the order
/// of choice, and their mixing `weights` (t, used).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    pub x: Slot,
    pub weight: WeightId,
    pub routing: Routing,
    pub ids: Slot,
    pub weights: Slot,
}

/// `out (t, n) += sum over the ids e of weights_e * down_e (act(gate_e x) * (up_e x))`; gate, up: (experts, ff, n), down:
/// (experts, n, ff), x: (t, n), ids and weights (t, used) as the `Router` writes them. The one step that may run on several
/// sides at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    pub x: Slot,
    pub ids: Slot,
    pub weights: Slot,
    pub used: usize,
    pub gate: WeightId,
    pub up: WeightId,
    pub down: WeightId,
    pub act: Activation,
    pub out: Slot,
}

/// Causal depthwise convolution over a sequence, `out (t, n) = act(sum over j of weight[.., j] * u[i - taps + 1 + j])` for its
/// token i; weight: (n, taps). The inputs before the run's first token come from the state (taps - 1, n), the oldest first,
/// which the run leaves with its own last ones. `u` is `x (t, n)`; with `gated` x (t, 3 n) is [b | c | x], `u = b * x` and the
/// result is multiplied by c (the short convolution of LFM2; LiquidAI 2025, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShortConv {
    pub x: Slot,
    pub weight: WeightId,
    pub gated: bool,
    pub act: Option<Activation>,
    pub state: StateId,
    pub out: Slot,
}

/// The columns of `x (t, groups * n)`, seen as (t, groups, n), dealt out: `outs[i]` (t, groups * n_i) gets the next n_i columns
/// of every group.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    pub x: Slot,
    pub groups: usize,
    pub outs: Vec<Slot>,
}

/// In place and head by head, `x (t, heads * d) = norm(x) * sigmoid(gate)`, times the gate once more with `silu`; gate:
/// (t, heads * d), or (t, heads) with one value for a head; norm weight: (d).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    pub x: Slot,
    pub gate: Slot,
    pub norm: Option<Norm>,
    pub silu: bool,
    pub heads: usize,
}

/// The heads of a delta rule: `keys` of q and k, `values` of v, each of its own width. Value head v belongs to key head
/// `v % keys` when `tiled`, else to `v / (values / keys)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaHeads {
    pub keys: usize,
    pub key_dim: usize,
    pub values: usize,
    pub value_dim: usize,
    pub tiled: bool,
}

impl DeltaHeads {
    /// Columns of [q | k | v].
    pub fn width(&self) -> usize {
        2 * self.keys * self.key_dim + self.values * self.value_dim
    }
}

/// The gated delta rule (Yang et al. 2024, "Gated Delta Networks", equation 10), head by head and token by token of a sequence:
/// `S = a S; S += k^T (b (v - k S)); out = q S` with S (key_dim, value_dim) from the state (values, key_dim, value_dim).
/// x (t, width) is [q | k | v]; q and k are divided by `sqrt(sum of squares + 1e-6)`, q by `sqrt(key_dim)` too;
/// `a = exp(slope softplus(decay + shift))`, `b = sigmoid(rate)`; decay, rate: (t, values), slope, shift: (values), out:
/// (t, values * value_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaRule {
    pub x: Slot,
    pub decay: Slot,
    pub rate: Slot,
    pub slope: WeightId,
    pub shift: WeightId,
    pub heads: DeltaHeads,
    pub state: StateId,
    pub out: Slot,
}

/// `out (r, n)` = the rows of `x (t, n)` whose logits are wanted. Later steps run on r rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TakeRows {
    pub x: Slot,
    pub out: Slot,
}

/// The slot's value is copied to the other side; emitted by placement only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    pub slot: Slot,
}

/// One step's operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Embed(Embed),
    RmsNorm(RmsNorm),
    Linear(Linear),
    RopeStore(RopeStore),
    Attention(Attention),
    GatedUp(GatedUp),
    Router(Router),
    Experts(Experts),
    ShortConv(ShortConv),
    DeltaRule(DeltaRule),
    Gate(Gate),
    Split(Split),
    TakeRows(TakeRows),
    Move(Move),
}

impl Op {
    /// The operation's name, as `inspect --plan` prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed(_) => "embed",
            Op::RmsNorm(_) => "rms_norm",
            Op::Linear(_) => "linear",
            Op::RopeStore(_) => "rope_store",
            Op::Attention(_) => "attention",
            Op::GatedUp(_) => "gated_up",
            Op::Router(_) => "router",
            Op::Experts(_) => "experts",
            Op::ShortConv(_) => "short_conv",
            Op::DeltaRule(_) => "delta_rule",
            Op::Gate(_) => "gate",
            Op::Split(_) => "split",
            Op::TakeRows(_) => "take_rows",
            Op::Move(_) => "move",
        }
    }

    /// Slots the operation reads, in the order of its fields; a slot changed in place is in both lists.
    pub fn reads(&self) -> Vec<Slot> {
        match self {
            Op::Embed(_) => vec![],
            Op::RmsNorm(op) => with_if(vec![op.x], op.out, op.add),
            Op::Linear(op) => {
                let mut slots = vec![op.x];
                if op.add {
                    slots.extend(op.parts.iter().map(|part| part.out));
                }
                slots
            }
            Op::RopeStore(op) => vec![op.q, op.k, op.v],
            Op::Attention(op) => vec![op.q],
            Op::GatedUp(op) => vec![op.x],
            Op::Router(op) => vec![op.x],
            Op::Experts(op) => vec![op.x, op.ids, op.weights, op.out],
            Op::ShortConv(op) => vec![op.x],
            Op::DeltaRule(op) => vec![op.x, op.decay, op.rate],
            Op::Gate(op) => vec![op.x, op.gate],
            Op::Split(op) => vec![op.x],
            Op::TakeRows(op) => vec![op.x],
            Op::Move(op) => vec![op.slot],
        }
    }

    /// Slots the operation writes.
    pub fn writes(&self) -> Vec<Slot> {
        match self {
            Op::Embed(op) => vec![op.out],
            Op::RmsNorm(op) => vec![op.out],
            Op::Linear(op) => op.parts.iter().map(|part| part.out).collect(),
            Op::RopeStore(op) => vec![op.q],
            Op::Attention(op) => vec![op.out],
            Op::GatedUp(op) => vec![op.out],
            Op::Router(op) => vec![op.ids, op.weights],
            Op::Experts(op) => vec![op.out],
            Op::ShortConv(op) => vec![op.out],
            Op::DeltaRule(op) => vec![op.out],
            Op::Gate(op) => vec![op.x],
            Op::Split(op) => op.outs.clone(),
            Op::TakeRows(op) => vec![op.out],
            Op::Move(op) => vec![op.slot],
        }
    }

    /// Weights the operation reads, norms and biases included.
    pub fn weights(&self) -> Vec<WeightId> {
        let norm = |norm: Option<Norm>| norm.map(|norm| norm.weight);
        match self {
            Op::Embed(op) => vec![op.table],
            Op::RmsNorm(op) => vec![op.norm.weight],
            Op::Linear(op) => {
                let parts = op.parts.iter().flat_map(|part| [Some(part.weight), part.bias]);
                norm(op.norm).into_iter().chain(parts.flatten()).collect()
            }
            Op::RopeStore(op) => norm(op.q_norm).into_iter().chain(norm(op.k_norm)).collect(),
            Op::GatedUp(op) => norm(op.norm).into_iter().chain([op.gate, op.up]).collect(),
            Op::Router(op) => [op.weight].into_iter().chain(op.routing.bias).collect(),
            Op::Experts(op) => vec![op.gate, op.up, op.down],
            Op::ShortConv(op) => vec![op.weight],
            Op::DeltaRule(op) => vec![op.slope, op.shift],
            Op::Gate(op) => norm(op.norm).into_iter().collect(),
            Op::Attention(_) | Op::Split(_) | Op::TakeRows(_) | Op::Move(_) => vec![],
        }
    }

    /// What a sequence remembers that the operation reads or writes: all steps that share one run on one side.
    pub fn memories(&self) -> Vec<Memory> {
        match self {
            Op::RopeStore(op) => vec![Memory::Kv(op.kv)],
            Op::Attention(op) => vec![Memory::Kv(op.kv)],
            Op::ShortConv(op) => vec![Memory::State(op.state)],
            Op::DeltaRule(op) => vec![Memory::State(op.state)],
            Op::Embed(_)
            | Op::RmsNorm(_)
            | Op::Linear(_)
            | Op::GatedUp(_)
            | Op::Router(_)
            | Op::Experts(_)
            | Op::Gate(_)
            | Op::Split(_)
            | Op::TakeRows(_)
            | Op::Move(_) => vec![],
        }
    }

    /// Values of caches that one token reads when the sequence holds so many tokens.
    pub fn cache_reads(&self, cached: usize) -> usize {
        match self {
            Op::Attention(op) => {
                let seen = op.window.map_or(cached, |window| cached.min(window as usize));
                2 * op.heads.kv_heads * op.heads.head_dim * seen
            }
            Op::Embed(_)
            | Op::RmsNorm(_)
            | Op::Linear(_)
            | Op::RopeStore(_)
            | Op::GatedUp(_)
            | Op::Router(_)
            | Op::Experts(_)
            | Op::ShortConv(_)
            | Op::DeltaRule(_)
            | Op::Gate(_)
            | Op::Split(_)
            | Op::TakeRows(_)
            | Op::Move(_) => 0,
        }
    }

    /// Whether it is a mixture's experts, which need not run where the other steps of their layer do.
    pub fn is_experts(&self) -> bool {
        matches!(self, Op::Experts(_))
    }
}

fn with_if(mut slots: Vec<Slot>, slot: Slot, condition: bool) -> Vec<Slot> {
    if condition {
        slots.push(slot);
    }
    slots
}
