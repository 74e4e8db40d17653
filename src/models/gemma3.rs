//! gemma3: sandwich norms, five sliding layers to one global, two rope bases, GELU gate, scaled embedding.
//!
//! Every sixth layer is global and alone uses `rope.freq_base` and the rope scaling; the others slide over
//! `attention.sliding_window` tokens with `rope.freq_base_swa`. An optional `attention.sliding_window_pattern` (a period)
//! replaces the six. The 62-layer model (27B) scales queries by its width over the number of heads, the others by the
//! head size; no key says so.

use super::{Hyper, Outputs, blocks};
use crate::plan::{Activation, Builder, PlanError, RopeLayout, RopeScaling};

pub(super) fn plan(b: &mut Builder, hp: &Hyper) -> Result<Outputs, PlanError> {
    let gguf = b.gguf();
    let window = gguf.opt_u32("gemma3.attention.sliding_window")?;
    let period = gguf.opt_u32("gemma3.attention.sliding_window_pattern")?.unwrap_or(6).max(1) as usize;
    let local_base = gguf.opt_f32("gemma3.rope.freq_base_swa")?.unwrap_or(10_000.0);
    let global = b.rope(hp.rope(b, RopeLayout::Halves)?);
    let local = b.rope(hp.table(b, RopeLayout::Halves, local_base, RopeScaling::None, None)?);
    let heads = hp.heads;
    let (q_width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let per_head = if hp.layers == 62 { hp.width / heads.heads } else { heads.head_dim };

    let h = blocks::embed(b, hp, (hp.width as f32).sqrt())?;
    for layer in 0..hp.layers {
        b.begin_layer(layer);
        let is_global = (layer + 1).is_multiple_of(period);
        let norm = b.norm("attn_norm.weight", hp.width, hp.eps)?;
        let q = b.part("attn_q", hp.width, q_width)?;
        let k = b.part("attn_k", hp.width, kv_width)?;
        let v = b.part("attn_v", hp.width, kv_width)?;
        b.linear(h, Some(norm), vec![q, k, v]);
        let q_norm = b.norm("attn_q_norm.weight", heads.head_dim, hp.eps)?;
        let k_norm = b.norm("attn_k_norm.weight", heads.head_dim, hp.eps)?;
        let kv = b.kv(heads.kv_heads, heads.head_dim, if is_global { None } else { window });
        let rope = if is_global { global } else { local };
        b.rope_store([q.out, k.out, v.out], heads, [Some(q_norm), Some(k_norm)], Some(rope), kv);
        let mixed = b.attention(q.out, heads, kv, 1.0 / (per_head as f32).sqrt());
        let out = b.part("attn_output", q_width, hp.width)?;
        b.linear(mixed, None, vec![out]);
        let after = b.norm("post_attention_norm.weight", hp.width, hp.eps)?;
        b.add_rms_norm(out.out, after, h);

        let norm = b.norm("ffn_norm.weight", hp.width, hp.eps)?;
        let up = b.gated_up(h, Some(norm), hp.width, hp.ff, Activation::GeluTanh)?;
        let down = b.part("ffn_down", hp.ff, hp.width)?;
        b.linear(up, None, vec![down]);
        let after = b.norm("post_ffw_norm.weight", hp.width, hp.eps)?;
        b.add_rms_norm(down.out, after, h);
    }
    blocks::head(b, hp, h)
}
