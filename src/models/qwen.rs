//! qwen2, qwen3, qwen3moe: the llama block with rotated halves; QKV biases (2), per-head q/k norms (3), experts (moe).
//!
//! qwen3moe has no key that says whether expert weights are normalised: they always are.

use super::{Hyper, Outputs, blocks};
use crate::plan::{Builder, PlanError, RopeLayout, Routing};

pub(super) fn plan(b: &mut Builder, hp: &Hyper) -> Result<Outputs, PlanError> {
    let rope = hp.rope(b, RopeLayout::Halves)?;
    let rope = b.rope(rope);
    let h = blocks::embed(b, hp, 1.0)?;
    for layer in 0..hp.layers {
        b.begin_layer(layer);
        blocks::attention(b, hp, h, rope)?;
        blocks::feed_forward(b, hp, h, Routing::softmax(hp.experts_used))?;
    }
    blocks::head(b, hp, h)
}
