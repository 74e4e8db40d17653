//! lfm2moe: gated short convolutions, an attention layer after every few of them, mixtures behind the first dense layers.
//!
//! `attention.head_count_kv` is 0 for a layer that convolves. Routers are sigmoids with a bias for the choice, and the
//! weights of the chosen are made to sum to 1 without a key that says so. The final norm is named `token_embd_norm`. The
//! dense models, architecture lfm2, have no reference here yet and are refused.

use super::{Hyper, Outputs, blocks};
use crate::plan::{Builder, PlanError, RopeLayout, Score, Slot};

pub(super) fn plan(b: &mut Builder, hp: &Hyper) -> Result<Outputs, PlanError> {
    let taps = b.gguf().u32("lfm2moe.shortconv.l_cache")? as usize;
    let routing = hp.routing(b, Score::Sigmoid)?;
    let rope = hp.rope(b, RopeLayout::Halves)?;
    let rope = b.rope(rope);
    let h = blocks::embed(b, hp, 1.0)?;
    for layer in 0..hp.layers {
        b.begin_layer(layer);
        if hp.attends[layer] {
            blocks::attention(b, hp, h, rope)?;
        } else {
            convolution(b, hp, h, taps)?;
        }
        blocks::feed_forward(b, hp, h, routing)?;
    }
    blocks::head_behind(b, hp, h, "token_embd_norm.weight")
}

/// Pre-norm convolution with its residual: `h += W_out (c * conv(b * x))` with `[b | c | x] = W_in norm(h)`.
fn convolution(b: &mut Builder, hp: &Hyper, h: Slot, taps: usize) -> Result<(), PlanError> {
    let norm = b.norm("attn_norm.weight", hp.width, hp.eps)?;
    let bcx = b.part("shortconv.in_proj", hp.width, 3 * hp.width)?;
    b.linear(h, Some(norm), vec![bcx]);
    let mixed = b.short_conv(bcx.out, "shortconv.conv.weight", [hp.width, taps], true, None)?;
    let out = b.part("shortconv.out_proj", hp.width, hp.width)?;
    b.add_linear(mixed, out, h);
    Ok(())
}
