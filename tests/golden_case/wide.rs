//! `qwen3moe_wide` in F32: 10 MB that need not be kept, because its weights are draws from a fixed seed.
//!
//! The recipe is PyTorch's: a Mersenne Twister; of each draw the low 24 bits make a uniform value; two of those, eight
//! apart, make two normal ones (Box and Muller). Parameters are drawn in the order of their Hugging Face names; norms are
//! uniform, matrices normal and rounded to bfloat16, the router not rounded. The header is that of the quantised file.
//! That it is the same model shows in its logits, hidden states and picks, which another implementation computed.

use std::path::PathBuf;
use std::sync::OnceLock;

use half::bf16;
use rand_mt::Mt;
use rynd::gguf::{Gguf, Writer};
use rynd_quant::Format;

use super::fixture;

const SEED: u32 = 1017;
const LAYERS: usize = 2;
const WIDTH: usize = 256;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD: usize = 64;
const EXPERTS: usize = 4;
const FF: usize = 256;
const VOCAB: usize = 512;

/// The model's file, written once a process.
pub fn path() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let own = folder.join(format!("qwen3moe_wide-{}.gguf", std::process::id()));
        write(&own);
        // Other test processes write the same bytes; who has the old file open keeps it.
        let shared = folder.join("qwen3moe_wide.gguf");
        std::fs::rename(&own, &shared).unwrap();
        shared
    })
    .clone()
}

struct Tensor {
    name: String,
    shape: Vec<u64>, // fastest first
    values: Vec<f32>,
}

fn uniform(mt: &mut Mt, n: usize) -> Vec<f32> {
    (0..n).map(|_| (mt.next_u32() & 0xff_ffff) as f32 * 2.0_f32.powi(-24)).collect()
}

fn normal(mt: &mut Mt, n: usize) -> Vec<f32> {
    let mut values = uniform(mt, n);
    for block in values.chunks_exact_mut(16) {
        let (first, second) = block.split_at_mut(8);
        for (a, b) in first.iter_mut().zip(second) {
            let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
            let (sin, cos) = (2.0 * std::f32::consts::PI * *b).sin_cos();
            (*a, *b) = (radius * cos, radius * sin);
        }
    }
    values
}

/// All weights, in the order in which they are drawn.
fn tensors() -> Vec<Tensor> {
    let mt = &mut Mt::new(SEED);
    let mut all = vec![];
    let root = |n: usize| (n as f32).sqrt();
    let norm = |mt: &mut Mt, name: String, n: usize, low: f32, high: f32| {
        let values = uniform(mt, n).into_iter().map(|u| u * (high - low) + low).collect();
        Tensor { name, shape: vec![n as u64], values }
    };
    let matrix = |mt: &mut Mt, name: String, shape: &[usize], deviation: f32| {
        let values = normal(mt, shape.iter().product());
        let values = values.into_iter().map(|z| bf16::from_f32(z * deviation).to_f32()).collect();
        Tensor { name, shape: shape.iter().map(|&n| n as u64).collect(), values }
    };
    all.push(matrix(mt, "output.weight".to_owned(), &[WIDTH, VOCAB], 2.0 / root(WIDTH)));
    all.push(matrix(mt, "token_embd.weight".to_owned(), &[WIDTH, VOCAB], 0.5));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        all.push(norm(mt, name("attn_norm"), WIDTH, 0.5, 1.6));
        all.push(matrix(mt, name("ffn_down_exps"), &[FF, WIDTH, EXPERTS], 2.0 / root(FF)));
        // Gate and up of an expert are one parameter.
        let both = matrix(mt, String::new(), &[WIDTH, 2 * FF, EXPERTS], 1.2 / root(WIDTH));
        for (half, part) in ["ffn_gate_exps", "ffn_up_exps"].into_iter().enumerate() {
            let of_expert = |both: &[f32]| both[half * FF * WIDTH..(half + 1) * FF * WIDTH].to_vec();
            let values = both.values.chunks_exact(2 * FF * WIDTH).flat_map(of_expert).collect();
            all.push(Tensor { name: name(part), shape: [WIDTH, FF, EXPERTS].map(|n| n as u64).to_vec(), values });
        }
        let router = normal(mt, WIDTH * EXPERTS).into_iter().map(|z| z * (2.0 / root(WIDTH))).collect();
        all.push(Tensor { name: name("ffn_gate_inp"), shape: vec![WIDTH as u64, EXPERTS as u64], values: router });
        all.push(norm(mt, name("ffn_norm"), WIDTH, 0.5, 1.6));
        all.push(norm(mt, name("attn_k_norm"), HEAD, 1.0, 2.2));
        all.push(matrix(mt, name("attn_k"), &[WIDTH, KV_HEADS * HEAD], 1.3 / root(WIDTH)));
        all.push(matrix(mt, name("attn_output"), &[HEADS * HEAD, WIDTH], 1.0 / root(HEADS * HEAD)));
        all.push(norm(mt, name("attn_q_norm"), HEAD, 1.0, 2.2));
        all.push(matrix(mt, name("attn_q"), &[WIDTH, HEADS * HEAD], 1.3 / root(WIDTH)));
        all.push(matrix(mt, name("attn_v"), &[WIDTH, KV_HEADS * HEAD], 1.0 / root(WIDTH)));
    }
    all.push(norm(mt, "output_norm.weight".to_owned(), WIDTH, 0.5, 1.6));
    all
}

fn write(path: &std::path::Path) {
    let quantised = Gguf::open(&fixture("quantized/qwen3moe_wide-Q4_K_M.gguf")).unwrap();
    let mut writer = Writer::create(path).unwrap();
    for (key, value) in quantised.metadata() {
        match key {
            "general.file_type" => writer.set(key, 0_u32).unwrap(),
            "general.quantization_version" => {}
            _ => writer.set(key, value.clone()).unwrap(),
        }
    }
    let mut tensors = tensors();
    // In the order of the quantised file.
    tensors.sort_by_key(|tensor| quantised.tensors().iter().position(|other| other.name == tensor.name).unwrap());
    for tensor in &tensors {
        writer.declare(&tensor.name, Format::F32, &tensor.shape).unwrap();
    }
    for tensor in &tensors {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write_tensor(&tensor.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}
