//! Whole models of 120 kB, dense and a mixture: the metadata of the tiny models with smaller numbers, and random weights.

use std::path::{Path, PathBuf};

use rynd::gguf::{Gguf, Value, Writer};
use rynd_quant::Format;

use super::mutate::Rng;

const WIDTH: u64 = 64;
const HIDDEN: u64 = 64;
const EXPERTS: u64 = 4;

/// A file to mutate, and where in it lengths, types, counts, offsets and values stand.
pub struct Base {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub fields: Vec<usize>,
    /// Where the header ends.
    pub header: usize,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name).join("model.gguf")
}

type Tensors = Vec<(String, Format, Vec<u64>)>;

fn attention(tensors: &mut Tensors, heads: u64) {
    let (q, kv) = (heads * 16, heads * 8);
    for (name, format, shape) in [
        ("attn_norm.weight", Format::F32, vec![WIDTH]),
        ("attn_q.weight", Format::Q8_0, vec![WIDTH, q]),
        ("attn_k.weight", Format::Q4_0, vec![WIDTH, kv]),
        ("attn_v.weight", Format::BF16, vec![WIDTH, kv]),
        ("attn_output.weight", Format::F16, vec![q, WIDTH]),
        ("ffn_norm.weight", Format::F32, vec![WIDTH]),
    ] {
        tensors.push((format!("blk.0.{name}"), format, shape));
    }
}

fn tensors(arch: &str) -> Tensors {
    let embedding = |name: &str, format| (format!("{name}.weight"), format, vec![WIDTH, 512]);
    let mut tensors = vec![embedding("token_embd", Format::Q8_0), embedding("output", Format::Q4_0)];
    tensors.push(("output_norm.weight".to_owned(), Format::F32, vec![WIDTH]));
    attention(&mut tensors, 4);
    let mut push = |name: &str, format, shape: &[u64]| tensors.push((format!("blk.0.{name}"), format, shape.to_vec()));
    match arch {
        "qwen3moe" => {
            push("attn_q_norm.weight", Format::F32, &[16]);
            push("attn_k_norm.weight", Format::F32, &[16]);
            push("ffn_gate_inp.weight", Format::F32, &[WIDTH, EXPERTS]);
            push("ffn_gate_exps.weight", Format::Q4_0, &[WIDTH, 32, EXPERTS]);
            push("ffn_up_exps.weight", Format::Q8_0, &[WIDTH, 32, EXPERTS]);
            push("ffn_down_exps.weight", Format::Q4_0, &[32, WIDTH, EXPERTS]);
        }
        _ => {
            push("attn_q.bias", Format::F32, &[WIDTH]);
            push("attn_k.bias", Format::F32, &[32]);
            push("attn_v.bias", Format::F32, &[32]);
            push("ffn_gate.weight", Format::Q4_0, &[WIDTH, HIDDEN]);
            push("ffn_up.weight", Format::Q8_0, &[WIDTH, HIDDEN]);
            push("ffn_down.weight", Format::Q4_0, &[HIDDEN, WIDTH]);
        }
    }
    tensors
}

/// Small weights in blocks of the format.
fn blocks(format: Format, weights: u64, rng: &mut Rng) -> Vec<u8> {
    let small = |rng: &mut Rng| (rng.below(2001) as f32 - 1000.0) / 4000.0;
    let n = weights as usize;
    match format {
        Format::F32 => (0..n).flat_map(|_| (1.0 + small(rng)).to_le_bytes()).collect(),
        Format::BF16 => (0..n).flat_map(|_| ((small(rng).to_bits() >> 16) as u16).to_le_bytes()).collect(),
        Format::F16 => (0..n).flat_map(|_| half::f16::from_f32(small(rng)).to_le_bytes()).collect(),
        _ => {
            let bytes = if format == Format::Q8_0 { 32 } else { 16 };
            let scale = half::f16::from_f32(if format == Format::Q8_0 { 0.002 } else { 0.03 });
            let mut all = vec![];
            for _ in 0..n / 32 {
                all.extend(scale.to_le_bytes());
                all.extend((0..bytes).map(|_| rng.next() as u8));
            }
            all
        }
    }
}

fn base(arch: &'static str, folder: &Path) -> Base {
    let from = Gguf::open(&fixture(arch)).unwrap();
    let path = folder.join(format!("{arch}.gguf"));
    let mut writer = Writer::create(&path).unwrap();
    let number = |key: &str| -> Option<u32> {
        let known = [
            ("block_count", 1),
            ("embedding_length", WIDTH),
            ("feed_forward_length", HIDDEN),
            ("key_length", 16),
            ("value_length", 16),
            ("expert_count", EXPERTS),
            ("expert_used_count", 2),
        ];
        let name = key.rsplit('.').next().unwrap();
        known.iter().find(|(known, _)| *known == name).map(|(_, value)| *value as u32)
    };
    let mut names = vec![];
    for (key, value) in from.metadata() {
        let value: Value = number(key).map_or_else(|| value.clone(), Value::from);
        writer.set(key, value).unwrap();
        names.push(key.to_owned());
    }
    let (tensors, mut rng) = (tensors(arch), Rng::new(7));
    for (name, format, shape) in &tensors {
        writer.declare(name, *format, shape).unwrap();
        names.push(name.clone());
    }
    for (name, format, shape) in &tensors {
        writer.write_tensor(name, &blocks(*format, shape.iter().product(), &mut rng)).unwrap();
    }
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let find = |name: &str| bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    let mut fields = vec![0, 4, 8, 16];
    for name in &names {
        let (start, end) = (find(name), find(name) + name.len());
        fields.push(start - 8);
        fields.extend((0..40).step_by(4).map(|n| end + n));
    }
    let header = names.iter().map(|name| find(name) + name.len() + 32).max().unwrap();
    fields.retain(|&at| at + 8 <= bytes.len());
    Base { name: arch, bytes, fields, header }
}

pub fn bases(folder: &Path) -> Vec<Base> {
    ["qwen2", "qwen3moe"].map(|arch| base(arch, folder)).into()
}
