//! Hugging Face checkpoints against what llama.cpp's converter made of the same models.
//!
//! The checkpoints are put together here from the reference files, by the naming and layout of transformers; their
//! configurations and tokenizer files are the originals.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rynd::engine::{Engine, EngineConfig, Session};
use rynd::gguf::{Gguf, TensorInfo};
use rynd::quantize::{self, FileType, Job, Options, Recipe, Source};
use rynd_quant::Format;
use safetensors::{Dtype, View};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A new folder: tests run side by side, and several convert the same model.
fn folder(name: &str) -> PathBuf {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let no = MADE.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("rynd-convert-{}-{no}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The name in a checkpoint of a part of a layer.
fn hf_part(part: &str) -> &str {
    match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" | "ffn_gate_exps" => "gate_proj",
        "ffn_up" | "ffn_up_exps" => "up_proj",
        "ffn_down" | "ffn_down_exps" => "down_proj",
        "ffn_gate_inp" => "mlp.gate",
        other => panic!("{other}"),
    }
}

/// Rotary pairs that lie side by side, (head_dim / 2, 2), go to the two halves of the head, (2, head_dim / 2).
fn to_halves(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row = bytes.len() / rows;
    let from = |to: usize| {
        let (head, i) = (to / head_dim, to % head_dim);
        let half = head_dim / 2;
        head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
    };
    (0..rows).flat_map(|to| bytes[from(to) * row..(from(to) + 1) * row].to_vec()).collect()
}

/// What transformers would save of this model.
fn stored(gguf: &Gguf) -> BTreeMap<String, Stored> {
    let mut all = BTreeMap::new();
    for tensor in gguf.tensors().iter().filter(|tensor| tensor.name != "rope_freqs.weight") {
        let dtype = if tensor.format == Format::BF16 { Dtype::BF16 } else { Dtype::F32 };
        let mut shape: Vec<usize> = tensor.shape.iter().rev().map(|&n| n as usize).collect();
        let mut bytes = gguf.bytes(tensor).to_vec();
        let name = match tensor.name.as_str() {
            "token_embd.weight" => "model.embed_tokens.weight".to_owned(),
            "output.weight" => "lm_head.weight".to_owned(),
            "output_norm.weight" => "model.norm.weight".to_owned(),
            name => {
                let parts: Vec<&str> = name.split('.').collect();
                let (layer, part, suffix) = (parts[1], parts[2], parts[3]);
                let hf = hf_part(part);
                if part.ends_with("_exps") {
                    let experts = shape.remove(0);
                    for (expert, bytes) in bytes.chunks_exact(bytes.len() / experts).enumerate() {
                        let name = format!("model.layers.{layer}.mlp.experts.{expert}.{hf}.{suffix}");
                        all.insert(name, Stored { dtype, shape: shape.clone(), bytes: bytes.to_vec() });
                    }
                    continue;
                }
                if gguf.str("general.architecture").unwrap() == "llama" && matches!(part, "attn_q" | "attn_k") {
                    bytes = to_halves(&bytes, shape[0], gguf.u32("llama.attention.key_length").unwrap() as usize);
                }
                let dense = matches!(part, "ffn_gate" | "ffn_up" | "ffn_down");
                format!("model.layers.{layer}.{}{hf}.{suffix}", if dense { "mlp." } else { "" })
            }
        };
        all.insert(name, Stored { dtype, shape, bytes });
    }
    all
}

/// A checkpoint folder with this many shards.
fn checkpoint(model: &str, tensors: &BTreeMap<String, Stored>, shards: usize) -> PathBuf {
    let folder = folder(model);
    for (from, to) in [
        (format!("quantize/hf/{model}.json"), "config.json"),
        ("quantize/hf/tokenizer.json".into(), "tokenizer.json"),
        ("quantize/hf/tokenizer_config.json".into(), "tokenizer_config.json"),
    ] {
        std::fs::copy(fixture(&from), folder.join(to)).unwrap();
    }
    let mut index = serde_json::Map::new();
    for shard in 0..shards {
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let part: Vec<(&String, &Stored)> = tensors.iter().skip(shard).step_by(shards).collect();
        part.iter().for_each(|(tensor, _)| drop(index.insert(tensor.to_string(), name.as_str().into())));
        let part = part.into_iter().map(|(name, stored)| (name, stored.clone()));
        safetensors::serialize_to_file(part, None, &folder.join(name)).unwrap();
    }
    if shards > 1 {
        let index = serde_json::json!({ "weight_map": index });
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
    folder
}

fn convert(input: &Path, file_type: &str) -> Result<Gguf, quantize::QuantizeError> {
    let options = Options {
        recipe: Recipe::new(FileType::from_name(file_type).unwrap()),
        imatrix: None,
        allow_requantize: false,
        split_bytes: None,
    };
    let job = Job::new(Source::open(input)?, &options)?;
    let out = input.join("out.gguf");
    quantize::quantize(&job, 2, &out, |_| ControlFlow::Continue(()))?;
    Ok(Gguf::open(&out).unwrap())
}

fn weights(gguf: &Gguf, tensor: &TensorInfo) -> Vec<f32> {
    let mut weights = vec![0.0; tensor.elements() as usize];
    tensor.format.decode(gguf.bytes(tensor), &mut weights);
    weights
}

/// Converts the model and compares every tensor and key with the reference file.
fn check(model: &str, shards: usize) -> Gguf {
    let reference = Gguf::open(&fixture(&format!("models/{model}/model.gguf"))).unwrap();
    let converted = convert(&checkpoint(model, &stored(&reference), shards), "BF16").unwrap();
    assert_eq!(converted.tensors().len(), reference.tensors().len());
    for tensor in reference.tensors() {
        let ours = converted.tensor(&tensor.name).unwrap_or_else(|| panic!("{}", tensor.name));
        assert_eq!(ours.shape, tensor.shape, "{}", tensor.name);
        let pairs = weights(&converted, ours).into_iter().zip(weights(&reference, tensor));
        let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let allowed = if tensor.name == "rope_freqs.weight" { 1e-5 } else { 0.0 };
        assert!(off <= allowed, "{}: {off}", tensor.name);
    }
    let own = ["general.name", "general.file_type"];
    for (key, value) in reference.metadata().filter(|(key, _)| !own.contains(key)) {
        assert!(converted.get(key) == Some(value), "{key}: {:?}, the reference has {value}", converted.get(key));
    }
    assert_eq!(converted.u32("general.file_type").unwrap(), 32);
    converted
}

fn check_logits(model: &str, gguf: Gguf) {
    let folder = fixture(&format!("models/{model}"));
    let reference: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
    let ids: Vec<u32> =
        reference["prompts"]["long"]["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let bytes = std::fs::read(folder.join("logits_long_last.npy")).unwrap();
    let mut expected = vec![0.0; 512];
    Format::F32.decode(&bytes[bytes.len() - 4 * 512..], &mut expected);
    let config = EngineConfig { exact: true, context: Some(64), threads: Some(1), ..EngineConfig::default() };
    let mut engine = Engine::new(gguf, &config).unwrap();
    let logits = Session::new().sync(&mut engine, &ids).unwrap().to_vec();
    let off = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= 2e-4, "{model}: {off}");
}

#[test]
fn a_qwen2_checkpoint_becomes_the_reference_file_and_gives_its_logits() {
    check_logits("qwen2", check("qwen2", 1));
}

#[test]
fn a_sharded_mixture_is_stacked_into_the_reference_file_and_gives_its_logits() {
    check_logits("qwen3moe", check("qwen3moe", 3));
}

#[test]
fn llama_rows_are_turned_as_its_rotary_embedding_wants_them() {
    check_logits("llama", check("llama", 1));
}

#[test]
fn long_context_factors_of_llama_3_become_a_tensor() {
    check_logits("llama3rope", check("llama3rope", 1));
}

#[test]
fn experts_that_are_stored_in_one_tensor_are_cut_apart() {
    let reference = Gguf::open(&fixture("models/qwen3moe/model.gguf")).unwrap();
    let mut tensors = stored(&reference);
    for layer in 0..2 {
        let mut fused: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for expert in 0..16 {
            let mut take = |part: &str| {
                tensors.remove(&format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight")).unwrap().bytes
            };
            let both = [take("gate"), take("up")].concat();
            fused.entry("gate_up_proj").or_default().extend(both);
            fused.entry("down_proj").or_default().extend(take("down"));
        }
        for (part, bytes) in fused {
            let shape = if part == "down_proj" { vec![16, 256, 32] } else { vec![16, 64, 256] };
            let name = format!("model.layers.{layer}.mlp.experts.{part}");
            tensors.insert(name, Stored { dtype: Dtype::BF16, shape, bytes });
        }
    }
    let converted = convert(&checkpoint("qwen3moe", &tensors, 2), "BF16").unwrap();
    for tensor in reference.tensors() {
        assert_eq!(
            converted.bytes(converted.tensor(&tensor.name).unwrap()),
            reference.bytes(tensor),
            "{}",
            tensor.name
        );
    }
}

#[test]
fn a_checkpoint_is_quantised_as_its_gguf_would_be() {
    let reference = fixture("models/qwen3moe/model.gguf");
    let from_folder = convert(&checkpoint("qwen3moe", &stored(&Gguf::open(&reference).unwrap()), 1), "Q4_K_M").unwrap();
    let copy = folder("gguf").join("in");
    std::fs::create_dir_all(&copy).unwrap();
    let options = Options {
        recipe: Recipe::new(FileType::from_name("Q4_K_M").unwrap()),
        imatrix: None,
        allow_requantize: false,
        split_bytes: None,
    };
    let job = Job::new(Source::open(&reference).unwrap(), &options).unwrap();
    quantize::quantize(&job, 1, &copy.join("out.gguf"), |_| ControlFlow::Continue(())).unwrap();
    let from_gguf = Gguf::open(&copy.join("out.gguf")).unwrap();
    for tensor in from_gguf.tensors() {
        let ours = from_folder.tensor(&tensor.name).unwrap();
        assert_eq!(from_folder.bytes(ours), from_gguf.bytes(tensor), "{}", tensor.name);
    }
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let reference = Gguf::open(&fixture("models/qwen3moe/model.gguf")).unwrap();
    let complete = stored(&reference);
    let error = |folder: &Path| Source::open(folder).expect_err("it should be refused").to_string();

    let mut tensors = complete.clone();
    tensors.remove("model.layers.1.mlp.experts.7.up_proj.weight");
    let found = error(&checkpoint("qwen3moe", &tensors, 1));
    assert!(found.contains("expert 7 of 'blk.1.ffn_up_exps.weight' is missing"), "{found}");

    let mut tensors = complete.clone();
    let odd = Stored { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] };
    tensors.insert("model.layers.0.mlp.extra.weight".into(), odd);
    let found = error(&checkpoint("qwen3moe", &tensors, 1));
    assert!(found.contains("'model.layers.0.mlp.extra.weight'"), "{found}");

    let mut tensors = complete.clone();
    let low = Stored { dtype: Dtype::F8_E4M3, shape: vec![4], bytes: vec![0; 4] };
    tensors.insert("model.norm.weight".into(), low);
    let found = error(&checkpoint("qwen3moe", &tensors, 1));
    assert!(found.contains("'model.norm.weight' is F8_E4M3") && found.contains("BF16"), "{found}");

    let mut tensors = complete.clone();
    let scalar = Stored { dtype: Dtype::F32, shape: vec![], bytes: vec![0; 4] };
    tensors.insert("model.layers.0.self_attn.q_norm.weight".into(), scalar);
    let found = error(&checkpoint("qwen3moe", &tensors, 1));
    assert!(found.contains("'blk.0.attn_q_norm.weight' has the shape []"), "{found}");

    let mut tensors = complete.clone();
    let rows = tensors.get_mut("model.layers.1.self_attn.v_proj.weight").unwrap();
    rows.shape[0] /= 2;
    rows.bytes.truncate(rows.bytes.len() / 2);
    let found = error(&checkpoint("qwen3moe", &tensors, 1));
    assert!(found.contains("'blk.1.attn_v.weight' has the shape") && found.contains("config.json makes it"), "{found}");

    let mut tensors = complete.clone();
    tensors.retain(|name, _| !name.contains("layers.1.mlp.experts"));
    let found = error(&checkpoint("qwen3moe", &tensors, 1));
    assert!(found.contains("there is no tensor for 'blk.1.ffn_gate.weight'"), "{found}");

    let folder = checkpoint("qwen3moe", &complete, 3);
    std::fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    let found = error(&folder);
    assert!(found.contains("model-00002-of-00003.safetensors: this shard is missing"), "{found}");

    let folder = checkpoint("qwen3moe", &complete, 1);
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for cut in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..cut]).unwrap();
        let found = error(&folder);
        assert!(found.contains("model.safetensors"), "{cut}: {found}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(error(&folder).contains("no .safetensors files"));
    std::fs::write(folder.join("config.json"), r#"{"architectures": ["MambaForCausalLM"]}"#).unwrap();
    let found = error(&folder);
    assert!(found.contains("MambaForCausalLM") && found.contains("Qwen3MoeForCausalLM"), "{found}");
    std::fs::write(folder.join("config.json"), "{").unwrap();
    assert!(error(&folder).contains("config.json: this is no valid JSON"));
    std::fs::remove_file(folder.join("config.json")).unwrap();
    assert!(error(&folder).contains("no config.json"));
}

#[test]
fn a_way_of_splitting_text_that_is_not_known_is_refused() {
    let reference = Gguf::open(&fixture("models/qwen2/model.gguf")).unwrap();
    let folder = checkpoint("qwen2", &stored(&reference), 1);
    let path = folder.join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen(r"\\p{N}|", r"\\p{N}{2}|", 1)).unwrap();
    let error = Source::open(&folder).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json") && error.contains(r"\p{N}{2}"), "{error}");
}

/// A protocol buffer field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, bytes.len() as u8];
    out.extend(bytes);
    out
}

#[test]
fn a_sentencepiece_vocabulary_keeps_its_scores_and_types() {
    let reference = Gguf::open(&fixture("models/llama/model.gguf")).unwrap();
    let folder = checkpoint("llama", &stored(&reference), 1);
    let piece = |text: &str, score: f32, kind: u8| {
        let mut piece = field(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, kind]);
        field(1, &piece)
    };
    let mut model =
        [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("<0x0A>", 0.0, 6), piece("\u{2581}a", -1.5, 1)].concat();
    model.extend(field(2, b"other settings"));
    std::fs::write(folder.join("tokenizer.model"), model).unwrap();
    let gguf = convert(&folder, "BF16").unwrap();
    assert_eq!(gguf.str("tokenizer.ggml.model").unwrap(), "llama");
    assert_eq!(gguf.strs("tokenizer.ggml.tokens").unwrap()[..5], ["<unk>", "<s>", "<0x0A>", "\u{2581}a", "[PAD4]"]);
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap()[..5], [2, 3, 6, 1, 5]);
    assert_eq!(gguf.f32s("tokenizer.ggml.scores").unwrap()[..5], [0.0, 0.0, 0.0, -1.5, -10_000.0]);
    // Added tokens come from the settings.
    assert_eq!(gguf.strs("tokenizer.ggml.tokens").unwrap()[505], "<|im_end|>");
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap()[505], 3);
}
