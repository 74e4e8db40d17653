//! qwen3next (Qwen3-Coder-Next), qwen35 and qwen35moe (Qwen3.5, Qwen3.6): Gated DeltaNet in most layers, gated attention in
//! every fourth, mixtures with a shared expert behind its own gate, or dense networks (qwen35).
//!
//! `attn_q` holds [q | gate] for each head. The second norm is named `post_attention_norm`. In qwen3next a value head belongs
//! to the key head of its group and `ssm_ba` is [b | a] for each key head; the others store value heads tiled over key heads
//! and have `ssm_beta` and `ssm_alpha`. Norms have their 1 added already, `ssm_norm` has none to add. Sections of the rotary
//! embedding differ for images only. Files of the first conversions of qwen3next (`ssm_in`) are refused.

use super::{Hyper, Outputs, blocks};
use crate::plan::{Activation, Builder, DeltaHeads, PlanError, RopeId, RopeLayout, Score, Slot};

pub(super) fn plan(b: &mut Builder, hp: &Hyper) -> Result<Outputs, PlanError> {
    let (heads, taps) = delta_heads(b, hp)?;
    let routing = hp.routing(b, Score::Softmax)?;
    let rope = hp.rope(b, RopeLayout::Halves)?;
    let rope = b.rope(rope);
    let h = blocks::embed(b, hp, 1.0)?;
    for layer in 0..hp.layers {
        b.begin_layer(layer);
        if hp.attends[layer] {
            gated_attention(b, hp, h, rope)?;
        } else {
            delta_net(b, hp, h, heads, taps)?;
        }
        blocks::feed_forward_behind(b, hp, h, routing, "post_attention_norm.weight")?;
    }
    blocks::head(b, hp, h)
}

/// The delta rule's heads, and the tokens that its convolution sees.
fn delta_heads(b: &Builder, hp: &Hyper) -> Result<(DeltaHeads, usize), PlanError> {
    let size =
        |name: &str| -> Result<usize, PlanError> { Ok(b.gguf().u32(&format!("{}.ssm.{name}", hp.arch))? as usize) };
    let (keys, values) = (size("group_count")?, size("time_step_rank")?);
    let (key_dim, inner) = (size("state_size")?, size("inner_size")?);
    if keys == 0 || values == 0 || key_dim == 0 || !values.is_multiple_of(keys) || !inner.is_multiple_of(values) {
        return Err(b.unsupported(format!(
            "'{}.ssm.*' metadata is impossible: {values} value heads over {keys} key heads of {key_dim}, {inner} values in \
             all; convert the file anew",
            hp.arch
        )));
    }
    let heads = DeltaHeads { keys, key_dim, values, value_dim: inner / values, tiled: hp.arch != "qwen3next" };
    Ok((heads, size("conv_kernel")?))
}

/// Pre-norm attention whose output is gated, with its residual: `h += W_o (sigmoid(gate) * attention(rope(q), k, v))`.
fn gated_attention(b: &mut Builder, hp: &Hyper, h: Slot, rope: RopeId) -> Result<(), PlanError> {
    let heads = hp.heads;
    let (q_width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let norm = b.norm("attn_norm.weight", hp.width, hp.eps)?;
    let [q, k, v] = blocks::qkv(b, hp.width, [2 * q_width, kv_width, kv_width])?;
    b.linear(h, Some(norm), vec![q, k, v]);
    let [q, gate] = b.split(q.out, heads.heads, [heads.head_dim, heads.head_dim]);
    let q_norm = b.norm("attn_q_norm.weight", heads.head_dim, hp.eps)?;
    let k_norm = b.norm("attn_k_norm.weight", heads.head_dim, hp.eps)?;
    let kv = b.kv(heads.kv_heads, heads.head_dim, None);
    b.rope_store([q, k.out, v.out], heads, [Some(q_norm), Some(k_norm)], Some(rope), kv);
    let mixed = b.attention(q, heads, kv, 1.0 / (heads.head_dim as f32).sqrt());
    b.gate(mixed, None, gate, false, heads.heads);
    let out = b.part("attn_output", q_width, hp.width)?;
    b.add_linear(mixed, out, h);
    Ok(())
}

/// Pre-norm Gated DeltaNet with its residual: `h += W_o (silu(z) * norm(delta_rule(silu(conv([q | k | v])), a, b)))`.
fn delta_net(b: &mut Builder, hp: &Hyper, h: Slot, heads: DeltaHeads, taps: usize) -> Result<(), PlanError> {
    let inner = heads.values * heads.value_dim;
    let norm = b.norm("attn_norm.weight", hp.width, hp.eps)?;
    let qkv = b.part("attn_qkv", hp.width, heads.width())?;
    let z = b.part("attn_gate", hp.width, inner)?;
    let [rate, decay] = if heads.tiled {
        let rate = b.part("ssm_beta", hp.width, heads.values)?;
        let decay = b.part("ssm_alpha", hp.width, heads.values)?;
        b.linear(h, Some(norm), vec![qkv, z, rate, decay]);
        [rate.out, decay.out]
    } else {
        let both = b.part("ssm_ba", hp.width, 2 * heads.values)?;
        b.linear(h, Some(norm), vec![qkv, z, both]);
        b.split(both.out, heads.keys, [heads.values / heads.keys; 2])
    };
    let size = [heads.width(), taps];
    let mixed = b.short_conv(qkv.out, "ssm_conv1d.weight", size, false, Some(Activation::Silu))?;
    let out = b.delta_rule(mixed, [decay, rate], heads)?;
    let norm = b.norm("ssm_norm.weight", heads.value_dim, hp.eps)?;
    b.gate(out, Some(norm), z.out, true, heads.values);
    let to = b.part("ssm_out", inner, hp.width)?;
    b.add_linear(out, to, h);
    Ok(())
}
