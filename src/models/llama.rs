//! llama: Llama 1 to 3, Mistral, SmolLM, and Mixtral's expert layout (`expert_count` > 0 switches the feed-forward).
//!
//! The converter permutes the rows of q and k, so the rotary embedding turns neighbouring pairs. llama3's scaling comes
//! as factors in `rope_freqs.weight`. A file without `output.weight` is tied to its embedding.

use super::{Hyper, Outputs, blocks};
use crate::plan::{Builder, PlanError, RopeLayout, Routing};

pub(super) fn plan(b: &mut Builder, hp: &Hyper) -> Result<Outputs, PlanError> {
    let rope = hp.rope(b, RopeLayout::Pairs)?;
    let rope = b.rope(rope);
    let h = blocks::embed(b, hp, 1.0)?;
    for layer in 0..hp.layers {
        b.begin_layer(layer);
        blocks::attention(b, hp, h, rope)?;
        blocks::feed_forward(b, hp, h, Routing::softmax(hp.experts_used))?;
    }
    blocks::head(b, hp, h)
}
