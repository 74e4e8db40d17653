//! Names, shapes and order of the tensors: what a checkpoint stores in pieces becomes GGUF's tensors.

use std::collections::BTreeMap;
use std::path::Path;

use rynd_quant::Format;

use super::super::QuantizeError;
use super::super::kind;
use super::super::source::{Data, Piece, RowOrder, SourceTensor};
use super::config::{Config, Llama3Rope};
use super::problem;
use super::safetensors::{Checkpoint, Stored};

/// Names outside of the layers.
const GLOBAL: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Names within a layer, without `.weight` or `.bias`.
const LAYER: [(&str, &str); 15] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.experts.gate_up_proj", "ffn_gate_up_exps"), // two tensors in one, cut in `convert`
];

/// One expert's matrices.
const EXPERT: [(&str, &str); 6] = [
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// Buffers that some checkpoints carry and no runtime needs.
const SKIPPED: [&str; 3] = ["rotary_emb.inv_freq", "self_attn.bias", "self_attn.masked_bias"];

/// Where a stored tensor goes: a GGUF name, and the expert it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    name: String,
    expert: Option<u64>,
}

/// The GGUF name of a checkpoint's tensor; `None` when it is not known.
fn place(name: &str) -> Option<Place> {
    if let Some((_, name)) = GLOBAL.iter().find(|(hf, _)| *hf == name) {
        return Some(Place { name: (*name).to_owned(), expert: None });
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u64 = layer.parse().ok()?;
    let (part, suffix) = match rest.rsplit_once('.')? {
        (part, suffix @ ("weight" | "bias")) => (part, suffix),
        // Stacks of experts are parameters of their own, without a suffix.
        _ => (rest, "weight"),
    };
    let of = |table: &[(&str, &'static str)], part: &str| Some(table.iter().find(|(hf, _)| *hf == part)?.1);
    if let Some(part) = of(&LAYER, part) {
        return Some(Place { name: format!("blk.{layer}.{part}.{suffix}"), expert: None });
    }
    let experts = part.strip_prefix("mlp.experts.").or(part.strip_prefix("block_sparse_moe.experts."))?;
    let (expert, part) = experts.split_once('.')?;
    let part = of(&EXPERT, part)?;
    Some(Place { name: format!("blk.{layer}.{part}.{suffix}"), expert: Some(expert.parse().ok()?) })
}

/// All tensors of the model, in GGUF's names and order.
pub fn convert(folder: &Path, config: &Config, stored: &Checkpoint) -> Result<Vec<SourceTensor>, QuantizeError> {
    let mut tensors: Vec<SourceTensor> = vec![];
    let mut experts: BTreeMap<String, BTreeMap<u64, &Stored>> = BTreeMap::new();
    for (name, stored) in &stored.tensors {
        if SKIPPED.iter().any(|part| name.ends_with(part)) || name == "lm_head.weight" && config.tied() {
            continue;
        }
        let Some(place) = place(name) else {
            let text =
                format!("tensor '{name}' is none that rynd knows in {}; get the model as GGUF", config.architecture);
            return Err(problem(folder, text));
        };
        match place.expert {
            Some(expert) => {
                experts.entry(place.name).or_default().insert(expert, stored);
            }
            None if place.name.contains("ffn_gate_up_exps") => tensors.extend(halves(folder, &place.name, stored)?),
            None => {
                let order = order(config, &place.name)?;
                tensors.push(tensor(place.name, stored.format, &stored.shape, vec![stored.piece], order));
            }
        }
    }
    for (name, matrices) in experts {
        tensors.push(stack(folder, config, name, &matrices)?);
    }
    if let Some(rope) = config.llama3_rope() {
        tensors.push(rope_factors(config, &rope)?);
    }
    tensors.sort_by_cached_key(|tensor| (kind::layer(&tensor.name).map(|layer| layer + 1), tensor.name.clone()));
    check(folder, config, &tensors)?;
    Ok(tensors)
}

fn tensor(name: String, format: Format, shape: &[u64], pieces: Vec<Piece>, order: RowOrder) -> SourceTensor {
    let shape = shape.iter().rev().copied().collect();
    SourceTensor { name, shape, format, stays: Format::F32, data: Data::Files(pieces), order }
}

/// The rows of q and k that llama's GGUF wants in another order.
fn order(config: &Config, name: &str) -> Result<RowOrder, QuantizeError> {
    let turned = name.contains(".attn_q.") || name.contains(".attn_k.");
    if config.architecture != "llama" || !turned {
        return Ok(RowOrder::AsIs);
    }
    Ok(RowOrder::Interleave { head_rows: config.head_dim()? })
}

/// One tensor of all experts' matrices.
fn stack(
    folder: &Path,
    config: &Config,
    name: String,
    matrices: &BTreeMap<u64, &Stored>,
) -> Result<SourceTensor, QuantizeError> {
    let count = config.experts().unwrap_or(0);
    if let Some(missing) = (0..count).find(|expert| !matrices.contains_key(expert)) {
        return Err(problem(folder, format!("expert {missing} of '{name}' is missing; download all shards")));
    }
    let Some(first) = matrices.get(&0).filter(|_| matrices.len() as u64 == count) else {
        let text =
            format!("'{name}' has {} experts, but config.json says {count}; download both again", matrices.len());
        return Err(problem(folder, text));
    };
    if matrices.values().any(|stored| (stored.format, &stored.shape) != (first.format, &first.shape)) {
        return Err(problem(folder, format!("the experts of '{name}' differ in shape or type; download them again")));
    }
    let shape: Vec<u64> = std::iter::once(count).chain(first.shape.iter().copied()).collect();
    let pieces = matrices.values().map(|stored| stored.piece).collect();
    Ok(tensor(name, first.format, &shape, pieces, RowOrder::AsIs))
}

/// Gate and up of all experts from one (experts, 2 ff, n) tensor: the first ff rows of each expert, and the others.
fn halves(folder: &Path, name: &str, stored: &Stored) -> Result<[SourceTensor; 2], QuantizeError> {
    let &[experts, rows, columns] = &stored.shape[..] else {
        return Err(problem(
            folder,
            format!("'{name}' has the shape {:?}, not (experts, rows, columns)", stored.shape),
        ));
    };
    if !rows.is_multiple_of(2) {
        return Err(problem(folder, format!("'{name}' has {rows} rows an expert, which are no two halves")));
    }
    let bytes = stored.piece.bytes / (2 * experts).max(1);
    Ok([("ffn_gate_exps", 0), ("ffn_up_exps", 1)].map(|(part, half)| {
        let piece = |expert| Piece { offset: stored.piece.offset + (2 * expert + half) * bytes, bytes, ..stored.piece };
        let name = name.replace("ffn_gate_up_exps", part);
        let pieces = (0..experts).map(piece).collect();
        tensor(name, stored.format, &[experts, rows / 2, columns], pieces, RowOrder::AsIs)
    }))
}

/// Divisors of the rotary frequencies by llama 3's rule: short waves stay, long ones are stretched, between them a ramp.
fn rope_factors(config: &Config, rope: &Llama3Rope) -> Result<SourceTensor, QuantizeError> {
    let dim = config.head_dim()?;
    let factor = |i: u64| {
        let frequency = 1.0 / config.rope_theta().powf((2 * i) as f64 / dim as f64);
        let wave = 2.0 * std::f64::consts::PI / frequency;
        if wave < rope.original / rope.high {
            1.0
        } else if wave > rope.original / rope.low {
            rope.factor
        } else {
            let smooth = (rope.original / wave - rope.low) / (rope.high - rope.low);
            1.0 / ((1.0 - smooth) / rope.factor + smooth)
        }
    };
    let bytes = (0..dim / 2).flat_map(|i| (factor(i) as f32).to_le_bytes()).collect();
    Ok(SourceTensor {
        name: "rope_freqs.weight".into(),
        shape: vec![dim / 2],
        format: Format::F32,
        stays: Format::F32,
        data: Data::Here(bytes),
        order: RowOrder::AsIs,
    })
}

/// Whether the tensors can be those of the model that config.json describes.
fn check(folder: &Path, config: &Config, tensors: &[SourceTensor]) -> Result<(), QuantizeError> {
    let layers = config.number("num_hidden_layers")?;
    let find = |name: String| tensors.iter().find(|tensor| tensor.name == name);
    let mut wanted = vec!["token_embd.weight".to_owned(), "output_norm.weight".to_owned()];
    if !config.tied() {
        wanted.push("output.weight".to_owned());
    }
    let parts = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"];
    wanted.extend((0..layers).flat_map(|layer| parts.map(|part| format!("blk.{layer}.{part}.weight"))));
    if let Some(missing) = wanted.into_iter().find(|name| find(name.clone()).is_none()) {
        return Err(problem(folder, format!("there is no tensor for '{missing}'; download all shards")));
    }
    for part in ["ffn_gate", "ffn_up", "ffn_down"] {
        let name = |layer, kind| format!("blk.{layer}.{part}{kind}.weight");
        if let Some(layer) = (0..layers).find(|&n| find(name(n, "")).is_none() && find(name(n, "_exps")).is_none()) {
            return Err(problem(folder, format!("there is no tensor for '{}'; download all shards", name(layer, ""))));
        }
    }
    for tensor in tensors {
        if let Some(layer) = kind::layer(&tensor.name).filter(|&layer| layer as u64 >= layers) {
            let text = format!("'{}' is of layer {layer}, but config.json says {layers} layers", tensor.name);
            return Err(problem(folder, text));
        }
        if let Some(shape) = shape(config, &tensor.name)?.filter(|shape| *shape != tensor.shape) {
            let text = format!(
                "'{}' has the shape {:?} (row length first), but config.json makes it {shape:?}; download both again",
                tensor.name, tensor.shape
            );
            return Err(problem(folder, text));
        }
        if tensor.shape.is_empty() || tensor.shape.contains(&0) || tensor.shape.len() > 3 {
            return Err(problem(folder, format!("'{}' has the shape {:?}", tensor.name, tensor.shape)));
        }
        let rows = if tensor.shape.len() == 1 { tensor.row() } else { tensor.rows() };
        if let RowOrder::Interleave { head_rows } = tensor.order
            && (head_rows == 0 || !head_rows.is_multiple_of(2) || !rows.is_multiple_of(head_rows))
        {
            let text = format!("'{}' has {rows} rows, no whole number of heads of {head_rows}", tensor.name);
            return Err(problem(folder, text));
        }
    }
    Ok(())
}

/// The shape, row length first, that config.json gives this tensor; `None` where it does not say.
fn shape(config: &Config, name: &str) -> Result<Option<Vec<u64>>, QuantizeError> {
    let hidden = config.number("hidden_size")?;
    let ff = config.number("intermediate_size")?;
    let expert_ff = config.any(&["moe_intermediate_size"]).unwrap_or(ff);
    let experts = config.experts().unwrap_or(0);
    let heads = config.number("num_attention_heads")?;
    let kv_heads = config.any(&["num_key_value_heads"]).unwrap_or(heads);
    let [heads, kv_heads] = [heads * config.head_dim()?, kv_heads * config.head_dim()?];
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part);
    Ok(match part {
        "token_embd.weight" | "output.weight" => Some(vec![hidden, config.number("vocab_size")?]),
        "output_norm.weight" | "attn_norm.weight" | "ffn_norm.weight" => Some(vec![hidden]),
        "attn_q.weight" => Some(vec![hidden, heads]),
        "attn_k.weight" | "attn_v.weight" => Some(vec![hidden, kv_heads]),
        "attn_output.weight" => Some(vec![heads, hidden]),
        "ffn_gate.weight" | "ffn_up.weight" => Some(vec![hidden, ff]),
        "ffn_down.weight" => Some(vec![ff, hidden]),
        "ffn_gate_inp.weight" => Some(vec![hidden, experts]),
        "ffn_gate_exps.weight" | "ffn_up_exps.weight" => Some(vec![hidden, expert_ff, experts]),
        "ffn_down_exps.weight" => Some(vec![expert_ff, hidden, experts]),
        _ => None,
    })
}
