//! Logits, hidden states, router picks and greedy ids against another implementation's, on tiny models.
//!
//! The references were computed in f32, so the models run in exact mode here: weights widened, activations and cache
//! in f32. What int8 activations cost is bounded separately, against the same references.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::PathBuf;

use rynd::backend::KvFormat;
use rynd::engine::{Engine, EngineConfig, Session, Wanted};
use rynd::models::RopeOverride;
use rynd::plan::Op;
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn reference(model: &str) -> Value {
    let text = std::fs::read_to_string(fixture(&format!("models/{model}/reference.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Reads a little-endian f32 NumPy file.
fn npy(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixture(path)).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    assert!(String::from_utf8_lossy(&bytes[10..header]).contains("'descr': '<f4', 'fortran_order': False"));
    bytes[header..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn exact() -> EngineConfig {
    EngineConfig { exact: true, threads: Some(2), ..EngineConfig::default() }
}

fn load(model: &str, config: &EngineConfig) -> Engine {
    Engine::load(&fixture(&format!("models/{model}/model.gguf")), config).unwrap()
}

/// Logits of every position: (positions, vocab).
fn all_logits(engine: &mut Engine, prompt: &[u32]) -> Vec<f32> {
    let mut all = vec![];
    let mut session = Session::new();
    session
        .extend(engine, prompt, Wanted::All, |_, logits| {
            all.extend_from_slice(logits);
            ControlFlow::Continue(())
        })
        .unwrap();
    session.clear(engine);
    all
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

fn greedy(engine: &mut Engine, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut session = Session::new();
    let mut timeline = prompt.to_vec();
    for _ in 0..n {
        let id = argmax(session.sync(engine, &timeline).unwrap());
        timeline.push(id);
    }
    session.clear(engine);
    timeline.split_off(prompt.len())
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Logits of both prompts, greedy ids of both, hidden states and router picks.
fn check(model: &str, tolerance: f32) {
    let reference = reference(model);
    for batch in [512, 7] {
        let mut engine = load(model, &EngineConfig { batch, ..exact() });
        let vocab = engine.plan().vocab;
        let short = ids(&reference["prompts"]["short"]["ids"]);
        let long = ids(&reference["prompts"]["long"]["ids"]);

        let logits = all_logits(&mut engine, &short);
        let off = furthest(&logits, &npy(&format!("models/{model}/logits_short.npy")));
        assert!(off <= tolerance, "{model}, batch {batch}: short logits are {off} off");

        let logits = all_logits(&mut engine, &long);
        let last = &logits[logits.len() - vocab..];
        let off = furthest(last, &npy(&format!("models/{model}/logits_long_last.npy")));
        assert!(off <= tolerance, "{model}, batch {batch}: long logits are {off} off");
        let argmaxes: Vec<u32> = logits.chunks_exact(vocab).map(argmax).collect();
        assert_eq!(argmaxes, ids(&reference["argmax_long_all"]), "{model}, batch {batch}");

        for prompt in ["short", "long"] {
            let expected = ids(&reference["greedy"][prompt]["ids"]);
            let start = ids(&reference["prompts"][prompt]["ids"]);
            assert_eq!(greedy(&mut engine, &start, expected.len()), expected, "{model}, {prompt}, batch {batch}");
        }
    }
    check_hidden_and_picks(model, &reference);
}

fn check_hidden_and_picks(model: &str, reference: &Value) {
    let mut engine = load(model, &exact());
    let short = ids(&reference["prompts"]["short"]["ids"]);
    let plan = engine.plan().clone();
    let width = plan.slot(plan.hidden).width;
    let hidden = npy(&format!("models/{model}/hidden_short.npy"));
    let expected = |row: usize| &hidden[row * short.len() * width..(row + 1) * short.len() * width];
    let mut layers = 0;
    let mut routed = 0;
    engine
        .trace(&short, |at, slot, values| {
            let step = &plan.steps[at];
            if let Op::Router { used, .. } = step.op {
                let layer = step.layer.unwrap() as usize;
                let moe = &reference["moe_short"][layer.to_string()];
                let moe = if moe.is_null() { &reference["moe_short"][layer] } else { moe };
                for (token, picks) in values.chunks_exact(2 * used).enumerate() {
                    let experts: Vec<u32> = picks[..used].iter().map(|id| id.to_bits()).collect();
                    assert_eq!(experts, ids(&moe["experts"][token]), "{model}, layer {layer}, token {token}");
                    for (i, weight) in picks[used..].iter().enumerate() {
                        let expected = moe["weights"][token][i].as_f64().unwrap() as f32;
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
    assert_eq!(routed > 0, plan.steps.iter().any(|step| matches!(step.op, Op::Router { .. })));
}

#[test]
fn llama_equals_its_reference() {
    check("llama", 2e-4);
}

#[test]
fn llama_with_rope_factors_equals_its_reference() {
    check("llama3rope", 2e-4);
}

#[test]
fn qwen2_equals_its_reference() {
    check("qwen2", 2e-4);
}

#[test]
fn qwen3_equals_its_reference() {
    check("qwen3", 2e-4);
}

#[test]
fn qwen3_with_yarn_equals_its_reference() {
    check("qwen3_yarn", 2e-4);
}

#[test]
fn qwen3moe_equals_its_reference() {
    check("qwen3moe", 2e-4);
}

#[test]
fn mixtral_equals_its_reference() {
    check("mixtral", 5e-4);
}

#[test]
fn gemma3_equals_its_reference() {
    check("gemma3", 5e-4);
}

/// Logits deep in a long prompt, for any size of prefill batch.
fn check_deep(model: &str, batches: &[usize]) {
    let reference = reference(model);
    let prompt = ids(&reference["prompts"]["deep"]["ids"]);
    let range = ids(&reference["deep"]["positions"]);
    let argmaxes = ids(&reference["deep"]["argmax_all"]);
    let expected = npy(&format!("models/{model}/logits_deep.npy"));
    for &batch in batches {
        let mut engine = load(model, &EngineConfig { batch, ..exact() });
        let vocab = engine.plan().vocab;
        let logits = all_logits(&mut engine, &prompt);
        let deep = &logits[range[0] as usize * vocab..range[1] as usize * vocab];
        let off = furthest(deep, &expected);
        assert!(off <= 5e-4, "{model}, batch {batch}: deep logits are {off} off");
        let found: Vec<u32> = logits.chunks_exact(vocab).map(argmax).collect();
        assert_eq!(found, argmaxes, "{model}, batch {batch}");
    }
}

#[test]
fn qwen3_with_yarn_equals_its_reference_at_200_tokens() {
    check("qwen3_yarn_long", 5e-4);
    check_deep("qwen3_yarn_long", &[512, 64, 33]);
}

#[test]
fn qwen3moe_equals_its_reference_at_600_tokens_for_any_batch() {
    check("qwen3moe_long", 5e-4);
    check_deep("qwen3moe_long", &[1024, 512, 128, 50, 1]);
}

#[test]
fn rope_flags_give_what_the_same_keys_in_a_file_give() {
    let reference = reference("qwen3_yarn_long");
    let prompt = ids(&reference["prompts"]["deep"]["ids"]);
    let mut by_keys = load("qwen3_yarn_long", &exact());
    let flags =
        RopeOverride { scaling: Some("yarn".into()), factor: Some(4.0), original_context: Some(64), freq_base: None };
    let mut by_flags = load("qwen3_yarn_long", &EngineConfig { rope: flags, ..exact() });
    let off = RopeOverride { scaling: Some("none".into()), ..RopeOverride::default() };
    let mut without = load("qwen3_yarn_long", &EngineConfig { rope: off, ..exact() });
    let expected = all_logits(&mut by_keys, &prompt);
    assert_eq!(all_logits(&mut by_flags, &prompt), expected);
    assert!(furthest(&all_logits(&mut without, &prompt), &expected) > 0.3);
}

#[test]
fn a_session_computes_only_what_differs_and_gets_the_same_logits() {
    let reference = reference("qwen3moe");
    let long = ids(&reference["prompts"]["long"]["ids"]);
    let mut engine = load("qwen3moe", &exact());
    let mut edited = long.clone();
    edited[30] = 7;
    let fresh = |engine: &mut Engine, ids: &[u32]| Session::new().sync(engine, ids).unwrap().to_vec();
    let expected = [fresh(&mut engine, &long), fresh(&mut engine, &edited)];
    let mut session = Session::new();
    for (ids, expected, computed) in [(&long, &expected[0], 40), (&edited, &expected[1], 10), (&long, &expected[0], 10)]
    {
        let mut count = 0;
        let logits = session
            .sync_with(&mut engine, ids, |_, total| {
                count = total;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(furthest(logits, expected) < 1e-5);
        assert_eq!(count, computed);
    }
}

/// Quantised files: in exact mode the reference's logits (weights widened, f32 activations); with int8 activations at
/// most 1.5 times as far from them, in RMS, as llama.cpp's int8 kernels are on the same file. The reference rounds the
/// same inputs to the same 8 bits, so the error has the same size; it is not the same numbers, and a tiny model's few
/// positions make it vary by half, a router's pick that flips included.
#[test]
fn quantised_files_stay_within_the_spread_of_int8_activations() {
    let known: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("quantized/reference.json")).unwrap()).unwrap();
    let prompt = ids(&reference("qwen2")["prompts"]["short"]["ids"]);
    let mut checked = 0;
    for (name, reference) in known.as_object().unwrap() {
        let path = fixture(&format!("quantized/{name}.gguf"));
        if !path.exists() {
            continue; // Only some of the known files are kept here.
        }
        let expected = npy(&format!("quantized/{name}.logits_f32act.npy"));
        let mut engine = Engine::load(&path, &exact()).unwrap();
        let off = furthest(&all_logits(&mut engine, &prompt), &expected);
        assert!(off <= 5e-4, "{name}: exact logits are {off} off");

        let bound = 1.5 * reference["llamacpp_rms"].as_f64().unwrap();
        for (kv, batch) in [(KvFormat::F16, 512), (KvFormat::Q8_0, 512), (KvFormat::F16, 1)] {
            let config = EngineConfig { threads: Some(2), kv, batch, ..EngineConfig::default() };
            let mut engine = Engine::load(&path, &config).unwrap();
            let logits = all_logits(&mut engine, &prompt);
            let rms = (logits.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
                / expected.len() as f64)
                .sqrt();
            assert!(rms <= bound, "{name}, cache {kv:?}, batch {batch}: {rms} RMS off, bound {bound}");
        }
        checked += 1;
    }
    assert!(checked >= 3, "{checked} quantised fixtures");
}
