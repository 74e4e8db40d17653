//! Headers of models that nobody can load here, from their published hyperparameters.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rynd::gguf::{HeaderPart, Outline};
use rynd::quantize::recipe::ModelFacts;
use rynd::quantize::{FileType, Recipe};
use rynd_quant::Format;

/// A model: keys and tensors, nothing else.
pub struct Model {
    pub arch: &'static str,
    pub keys: Vec<(&'static str, u32)>,
    pub tensors: Vec<(String, Vec<u64>)>,
}

fn key(model: &Model, name: &str) -> usize {
    model.keys.iter().find(|(key, _)| *key == name).unwrap().1 as usize
}

impl Model {
    fn new(arch: &'static str, keys: &[(&'static str, u32)], width: u64, vocab: u64) -> Model {
        let tensors = vec![
            ("token_embd.weight".to_owned(), vec![width, vocab]),
            ("output_norm.weight".to_owned(), vec![width]),
            ("output.weight".to_owned(), vec![width, vocab]),
        ];
        Model { arch, keys: keys.to_vec(), tensors }
    }

    fn push(&mut self, layer: u64, name: &str, shape: &[u64]) {
        self.tensors.push((format!("blk.{layer}.{name}"), shape.to_vec()));
    }

    /// What a recipe gives each tensor: (name, shape, format).
    pub fn by_recipe(&self, recipe: &Recipe) -> Vec<Tensor> {
        let heads = [key(self, "attention.head_count"), key(self, "attention.head_count_kv")];
        let names = self.tensors.iter().map(|(name, _)| name.as_str());
        let facts = ModelFacts::new(self.arch, key(self, "block_count"), key(self, "expert_count"), heads, names);
        let format = |(name, shape): &(String, Vec<u64>)| {
            let small = shape.len() < 2 || name.contains("ffn_gate_inp") || name.contains("conv1d");
            let original = if small { Format::F32 } else { Format::BF16 };
            (name.clone(), shape.clone(), recipe.choose(&facts, name, shape, original))
        };
        self.tensors.iter().map(format).collect()
    }

    /// The tensors of a file type made without an importance matrix.
    pub fn quantised(&self, file_type: &str) -> Vec<Tensor> {
        self.by_recipe(&Recipe::new(FileType::from_name(file_type).unwrap()))
    }

    /// Experts of one file type, everything else of another: how the small files of large models are made.
    pub fn mixed(&self, experts: &str, rest: &str) -> Vec<Tensor> {
        let (experts, rest) = (self.quantised(experts), self.quantised(rest));
        experts.into_iter().zip(rest).map(|(e, r)| if e.0.contains("_exps") { e } else { r }).collect()
    }
}

/// The llama block with experts, as qwen3moe has it.
fn qwen3moe(layers: u64, width: u64, heads: [u64; 2], experts: [u64; 3]) -> Model {
    let keys = [
        ("block_count", layers as u32),
        ("context_length", 262_144),
        ("embedding_length", width as u32),
        ("attention.head_count", heads[0] as u32),
        ("attention.head_count_kv", heads[1] as u32),
        ("attention.key_length", 128),
        ("expert_count", experts[0] as u32),
        ("expert_used_count", experts[1] as u32),
    ];
    let mut model = Model::new("qwen3moe", &keys, width, 151_936);
    for layer in 0..layers {
        model.push(layer, "attn_norm.weight", &[width]);
        model.push(layer, "attn_q.weight", &[width, heads[0] * 128]);
        model.push(layer, "attn_k.weight", &[width, heads[1] * 128]);
        model.push(layer, "attn_v.weight", &[width, heads[1] * 128]);
        model.push(layer, "attn_output.weight", &[heads[0] * 128, width]);
        model.push(layer, "attn_q_norm.weight", &[128]);
        model.push(layer, "attn_k_norm.weight", &[128]);
        model.push(layer, "ffn_norm.weight", &[width]);
        mixture(&mut model, layer, width, [experts[0], experts[2]]);
    }
    model
}

fn mixture(model: &mut Model, layer: u64, width: u64, [experts, ff]: [u64; 2]) {
    model.push(layer, "ffn_gate_inp.weight", &[width, experts]);
    model.push(layer, "ffn_gate_exps.weight", &[width, ff, experts]);
    model.push(layer, "ffn_up_exps.weight", &[width, ff, experts]);
    model.push(layer, "ffn_down_exps.weight", &[ff, width, experts]);
}

/// Qwen3-Coder-480B-A35B.
pub fn coder_480b() -> Model {
    qwen3moe(62, 6144, [96, 8], [160, 8, 2560])
}

/// Qwen3-Coder-30B-A3B.
pub fn coder_30b() -> Model {
    qwen3moe(48, 2048, [32, 4], [128, 8, 768])
}

/// Qwen3-Coder-Next: three gated delta layers, then one with attention; 512 experts and a shared one.
pub fn coder_next() -> Model {
    let (width, ff) = (2048, 512);
    let keys = [
        ("block_count", 48),
        ("context_length", 262_144),
        ("embedding_length", width as u32),
        ("attention.head_count", 16),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 256),
        ("expert_count", 512),
        ("expert_used_count", 10),
        ("ssm.conv_kernel", 4),
        ("ssm.state_size", 128),
        ("ssm.group_count", 16),
        ("ssm.time_step_rank", 32),
        ("ssm.inner_size", 4096),
    ];
    let mut model = Model::new("qwen3next", &keys, width, 151_936);
    for layer in 0..48 {
        model.push(layer, "attn_norm.weight", &[width]);
        if layer % 4 == 3 {
            model.push(layer, "attn_q.weight", &[width, 2 * 16 * 256]);
            model.push(layer, "attn_k.weight", &[width, 2 * 256]);
            model.push(layer, "attn_v.weight", &[width, 2 * 256]);
            model.push(layer, "attn_output.weight", &[16 * 256, width]);
        } else {
            model.push(layer, "ssm_a", &[32]);
            model.push(layer, "ssm_conv1d.weight", &[4, 8192]);
            model.push(layer, "ssm_ba.weight", &[width, 64]);
            model.push(layer, "attn_qkv.weight", &[width, 8192]);
            model.push(layer, "attn_gate.weight", &[width, 4096]);
            model.push(layer, "ssm_out.weight", &[4096, width]);
        }
        model.push(layer, "post_attention_norm.weight", &[width]);
        mixture(&mut model, layer, width, [512, ff]);
        model.push(layer, "ffn_gate_inp_shexp.weight", &[width, 1]);
        model.push(layer, "ffn_gate_shexp.weight", &[width, ff]);
        model.push(layer, "ffn_up_shexp.weight", &[width, ff]);
        model.push(layer, "ffn_down_shexp.weight", &[ff, width]);
    }
    model
}

/// Name, shape (row length first) and format.
pub type Tensor = (String, Vec<u64>, Format);

/// One file of a split model: its header's bytes and the size it would have.
pub struct Part {
    pub header: Vec<u8>,
    pub bytes: u64,
}

/// The files of a model, with the same number of tensors each.
pub fn parts(model: &Model, tensors: &[Tensor], count: usize) -> Vec<Part> {
    let per_part = tensors.len().div_ceil(count);
    let part = |(no, tensors): (usize, &[Tensor])| {
        let mut keys = vec![];
        let mut n = 0;
        let mut add = |bytes: Vec<u8>| {
            keys.extend(bytes);
            n += 1;
        };
        if no == 0 {
            add([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text(model.arch)].concat());
            add([text("general.name"), 8u32.to_le_bytes().to_vec(), text("A model")].concat());
            model.keys.iter().for_each(|(key, value)| add(number(&format!("{}.{key}", model.arch), *value)));
        }
        if count > 1 {
            add([text("split.no"), 2u32.to_le_bytes().to_vec(), (no as u16).to_le_bytes().to_vec()].concat());
            add([text("split.count"), 2u32.to_le_bytes().to_vec(), (count as u16).to_le_bytes().to_vec()].concat());
        }
        let mut table = vec![];
        let mut offset = 0u64;
        for (name, shape, format) in tensors {
            table.extend(text(name));
            table.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|n| table.extend(n.to_le_bytes()));
            table.extend(format.ggml_id().to_le_bytes());
            table.extend(offset.to_le_bytes());
            let rows: u64 = shape[1..].iter().product();
            let bytes = format.row_bytes(shape[0] as usize).unwrap() as u64 * rows;
            offset = (offset + bytes).next_multiple_of(32);
        }
        let counts = [&3u32.to_le_bytes()[..], &(tensors.len() as u64).to_le_bytes(), &(n as u64).to_le_bytes()];
        let header = [b"GGUF", &counts.concat()[..], &keys, &table].concat();
        let bytes = (header.len() as u64).next_multiple_of(32) + offset;
        Part { header, bytes }
    };
    tensors.chunks(per_part).enumerate().map(part).collect()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(key: &str, value: u32) -> Vec<u8> {
    [text(key), 4u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
}

/// The outline of a model in one file, as a peek over the network would give it; and the file's size.
pub fn outline(model: &Model, tensors: &[Tensor]) -> (Outline, u64) {
    let part = parts(model, tensors, 1).remove(0);
    let header = HeaderPart { name: "a.gguf".into(), bytes: part.header.into(), file_bytes: part.bytes };
    (Outline::from_parts(vec![header]).unwrap(), part.bytes)
}

/// Writes a split model whose data are holes; returns the path of the first file.
pub fn write_sparse(folder: &Path, parts: &[Part]) -> PathBuf {
    let name = |no: usize| folder.join(format!("m-{:05}-of-{:05}.gguf", no + 1, parts.len()));
    for (no, part) in parts.iter().enumerate() {
        let mut file = File::create(name(no)).unwrap();
        file.write_all(&part.header).unwrap();
        file.set_len(part.bytes).unwrap();
    }
    name(0)
}
