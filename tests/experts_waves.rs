//! Prompts whose missing experts pass through a GPU in waves: the numbers are the reference's, and what is resident stays.
//!
//! Mesa's software Vulkan is a GPU like any other here; several devices are opened on one adapter. Without an adapter the
//! tests say so and pass; with RYND_REQUIRE_GPU=1 they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::sync::atomic::{AtomicUsize, Ordering};

use golden_case::{all_logits, argmax, exact, fixture, furthest, gpu_options, greedy, ids, load, npy, reference};
use rynd::backend::KvFormat;
use rynd::engine::{
    Engine, EngineConfig, ExpertOptions, GpuChoice, GpuOptions, Passing, Probe, Prompts, Rooms, SlotPlan, WaveRoom,
};
use rynd::experts::tier::{Ram, Tiers};
use rynd::experts::waves::WaveRates;
use rynd::gpu::{AdapterReport, expert_slot_bytes, room};
use rynd::plan::{self, Op, PAGE_TOKENS, WeightId};

const MODEL: &str = "qwen3moe";
/// Experts of both layers.
const ALL: usize = 32;

/// Two devices on the one adapter, for all tests of this process.
fn copies() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: set once, before any other thread of this process reads the environment through `Devices::list`; every test
    // calls this first.
    ONCE.call_once(|| unsafe { std::env::set_var("RYND_GPU_COPIES", "2") });
}

/// Slots on as many devices; `None` when the machine has no adapter.
fn paged(slots: &[usize], probe: Probe) -> Option<EngineConfig> {
    copies();
    let choice = GpuChoice::These((0..slots.len()).collect());
    let gpu = GpuOptions { choice, ..gpu_options()? };
    let probe = Probe { slots: Some(slots.to_vec()), wait: true, ..probe };
    let experts = ExpertOptions { guard: false, probe, ..ExpertOptions::default() };
    Some(EngineConfig { gpu, experts, ..exact() })
}

fn passing(passing: Passing, wave: usize) -> Probe {
    Probe { passing: Some(passing), wave: Some(wave), ..Probe::default() }
}

/// Prompt logits of the reference, that nothing resident has moved, and greedy ids afterwards. Returns what prompts took.
fn check(what: &str, config: &EngineConfig) -> Prompts {
    let reference = reference(MODEL);
    let mut engine = load(MODEL, config);
    let before = engine.expert_report().unwrap();
    for prompt in ["short", "long"] {
        let prompt_ids = ids(&reference["prompts"][prompt]["ids"]);
        let logits = all_logits(&mut engine, &prompt_ids);
        if prompt == "short" {
            let off = furthest(&logits, &npy(&format!("models/{MODEL}/logits_short.npy")));
            assert!(off <= 5e-4, "{what}: short logits are {off} off");
        } else {
            let vocab = engine.plan().vocab;
            let last = &logits[logits.len() - vocab..];
            let off = furthest(last, &npy(&format!("models/{MODEL}/logits_long_last.npy")));
            assert!(off <= 5e-4, "{what}: long logits are {off} off");
            let argmaxes: Vec<u32> = logits.chunks_exact(vocab).map(argmax).collect();
            assert_eq!(argmaxes, ids(&reference["argmax_long_all"]), "{what}");
        }
    }
    let after = engine.expert_report().unwrap();
    // The last token of a prompt may be alone in its run, as a generated one is.
    if config.batch >= 512 {
        assert_eq!((after.counters, after.filled), (before.counters, before.filled), "{what}: {after}");
    }
    for prompt in ["short", "long"] {
        let expected = ids(&reference["greedy"][prompt]["ids"]);
        let start = ids(&reference["prompts"][prompt]["ids"]);
        assert_eq!(greedy(&mut engine, &start, expected.len()), expected, "{what}, {prompt}");
    }
    let counted = |count: fn(&rynd::engine::Counters) -> u64| -> u64 {
        engine.gpus().iter().map(|gpu| count(&gpu.counters())).sum()
    };
    let prompts = engine.expert_report().unwrap().prompts;
    assert_eq!(counted(|c| c.streamed), prompts.streamed, "{what}");
    assert_eq!(counted(|c| c.streamed_bytes) > 0, prompts.streamed > 0, "{what}");
    prompts
}

#[test]
fn whatever_passes_in_waves_of_any_size_gives_the_reference() {
    for (slots, seed) in [(0, None), (ALL / 4, Some(1)), (ALL, None)] {
        for (way, wave) in [(Passing::All, 1), (Passing::All, 3), (Passing::Half, 5), (Passing::All, 16)] {
            let Some(config) = paged(&[slots], Probe { random_fill: seed, ..passing(way, wave) }) else { return };
            // Short runs of a prompt are slow to check; waves of three experts stand for all. No token is alone in its run.
            let batch = if wave == 3 { 6 } else { 512 };
            let what = format!("{slots} slots, {way:?} in waves of {wave}, batches of {batch}");
            let prompts = check(&what, &EngineConfig { batch, ..config });
            assert!(prompts.streamed > 0 && prompts.failed == 0, "{what}: {prompts}");
            assert_eq!(prompts.cpu_picks > 0, way == Passing::Half, "{what}: {prompts}");
            assert!(prompts.picks > prompts.cpu_picks, "{what}: {prompts}");
        }
    }
}

#[test]
fn single_tokens_do_not_wait_for_waves() {
    let Some(config) = paged(&[ALL / 4], passing(Passing::All, 4)) else { return };
    let prompts = check("batches of 1", &EngineConfig { batch: 1, ..config });
    assert_eq!((prompts.streamed, prompts.failed), (0, 0), "{prompts}");
    assert!(prompts.picks > 0, "{prompts}");
}

#[test]
fn two_devices_stream_to_the_layers_home_and_keep_what_they_hold() {
    for (slots, way) in [([0, 0], Passing::All), ([5, 9], Passing::All), ([5, 9], Passing::Half)] {
        let Some(config) = paged(&slots, Probe { random_fill: Some(2), ..passing(way, 3) }) else { return };
        let engine = load(MODEL, &config);
        assert_eq!(engine.gpus().len(), 2);
        drop(engine);
        for batch in [7, 512] {
            let prompts = check(&format!("{slots:?} slots, {way:?}"), &EngineConfig { batch, ..config.clone() });
            assert!(prompts.streamed > 0, "{prompts}");
        }
    }
}

#[test]
fn what_waves_do_changes_no_slot_and_no_count_of_generated_tokens() {
    let start = ids(&reference(MODEL)["prompts"]["long"]["ids"]);
    let run = |probe: Probe| {
        let config = paged(&[ALL / 4], Probe { random_fill: Some(3), ..probe })?;
        let mut engine = load(MODEL, &config);
        let generated = greedy(&mut engine, &start, 40);
        Some((generated, engine.expert_report().unwrap()))
    };
    let Some((expected, without)) = run(Probe::default()) else { return };
    assert_eq!((without.prompts.streamed, without.prompts.cpu_picks > 0), (0, true));
    for way in [Passing::All, Passing::Half] {
        let (found, with) = run(passing(way, 3)).unwrap();
        assert_eq!(found, expected);
        assert_eq!((with.counters, with.filled), (without.counters, without.filled), "{way:?}");
        assert!(with.counters.hits > 0 && with.prompts.streamed > 0, "{with}");
        assert!(with.to_string().contains("passed through GPUs"), "{with}");
    }
}

#[test]
fn experts_that_can_not_pass_are_computed_on_the_cpu_and_it_is_said_once() {
    static SAID: AtomicUsize = AtomicUsize::new(0);
    fn notice(line: &str) {
        SAID.fetch_add(usize::from(line.contains("could not pass")), Ordering::Relaxed);
    }
    for (fail_every, way) in [(1, Passing::All), (3, Passing::All), (2, Passing::Half)] {
        let probe = Probe { fail_every: Some(fail_every), ..passing(way, 3) };
        let Some(config) = paged(&[ALL / 4], probe) else { return };
        SAID.store(0, Ordering::Relaxed);
        let prompts = check("uploads fail", &EngineConfig { notice, ..config });
        assert!(prompts.failed > 0 && prompts.cpu_picks > 0, "{prompts}");
        assert_eq!(prompts.streamed > 0, fail_every > 1, "{prompts}");
        assert_eq!(SAID.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn rates_decide_what_passes() {
    let rates = WaveRates { bus: 1e10, gpu_ops: 1e12, cpu_ops: 1e10, ram: 5e9, disk: 1e9, overlap: false };
    let ways: [(WaveRates, [bool; 2]); 3] = [
        (WaveRates { cpu_ops: 1.0, ..rates }, [true, false]),
        (WaveRates { bus: 1.0, ..rates }, [false, true]),
        (rates, [true, true]),
    ];
    for (waves, [passes, computed]) in ways {
        let probe = Probe { wave: Some(3), rates: Some(waves), ..Probe::default() };
        let Some(config) = paged(&[ALL / 4], probe) else { return };
        let prompts = check(&format!("{waves:?}"), &config);
        assert_eq!([prompts.streamed > 0, prompts.cpu_picks > 0], [passes, computed], "{waves:?}: {prompts}");
    }
}

#[test]
fn memory_that_the_cpu_shares_is_not_streamed_to() {
    let waves = WaveRates { bus: 1e12, gpu_ops: 1e15, cpu_ops: 1.0, ram: 1.0, disk: 1.0, overlap: false };
    let Some(config) = paged(&[ALL / 4], Probe { rates: Some(waves), ..Probe::default() }) else { return };
    let engine = load(MODEL, &config);
    let unified = engine.gpus()[0].device().report().unified_memory;
    drop(engine);
    assert_eq!(check("unified", &config).streamed > 0, !unified);
}

#[test]
fn quantised_experts_of_several_layouts_pass_like_the_reference() {
    let name = "qwen3moe_wide-Q4_K_M";
    let prompt = ids(&reference("qwen2")["prompts"]["short"]["ids"]);
    for (slots, way, wave) in [
        (vec![0], Passing::All, 1),
        (vec![6], Passing::All, 3),
        (vec![5, 7], Passing::Half, 3),
        (vec![1000], Passing::All, 8),
    ] {
        for batch in [512, 7] {
            let Some(config) = paged(&slots, passing(way, wave)) else { return };
            let mut engine =
                Engine::load(&fixture(&format!("quantized/{name}.gguf")), &EngineConfig { batch, ..config }).unwrap();
            let off = furthest(&all_logits(&mut engine, &prompt), &npy(&format!("quantized/{name}.logits_f32act.npy")));
            assert!(off <= 5e-4, "{slots:?}, {way:?}, batch {batch}: logits are {off} off");
            let report = engine.expert_report().unwrap();
            assert!(report.prompts.streamed > 0, "{report}");
        }
    }
}

#[test]
fn what_lies_in_the_ram_tier_passes_and_the_rest_is_read_by_the_cpu() {
    let engine = load(MODEL, &exact());
    let plan = engine.plan();
    let bytes = |id: &WeightId| plan.weight(*id).experts as u64 * plan.weight(*id).expert_bytes() as u64;
    let of = |op: &Op| match op {
        Op::Experts(plan::Experts { gate, up, down, .. }) => [gate, up, down].into_iter().map(bytes).sum(),
        _ => 0_u64,
    };
    let all: u64 = plan.steps.iter().map(|step| of(&step.op)).sum();
    drop(engine);
    for (part, slots, way) in
        [(2, [0, 0], Passing::All), (2, [5, 9], Passing::All), (4, [0, 0], Passing::Half), (8, [5, 5], Passing::All)]
    {
        let Some(config) = paged(&slots, Probe { random_fill: Some(6), ..passing(way, 3) }) else { return };
        let tiers = Some(Tiers { ram: Ram::Experts(all / part), ..Tiers::total(0) });
        for batch in [7, 512] {
            let what = format!("a {part}th in RAM, {slots:?} slots, {way:?}, batches of {batch}");
            let prompts = check(&what, &EngineConfig { batch, tiers: tiers.clone(), ..config.clone() });
            assert!(prompts.streamed > 0 && prompts.cpu_picks > 0 && prompts.failed == 0, "{what}: {prompts}");
        }
    }
}

#[test]
fn room_for_waves_is_part_of_the_budget() {
    copies();
    let Some(gpu) = gpu_options() else { return };
    let (batch, pages) = (32, 256 / PAGE_TOKENS);
    let engine = load(MODEL, &exact());
    let plan = engine.plan();
    let mut bytes = room::activation_bytes(plan, batch);
    bytes += plan.kv.iter().map(|kv| room::cache_bytes(kv, KvFormat::F32, pages)).sum::<u64>();
    for weight in &plan.weights {
        // Half of the experts have room.
        bytes += room::weight_bytes(weight) / if weight.experts > 1 { 2 } else { 1 };
    }
    drop(engine);
    let made = |probe: Probe| {
        let gpu = GpuOptions { memory: Some(bytes), ..gpu.clone() };
        let experts = ExpertOptions { guard: false, probe: Probe { wait: true, ..probe }, ..ExpertOptions::default() };
        let config = EngineConfig { gpu, experts, batch, context: Some(256), ..exact() };
        let engine = load(MODEL, &config);
        let used = engine.gpus()[0].device().allocated_bytes();
        assert!(used <= bytes, "{used} of {bytes}");
        let slots = engine.expert_report().unwrap().slots;
        drop(engine);
        (slots, check("within a budget", &config).streamed)
    };
    let (without, none) = made(Probe::default());
    let (with, streamed) = made(passing(Passing::All, 2));
    assert!(none == 0 && streamed > 0);
    assert_eq!(with, without - 4, "two waves of two");
}

#[test]
fn runs_are_longer_where_waves_pay_and_there_is_memory() {
    let pays = WaveRates { bus: 1e12, gpu_ops: 1e15, cpu_ops: 1.0, ram: 1.0, disk: 1.0, overlap: false };
    let made = |wave: usize, memory: u64, most_batch: Option<usize>| {
        let config = paged(&[ALL / 4], Probe { rates: Some(pays), wave: Some(wave), ..Probe::default() })?;
        let gpu = GpuOptions { memory: Some(memory), ..config.gpu };
        let config = EngineConfig { gpu, batch: 32, most_batch, context: Some(256), ..config };
        let engine = load(MODEL, &config);
        let batch = engine.batch();
        drop(engine);
        check(&format!("runs of {batch}"), &config);
        Some(batch)
    };
    const ENOUGH: u64 = 4 << 30;
    let Some(longer) = made(3, ENOUGH, Some(128)) else { return };
    assert_eq!(longer, 128);
    assert_eq!(made(3, ENOUGH, Some(4096)), Some(256), "no more than the context");
    assert_eq!(made(3, ENOUGH, None), Some(32), "who asks for a length gets it");
    assert_eq!(made(0, ENOUGH, Some(128)), Some(32), "nothing passes");
    assert_eq!(made(3, 256 << 20, Some(128)), Some(32), "too much of the memory");
}

#[test]
fn waves_have_room_where_they_pay() {
    let Some(config) = paged(&[0], Probe::default()) else { return };
    let engine = load(MODEL, &config);
    let expert = expert_slot_bytes(engine.plan(), experts_step(&engine)).unwrap();
    let (pays, loses) = (
        WaveRates { bus: 1e12, gpu_ops: 1e15, cpu_ops: 1.0, ram: 1.0, disk: 1.0, overlap: false },
        WaveRates { bus: 1.0, gpu_ops: 1e15, cpu_ops: 1e12, ram: 1e12, disk: 1e12, overlap: false },
    );
    let report = engine.gpus()[0].device().report().clone();
    let made = |rooms: &[u64], rates: Option<WaveRates>, unified: bool| {
        let probe = Probe { rates, ..Probe::default() };
        let experts = ExpertOptions { probe, ..ExpertOptions::default() };
        let config = EngineConfig { experts, ..exact() };
        let adapters = [AdapterReport { unified_memory: unified, ..report.clone() }];
        let waves = WaveRoom::new(&config, &adapters, 512);
        let room = |(pages, experts): (usize, &u64)| Rooms { pages, bytes: vec![experts * expert] };
        let rooms: Vec<Rooms> = (1..).zip(rooms).map(room).collect();
        let plan = SlotPlan::new(engine.plan(), &rooms, None, &waves).unwrap();
        (plan.on_gpu[0][0].wave, plan.slots(), plan.slots_at_full_context())
    };
    let a_token = 4;
    assert_eq!(made(&[40], Some(pays), false), (a_token, 32, 32), "all of them have room beside the waves");
    assert_eq!(made(&[32], Some(pays), false), (a_token, 24, 24), "a quarter of the room");
    assert_eq!(made(&[31], Some(pays), false), (0, 31, 31), "a quarter does not hold a token's picks twice");
    assert_eq!(made(&[32, 20, 8], Some(pays), false), (a_token, 24, 0), "the whole context leaves the waves");
    assert_eq!(made(&[32, 7], Some(pays), false), (0, 32, 7), "the whole context would leave them no room");
    assert_eq!(made(&[32], Some(pays), true), (0, 32, 32), "the CPU's memory");
    assert_eq!(made(&[32], Some(loses), false), (0, 32, 32));
    assert_eq!(made(&[32], None, false), (0, 32, 32), "nothing is known");
}

fn experts_step(engine: &Engine) -> usize {
    engine.plan().steps.iter().position(|step| matches!(step.op, Op::Experts(_))).unwrap()
}
