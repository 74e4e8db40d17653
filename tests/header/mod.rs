//! Model files of real shapes that hold nothing: a header, and a hole where the weights would be.

#![allow(dead_code)] // Each test file uses its part.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rynd::gguf::Gguf;
use rynd_quant::Format;

/// A header with sparse weights behind it: no block is ever read.
pub struct Header {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    offset: u64,
    arch: &'static str,
}

impl Header {
    pub fn new(arch: &'static str) -> Header {
        let mut header = Header { keys: vec![], key_count: 0, tensors: vec![], tensor_count: 0, offset: 0, arch };
        header.key("general.architecture", 8, &string(arch));
        header
    }

    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.extend(string(name));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
    }

    pub fn u32(&mut self, name: &str, value: u32) {
        self.key(&format!("{}.{name}", self.arch), 4, &value.to_le_bytes());
    }

    fn f32(&mut self, name: &str, value: f32) {
        self.key(&format!("{}.{name}", self.arch), 6, &value.to_le_bytes());
    }

    pub fn tensor(&mut self, name: &str, format: Format, shape: &[u64]) {
        self.tensors.extend(string(name));
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|n| self.tensors.extend(n.to_le_bytes()));
        self.tensors.extend(format.ggml_id().to_le_bytes());
        self.tensors.extend(self.offset.to_le_bytes());
        let row_bytes = format.row_bytes(shape[0] as usize).unwrap() as u64;
        self.offset += (row_bytes * shape[1..].iter().product::<u64>()).next_multiple_of(32);
        self.tensor_count += 1;
    }

    /// The file; its data are a hole.
    pub fn open(self, name: &str) -> Gguf {
        let path: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut file = File::create(&path).unwrap();
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.key_count.to_le_bytes());
        bytes.extend(self.keys);
        bytes.extend(self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        file.write_all(&bytes).unwrap();
        file.set_len(bytes.len() as u64 + self.offset).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        // The mapping keeps the file.
        std::fs::remove_file(&path).unwrap();
        gguf
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A transformer's sizes: width, heads, key-value heads, head size, vocabulary.
pub fn attention(header: &mut Header, layers: u64, [n, heads, kv_heads, d, vocab]: [u64; 5], biases: bool) {
    header.u32("block_count", layers as u32);
    header.u32("embedding_length", n as u32);
    header.u32("attention.head_count", heads as u32);
    header.u32("attention.head_count_kv", kv_heads as u32);
    header.u32("attention.key_length", d as u32);
    header.u32("attention.value_length", d as u32);
    header.u32("context_length", 32_768);
    header.f32("attention.layer_norm_rms_epsilon", 1e-6);
    header.tensor("token_embd.weight", Format::Q4_K, &[n, vocab]);
    header.tensor("output_norm.weight", Format::F32, &[n]);
    header.tensor("output.weight", Format::Q6_K, &[n, vocab]);
    for layer in 0..layers {
        let mut add = |name: &str, format, shape: &[u64]| header.tensor(&format!("blk.{layer}.{name}"), format, shape);
        let (q, kv) = (heads * d, kv_heads * d);
        add("attn_norm.weight", Format::F32, &[n]);
        add("ffn_norm.weight", Format::F32, &[n]);
        add("attn_q.weight", Format::Q4_K, &[n, q]);
        add("attn_k.weight", Format::Q4_K, &[n, kv]);
        add("attn_v.weight", more_bits(layer, layers), &[n, kv]);
        add("attn_output.weight", Format::Q4_K, &[q, n]);
        if biases {
            add("attn_q.bias", Format::F32, &[q]);
            add("attn_k.bias", Format::F32, &[kv]);
            add("attn_v.bias", Format::F32, &[kv]);
        } else {
            add("attn_q_norm.weight", Format::F32, &[d]);
            add("attn_k_norm.weight", Format::F32, &[d]);
        }
    }
}

/// Q4_K_M gives half of the layers Q6_K for values and for the way down.
pub fn more_bits(layer: u64, layers: u64) -> Format {
    if layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2 {
        Format::Q6_K
    } else {
        Format::Q4_K
    }
}

/// The shape of Qwen3-Coder-30B-A3B in Q4_K_M.
pub fn qwen_coder_30b(name: &str) -> Gguf {
    let mut header = Header::new("qwen3moe");
    header.u32("feed_forward_length", 5472);
    header.u32("expert_count", 128);
    header.u32("expert_used_count", 8);
    header.u32("expert_feed_forward_length", 768);
    attention(&mut header, 48, [2048, 32, 4, 128, 151_936], false);
    for layer in 0..48 {
        let mut add = |name: &str, format, shape: &[u64]| header.tensor(&format!("blk.{layer}.{name}"), format, shape);
        add("ffn_gate_inp.weight", Format::F32, &[2048, 128]);
        add("ffn_gate_exps.weight", Format::Q4_K, &[2048, 768, 128]);
        add("ffn_up_exps.weight", Format::Q4_K, &[2048, 768, 128]);
        add("ffn_down_exps.weight", more_bits(layer, 48), &[768, 2048, 128]);
    }
    header.open(name)
}
