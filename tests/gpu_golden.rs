//! The references of `golden.rs` on GPUs: wholly, and split between the CPU and one or several of them.
//!
//! Mesa's software Vulkan is a GPU like any other here. Without an adapter the tests say so and pass; with
//! RYND_REQUIRE_GPU=1 they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use golden_case::{
    all_logits, check_as, check_deep, exact, fixture, furthest, gpu_options, greedy, ids, load, npy, reference,
};
use rynd::engine::{Engine, EngineConfig, GpuChoice, GpuOptions, Handicap, Listing};
use rynd::plan::{Side, Sides};

/// Everything on one GPU, in f32; `None` when the machine has no adapter.
fn whole() -> Option<EngineConfig> {
    Some(EngineConfig { gpu: gpu_options()?, ..exact() })
}

fn check(model: &str) {
    let Some(config) = whole() else { return };
    let engine = load(model, &config);
    assert!(engine.plan().steps.iter().all(|step| step.side == Side::Gpu(0)), "{model} is not all on the GPU");
    check_as(model, 5e-4, &config);
}

#[test]
fn llama_on_a_gpu_equals_its_reference() {
    check("llama");
}

#[test]
fn qwen2_on_a_gpu_equals_its_reference() {
    check("qwen2");
}

#[test]
fn qwen3_on_a_gpu_equals_its_reference() {
    check("qwen3");
}

#[test]
fn qwen3moe_on_a_gpu_equals_its_reference() {
    check("qwen3moe");
}

#[test]
fn mixtral_on_a_gpu_equals_its_reference() {
    check("mixtral");
}

#[test]
fn qwen3moe_with_few_wide_experts_on_a_gpu_equals_its_reference() {
    check("qwen3moe_wide");
}

#[test]
fn gemma3_on_a_gpu_equals_its_reference() {
    check("gemma3");
}

#[test]
fn qwen3moe_on_a_gpu_equals_its_reference_at_600_tokens_for_any_batch() {
    check("qwen3moe_long");
    let Some(config) = whole() else { return };
    check_deep("qwen3moe_long", &[1024, 128, 50], &config);
}

#[test]
fn quantised_files_on_a_gpu_equal_the_reference_with_f32_activations() {
    let Some(config) = whole() else { return };
    let prompt = ids(&reference("qwen2")["prompts"]["short"]["ids"]);
    for name in ["qwen2-IQ4_NL", "qwen2-Q4_K_M", "qwen3moe_wide-Q4_K_M"] {
        for batch in [512, 1] {
            let config = EngineConfig { batch, ..config.clone() };
            let mut engine = Engine::load(&fixture(&format!("quantized/{name}.gguf")), &config).unwrap();
            let off = furthest(&all_logits(&mut engine, &prompt), &npy(&format!("quantized/{name}.logits_f32act.npy")));
            assert!(off <= 5e-4, "{name}, batch {batch}: logits are {off} off");
        }
    }
}

/// Greedy ids of the long prompt under a placement.
fn check_split(model: &str, name: &str, devices: usize, batch: usize, place: impl Fn(&rynd::plan::Plan) -> Sides) {
    let reference = reference(model);
    let layers = load(model, &exact());
    let sides = place(layers.plan());
    let Some(gpu) = gpu_options() else { return };
    // Several devices on the one adapter.
    let listing = Some(Listing { copies: devices, software: true });
    let gpu = GpuOptions { choice: GpuChoice::These((0..devices).collect()), sides: Some(sides), listing, ..gpu };
    let mut engine = load(model, &EngineConfig { batch, gpu, ..exact() });
    let start = ids(&reference["prompts"]["long"]["ids"]);
    let expected = ids(&reference["greedy"]["long"]["ids"]);
    assert_eq!(greedy(&mut engine, &start, expected.len()), expected, "{model}, {name}, batch {batch}");
    assert_eq!(engine.gpus().len(), devices, "{model}, {name}");
}

/// The first `boundary` layers on one side, the others and the head on another.
fn two(plan: &rynd::plan::Plan, boundary: usize, first: Side, second: Side) -> Sides {
    let mut sides = Sides::all(plan, first);
    sides.layers[boundary..].fill(second);
    sides.head = second;
    sides
}

#[test]
fn every_layer_boundary_between_cpu_and_gpu_gives_the_same_ids() {
    for model in ["qwen2", "qwen3moe"] {
        let layers = load(model, &exact()).plan().layers;
        for boundary in 0..=layers {
            for batch in [512, 7] {
                let cpu_first = |plan: &_| two(plan, boundary, Side::Cpu, Side::Gpu(0));
                check_split(model, &format!("{boundary} on the CPU"), 1, batch, cpu_first);
                let gpu_first = |plan: &_| two(plan, boundary, Side::Gpu(0), Side::Cpu);
                check_split(model, &format!("{boundary} on the GPU"), 1, batch, gpu_first);
            }
        }
    }
}

#[test]
fn two_and_three_devices_give_the_same_ids() {
    for model in ["llama", "qwen3moe"] {
        let layers = load(model, &exact()).plan().layers;
        for boundary in 0..=layers {
            for batch in [512, 7] {
                let halves = |plan: &_| two(plan, boundary, Side::Gpu(0), Side::Gpu(1));
                check_split(model, &format!("two devices, {boundary}"), 2, batch, halves);
            }
        }
        for batch in [512, 7] {
            // Round about, so that the last device hands over to the first.
            check_split(model, "three devices", 3, batch, |plan| {
                let mut sides = Sides::all(plan, Side::Gpu(2));
                for (layer, side) in sides.layers.iter_mut().enumerate() {
                    *side = Side::Gpu((layer % 3) as u8);
                }
                sides
            });
        }
    }
}

#[test]
fn experts_on_the_cpu_with_attention_on_the_gpu_give_the_same_ids() {
    for model in ["qwen3moe", "mixtral"] {
        for batch in [512, 7] {
            check_split(model, "experts on the CPU", 1, batch, |plan| {
                let mut sides = Sides::all(plan, Side::Gpu(0));
                sides.experts = Some(Side::Cpu);
                sides
            });
        }
    }
}

#[test]
fn what_an_adapter_may_lack_changes_no_logits() {
    let Some(gpu) = gpu_options() else { return };
    let prompt = ids(&reference("qwen2")["prompts"]["short"]["ids"]);
    let handicaps = [
        Handicap { no_subgroups: true, ..Handicap::default() },
        Handicap { staging: true, ..Handicap::default() },
        Handicap { bounds_checks: true, ..Handicap::default() },
    ];
    for handicap in handicaps {
        for name in ["qwen2-Q4_K_M", "qwen3moe_wide-Q4_K_M"] {
            for batch in [512, 1] {
                let gpu = GpuOptions { handicap, ..gpu.clone() };
                let config = EngineConfig { batch, gpu, ..exact() };
                let mut engine = Engine::load(&fixture(&format!("quantized/{name}.gguf")), &config).unwrap();
                let expected = npy(&format!("quantized/{name}.logits_f32act.npy"));
                let off = furthest(&all_logits(&mut engine, &prompt), &expected);
                assert!(off <= 5e-4, "{name}, {handicap:?}, batch {batch}: logits are {off} off");
            }
        }
    }
}
