//! Experts paged to GPUs: wherever they lie, and whatever moves when, the numbers are the reference's.
//!
//! Mesa's software Vulkan is a GPU like any other here; several devices are opened on one adapter. Without an adapter the
//! tests say so and pass; with RYND_REQUIRE_GPU=1 they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use golden_case::{
    all_logits, argmax, check_as, exact, experts_last, fixture, furthest, gpu_options, greedy, ids, load, npy,
    reference,
};
use rynd::backend::KvFormat;
use rynd::engine::{
    Engine, EngineConfig, ExpertChoice, ExpertOptions, GpuChoice, GpuOptions, Probe, RivalProbe, Session, Wanted,
};
use rynd::experts::disk::Fault;
use rynd::experts::tier::{Ram, Tiers};
use rynd::experts::{Capacity, Named, Policy, Pools, Setup, Speeds, Trace, Window, replay};
use rynd::generate::{Event, Job, Limits, Scheduler};
use rynd::gguf::Gguf;
use rynd::gpu::room;
use rynd::plan::{self, Op, PAGE_TOKENS, Side, Step};
use rynd::sampler::{Sampler, SamplerConfig};
use rynd::tokenizer::{Tokenizer, Vocab};

/// Three devices on the one adapter, for all tests of this process.
fn copies() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: set once, before any other thread of this process reads the environment through `Devices::list`; every test
    // calls this first.
    ONCE.call_once(|| unsafe { std::env::set_var("RYND_GPU_COPIES", "3") });
}

/// Slots on as many devices; `None` when the machine has no adapter.
fn paged(slots: &[usize], probe: Probe) -> Option<EngineConfig> {
    copies();
    let choice = GpuChoice::These((0..slots.len()).collect());
    let gpu = GpuOptions { choice, ..gpu_options()? };
    let probe = Probe { slots: Some(slots.to_vec()), ..probe };
    let experts = ExpertOptions { guard: false, probe, ..ExpertOptions::default() };
    Some(EngineConfig { gpu, experts, ..exact() })
}

/// Experts of all layers.
fn entries(model: &str) -> usize {
    let engine = load(model, &exact());
    let experts = |op: &Op| match op {
        Op::Experts(plan::Experts { gate, .. }) => engine.plan().weight(*gate).experts,
        _ => 0,
    };
    engine.plan().steps.iter().map(|step| experts(&step.op)).sum()
}

fn waiting() -> Probe {
    Probe { wait: true, ..Probe::default() }
}

#[test]
fn any_number_of_slots_gives_the_reference() {
    for model in ["qwen3moe", "qwen3moe_wide"] {
        let all = entries(model);
        for slots in [0, 1, all / 4, all / 2, all] {
            let Some(config) = paged(&[slots], waiting()) else { return };
            let engine = load(model, &config);
            assert!(engine.plan().steps.iter().all(|step| step.side == Side::Gpu(0)), "the experts too");
            assert_eq!(engine.expert_report().unwrap().slots, slots);
            check_as(model, 5e-4, &config);
        }
    }
}

#[test]
fn experts_at_random_on_one_two_or_three_devices_give_the_reference() {
    for model in ["qwen3moe", "qwen3moe_wide"] {
        let all = entries(model);
        for (seed, slots) in [(1, vec![all / 2]), (2, vec![all / 3, all / 4]), (3, vec![all / 4, all / 3, all / 2])] {
            let devices = slots.len();
            let Some(config) = paged(&slots, Probe { random_fill: Some(seed), ..waiting() }) else { return };
            let engine = load(model, &config);
            assert_eq!(engine.gpus().len(), devices);
            let report = engine.expert_report().unwrap();
            assert_eq!(report.filled, slots.iter().sum::<usize>().min(all), "filled at the start");
            check_as(model, 5e-4, &config);
        }
    }
}

/// The head and one layer on GPUs; the other layers' steps run on the CPU.
fn one_layer(config: EngineConfig) -> EngineConfig {
    let gpu = GpuOptions { layers: Some(2), ..config.gpu };
    EngineConfig { gpu, ..config }
}

#[test]
fn experts_of_layers_on_the_cpu_run_on_the_gpus_that_hold_them() {
    for model in ["qwen3moe", "qwen3moe_wide"] {
        let all = entries(model);
        for (slots, batch) in [(vec![1], 512), (vec![all / 2], 7), (vec![all], 512), (vec![all / 3, all / 4], 512)] {
            let Some(config) = paged(&slots, Probe { random_fill: Some(4), ..waiting() }) else { return };
            let config = one_layer(config);
            let engine = load(model, &config);
            let experts = engine.plan().steps.iter().filter(|step| matches!(step.op, Op::Experts(_)));
            let (on_cpu, on_gpus): (Vec<&Step>, Vec<&Step>) = experts.partition(|step| step.side == Side::Cpu);
            assert!(!on_cpu.is_empty() && on_gpus.len() == 1);
            drop(engine);
            check_as(model, 5e-4, &config);
            let report = check_greedy(model, "layers on the CPU", &EngineConfig { batch, ..config });
            let all_there = slots[0] == all;
            assert_eq!(report.counters.hits == report.counters.picks, all_there, "{report}");
            assert_eq!(report.prompts.cpu_picks == 0, all_there, "{report}");
        }
        let slots = [all / 3, all / 4];
        let Some(config) = paged(&slots, Probe { churn: true, ..Probe::default() }) else { return };
        check_greedy(model, "layers on the CPU, everything moves", &one_layer(config));
    }
}

/// Greedy ids of both prompts, and what the pager counted.
fn check_greedy(model: &str, what: &str, config: &EngineConfig) -> rynd::engine::ExpertReport {
    let reference = reference(model);
    let mut engine = load(model, config);
    for prompt in ["short", "long"] {
        let start = ids(&reference["prompts"][prompt]["ids"]);
        let expected = ids(&reference["greedy"][prompt]["ids"]);
        assert_eq!(greedy(&mut engine, &start, expected.len()), expected, "{model}, {what}, {prompt}");
    }
    engine.expert_report().unwrap()
}

#[test]
fn other_experts_after_every_token_give_the_same_ids() {
    for model in ["qwen3moe", "qwen3moe_wide", "mixtral"] {
        let slots = entries(model) / 3;
        for slots in [vec![slots], vec![slots, slots]] {
            let Some(config) = paged(&slots, Probe { churn: true, ..waiting() }) else { return };
            let report = check_greedy(model, "everything moves", &config);
            assert!(report.counters.uploads > 20 * slots[0] as u64, "{report}");
            // Nothing waits: what is on its way is computed on the CPU.
            let Some(config) = paged(&slots, Probe { churn: true, ..Probe::default() }) else { return };
            check_greedy(model, "everything moves, nobody waits", &config);
        }
    }
}

#[test]
fn uploads_that_fail_leave_experts_where_they_were() {
    let slots = entries("qwen3moe") / 2;
    for fail_every in [1, 3] {
        let Some(config) = paged(&[slots], Probe { fail_every: Some(fail_every), ..waiting() }) else { return };
        let report = check_greedy("qwen3moe", "uploads fail", &config);
        assert!(report.failed > 0, "{report}");
        assert_eq!(report.filled > 0, fail_every > 1, "what arrived is used: {report}");
    }
}

/// Bytes of all experts.
fn expert_bytes(model: &str) -> u64 {
    let engine = load(model, &exact());
    let plan = engine.plan();
    let bytes = |op: &Op| match op {
        Op::Experts(plan::Experts { gate, up, down, .. }) => {
            let one: usize = [gate, up, down].iter().map(|id| plan.weight(**id).expert_bytes()).sum();
            (plan.weight(*gate).experts * one) as u64
        }
        _ => 0,
    };
    plan.steps.iter().map(|step| bytes(&step.op)).sum()
}

/// A RAM tier of these bytes; a read fails as `fails` says of the attempt (0 or 1) and the number of reads so far.
fn tier(bytes: u64, fails: impl Fn(u32, u64) -> bool + Send + Sync + 'static) -> Option<Tiers> {
    let count = AtomicU64::new(0);
    let fault = move |_: &Path, _: u64, attempt: u32| {
        fails(attempt, count.fetch_add(1, Ordering::SeqCst)).then(|| std::io::Error::other("the test's fault"))
    };
    Some(Tiers { ram: Ram::Experts(bytes), lock: false, fault: Some(Fault(Arc::new(fault))) })
}

/// Whether this is a thread that uploads.
fn uploads() -> bool {
    std::thread::current().name() == Some("rynd-uploads")
}

#[test]
fn three_tiers_that_move_and_fail_at_once_give_the_same_ids() {
    for model in ["qwen3moe", "qwen3moe_wide", "mixtral"] {
        let (all, bytes) = (entries(model), expert_bytes(model));
        for (part, ram, fail_every) in [(4, 0, None), (4, bytes / 4, Some(3)), (2, 0, Some(5)), (2, bytes / 2, None)] {
            for wait in [true, false] {
                let probe = Probe { churn: true, wait, fail_every, ..Probe::default() };
                let Some(config) = paged(&[all / part], probe) else { return };
                // Each third first attempt fails, on all threads.
                let tiers = tier(ram, |attempt, read| attempt == 0 && read % 3 == 0);
                let config = EngineConfig { tiers, ..config };
                let what = format!("1/{part} of the experts have slots, {ram} bytes of RAM, waiting: {wait}");
                let report = check_greedy(model, &what, &config);
                assert!(report.counters.uploads > 0, "{report}");
                assert_eq!(report.failed > 0, fail_every.is_some(), "{report}");
            }
        }
    }
}

#[test]
fn two_devices_over_a_small_tier_give_the_same_ids() {
    let (all, bytes) = (entries("qwen3moe"), expert_bytes("qwen3moe"));
    let Some(config) = paged(&[all / 4, all / 4], Probe { churn: true, ..waiting() }) else { return };
    check_greedy("qwen3moe", "two devices", &EngineConfig { tiers: tier(bytes / 4, |_, _| false), ..config });
}

#[test]
fn an_upload_that_can_not_be_read_leaves_the_expert_to_the_cpu() {
    let (all, bytes) = (entries("qwen3moe"), expert_bytes("qwen3moe"));
    let Some(config) = paged(&[all / 2], Probe { churn: true, ..waiting() }) else { return };
    let config = EngineConfig { tiers: tier(bytes / 4, |_, _| uploads()), ..config };
    let report = check_greedy("qwen3moe", "uploads can not read", &config);
    // What lies in RAM needs no read.
    assert!(report.failed > 0 && report.counters.uploads > 0, "{report}");
}

#[test]
fn experts_in_vram_give_their_place_in_ram_away() {
    let (all, bytes) = (entries("qwen3moe"), expert_bytes("qwen3moe"));
    let Some(config) = paged(&[all / 2], waiting()) else { return };
    let config = EngineConfig { tiers: tier(bytes / 2, |_, _| false), ..config };
    let start = ids(&reference("qwen3moe")["prompts"]["long"]["ids"]);
    let mut engine = load("qwen3moe", &config);
    greedy(&mut engine, &start, 64);
    let before = engine.tier_counters().unwrap();
    greedy(&mut engine, &start, 64);
    let after = engine.tier_counters().unwrap();
    let report = engine.expert_report().unwrap();
    assert_eq!(report.filled, all / 2, "{report}");
    // Half and half hold all: only what leaves VRAM is read again.
    let read = after.read - before.read;
    println!("{read} of {} read, {report}", after.wanted - before.wanted);
    assert!(10 * read < after.wanted - before.wanted, "{read} reads, {report}");
}

#[test]
fn a_file_that_shrinks_under_uploads_is_an_error_or_computed_elsewhere() {
    let model = "qwen3moe";
    let (all, bytes) = (entries(model), expert_bytes(model));
    let start = ids(&reference(model)["prompts"]["long"]["ids"]);
    let expected = ids(&reference(model)["greedy"]["long"]["ids"]);
    for ram in [0, bytes / 2, bytes - 1] {
        let Some(config) = paged(&[all / 2], Probe { churn: true, ..waiting() }) else { return };
        let config = EngineConfig { tiers: tier(ram, |_, _| false), ..config };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shrinking.gguf");
        experts_last(&fixture(&format!("models/{model}/model.gguf")), &path);
        let mut engine = Engine::load(&path, &config).unwrap();
        assert_eq!(greedy(&mut engine, &start, expected.len()), expected);
        let gguf = Gguf::open(&path).unwrap();
        let experts = gguf.tensors().iter().find(|t| t.name.contains("_exps")).unwrap().offset as u64;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(experts.next_multiple_of(4096)).unwrap();
        let failed = engine.expert_report().unwrap().failed;
        let mut session = Session::new();
        let mut timeline = start.clone();
        let mut error = None;
        for at in 0..expected.len() {
            let logits = match at {
                0 => session.sync(&mut engine, &timeline),
                _ => session.decode(&mut engine, timeline[timeline.len() - 1], Wanted::Last),
            };
            match logits {
                Ok(logits) => timeline.push(argmax(logits)),
                Err(e) => {
                    error = Some(e.to_string());
                    break;
                }
            }
        }
        session.clear();
        assert!(expected.starts_with(&timeline[start.len()..]), "what was computed is right");
        let failed = engine.expert_report().unwrap().failed - failed;
        println!("{ram} bytes: {failed} uploads failed, then {error:?}");
        let error = error.unwrap_or_default();
        assert!(error.contains("shrinking.gguf") && error.contains("has become shorter"), "{error}");
    }
}

#[test]
fn quantised_experts_of_several_layouts_equal_the_reference_with_f32_activations() {
    let name = "qwen3moe_wide-Q4_K_M";
    let prompt = ids(&reference("qwen2")["prompts"]["short"]["ids"]);
    for (slots, seed) in [(vec![6], 1), (vec![5, 7], 2), (vec![1000], 3)] {
        for batch in [512, 1] {
            let Some(config) = paged(&slots, Probe { random_fill: Some(seed), ..waiting() }) else { return };
            let config = EngineConfig { batch, ..config };
            let mut engine = Engine::load(&fixture(&format!("quantized/{name}.gguf")), &config).unwrap();
            assert!(engine.expert_report().unwrap().filled > 0);
            let off = furthest(&all_logits(&mut engine, &prompt), &npy(&format!("quantized/{name}.logits_f32act.npy")));
            assert!(off <= 5e-4, "{slots:?}, batch {batch}: logits are {off} off");
        }
    }
}

/// The pager's own policy over this part of all experts.
fn simulation(part: f64) -> Setup {
    Setup {
        named: Named::CrfGate,
        policy: Policy::default(),
        pools: Pools::Global,
        vram: Capacity::Fraction(part),
        ram: None,
        devices: 1,
        seed: true,
        speeds: Speeds { vram: 1e12, ram: 1e11, bus: 1e10, disk: 1e9, sync_s: 0.0 },
    }
}

#[test]
fn the_engine_counts_what_the_simulator_counts() {
    let model = "qwen3moe";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.trace");
    let all = entries(model);
    for (slots, on_cpu) in [(all / 8, false), (all / 4, false), (all / 2, false), (all / 4, true)] {
        let Some(config) = paged(&[slots], waiting()) else { return };
        let config = if on_cpu { one_layer(config) } else { config };
        let mut engine = load(model, &EngineConfig { trace: Some(path.clone()), ..config });
        let start = ids(&reference(model)["prompts"]["long"]["ids"]);
        greedy(&mut engine, &start, 40);
        engine.finish_trace().unwrap();
        let counted = engine.expert_report().unwrap().counters;
        let trace = Trace::parse(&std::fs::read(&path).unwrap()).unwrap();
        let simulated = replay(&trace, &simulation(slots as f64 / all as f64)).window(Window::Decode);
        assert_eq!((counted.picks, counted.hits), (simulated.picks, simulated.hits), "{slots} slots");
        assert!(counted.hits > 0 && counted.hits < counted.picks);
    }
}

#[test]
fn runs_that_mix_prompts_and_answers_move_experts_as_the_simulator_does() {
    let model = "qwen3moe";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.trace");
    let all = entries(model);
    for slots in [all / 8, all / 4, all / 2] {
        let Some(config) = paged(&[slots], waiting()) else { return };
        let config = EngineConfig { trace: Some(path.clone()), batch: 8, sessions: 4, context: Some(256), ..config };
        let mut engine = load(model, &config);
        let tokenizer = Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap();
        let text = ids(&reference(model)["prompts"]["long"]["ids"]);
        // While the first answers, prompts keep coming.
        let mut scheduler = Scheduler::new(4);
        let job = |start: usize, tokens: usize| Job {
            prompt: text.iter().copied().cycle().skip(start).take(60).collect(),
            sampler: Sampler::new(SamplerConfig::greedy()).unwrap(),
            limits: Limits { tokens: Some(tokens), ignore_end: true, ..Limits::default() },
        };
        scheduler.add(&engine, &tokenizer, job(0, 90)).unwrap();
        let (mut runs, mut mixed, mut moved) = (0, 0, 0);
        while !scheduler.is_empty() {
            if runs % 9 == 4 && runs < 100 {
                scheduler.add(&engine, &tokenizer, job(1 + runs, 2)).unwrap();
            }
            let before = engine.expert_report().unwrap().counters;
            let mut read = false;
            let on_event = |_, event: Event| {
                read |= matches!(event, Event::Prefill { .. });
                ControlFlow::Continue(())
            };
            scheduler.step(&mut engine, &tokenizer, on_event).unwrap();
            let after = engine.expert_report().unwrap().counters;
            if read && after.tokens > before.tokens {
                mixed += 1;
                moved += after.uploads - before.uploads;
            }
            runs += 1;
        }
        assert!(mixed > 60, "{mixed} of {runs} runs were mixed");
        assert!(moved > 0, "no expert moved in {mixed} mixed runs");
        engine.finish_trace().unwrap();
        let counted = engine.expert_report().unwrap().counters;
        let trace = Trace::parse(&std::fs::read(&path).unwrap()).unwrap();
        let simulated = replay(&trace, &simulation(slots as f64 / all as f64)).window(Window::Decode);
        let found = counted.hits as f64 / counted.picks as f64;
        println!("{slots} slots: engine {found:.4}, simulator {:.4}, {moved} moved", simulated.hit_rate());
        assert_eq!(counted.picks, simulated.picks, "{slots} slots");
        assert!((found - simulated.hit_rate()).abs() <= 0.005, "{slots} slots: {counted:?}, {simulated:?}");
    }
}

#[test]
fn the_engine_counts_what_the_simulator_counts_on_a_model_of_the_users() {
    let Some(model) = std::env::var_os("RYND_MOE_MODEL") else {
        eprintln!("skipped: RYND_MOE_MODEL names no model");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.trace");
    let slots = 116;
    let Some(config) = paged(&[slots], waiting()) else { return };
    let config = EngineConfig { exact: false, context: Some(256), batch: 32, trace: Some(path.clone()), ..config };
    let mut engine = Engine::load(Path::new(&model), &config).unwrap();
    let prompt: Vec<u32> = (0..12).map(|i| 1000 + 37 * i).collect();
    greedy(&mut engine, &prompt, 24);
    engine.finish_trace().unwrap();
    let report = engine.expert_report().unwrap();
    let trace = Trace::parse(&std::fs::read(&path).unwrap()).unwrap();
    let part = report.slots as f64 / report.experts as f64;
    let simulated = replay(&trace, &simulation(part)).window(Window::Decode);
    let found = report.counters.hits as f64 / report.counters.picks as f64;
    println!("engine {:.2}%, simulator {:.2}%", 100.0 * found, 100.0 * simulated.hit_rate());
    assert!((found - simulated.hit_rate()).abs() <= 0.005, "{report}: {simulated:?}");
}

#[test]
fn what_was_learned_is_there_at_the_next_start() {
    let model = "qwen3moe";
    let folder = tempfile::tempdir().unwrap();
    let slots = entries(model) / 4;
    let Some(config) = paged(&[slots], waiting()) else { return };
    let experts = ExpertOptions { heat: Some(folder.path().to_owned()), ..config.experts.clone() };
    let config = EngineConfig { experts, ..config };
    let start = ids(&reference(model)["prompts"]["long"]["ids"]);
    let mut engine = load(model, &config);
    assert_eq!(engine.expert_report().unwrap().filled, 0, "nothing is known yet");
    greedy(&mut engine, &start, 24);
    drop(engine);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let engine = load(model, &config);
    assert_eq!(engine.expert_report().unwrap().filled, slots);
    drop(engine);
    // A profile that the user names is used, and one of another model is an error.
    let named = |file: &Path| ExpertOptions { heat: None, profile: Some(file.to_owned()), ..config.experts.clone() };
    let engine = load(model, &EngineConfig { experts: named(&files[0]), ..config.clone() });
    assert_eq!(engine.expert_report().unwrap().filled, slots);
    let other = EngineConfig { experts: named(&files[0]), ..config.clone() };
    let error = Engine::load(&fixture("models/mixtral/model.gguf"), &other).err().unwrap().to_string();
    assert!(error.contains("another model"), "{error}");
}

/// What the engine told while whole layers were tried.
static TOLD: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(vec![]);

fn remember(line: &str) {
    TOLD.lock().unwrap().push(line.to_owned());
}

#[test]
fn whole_layers_are_tried_once_and_the_ids_are_the_cpus_there_and_back() {
    let model = "qwen3moe";
    let start = ids(&reference(model)["prompts"]["long"]["ids"]);
    let tokens = 80;
    let expected = greedy(&mut load(model, &exact()), &start, tokens);
    let fast = RivalProbe { predicted: 0.0, measured: 0.0, fails: false };
    let slow = RivalProbe { measured: 1e9, ..fast };
    let unlikely = RivalProbe { predicted: 1e9, ..fast };
    let failing = RivalProbe { fails: true, ..fast };
    for (probe, guard, told, holds_slots) in [
        (fast, true, &["being tried", "took the place"][..], false),
        (slow, true, &["being tried", "given up"], true),
        (failing, true, &["being tried", "could not be set up", "a fault was injected"], true),
        (unlikely, true, &[], true),
        (fast, false, &[], true),
    ] {
        let Some(config) = paged(&[entries(model) / 3], Probe { rival: Some(probe), ..waiting() }) else { return };
        let experts = ExpertOptions { guard, ..config.experts.clone() };
        let mut engine = load(model, &EngineConfig { experts, notice: remember, ..config });
        TOLD.lock().unwrap().clear();
        assert_eq!(greedy(&mut engine, &start, tokens), expected, "{probe:?}");
        let lines: Vec<String> = TOLD
            .lock()
            .unwrap()
            .iter()
            .filter(|line| !line.contains("cache stays") && !line.contains("cache was"))
            .cloned()
            .collect();
        assert_eq!(lines.len(), told.len(), "{probe:?}: {lines:?}");
        lines.iter().zip(told).for_each(|(line, words)| assert!(line.contains(words), "{lines:?}"));
        let report = engine.expert_report().unwrap();
        assert_eq!(report.rival.is_some(), guard, "{report}");
        if guard {
            let standing = report.rival.unwrap().to_string();
            assert!(report.to_string().contains(&standing), "{report}");
            assert_eq!(report.counters.tokens > 60, holds_slots, "the pager counts on: {report}");
        }
        assert!(engine.plan().steps.iter().all(|step| step.side == Side::Gpu(0)));
        // Another prompt, and no second trial.
        let again = greedy(&mut engine, &start, 20);
        assert_eq!(again, expected[..20], "{probe:?}");
    }
}

/// A profile of this model: what the CPU's routers pick on the long prompt.
fn profile(model: &str, folder: &Path) -> std::path::PathBuf {
    let experts = ExpertOptions { heat: Some(folder.to_owned()), ..ExpertOptions::default() };
    let mut engine = load(model, &EngineConfig { experts, ..exact() });
    greedy(&mut engine, &ids(&reference(model)["prompts"]["long"]["ids"]), 24);
    drop(engine);
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn pinned_experts_stay_whatever_moves_and_the_ids_are_the_same() {
    let model = "qwen3moe";
    let folder = tempfile::tempdir().unwrap();
    let slots = entries(model) / 3;
    let Some(config) = paged(&[slots], Probe { churn: true, ..waiting() }) else { return };
    let file = profile(model, folder.path());
    let experts = ExpertOptions { profile: Some(file), pin: Some(0.4), ..config.experts.clone() };
    let config = EngineConfig { experts, ..config };
    let pinned = load(model, &config).expert_report().unwrap().pinned;
    assert!(pinned > 0 && pinned <= slots * 2 / 5, "{pinned} of {slots}");
    let report = check_greedy(model, "all but the pinned move", &config);
    assert!(report.counters.uploads > 10 * slots as u64, "{report}");
    assert_eq!(report.pinned, pinned);
    assert!(report.to_string().contains(&format!("{pinned} pinned")), "{report}");
}

#[test]
fn experts_off_and_on_the_cpu_give_the_same_ids_without_slots() {
    copies();
    let Some(gpu) = gpu_options() else { return };
    let expected = ids(&reference("qwen3moe")["greedy"]["long"]["ids"]);
    let start = ids(&reference("qwen3moe")["prompts"]["long"]["ids"]);
    for choice in [ExpertChoice::Off, ExpertChoice::Cpu, ExpertChoice::Auto] {
        let experts = ExpertOptions { choice, ..ExpertOptions::default() };
        let mut engine = load("qwen3moe", &EngineConfig { gpu: gpu.clone(), experts, ..exact() });
        assert!(engine.expert_report().is_none(), "{choice:?}: all fits, or nothing may");
        assert_eq!(greedy(&mut engine, &start, expected.len()), expected, "{choice:?}");
    }
}

#[test]
fn a_small_budget_pages_experts_and_keeps_to_it() {
    copies();
    let Some(gpu) = gpu_options() else { return };
    let (batch, pages) = (32, 256 / PAGE_TOKENS);
    let engine = load("qwen3moe", &exact());
    let plan = engine.plan();
    let mut bytes = room::activation_bytes(plan, batch);
    bytes += plan.kv.iter().map(|kv| room::cache_bytes(kv, KvFormat::F32, pages)).sum::<u64>();
    for weight in &plan.weights {
        // Half of the experts have room.
        bytes += room::weight_bytes(weight) / if weight.experts > 1 { 2 } else { 1 };
    }
    let gpu = GpuOptions { memory: Some(bytes), ..gpu };
    let experts = ExpertOptions { guard: false, probe: waiting(), ..ExpertOptions::default() };
    let config = EngineConfig { gpu, experts, batch, context: Some(256), ..exact() };
    let report = check_greedy("qwen3moe", "half of the experts have room", &config);
    let all = entries("qwen3moe");
    assert!(report.slots > all / 3 && report.slots <= all / 2, "{report}");
    assert!(report.filled > 0 && report.counters.hits > 0, "{report}");
    let engine = load("qwen3moe", &config);
    let used = engine.gpus()[0].device().allocated_bytes();
    assert!(used <= bytes, "{used} of {bytes}");
}
