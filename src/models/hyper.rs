//! Hyperparameters that nearly every architecture has, read from `ARCH.*` keys.
//!
//! Defaults are those of the GGUF convention: a missing `head_count_kv` equals `head_count`, a missing `key_length` is
//! `embedding_length / head_count`, a missing `rope.dimension_count` is the whole head.

use crate::gguf::Gguf;
use crate::plan::{Builder, Heads, PlanError, RopeLayout, RopeScaling, RopeTable, Routing, Score};

/// The user's rope flags; every `None` leaves what the file says.
#[derive(Clone, Debug, Default)]
pub struct RopeOverride {
    /// `none`, `linear` or `yarn`.
    pub scaling: Option<String>,
    pub factor: Option<f32>,
    pub original_context: Option<u32>,
    pub freq_base: Option<f32>,
}

/// What the metadata says of the model's shape.
#[derive(Clone, Debug)]
pub struct Hyper {
    pub arch: String,
    pub layers: usize,
    pub width: usize, // n_embd
    pub ff: usize,    // 0 when every layer is a mixture without the key
    pub vocab: usize,
    pub context: usize, // tokens, after rope scaling
    pub heads: Heads,
    /// By layer: whether it attends, or has a recurrent state in place of a cache.
    pub attends: Vec<bool>,
    pub eps: f32,
    pub experts: usize,
    pub experts_used: usize,
    pub expert_ff: usize,
    pub rope_dims: usize,
    pub rope_base: f32,
    pub rope_scaling: RopeScaling,
}

impl Hyper {
    /// Reads the keys of the file's architecture.
    pub fn read(b: &Builder, rope: &RopeOverride) -> Result<Hyper, PlanError> {
        let gguf = b.gguf();
        let arch = gguf.str("general.architecture")?.to_owned();
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| -> Result<usize, PlanError> { Ok(gguf.u32(&key(name))? as usize) };
        let opt =
            |name: &str| -> Result<Option<usize>, PlanError> { Ok(gguf.opt_u32(&key(name))?.map(|n| n as usize)) };

        let layers = size("block_count")?;
        if layers > gguf.tensors().len() {
            let tensors = gguf.tensors().len();
            return Err(
                b.unsupported(format!("'{arch}.block_count' is {layers}, but the file has {tensors} tensors in all"))
            );
        }
        let width = size("embedding_length")?;
        let heads = size("attention.head_count")?;
        let (kv_heads, attends) = kv_heads(b, gguf, &arch, layers, heads)?;
        if layers == 0 || width == 0 || heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(b.unsupported(format!(
                "'{arch}.*' metadata is impossible: {layers} layers, width {width}, {heads} heads over {kv_heads} \
                 key-value heads; convert the file anew"
            )));
        }
        let head_dim = opt("attention.key_length")?.unwrap_or(width / heads);
        let value_dim = opt("attention.value_length")?.unwrap_or(head_dim);
        let rope_dims = opt("rope.dimension_count")?.unwrap_or(head_dim);
        let experts = opt("expert_count")?.unwrap_or(0);
        let ff = opt("feed_forward_length")?.unwrap_or(0);
        let expert_ff = opt("expert_feed_forward_length")?.unwrap_or(ff);
        // Before anything is built: what no tensor holds would only cost memory until its tensor is looked up.
        let widest = gguf.tensors().iter().flat_map(|tensor| tensor.shape.iter().copied()).max().unwrap_or(0);
        for (name, n, times) in [
            ("embedding_length", width, 1),
            ("attention.key_length", head_dim, heads),
            ("attention.value_length", value_dim, kv_heads),
            ("rope.dimension_count", rope_dims, 1),
            ("expert_count", experts, 1),
            ("feed_forward_length", ff, 1),
            ("expert_feed_forward_length", expert_ff, 1),
        ] {
            if n.checked_mul(times).is_none_or(|n| n as u64 > widest) {
                let times = if times > 1 { format!(" for each of {times} heads") } else { String::new() };
                return Err(b.unsupported(format!(
                    "'{arch}.{name}' is {n}{times}, but no tensor has more than {widest} values in a row; convert the file anew"
                )));
            }
        }
        if head_dim != value_dim || head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(b.unsupported(format!(
                "'{arch}.attention.key_length' is {head_dim} and value_length {value_dim}; rynd needs them even and equal"
            )));
        }
        let tokens = b.gguf().tensor("token_embd.weight").map(|t| t.shape.get(1).copied().unwrap_or(0));
        let vocab = tokens.unwrap_or(0) as usize;
        if rope_dims > head_dim || !rope_dims.is_multiple_of(2) {
            return Err(b.unsupported(format!(
                "'{arch}.rope.dimension_count' is {rope_dims}, but a head has {head_dim} values; convert the file anew"
            )));
        }
        let trained = size("context_length")?;
        let (rope_scaling, context) = scaling(b, gguf, &arch, rope, trained)?;
        let experts_used = opt("expert_used_count")?.unwrap_or(0);
        if experts > 0 && (experts_used == 0 || experts_used > experts) {
            return Err(b.unsupported(format!(
                "'{arch}.expert_used_count' is {experts_used} of {experts} experts; convert the file anew"
            )));
        }
        let rope_base = match rope.freq_base {
            Some(base) => base,
            None => gguf.opt_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        };
        Ok(Hyper {
            layers,
            width,
            ff,
            vocab,
            context,
            heads: Heads { heads, kv_heads, head_dim },
            attends,
            eps: positive(
                b,
                &key("attention.layer_norm_rms_epsilon"),
                gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
            )?,
            experts,
            experts_used,
            expert_ff,
            rope_dims,
            rope_base: positive(b, &key("rope.freq_base"), rope_base)?,
            rope_scaling,
            arch,
        })
    }

    /// How routers choose by the file's keys; `score` where no key says.
    pub fn routing(&self, b: &Builder, score: Score) -> Result<Routing, PlanError> {
        let key = |name: &str| format!("{}.{name}", self.arch);
        let score = match b.gguf().opt_u32(&key("expert_gating_func"))? {
            None | Some(0) => score,
            Some(1) => Score::Softmax,
            Some(2) => Score::Sigmoid,
            Some(3) => Score::SoftmaxAfter,
            Some(other) => {
                let key = key("expert_gating_func");
                return Err(b.unsupported(format!(
                    "'{key}' is {other}; known: 1 (softmax), 2 (sigmoid), 3 (softmax of the chosen)"
                )));
            }
        };
        let normalize = b.gguf().opt_bool(&key("expert_weights_norm"))?.unwrap_or(true);
        let scale = b.gguf().opt_f32(&key("expert_weights_scale"))?.filter(|scale| *scale != 0.0).unwrap_or(1.0);
        Ok(Routing { score, normalize, scale, ..Routing::softmax(self.experts_used) })
    }

    /// The model's rotary embedding, with `rope_freqs.weight` where the file has it.
    pub fn rope(&self, b: &Builder, layout: RopeLayout) -> Result<RopeTable, PlanError> {
        let factors = match b.gguf().tensor("rope_freqs.weight") {
            None => None,
            Some(tensor) => {
                let expected = self.rope_dims / 2;
                let n = tensor.shape.iter().product::<u64>() as usize;
                if n != expected {
                    return Err(PlanError::WrongShape {
                        file: b.gguf().path().display().to_string(),
                        tensor: tensor.name.clone(),
                        found: tensor.shape.to_vec(),
                        expected: vec![expected as u64],
                    });
                }
                let mut factors = vec![0.0; n];
                tensor.format.decode(b.gguf().bytes(tensor), &mut factors);
                Some(factors)
            }
        };
        self.table(b, layout, self.rope_base, self.rope_scaling, factors.as_deref())
    }

    /// A rotary embedding of this model by these numbers, which must give angles.
    pub fn table(
        &self,
        b: &Builder,
        layout: RopeLayout,
        base: f32,
        scaling: RopeScaling,
        factors: Option<&[f32]>,
    ) -> Result<RopeTable, PlanError> {
        let table = RopeTable::new(layout, self.rope_dims, base, scaling, factors);
        let sound =
            table.inv_freq.iter().all(|f| f.is_finite()) && table.magnitude.is_finite() && table.magnitude > 0.0;
        if sound {
            return Ok(table);
        }
        let factors = if factors.is_some() { " and 'rope_freqs.weight'" } else { "" };
        Err(b.unsupported(format!(
            "the rotary embedding has angles that are no numbers: see the keys '{}.rope.*'{factors}, or the rope flags; \
             convert the file anew",
            self.arch
        )))
    }
}

/// A number of the metadata (or of a flag in its place) that is computed with in every token.
fn positive(b: &Builder, key: &str, value: f32) -> Result<f32, PlanError> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(b.unsupported(format!("'{key}' is {value}, which must be a number above 0; convert the file anew")))
}

/// Key-value heads of the layers that attend, and which do: one number for all, or one for each layer, 0 for a layer with a
/// recurrent state.
fn kv_heads(
    b: &Builder,
    gguf: &Gguf,
    arch: &str,
    layers: usize,
    heads: usize,
) -> Result<(usize, Vec<bool>), PlanError> {
    let key = format!("{arch}.attention.head_count_kv");
    if gguf.get(&key).is_none_or(|value| value.as_array().is_none()) {
        return Ok((gguf.opt_u32(&key)?.map_or(heads, |n| n as usize), vec![true; layers]));
    }
    let by_layer = gguf.u32s(&key)?;
    let most = by_layer.iter().copied().max().unwrap_or(0);
    if by_layer.len() != layers || by_layer.iter().any(|&n| n != 0 && n != most) {
        return Err(b.unsupported(format!(
            "'{key}' is {by_layer:?} for {layers} layers; rynd needs one number a layer, equal where it is not 0"
        )));
    }
    Ok((most as usize, by_layer.iter().map(|&n| n > 0).collect()))
}

/// Rope scaling by the user's flags or the file's keys, and the context that it gives.
fn scaling(
    b: &Builder,
    gguf: &Gguf,
    arch: &str,
    rope: &RopeOverride,
    trained: usize,
) -> Result<(RopeScaling, usize), PlanError> {
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    let kind = match &rope.scaling {
        Some(kind) => kind.clone(),
        None => gguf.opt_str(&key("type"))?.unwrap_or("none").to_owned(),
    };
    let factor = match rope.factor {
        Some(factor) => Some(factor),
        None => gguf.opt_f32(&key("factor"))?,
    };
    let original = match rope.original_context {
        Some(tokens) => Some(tokens as usize),
        None => gguf.opt_u32(&key("original_context_length"))?.map(|n| n as usize),
    };
    let required = || {
        factor.filter(|f| f.is_finite() && *f >= 1.0).ok_or_else(|| {
            b.unsupported(format!(
                "rope scaling '{kind}' needs a factor of at least 1; pass --yarn-factor or see '{}'",
                key("factor")
            ))
        })
    };
    // A file made for the longer context says so itself; flags stretch what the model was trained for.
    let stretched = |factor: f32| if rope.scaling.is_some() { (trained as f32 * factor) as usize } else { trained };
    match kind.as_str() {
        "none" | "" => Ok((RopeScaling::None, trained)),
        "linear" => {
            let factor = required()?;
            Ok((RopeScaling::Linear { factor }, stretched(factor)))
        }
        "yarn" => {
            let factor = required()?;
            let number = |name: &str| gguf.opt_f32(&key(name))?.map(|value| positive(b, &key(name), value)).transpose();
            let scaling = RopeScaling::Yarn {
                factor,
                original_context: positive(b, &key("original_context_length"), original.unwrap_or(trained) as f32)?,
                beta_fast: number("yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: number("yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: number("attn_factor")?,
            };
            Ok((scaling, stretched(factor)))
        }
        other => Err(b.unsupported(format!("rope scaling type '{other}' is not supported; known: none, linear, yarn"))),
    }
}
