//! `config.json`: the architecture and the keys that describe it.

use std::path::Path;

use serde_json::Value as Json;

use super::super::QuantizeError;
use super::super::source::SourceTensor;
use super::{json, problem};
use crate::gguf::Value;

/// The `architectures` that can be converted, and GGUF's names for them.
const ARCHITECTURES: [(&str, &str); 6] = [
    ("Qwen2ForCausalLM", "qwen2"),
    ("Qwen3ForCausalLM", "qwen3"),
    ("Qwen3MoeForCausalLM", "qwen3moe"),
    ("LlamaForCausalLM", "llama"),
    ("MistralForCausalLM", "llama"),
    ("MixtralForCausalLM", "llama"),
];

/// The configuration of a checkpoint.
pub struct Config {
    pub architecture: &'static str,
    pub json: Json,
    path: std::path::PathBuf,
}

/// Long-context scaling of llama 3 checkpoints.
pub struct Llama3Rope {
    pub factor: f64,
    pub low: f64,
    pub high: f64,
    pub original: f64,
}

impl Config {
    /// Reads the configuration of a checkpoint folder.
    pub fn read(folder: &Path) -> Result<Config, QuantizeError> {
        let path = folder.join("config.json");
        let text = "there is no config.json in this folder; give a GGUF file, or a folder of a checkpoint";
        let json = json(&path)?.ok_or_else(|| problem(folder, text))?;
        let name = json["architectures"][0].as_str().unwrap_or("nothing");
        let Some((_, architecture)) = ARCHITECTURES.iter().find(|(hf, _)| *hf == name) else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(hf, _)| *hf).collect();
            let text = format!("the architecture is {name}; rynd converts {}: get the model as GGUF", known.join(", "));
            return Err(problem(&path, text));
        };
        if !json["quantization_config"].is_null() {
            return Err(problem(&path, "the checkpoint is already quantised; get the BF16 checkpoint"));
        }
        Ok(Config { architecture, json, path })
    }

    /// A number that must be there.
    pub fn number(&self, key: &str) -> Result<u64, QuantizeError> {
        let text = || format!("'{key}' is missing or no number; the file is damaged: download it again");
        self.optional(key).ok_or_else(|| problem(&self.path, text()))
    }

    /// A number under the first of these keys that has one.
    pub fn any(&self, keys: &[&str]) -> Option<u64> {
        keys.iter().find_map(|key| self.optional(key))
    }

    fn optional(&self, key: &str) -> Option<u64> {
        self.json[key].as_u64()
    }

    /// Whether the embedding serves as the output matrix.
    pub fn tied(&self) -> bool {
        self.json["tie_word_embeddings"].as_bool().unwrap_or(false)
    }

    /// Experts of a layer, if the model has any.
    pub fn experts(&self) -> Option<u64> {
        self.any(&["num_local_experts", "num_experts"]).filter(|&n| n > 0)
    }

    /// Values of an attention head.
    pub fn head_dim(&self) -> Result<u64, QuantizeError> {
        match self.optional("head_dim") {
            Some(n) => Ok(n),
            None => Ok(self.number("hidden_size")? / self.number("num_attention_heads")?.max(1)),
        }
    }

    /// A rotary parameter, where newer (`rope_parameters`) and older (`rope_scaling`) checkpoints keep it.
    fn rope(&self, key: &str) -> &Json {
        let places = [&self.json["rope_parameters"], &self.json["rope_scaling"], &self.json];
        places.into_iter().map(|place| &place[key]).find(|value| !value.is_null()).unwrap_or(&Json::Null)
    }

    fn rope_type(&self) -> &str {
        // At the top level, "type" is something else.
        let places = [&self.json["rope_parameters"], &self.json["rope_scaling"]];
        let names = places.into_iter().flat_map(|place| [&place["rope_type"], &place["type"]]);
        names.filter_map(Json::as_str).next().unwrap_or("default")
    }

    /// The base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        self.rope("rope_theta").as_f64().unwrap_or(10_000.0)
    }

    /// The scaling of llama 3, which GGUF stores as a tensor.
    pub fn llama3_rope(&self) -> Option<Llama3Rope> {
        let float = |key, default| self.rope(key).as_f64().unwrap_or(default);
        (self.rope_type() == "llama3").then(|| Llama3Rope {
            factor: float("factor", 8.0),
            low: float("low_freq_factor", 1.0),
            high: float("high_freq_factor", 4.0),
            original: float("original_max_position_embeddings", 8192.0),
        })
    }

    /// The keys that say what the model is.
    pub fn metadata(&self, folder: &Path, tensors: &[SourceTensor]) -> Result<Vec<(String, Value)>, QuantizeError> {
        let mut keys = vec![];
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        for (key, value) in [
            ("general.architecture", self.architecture.to_owned()),
            ("general.type", "model".to_owned()),
            ("general.name", name.unwrap_or_else(|| self.architecture.to_owned())),
            ("general.size_label", size_label(tensors, self.experts())),
        ] {
            keys.push((key.to_owned(), Value::from(value)));
        }
        let mut set = |key: &str, value: Value| keys.push((format!("{}.{key}", self.architecture), value));
        for (key, hf) in [
            ("block_count", "num_hidden_layers"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
        ] {
            set(key, (self.number(hf)? as u32).into());
        }
        let kv_heads = self.any(&["num_key_value_heads", "num_attention_heads"]).unwrap_or(0);
        set("attention.head_count_kv", (kv_heads as u32).into());
        self.rope_metadata(&mut set)?;
        set("rope.freq_base", (self.rope_theta() as f32).into());
        let eps = self.json["rms_norm_eps"].as_f64().unwrap_or(1e-6);
        set("attention.layer_norm_rms_epsilon", (eps as f32).into());
        if let Some(experts) = self.experts() {
            set("expert_count", (experts as u32).into());
            set("expert_used_count", (self.number("num_experts_per_tok")? as u32).into());
            if let Some(ff) = self.optional("moe_intermediate_size") {
                set("expert_feed_forward_length", (ff as u32).into());
            }
        }
        if let Some(head_dim) = self.optional("head_dim") {
            set("attention.key_length", (head_dim as u32).into());
            set("attention.value_length", (head_dim as u32).into());
        }
        if self.architecture == "llama" {
            set("vocab_size", (self.number("vocab_size")? as u32).into());
            set("rope.dimension_count", (self.head_dim()? as u32).into());
        }
        Ok(keys)
    }

    fn rope_metadata(&self, set: &mut impl FnMut(&str, Value)) -> Result<(), QuantizeError> {
        let scaling = match self.rope_type() {
            "default" | "llama3" => return Ok(()),
            name @ ("linear" | "yarn") => name,
            other => {
                let text = format!("the rope type is '{other}'; rynd converts default, linear, yarn and llama3");
                return Err(problem(&self.path, text));
            }
        };
        let Some(factor) = self.rope("factor").as_f64() else {
            return Err(problem(&self.path, format!("the {scaling} rope scaling has no 'factor'; complete the file")));
        };
        set("rope.scaling.type", scaling.into());
        set("rope.scaling.factor", (factor as f32).into());
        if scaling == "linear" {
            return Ok(());
        }
        let Some(original) = self.rope("original_max_position_embeddings").as_u64() else {
            let text = "the yarn rope scaling has no 'original_max_position_embeddings'; complete the file";
            return Err(problem(&self.path, text));
        };
        set("rope.scaling.original_context_length", (original as u32).into());
        for (key, hf) in [
            ("rope.scaling.yarn_ext_factor", "extrapolation_factor"),
            ("rope.scaling.yarn_attn_factor", "attention_factor"),
            ("rope.scaling.yarn_beta_fast", "beta_fast"),
            ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ] {
            if let Some(value) = self.rope(hf).as_f64() {
                set(key, (value as f32).into());
            }
        }
        Ok(())
    }
}

/// "7.6B", or for a mixture "128x2.9B": experts times what one expert and all that is shared weigh.
fn size_label(tensors: &[SourceTensor], experts: Option<u64>) -> String {
    let weights = |tensor: &SourceTensor| tensor.row() * tensor.rows();
    let total: u64 = tensors.iter().map(weights).sum();
    let Some(experts) = experts else { return rounded(total) };
    let expert: u64 = tensors.iter().filter(|tensor| tensor.name.contains("_exps.")).map(weights).sum();
    format!("{experts}x{}", rounded(total - expert + expert / experts))
}

/// Two digits at least, three at most before the unit.
fn rounded(weights: u64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let weights = weights as f64;
    let (unit, suffix) = units.into_iter().find(|(unit, _)| weights > *unit).unwrap_or((1e3, "K"));
    let scaled = weights / unit;
    let decimals = usize::from(scaled.round() < 10.0);
    format!("{scaled:.decimals$}{suffix}")
}
