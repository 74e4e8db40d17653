//! Logits, hidden states, router picks and greedy ids against another implementation's, on tiny models.
//!
//! The references were computed in f32, so the models run in exact mode here: weights widened, activations and cache
//! in f32. What int8 activations cost is bounded separately, against the same references.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::ops::ControlFlow;

use golden_case::{all_logits, check_as, check_deep, exact, fixture, furthest, ids, load, npy, reference};
use rynd::backend::KvFormat;
use rynd::engine::{Engine, EngineConfig, Session, Wanted};
use rynd::models::RopeOverride;
use serde_json::Value;

fn check(model: &str, tolerance: f32) {
    check_as(model, tolerance, &exact());
}

/// Logits of prompts that are cut into runs: of one size, and at every place.
fn check_cuts(model: &str, tolerance: f32) {
    let reference = reference(model);
    let [short, long] = ["short", "long"].map(|prompt| ids(&reference["prompts"][prompt]["ids"]));
    let [all, last] = ["short", "long_last"].map(|name| npy(&format!("models/{model}/logits_{name}.npy")));
    for batch in [1, 7, 64] {
        let mut engine = load(model, &EngineConfig { batch, ..exact() });
        let off = furthest(&all_logits(&mut engine, &short), &all);
        assert!(off <= tolerance, "{model}, batch {batch}: short logits are {off} off");
        let off = furthest(Session::new().sync(&mut engine, &long).unwrap(), &last);
        assert!(off <= tolerance, "{model}, batch {batch}: long logits are {off} off");
    }
    let mut engine = load(model, &exact());
    for cut in 1..short.len() {
        let (mut session, mut found) = (Session::new(), vec![]);
        for ids in [&short[..cut], &short[cut..]] {
            let see = |_, logits: &[f32]| {
                found.extend_from_slice(logits);
                ControlFlow::Continue(())
            };
            session.extend(&mut engine, ids, Wanted::All, see).unwrap();
        }
        let off = furthest(&found, &all);
        assert!(off <= tolerance, "{model}, cut at {cut}: logits are {off} off");
    }
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
fn qwen3moe_with_few_wide_experts_equals_its_reference() {
    // Drawn anew, a few of 2.4 million weights fall on the other side of a bfloat16 rounding.
    check("qwen3moe_wide", 5e-4);
}

#[test]
fn mixtral_equals_its_reference() {
    check("mixtral", 5e-4);
}

#[test]
fn gemma3_equals_its_reference() {
    check("gemma3", 5e-4);
}

#[test]
fn lfm2moe_equals_its_reference() {
    check("lfm2moe", 5e-4);
    check_cuts("lfm2moe", 5e-4);
}

#[test]
fn qwen3next_equals_its_reference() {
    check("qwen3next", 5e-4);
    check_cuts("qwen3next", 5e-4);
}

#[test]
fn qwen35moe_equals_its_reference_in_separate_and_in_fused_tensors() {
    check("qwen35moe", 5e-4);
    check("qwen35moe_fused", 5e-4);
}

#[test]
fn qwen35_equals_its_reference_with_and_without_a_layer_that_guesses() {
    check("qwen35", 5e-4);
    check("qwen35_guessing", 5e-4);
}

#[test]
fn qwen3_with_yarn_equals_its_reference_at_200_tokens() {
    check("qwen3_yarn_long", 5e-4);
    check_deep("qwen3_yarn_long", &[512, 64, 33], &exact());
}

#[test]
fn qwen3moe_equals_its_reference_at_600_tokens_for_any_batch() {
    check("qwen3moe_long", 5e-4);
    check_deep("qwen3moe_long", &[1024, 512, 128, 50, 1], &exact());
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
