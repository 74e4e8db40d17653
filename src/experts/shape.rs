//! What a model asks of a machine, read from its tensor table: bytes by layer, experts, cache and state.
//!
//! Names and shapes are enough, so a model that rynd does not run, or that nobody here could load, has a shape too. The
//! forward plan is not asked. Layers whose part of a split file is missing are taken to be like the mean of those that
//! are known, and counted in `guessed_layers`, so that a reader can be told.

use rynd_quant::Format;

use crate::gguf::{GgufError, Outline, Value};

/// One tensor: what a recipe may change of it is the format.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>, // ne0 first, as in the file
    pub format: Format,
}

impl Tensor {
    /// Bytes of the tensor; rows that are no whole number of blocks count as if they were.
    pub fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().product();
        (elements as f64 * self.format.bits_per_weight() / 8.0) as u64
    }
}

/// One layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layer {
    /// Everything that every token reads: attention, norms, router, shared experts, a dense feed-forward.
    pub dense_bytes: u64,
    /// Weights in `dense_bytes`.
    pub dense_weights: u64,
    /// Routed experts; 0 in a dense layer.
    pub experts: u64,
    /// Experts that one token picks.
    pub used: u64,
    /// The matrices of one expert together.
    pub expert_bytes: u64,
    pub expert_weights: u64,
    /// Keys and values that one token adds to the cache.
    pub kv_values: u64,
    /// Tokens after which the cache of this layer stops growing.
    pub window: Option<u64>,
    /// f32 state of a recurrent layer, whatever the context.
    pub state_bytes: u64,
}

/// A model as memory and speed see it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: String,
    pub architecture: String,
    /// The formats that hold most of the weights, by share of bytes: "Q4_K 78%, Q6_K 21%".
    pub formats: String,
    pub layers: Vec<Layer>,
    /// The table of embeddings: a token reads one row. 0 when it is also the output matrix.
    pub embedding_bytes: u64,
    /// Output matrix and final norm.
    pub head_bytes: u64,
    pub head_weights: u64,
    pub context: u64,
    /// Layers that no known file holds.
    pub guessed_layers: usize,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    pub tensors: Vec<Tensor>,
}

/// What the shape can not do without.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{file}: the tensor table has no layers ('blk.0.*'); give a language model's file, or its first part")]
    NoLayers { file: String },
    #[error("{file}: '{key}' says {layers} layers; convert the model again")]
    Layers { file: String, key: String, layers: u32 },
}

/// Layers beyond this are no model but a damaged header.
const MAX_LAYERS: u32 = 4096;

impl Shape {
    /// The shape of the model with these headers.
    pub fn read(outline: &Outline) -> Result<Shape, ShapeError> {
        let tensors = outline
            .tensors()
            .iter()
            .map(|t| Tensor { name: t.name.clone(), shape: t.shape.clone(), format: t.format })
            .collect();
        Shape::with_tensors(outline, tensors)
    }

    /// The same model with other tensors: those of `read` in other formats.
    pub fn with_tensors(outline: &Outline, tensors: Vec<Tensor>) -> Result<Shape, ShapeError> {
        let file = || outline.path().display().to_string();
        let architecture = outline.str("general.architecture")?.to_owned();
        let layers_key = format!("{architecture}.block_count");
        let count = outline.u32(&layers_key)?;
        if count == 0 || count > MAX_LAYERS {
            return Err(ShapeError::Layers { file: file(), key: layers_key, layers: count });
        }
        let keys = Keys { outline, architecture: &architecture };
        let mut known: Vec<Option<Layer>> = vec![None; count as usize];
        let (mut embedding, mut output, mut rest, mut head_weights) = (0, 0, 0, 0);
        let mut embedding_weights = 0;
        for tensor in &tensors {
            match layer_of(&tensor.name).and_then(|n| known.get_mut(n)) {
                Some(layer) => keys.add(layer.get_or_insert_with(Layer::default), tensor),
                None if tensor.name == "token_embd.weight" => {
                    (embedding, embedding_weights) = (tensor.bytes(), tensor.shape.iter().product());
                }
                None => {
                    if tensor.name == "output.weight" {
                        output = tensor.bytes();
                    } else {
                        rest += tensor.bytes();
                    }
                    head_weights += tensor.shape.iter().product::<u64>();
                }
            }
        }
        for (n, layer) in known.iter_mut().enumerate() {
            if let Some(layer) = layer {
                keys.finish(n, layer);
            }
        }
        // A tied model multiplies by its embeddings. With parts missing the output matrix may lie in one of them.
        let tied = output == 0 && outline.missing() == 0;
        if output == 0 {
            (output, head_weights) = (embedding, head_weights + embedding_weights);
        }
        let Some(mean) = mean(&known) else { return Err(ShapeError::NoLayers { file: file() }) };
        let guessed_layers = known.iter().filter(|layer| layer.is_none()).count();
        let layers: Vec<Layer> = known.into_iter().map(|layer| layer.unwrap_or(mean)).collect();
        let embedding_bytes = if tied { 0 } else { embedding };
        let head_bytes = output + rest;
        let in_layers: u64 = layers.iter().map(|l| l.dense_bytes + l.experts * l.expert_bytes).sum();
        Ok(Shape {
            name: outline.opt_str("general.name")?.unwrap_or(&architecture).to_owned(),
            formats: formats(&tensors),
            context: keys.number("context_length").unwrap_or(0),
            tensor_bytes: in_layers + embedding_bytes + head_bytes,
            layers,
            embedding_bytes,
            head_bytes,
            head_weights,
            guessed_layers,
            tensors,
            architecture,
        })
    }

    /// Bytes of all routed experts.
    pub fn expert_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.experts * layer.expert_bytes).sum()
    }

    /// Expert bytes that one token reads.
    pub fn expert_bytes_per_token(&self) -> u64 {
        self.layers.iter().map(|layer| layer.used * layer.expert_bytes).sum()
    }

    /// Bytes that every token reads whatever the router picks: layers and head.
    pub fn dense_bytes(&self) -> u64 {
        self.head_bytes + self.layers.iter().map(|layer| layer.dense_bytes).sum::<u64>()
    }

    /// Weights that take part in one token.
    pub fn weights_per_token(&self) -> u64 {
        let of = |layer: &Layer| layer.dense_weights + layer.used * layer.expert_weights;
        self.head_weights + self.layers.iter().map(of).sum::<u64>()
    }

    /// Experts that one token picks, over all layers.
    pub fn picks_per_token(&self) -> u64 {
        self.layers.iter().map(|layer| layer.used).sum()
    }

    /// Keys and values of `tokens` tokens, windows heeded.
    pub fn kv_values(&self, tokens: u64) -> u64 {
        self.layers.iter().map(|layer| layer.kv_values * layer.window.map_or(tokens, |w| w.min(tokens))).sum()
    }

    /// State of the recurrent layers.
    pub fn state_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.state_bytes).sum()
    }

    /// The experts of a layer that has some: (experts, used, mean bytes of one over all such layers).
    pub fn experts(&self) -> Option<(u64, u64, u64)> {
        let layers = || self.layers.iter().filter(|layer| layer.experts > 0);
        let first = layers().next()?;
        let (count, bytes) = layers().fold((0, 0), |(n, bytes), l| (n + l.experts, bytes + l.experts * l.expert_bytes));
        Some((first.experts, first.used, bytes / count))
    }
}

/// The metadata of an architecture, read leniently: a key that is missing or odd counts as absent.
struct Keys<'a> {
    outline: &'a Outline,
    architecture: &'a str,
}

impl Keys<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.outline.get(&format!("{}.{key}", self.architecture))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.as_u64()
    }

    fn add(&self, layer: &mut Layer, tensor: &Tensor) {
        let part = tensor.name.splitn(3, '.').nth(2).unwrap_or_default();
        let rows = tensor.shape.get(1).copied().unwrap_or(0);
        let weights: u64 = tensor.shape.iter().product();
        match part {
            "attn_k.weight" | "attn_v.weight" => layer.kv_values += rows,
            // One compressed vector for keys and values together.
            "attn_kv_a_mqa.weight" => layer.kv_values += rows,
            "attn_qkv.weight" if !self.is_recurrent() => {
                let (heads, dim) = (self.number("attention.head_count_kv"), self.number("attention.key_length"));
                let width = self.number("embedding_length").unwrap_or(0);
                let dim = dim.or_else(|| width.checked_div(self.number("attention.head_count")?)).unwrap_or(0);
                layer.kv_values += 2 * heads.or_else(|| self.number("attention.head_count")).unwrap_or(0) * dim;
            }
            "ssm_conv1d.weight" => {
                let inner = self.number("ssm.inner_size").unwrap_or(0);
                let state = self.number("ssm.state_size").unwrap_or(0);
                let kernel = tensor.shape.first().copied().unwrap_or(1);
                layer.state_bytes += 4 * (inner * state + kernel.saturating_sub(1) * rows);
            }
            "shortconv.conv.weight" => {
                let kernel = tensor.shape.first().copied().unwrap_or(1);
                layer.state_bytes += 4 * kernel.saturating_sub(1) * rows;
            }
            _ => {}
        }
        if part.contains("_exps.") && tensor.shape.len() == 3 {
            layer.experts = layer.experts.max(tensor.shape[2]);
            layer.expert_bytes += tensor.bytes() / tensor.shape[2].max(1);
            layer.expert_weights += weights / tensor.shape[2].max(1);
        } else {
            layer.dense_bytes += tensor.bytes();
            layer.dense_weights += weights;
        }
    }

    fn is_recurrent(&self) -> bool {
        self.number("ssm.state_size").is_some()
    }

    /// What the layer as a whole has beside its tensors.
    fn finish(&self, n: usize, layer: &mut Layer) {
        if layer.experts > 0 {
            layer.used = self.number("expert_used_count").unwrap_or(1).min(layer.experts);
        }
        // gemma3 has no key for its pattern: every sixth layer sees the whole context.
        let period = match self.value("attention.sliding_window_pattern").and_then(Value::as_u64) {
            Some(period) => period,
            None if self.architecture == "gemma3" => 6,
            None => return,
        };
        if period > 0 && !(n as u64 + 1).is_multiple_of(period) {
            // 0 is how files say that there is none.
            layer.window = self.number("attention.sliding_window").filter(|&tokens| tokens > 0);
        }
    }
}

/// The layer a tensor belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The mean of the known layers; mixtures and dense layers are not told apart, so this is for one kind of model only.
fn mean(known: &[Option<Layer>]) -> Option<Layer> {
    let layers: Vec<&Layer> = known.iter().flatten().collect();
    let n = layers.len() as u64;
    let of = |field: fn(&Layer) -> u64| layers.iter().map(|layer| field(layer)).sum::<u64>().checked_div(n);
    Some(Layer {
        dense_bytes: of(|l| l.dense_bytes)?,
        dense_weights: of(|l| l.dense_weights)?,
        experts: layers.iter().map(|l| l.experts).max()?,
        used: layers.iter().map(|l| l.used).max()?,
        expert_bytes: of(|l| l.expert_bytes)?,
        expert_weights: of(|l| l.expert_weights)?,
        kv_values: of(|l| l.kv_values)?,
        window: layers.iter().find_map(|l| l.window),
        state_bytes: of(|l| l.state_bytes)?,
    })
}

/// Formats by their share of the bytes, the small ones left out.
fn formats(tensors: &[Tensor]) -> String {
    let mut bytes: Vec<(Format, u64)> = Vec::new();
    for tensor in tensors {
        match bytes.iter_mut().find(|(format, _)| *format == tensor.format) {
            Some((_, sum)) => *sum += tensor.bytes(),
            None => bytes.push((tensor.format, tensor.bytes())),
        }
    }
    let total = bytes.iter().map(|(_, n)| n).sum::<u64>().max(1) as f64;
    bytes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let share = |n: u64| n as f64 * 100.0 / total;
    let names = bytes.iter().filter(|(_, n)| share(*n) >= 1.0).map(|(f, n)| format!("{} {:.0}%", f.name(), share(*n)));
    names.collect::<Vec<_>>().join(", ")
}
