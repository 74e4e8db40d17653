//! Blocks that several architectures share: the attention of the llama family, the head.

use super::{Hyper, Outputs};
use crate::plan::{Activation, Builder, Part, PlanError, RopeId, Routing, Slot};

/// Pre-norm attention with its residual: `h += W_o attention(rope(W_qkv norm(h)))`. Biases and q/k norms are used where
/// the file has them.
pub fn attention(b: &mut Builder, hp: &Hyper, h: Slot, rope: RopeId) -> Result<(), PlanError> {
    let heads = hp.heads;
    let (q_width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let norm = b.norm("attn_norm.weight", hp.width, hp.eps)?;
    let [q, k, v] = qkv(b, hp.width, [q_width, kv_width, kv_width])?;
    b.linear(h, Some(norm), vec![q, k, v]);
    let q_norm = b.optional_norm("attn_q_norm.weight", heads.head_dim, hp.eps)?;
    let k_norm = b.optional_norm("attn_k_norm.weight", heads.head_dim, hp.eps)?;
    let kv = b.kv(heads.kv_heads, heads.head_dim, None);
    b.rope_store([q.out, k.out, v.out], heads, [q_norm, k_norm], Some(rope), kv);
    let mixed = b.attention(q.out, heads, kv, 1.0 / (heads.head_dim as f32).sqrt());
    let out = b.part("attn_output", q_width, hp.width)?;
    b.add_linear(mixed, out, h);
    Ok(())
}

/// The projections of attention to q, k and v of these widths; some converters put them into one tensor.
pub fn qkv(b: &mut Builder, width: usize, [q, k, v]: [usize; 3]) -> Result<[Part; 3], PlanError> {
    if b.has("attn_qkv.weight") {
        return b.fused_parts("attn_qkv", width, [q, k, v]);
    }
    Ok([b.part("attn_q", width, q)?, b.part("attn_k", width, k)?, b.part("attn_v", width, v)?])
}

/// Pre-norm feed-forward with its residual: dense, or the mixture of experts where the layer has a router. A bias of the
/// choice and a shared expert are used where the file has them.
pub fn feed_forward(b: &mut Builder, hp: &Hyper, h: Slot, routing: Routing) -> Result<(), PlanError> {
    feed_forward_behind(b, hp, h, routing, "ffn_norm.weight")
}

/// The same, where the file has another name for the norm.
pub fn feed_forward_behind(
    b: &mut Builder,
    hp: &Hyper,
    h: Slot,
    routing: Routing,
    norm: &str,
) -> Result<(), PlanError> {
    let norm = b.norm(norm, hp.width, hp.eps)?;
    if hp.experts > 0 && b.has("ffn_gate_inp.weight") {
        let x = b.rms_norm(h, norm);
        let router = b.weight("ffn_gate_inp.weight", &[hp.width, hp.experts])?;
        let bias = b.optional_weight("exp_probs_b.bias", &[hp.experts])?;
        let picks = b.router(x, router, Routing { bias, ..routing })?;
        b.add_experts(x, picks, [hp.width, hp.expert_ff, hp.experts, hp.experts_used], Activation::Silu, h)?;
        if b.has("ffn_up_shexp.weight") { shared_expert(b, hp, x, h) } else { Ok(()) }
    } else {
        let up = b.gated_up(h, Some(norm), hp.width, hp.ff, Activation::Silu)?;
        let down = b.part("ffn_down", hp.ff, hp.width)?;
        b.add_linear(up, down, h);
        Ok(())
    }
}

/// The expert that every token uses, `h += W_down (act(W_gate x) * W_up x)`; with a router of its own times the sigmoid of that.
fn shared_expert(b: &mut Builder, hp: &Hyper, x: Slot, h: Slot) -> Result<(), PlanError> {
    let (names, size) = (["ffn_gate_shexp", "ffn_up_shexp"], [hp.width, hp.shared_ff]);
    let up = b.gated_up_of(names, x, None, size, Activation::Silu)?;
    if b.has("ffn_gate_inp_shexp.weight") {
        // The product is linear: its input can be scaled in place of its output.
        let gate = b.part("ffn_gate_inp_shexp", hp.width, 1)?;
        b.linear(x, None, vec![gate]);
        b.gate(up, None, gate.out, false, 1);
    }
    let down = b.part("ffn_down_shexp", hp.shared_ff, hp.width)?;
    b.add_linear(up, down, h);
    Ok(())
}

/// The embedding: its table is also the output matrix of a tied model.
pub fn embed(b: &mut Builder, hp: &Hyper, scale: f32) -> Result<Slot, PlanError> {
    let table = b.weight("token_embd.weight", &[hp.width, hp.vocab])?;
    Ok(b.embed(table, hp.width, scale))
}

/// Final norm and output matrix over the rows that are wanted.
pub fn head(b: &mut Builder, hp: &Hyper, h: Slot) -> Result<Outputs, PlanError> {
    head_behind(b, hp, h, "output_norm.weight")
}

/// The same, where the file has another name for the final norm.
pub fn head_behind(b: &mut Builder, hp: &Hyper, h: Slot, norm: &str) -> Result<Outputs, PlanError> {
    b.end_layers();
    let rows = b.take_rows(h);
    let norm = b.norm(norm, hp.width, hp.eps)?;
    let name = if b.has("output.weight") { "output" } else { "token_embd" };
    let out = b.part(name, hp.width, hp.vocab)?;
    b.linear(rows, Some(norm), vec![out]);
    Ok(Outputs { hidden: h, logits: out.out })
}
