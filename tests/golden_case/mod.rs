//! References of another implementation, and what a loaded model must have in common with them.

#![allow(dead_code)] // Each test file uses its part.

pub mod variants;
pub mod wide;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rynd::backend::KvFormat;
use rynd::engine::{Devices, Engine, EngineConfig, GpuChoice, GpuOptions, Session, Wanted};
use rynd::gguf::{Gguf, Writer};
use rynd::gpu::room;
use rynd::plan::{self, Op};
use serde_json::Value;

pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

pub fn reference(model: &str) -> Value {
    let text = std::fs::read_to_string(fixture(&format!("models/{}/reference.json", variants::parent(model)))).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Reads a little-endian f32 NumPy file.
pub fn npy(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixture(path)).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    assert!(String::from_utf8_lossy(&bytes[10..header]).contains("'descr': '<f4', 'fortran_order': False"));
    bytes[header..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

pub fn exact() -> EngineConfig {
    EngineConfig { exact: true, threads: Some(2), ..EngineConfig::default() }
}

/// The file of a model whose references are in tests/fixtures/models.
pub fn model(name: &str) -> PathBuf {
    if let Some(variant) = variants::path(name) {
        return variant;
    }
    if name == "qwen3moe_wide" { wide::path() } else { fixture(&format!("models/{name}/model.gguf")) }
}

pub fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load(&model(name), config).unwrap()
}

/// Writes a model with its experts at the end of the file.
pub fn experts_last(model: &Path, out: &Path) {
    let gguf = Gguf::open(model).unwrap();
    let mut writer = Writer::create(out).unwrap();
    gguf.metadata().for_each(|(key, value)| writer.set(key, value.clone()).unwrap());
    let (experts, dense): (Vec<_>, Vec<_>) = gguf.tensors().iter().partition(|t| t.name.contains("_exps"));
    let tensors: Vec<_> = dense.into_iter().chain(experts).collect();
    tensors.iter().for_each(|t| writer.declare(&t.name, t.format, &t.shape).unwrap());
    tensors.iter().for_each(|t| writer.write_tensor(&t.name, gguf.bytes(t)).unwrap());
    writer.finish().unwrap();
}

/// Logits of every position: (positions, vocab).
pub fn all_logits(engine: &mut Engine, prompt: &[u32]) -> Vec<f32> {
    let mut all = vec![];
    let mut session = Session::new();
    session
        .extend(engine, prompt, Wanted::All, |_, logits| {
            all.extend_from_slice(logits);
            ControlFlow::Continue(())
        })
        .unwrap();
    session.clear();
    all
}

pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

pub fn greedy(engine: &mut Engine, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut session = Session::new();
    let mut answer: Vec<u32> = vec![];
    while answer.len() < n {
        let logits = match answer.last() {
            None => session.sync(engine, prompt).unwrap(),
            Some(&id) => session.decode(engine, id, Wanted::Last).unwrap(),
        };
        answer.push(argmax(logits));
    }
    session.clear();
    answer
}

pub fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of both prompts, greedy ids of both, hidden states and router picks.
pub fn check_as(model: &str, tolerance: f32, config: &EngineConfig) {
    let reference = reference(model);
    for batch in [512, 7] {
        let mut engine = load(model, &EngineConfig { batch, ..config.clone() });
        let vocab = engine.plan().vocab;
        let short = ids(&reference["prompts"]["short"]["ids"]);
        let long = ids(&reference["prompts"]["long"]["ids"]);

        let logits = all_logits(&mut engine, &short);
        let off = furthest(&logits, &npy(&format!("models/{}/logits_short.npy", variants::parent(model))));
        assert!(off <= tolerance, "{model}, batch {batch}: short logits are {off} off");

        let logits = all_logits(&mut engine, &long);
        let last = &logits[logits.len() - vocab..];
        let off = furthest(last, &npy(&format!("models/{}/logits_long_last.npy", variants::parent(model))));
        assert!(off <= tolerance, "{model}, batch {batch}: long logits are {off} off");
        let argmaxes: Vec<u32> = logits.chunks_exact(vocab).map(argmax).collect();
        assert_eq!(argmaxes, ids(&reference["argmax_long_all"]), "{model}, batch {batch}");

        for prompt in ["short", "long"] {
            let expected = ids(&reference["greedy"][prompt]["ids"]);
            let start = ids(&reference["prompts"][prompt]["ids"]);
            assert_eq!(greedy(&mut engine, &start, expected.len()), expected, "{model}, {prompt}, batch {batch}");
        }
    }
    check_hidden_and_picks(model, &reference, config);
}

fn check_hidden_and_picks(model: &str, reference: &Value, config: &EngineConfig) {
    let mut engine = load(model, config);
    let short = ids(&reference["prompts"]["short"]["ids"]);
    let plan = engine.plan().clone();
    let width = plan.slot(plan.hidden).width;
    let hidden = npy(&format!("models/{}/hidden_short.npy", variants::parent(model)));
    let expected = |row: usize| &hidden[row * short.len() * width..(row + 1) * short.len() * width];
    let mut layers = 0;
    let mut routed = 0;
    let mut order: HashMap<usize, Vec<u32>> = HashMap::new(); // by token: what was chosen, as the weights come
    engine
        .trace(&short, |at, slot, values| {
            let step = &plan.steps[at];
            if let Op::Router(plan::Router { routing: plan::Routing { used, .. }, ids: chosen, .. }) = step.op {
                let layer = step.layer.unwrap() as usize;
                let moe = &reference["moe_short"][layer.to_string()];
                let moe = if moe.is_null() { &reference["moe_short"][layer] } else { moe };
                for (token, picks) in values.chunks_exact(used).enumerate() {
                    // Some references list the experts by number, not by weight.
                    let listed = ids(&moe["experts"][token]);
                    if slot == chosen {
                        let experts: Vec<u32> = picks.iter().map(|id| *id as u32).collect();
                        let sorted = |ids: &[u32]| {
                            let mut ids = ids.to_vec();
                            ids.sort_unstable();
                            ids
                        };
                        assert_eq!(sorted(&experts), sorted(&listed), "{model}, layer {layer}, token {token}");
                        order.insert(token, experts);
                        continue;
                    }
                    for (expert, weight) in order[&token].iter().zip(picks) {
                        let at = listed.iter().position(|listed| listed == expert).unwrap();
                        let expected = moe["weights"][token][at].as_f64().unwrap() as f32;
                        assert!((weight - expected).abs() < 1e-4, "{model}, layer {layer}: {weight} {expected}");
                    }
                    routed += 1;
                }
            }
            if slot == plan.hidden {
                let row = match step.layer {
                    None => Some(0),
                    Some(layer) => (plan.last_step_of_layer(layer) == Some(at)).then_some(layer as usize + 1),
                };
                if let Some(row) = row {
                    let off = furthest(values, expected(row));
                    assert!(off <= 1e-3, "{model}: hidden state {row} is {off} off");
                    layers += 1;
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(layers, plan.layers + 1);
    assert_eq!(routed > 0, plan.steps.iter().any(|step| matches!(step.op, Op::Router(_))));
}

/// Logits deep in a long prompt, for any size of prefill batch.
pub fn check_deep(model: &str, batches: &[usize], config: &EngineConfig) {
    let reference = reference(model);
    let prompt = ids(&reference["prompts"]["deep"]["ids"]);
    let range = ids(&reference["deep"]["positions"]);
    let argmaxes = ids(&reference["deep"]["argmax_all"]);
    let expected = npy(&format!("models/{model}/logits_deep.npy"));
    for &batch in batches {
        let mut engine = load(model, &EngineConfig { batch, ..config.clone() });
        let vocab = engine.plan().vocab;
        let logits = all_logits(&mut engine, &prompt);
        let deep = &logits[range[0] as usize * vocab..range[1] as usize * vocab];
        let off = furthest(deep, &expected);
        assert!(off <= 5e-4, "{model}, batch {batch}: deep logits are {off} off");
        let found: Vec<u32> = logits.chunks_exact(vocab).map(argmax).collect();
        assert_eq!(found, argmaxes, "{model}, batch {batch}");
    }
}

/// Everything on the first adapter; `None` when the machine has none.
pub fn gpu_options() -> Option<GpuOptions> {
    if Devices::list().reports().next().is_none_or(|report| report.refused.is_some()) {
        assert!(std::env::var_os("RYND_REQUIRE_GPU").is_none(), "RYND_REQUIRE_GPU is set, and there is no adapter");
        eprintln!("skipped: no adapter");
        return None;
    }
    Some(GpuOptions { choice: GpuChoice::These(vec![0]), ..GpuOptions::default() })
}

/// Bytes of a GPU with room for the whole f32 cache of these pages and for this part of the experts beside it.
pub fn gpu_budget(engine: &Engine, batch: usize, pages: usize, part: f64) -> u64 {
    let plan = engine.plan();
    let mut bytes = room::activation_bytes(plan, batch);
    bytes += plan.kv.iter().map(|kv| room::cache_bytes(kv, KvFormat::F32, pages)).sum::<u64>();
    for weight in &plan.weights {
        let bytes_there = room::weight_bytes(weight);
        bytes += if weight.experts > 1 { (bytes_there as f64 * part) as u64 } else { bytes_there };
    }
    // What placement keeps back for allocators.
    bytes + bytes / 999
}
