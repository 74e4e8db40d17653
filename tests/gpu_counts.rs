//! What a real GPU would feel is counted: dispatches, passes, submissions, read-backs, bytes of weights.
//!
//! `gpu::dispatches` tells a step's dispatches from the plan alone. The first tests hold it against what the prepared
//! steps really record, on the tiny models; the others judge models of real shapes by it, from headers without weights.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use golden_case::{exact, fixture, gpu_options, ids, reference};
use rynd::engine::{Engine, EngineConfig, GpuChoice, Session, Side};
use rynd::gguf::Gguf;
use rynd::gpu::{Handicap, dispatches, room};
use rynd::plan::{Op, Plan, Stage, stages};
use rynd_quant::Format;

/// Dispatches of one token, told from the plan.
fn told(plan: &Plan, bank_bytes: u64, pages: usize) -> usize {
    plan.steps.iter().map(|step| dispatches(plan, &step.op, bank_bytes, pages)).sum()
}

#[test]
fn the_plan_tells_the_dispatches_that_a_token_is_and_weights_are_read_once() {
    let files = ["models/qwen2/model", "models/qwen3moe/model", "models/gemma3/model", "models/mixtral/model"];
    let quantised = ["quantized/qwen2-Q4_K_M", "quantized/qwen2-IQ4_NL", "quantized/qwen3moe_wide-Q4_K_M"];
    for file in files.into_iter().chain(quantised) {
        for binding_bytes in [None, Some(64 << 10)] {
            let handicap = Handicap { binding_bytes, ..Handicap::default() };
            let Some(mut gpu) = gpu_options() else { return };
            gpu.handicap = handicap;
            let config = EngineConfig { gpu, ..exact() };
            let mut engine = Engine::load(&fixture(&format!("{file}.gguf")), &config).unwrap();
            let prompt = ids(&reference("qwen3moe_long")["prompts"]["deep"]["ids"]);
            let mut session = Session::new();
            // Within one page, and in a context that attention splits.
            for tokens in [20, 400] {
                session.sync(&mut engine, &prompt[..tokens]).unwrap();
                engine.reset_counters();
                session.sync(&mut engine, &prompt[..tokens + 1]).unwrap();
                let counters = engine.gpus()[0].counters();
                let plan = engine.plan();
                let bank_bytes = binding_bytes.unwrap_or(engine.gpus()[0].device().report().bank_bytes());
                let pages = tokens / rynd::plan::PAGE_TOKENS + 1;
                let what = format!("{file}, {binding_bytes:?}, {tokens} tokens");
                assert_eq!(counters.dispatches as usize, told(plan, bank_bytes, pages), "{what}");
                assert_eq!((counters.submits, counters.read_backs, counters.passes), (1, 1, 1), "{what}");
                assert_eq!(counters.read_back_bytes, plan.vocab as u64 * 4, "{what}");
                assert_eq!(counters.weight_bytes, bytes_once(plan), "{what}");
            }
        }
    }
}

/// Bytes of all matrices, each once; of experts those that a token picks, of the embedding one row.
fn bytes_once(plan: &Plan) -> u64 {
    let matrices = plan.steps.iter().flat_map(|step| step.op.weights().into_iter().map(move |id| (&step.op, id)));
    matrices
        .filter(|(_, id)| plan.weight(*id).rows * plan.weight(*id).experts > 1)
        .map(|(op, id)| {
            let weight = plan.weight(id);
            let all = room::weight_bytes(weight);
            match op {
                Op::Embed { .. } => all / weight.rows as u64,
                Op::Experts { used, .. } => all / weight.experts as u64 * *used as u64,
                _ => all,
            }
        })
        .sum()
}

/// A header with sparse weights behind it: no block is ever read.
struct Header {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    offset: u64,
    arch: &'static str,
}

impl Header {
    fn new(arch: &'static str) -> Header {
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

    fn u32(&mut self, name: &str, value: u32) {
        self.key(&format!("{}.{name}", self.arch), 4, &value.to_le_bytes());
    }

    fn f32(&mut self, name: &str, value: f32) {
        self.key(&format!("{}.{name}", self.arch), 6, &value.to_le_bytes());
    }

    fn tensor(&mut self, name: &str, format: Format, shape: &[u64]) {
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
    fn open(self, name: &str) -> Gguf {
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
fn attention(header: &mut Header, layers: u64, [n, heads, kv_heads, d, vocab]: [u64; 5], biases: bool) {
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
fn more_bits(layer: u64, layers: u64) -> Format {
    if layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2 {
        Format::Q6_K
    } else {
        Format::Q4_K
    }
}

/// All on one GPU; 24 GB and more bind all that a card of today binds.
fn plan(gguf: &Gguf) -> Plan {
    let config =
        EngineConfig { gpu: rynd::engine::GpuOptions { choice: GpuChoice::Off, ..Default::default() }, ..exact() };
    let outline = Engine::outline(gguf, &config).unwrap();
    let mut plan = Plan::clone(&outline.plan);
    plan.steps.iter_mut().for_each(|step| step.side = Side::Gpu(0));
    plan
}

/// The most dispatches of a layer, and of everything outside the layers, in a context of so many tokens.
fn most_a_layer(plan: &Plan, bank_bytes: u64, context: usize) -> (usize, usize) {
    let pages = context / rynd::plan::PAGE_TOKENS;
    let of = |layer: Option<u32>| -> usize {
        let steps = plan.steps.iter().filter(|step| step.layer == layer);
        steps.map(|step| dispatches(plan, &step.op, bank_bytes, pages)).sum()
    };
    ((0..plan.layers as u32).map(|layer| of(Some(layer))).max().unwrap(), of(None))
}

/// The smallest binding that rynd accepts, and the largest that it makes use of.
const BINDINGS: [u64; 2] = [128 << 20, i32::MAX as u64];

#[test]
fn a_dense_layer_of_qwen_coder_1_5b_is_at_most_8_dispatches() {
    let mut header = Header::new("qwen2");
    header.u32("feed_forward_length", 8960);
    attention(&mut header, 28, [1536, 12, 2, 128, 151_936], true);
    for layer in 0..28 {
        let mut add = |name: &str, format, shape: &[u64]| header.tensor(&format!("blk.{layer}.{name}"), format, shape);
        add("ffn_gate.weight", Format::Q4_K, &[1536, 8960]);
        add("ffn_up.weight", Format::Q4_K, &[1536, 8960]);
        add("ffn_down.weight", more_bits(layer, 28), &[8960, 1536]);
    }
    let plan = plan(&header.open("qwen-1.5b.gguf"));
    for bank_bytes in BINDINGS {
        for context in [64, 4096, 32_768] {
            let (layer, rest) = most_a_layer(&plan, bank_bytes, context);
            assert!(layer <= 8 && rest <= 5, "{layer} a layer and {rest} outside, {bank_bytes} bytes a binding");
        }
    }
    one_submission(&plan);
}

#[test]
fn a_layer_of_qwen3_coder_30b_is_at_most_12_dispatches() {
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
    let plan = plan(&header.open("qwen3-30b.gguf"));
    for bank_bytes in BINDINGS {
        for context in [64, 4096, 32_768] {
            let (layer, rest) = most_a_layer(&plan, bank_bytes, context);
            assert!(layer <= 12 && rest <= 5, "{layer} a layer and {rest} outside, {bank_bytes} bytes a binding");
        }
    }
    one_submission(&plan);
}

/// One stage on one GPU whose only value for the host is the logits.
fn one_submission(plan: &Plan) {
    match stages(plan).as_slice() {
        [Stage::Run { side: Side::Gpu(0), wanted, .. }] => assert_eq!(wanted, &[plan.logits]),
        other => panic!("{other:?}"),
    }
}
