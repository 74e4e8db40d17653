//! What part a tensor plays in a model, read from its name: what the recipes speak of.
//!
//! Recipes know attention values from feed-forward gates, not architectures. Names are GGUF's; a tensor whose part is
//! unknown gets the file type's base format, which is always right and sometimes larger or coarser than need be.

/// The part a weight matrix plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    TokenEmbedding,
    Output,
    AttentionQ,
    AttentionK,
    /// Values, and fused matrices that hold the values: the part of attention that rounding hurts most.
    AttentionV,
    AttentionOutput,
    FfnGate,
    FfnUp,
    FfnDown,
    Other,
}

/// Part of a tensor's name -> its kind; the first that matches.
const KINDS: [(&str, Kind); 9] = [
    ("attn_qkv.weight", Kind::AttentionV),
    ("attn_kv_b.weight", Kind::AttentionV),
    ("attn_v.weight", Kind::AttentionV),
    ("attn_k.weight", Kind::AttentionK),
    ("attn_q.weight", Kind::AttentionQ),
    ("attn_output.weight", Kind::AttentionOutput),
    ("ffn_up", Kind::FfnUp),
    ("ffn_gate", Kind::FfnGate),
    ("ffn_down", Kind::FfnDown),
];

impl Kind {
    /// The kind of the tensor of this name.
    pub fn of(name: &str) -> Kind {
        match name {
            "output.weight" => Kind::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Kind::TokenEmbedding,
            _ => KINDS.iter().find(|(part, _)| name.contains(part)).map_or(Kind::Other, |(_, kind)| *kind),
        }
    }
}

/// Parts of the names of matrices that stay as they are: routers, norms, positions, convolutions and other small or
/// touchy tensors. The list is llama-quantize's, so that the same files come out.
const KEPT: [&str; 36] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
    "position_embd.weight",
];

/// Whether a recipe may change this tensor: a matrix (or a stack of them) of weights that is not on the list above.
pub fn is_quantizable(name: &str, shape: &[u64]) -> bool {
    let dimensions = shape.iter().rposition(|&n| n > 1).map_or(1, |last| last + 1);
    dimensions >= 2
        && name.ends_with("weight")
        && name != "token_types.weight"
        && !KEPT.iter().any(|part| name.contains(part))
}

/// The layer a tensor belongs to; `None` outside of the layers.
pub fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}
