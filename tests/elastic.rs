//! Memory that moves between experts and the cache: the numbers are those of the exact CPU at every size of both, and no
//! GPU ever holds more than it was given.
//!
//! The cache grows by single pages here. Mesa's software Vulkan is a GPU like any other; without an adapter the tests say
//! so and pass, with RYND_REQUIRE_GPU=1 they fail.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::ops::ControlFlow;
use std::sync::Mutex;

use golden_case::{argmax, exact, furthest, gpu_budget, gpu_options, ids, load, reference};
use rynd::backend::Phase;
use rynd::engine::{
    CacheReport, Engine, EngineConfig, ExpertOptions, GpuChoice, GpuOptions, Listing, Probe, RivalProbe, Session, Span,
    Wanted, advance,
};
use rynd::experts::Standing;
use rynd::plan::{self, Op, PAGE_TOKENS};

const MODEL: &str = "qwen3moe_long";
const CONTEXT: usize = 640;
const BATCH: usize = 32;
const CLOSE: f32 = 5e-4;

/// The CPU, in f32.
fn reference_engine(sessions: usize) -> Engine {
    load(MODEL, &EngineConfig { context: Some(CONTEXT), batch: BATCH, sessions, ..exact() })
}

/// A budget of each of `devices` with room for the whole cache and for this part of the experts beside it.
fn budget(sessions: usize, part: f64) -> u64 {
    gpu_budget(&reference_engine(1), BATCH, CONTEXT / PAGE_TOKENS * sessions, part)
}

/// Experts in slots of `devices`, beside a cache that grows by pages; `None` when the machine has no adapter.
fn elastic(devices: usize, sessions: usize, part: f64, probe: Probe) -> Option<EngineConfig> {
    let gpu = GpuOptions {
        choice: GpuChoice::These((0..devices).collect()),
        memory: Some(budget(sessions, part)),
        listing: Some(Listing { copies: devices, software: true }),
        ..gpu_options()?
    };
    let probe = Probe { cache_step: Some(probe.cache_step.unwrap_or(1)), ..probe };
    let experts = ExpertOptions { guard: false, probe, ..ExpertOptions::default() };
    Some(EngineConfig { gpu, experts, context: Some(CONTEXT), batch: BATCH, sessions, ..exact() })
}

fn cache(engine: &Engine) -> CacheReport {
    engine.expert_report().unwrap().cache.unwrap()
}

fn slots(engine: &Engine) -> usize {
    engine.expert_report().unwrap().slots
}

/// What all devices hold, and that none holds too much or ever did.
fn allocated(engine: &Engine, config: &EngineConfig) -> Vec<u64> {
    let devices = || engine.gpus().iter().map(|gpu| gpu.device());
    let budget = config.gpu.memory.unwrap();
    devices().for_each(|device| assert!(device.peak_bytes() <= budget, "{} of {budget}", device.peak_bytes()));
    devices().map(|device| device.allocated_bytes()).collect()
}

/// Appends tokens to a timeline of both engines, one alone as a generated one: logits of each must be the same.
fn step(gpu: &mut Engine, cpu: &mut Engine, [a, b]: [&mut Session; 2], new: &[u32]) {
    let all = |engine: &mut Engine, session: &mut Session| {
        // A single token is one that was chosen.
        if let ([id], false) = (new, session.ids().is_empty()) {
            return session.decode(engine, *id, Wanted::Last).unwrap().to_vec();
        }
        let mut all = vec![];
        let keep = |_, logits: &[f32]| {
            all.extend_from_slice(logits);
            ControlFlow::Continue(())
        };
        match new {
            [id] => session.decode(engine, *id, Wanted::All).unwrap().to_vec(),
            _ => {
                session.extend(engine, new, Wanted::All, keep).unwrap();
                all
            }
        }
    };
    let (found, expected) = (all(gpu, a), all(cpu, b));
    let off = furthest(&found, &expected);
    assert!(off <= CLOSE, "{} tokens: logits are {off} off", a.ids().len());
}

fn prompt() -> Vec<u32> {
    ids(&reference(MODEL)["prompts"]["deep"]["ids"])
}

/// A prompt of 600 tokens in pieces, then a rest one by one: a timeline over all sizes of the cache, twice.
fn check_timeline(what: &str, config: &EngineConfig) {
    let mut cpu = reference_engine(1);
    let mut gpu = load(MODEL, config);
    let start = slots(&gpu);
    let held = allocated(&gpu, config);
    let ids = prompt();
    for round in 0..2 {
        let (mut a, mut b) = (Session::new(), Session::new());
        let mut seen = vec![];
        let pieces = ids[..300].chunks(70).chain(ids[300..].chunks(if round == 0 { 1 } else { 50 }));
        for piece in pieces {
            step(&mut gpu, &mut cpu, [&mut a, &mut b], piece);
            let report = cache(&gpu);
            assert_eq!(report.tokens, a.ids().len().next_multiple_of(PAGE_TOKENS), "{what}: {report:?}");
            assert_eq!(report.given_up, start - slots(&gpu), "{what}: {report:?}");
            seen.push(slots(&gpu));
            // Memory moved; there is no more of it, but for what two sizes in whole slots and pages can differ.
            for (gpu, held) in gpu.gpus().iter().zip(&held) {
                let most = gpu.device().peak_bytes();
                assert!(most <= held + gpu.slot_bytes(0), "{what}: {most} bytes, {held} at the start");
            }
            allocated(&gpu, config);
        }
        assert!(seen.is_sorted_by(|a, b| a >= b), "{what}: {seen:?}");
        assert!(start > seen[0] || seen[0] > *seen.last().unwrap(), "{what}: {start}, {seen:?}");
        assert_eq!(*seen.last().unwrap(), cache(&gpu).least_slots, "{what}");
        a.clear();
        b.clear();
    }
    // A short context gives everything back.
    let (mut a, mut b) = (Session::new(), Session::new());
    step(&mut gpu, &mut cpu, [&mut a, &mut b], &ids[..20]);
    assert_eq!((slots(&gpu), cache(&gpu).given_up), (start, 0), "{what}: {:?}", cache(&gpu));
    assert_eq!(allocated(&gpu, config), held, "{what}");
    for &id in &ids[20..40] {
        step(&mut gpu, &mut cpu, [&mut a, &mut b], &[id]);
    }
    let report = gpu.expert_report().unwrap();
    assert!(report.counters.hits > 0, "{what}: {report}");
    assert!(report.to_string().contains("KV has room for 64 tokens, 0 slots given up"), "{what}: {report}");
}

#[test]
fn experts_give_way_as_the_context_grows_and_come_back() {
    for probe in [
        Probe { wait: true, ..Probe::default() },
        // Nothing waits: uploads are on their way when slots go.
        Probe { churn: true, ..Probe::default() },
        Probe { churn: true, wait: true, random_fill: Some(7), cache_step: Some(2), ..Probe::default() },
    ] {
        let what = format!("{probe:?}");
        let Some(config) = elastic(1, 1, 0.3, probe) else { return };
        if what.contains("cache_step: Some(2)") {
            // Another step: only the numbers.
            let (mut gpu, mut cpu) = (load(MODEL, &config), reference_engine(1));
            let (mut a, mut b) = (Session::new(), Session::new());
            for piece in prompt().chunks(27) {
                step(&mut gpu, &mut cpu, [&mut a, &mut b], piece);
            }
            assert_eq!((cache(&gpu).tokens, cache(&gpu).grew), (640, 4), "{what}");
        } else {
            check_timeline(&what, &config);
        }
    }
}

#[test]
fn two_devices_trade_each_its_own_memory() {
    let probe = Probe { churn: true, wait: true, slots: Some(vec![12, 10]), ..Probe::default() };
    let Some(config) = elastic(2, 1, 0.5, probe) else { return };
    check_timeline("two devices", &config);
}

#[test]
fn timelines_that_take_turns_keep_what_they_hold() {
    let Some(config) = elastic(1, 2, 0.3, Probe { churn: true, wait: true, ..Probe::default() }) else { return };
    let (mut gpu, mut cpu) = (load(MODEL, &config), reference_engine(2));
    let start = slots(&gpu);
    let ids = prompt();
    let mut sessions: Vec<[Session; 2]> = (0..2).map(|_| [Session::new(), Session::new()]).collect();
    // One forwards, one backwards.
    let texts = [ids.clone(), ids.iter().rev().copied().collect::<Vec<u32>>()];
    for at in (0..240).step_by(30) {
        for (text, [a, b]) in texts.iter().zip(&mut sessions) {
            step(&mut gpu, &mut cpu, [a, b], &text[at..at + 30]);
        }
    }
    assert_eq!(cache(&gpu).tokens, 512, "four pages each");
    // Both in one run, over a step.
    for at in 240..260 {
        let run = |engine: &mut Engine, sessions: &mut [[Session; 2]], which: usize| -> Vec<f32> {
            let spans = sessions.iter_mut().zip(&texts).map(|(pair, text)| Span {
                session: &mut pair[which],
                ids: &text[at..at + 1],
                wanted: Wanted::Last,
                phase: Phase::Decode,
                mark: false,
            });
            advance(engine, &mut spans.collect::<Vec<_>>()).unwrap().all().to_vec()
        };
        let off = furthest(&run(&mut gpu, &mut sessions, 0), &run(&mut cpu, &mut sessions, 1));
        assert!(off <= CLOSE, "both, {at}: logits are {off} off");
    }
    assert_eq!(cache(&gpu).tokens, 640, "five pages each");
    let few = slots(&gpu);
    assert!(few < start, "{few} of {start}");
    // The first goes: the other's pages lie behind it and hold the cache where it is.
    let [a, b] = &mut sessions[0];
    a.clear();
    b.clear();
    let [a, b] = &mut sessions[1];
    step(&mut gpu, &mut cpu, [a, b], &texts[1][260..270]);
    assert_eq!(cache(&gpu).tokens, 640);
    // Cut back to its first page, which lies second.
    a.truncate(50);
    b.truncate(50);
    step(&mut gpu, &mut cpu, [a, b], &texts[1][50..60]);
    assert_eq!(cache(&gpu).tokens, 128);
    assert!(slots(&gpu) > few && cache(&gpu).shrank == 1, "{:?}", cache(&gpu));
    allocated(&gpu, &config);
}

/// What the user was told of the cache by the one test that listens.
static TOLD: Mutex<Vec<String>> = Mutex::new(vec![]);

#[test]
fn only_tokens_that_cross_a_step_allocate_and_the_first_is_told() {
    let Some(config) = elastic(1, 1, 0.3, Probe { wait: true, ..Probe::default() }) else { return };
    let config = EngineConfig { notice: |line| TOLD.lock().unwrap().push(line.to_owned()), ..config };
    let mut gpu = load(MODEL, &config);
    let mut session = Session::new();
    let ids = prompt();
    session.extend(&mut gpu, &ids[..8], Wanted::Last, |_, _| ControlFlow::Continue(())).unwrap();
    let mut quiet = 0;
    for (at, id) in ids[..300].iter().enumerate().skip(8) {
        let before = gpu.gpus()[0].device().allocations();
        session.decode(&mut gpu, *id, Wanted::Last).unwrap();
        let made = gpu.gpus()[0].device().allocations() - before;
        if at.is_multiple_of(PAGE_TOKENS) {
            assert!(made > 0, "token {at} crosses a step");
        } else {
            assert_eq!(made, 0, "token {at}");
            quiet += 1;
        }
    }
    assert!(quiet > 280);
    let told = TOLD.lock().unwrap();
    assert!(told.len() == 1 && told[0].starts_with("KV grew to 128 tokens: "), "{told:?}");
}

#[test]
fn a_cache_that_can_not_grow_is_one_error_and_loses_nothing() {
    let Some(config) = elastic(1, 1, 0.3, Probe { wait: true, slots: Some(vec![3]), ..Probe::default() }) else {
        return;
    };
    let (mut gpu, mut cpu) = (load(MODEL, &config), reference_engine(1));
    let device = gpu.gpus()[0].device().clone();
    device.take_away(device.left_bytes().unwrap());
    let ids = prompt();
    let (mut a, mut b) = (Session::new(), Session::new());
    step(&mut gpu, &mut cpu, [&mut a, &mut b], &ids[..100]);
    assert_eq!((slots(&gpu), cache(&gpu).grew), (1, 1), "two experts gave way");
    let error = a.extend(&mut gpu, &ids[100..160], Wanted::Last, |_, _| ControlFlow::Continue(())).unwrap_err();
    let text = error.to_string();
    for word in ["192 tokens", "--gpu-memory", "-c", "--kv q8_0", "without a single expert"] {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert_eq!((a.ids(), cache(&gpu).tokens, slots(&gpu)), (&ids[..100], 128, 1));
    // What there is room for goes on.
    for &id in &ids[100..128] {
        step(&mut gpu, &mut cpu, [&mut a, &mut b], &[id]);
    }
    assert!(a.extend(&mut gpu, &ids[128..129], Wanted::Last, |_, _| ControlFlow::Continue(())).is_err());
    a.truncate(30);
    b.truncate(30);
    step(&mut gpu, &mut cpu, [&mut a, &mut b], &ids[30..50]);
}

#[test]
fn a_device_with_less_memory_than_planned_gives_up_more_slots() {
    let Some(config) = elastic(1, 1, 0.75, Probe { wait: true, random_fill: Some(3), ..Probe::default() }) else {
        return;
    };
    let (mut gpu, mut cpu) = (load(MODEL, &config), reference_engine(1));
    let experts = |op: &Op| match op {
        Op::Experts(plan::Experts { gate, .. }) => cpu.plan().weight(*gate).experts,
        _ => 0,
    };
    let all: usize = cpu.plan().steps.iter().map(|step| experts(&step.op)).sum();
    assert_eq!(slots(&gpu), all, "a short context leaves room for all of them");
    let device = gpu.gpus()[0].device().clone();
    device.take_away(device.left_bytes().unwrap());
    let ids = prompt();
    let (mut a, mut b) = (Session::new(), Session::new());
    for piece in ids.chunks(60) {
        step(&mut gpu, &mut cpu, [&mut a, &mut b], piece);
        allocated(&gpu, &config);
    }
    let report = gpu.expert_report().unwrap();
    assert!(report.slots < cache(&gpu).least_slots, "{report}");
    for &id in &ids[..20] {
        step(&mut gpu, &mut cpu, [&mut a, &mut b], &[id]);
    }
    assert_eq!(argmax(gpu.last_logits().unwrap()), argmax(cpu.last_logits().unwrap()));
}

/// A growth that the driver refuses at each of its buffers: at that one only, or from there on.
fn check_refusals(devices: usize, slots_of_each: Option<Vec<usize>>, all: bool) {
    let probe = Probe { wait: true, random_fill: Some(5), slots: slots_of_each, ..Probe::default() };
    let Some(config) = elastic(devices, 1, 0.3, probe) else { return };
    let ids = prompt();
    for first in 0.. {
        let what = format!("{devices} devices, buffer {first}, and all after it: {all}");
        let (mut gpu, mut cpu) = (load(MODEL, &config), reference_engine(1));
        let (mut a, mut b) = (Session::new(), Session::new());
        step(&mut gpu, &mut cpu, [&mut a, &mut b], &ids[..60]);
        let (before, held) = (slots(&gpu), allocated(&gpu, &config));
        let device = gpu.gpus().last().unwrap().device().clone();
        device.refuse(first..if all { u64::MAX } else { first + 1 });
        let grown = a.extend(&mut gpu, &ids[60..300], Wanted::Last, |_, _| ControlFlow::Continue(()));
        device.refuse(0..0);
        let Err(error) = grown else {
            assert!(slots(&gpu) < before && first >= 2, "{what}: {} of {before} slots", slots(&gpu));
            return;
        };
        let error = error.to_string();
        for word in ["320 tokens", "--gpu-memory", "-c", "--kv q8_0", "cached "] {
            assert!(error.contains(word), "'{word}' is not in: {error}");
        }
        let report = cache(&gpu);
        assert_eq!((a.ids(), report.tokens, report.grew), (&ids[..60], 64, 0), "{what}");
        assert_eq!(report.given_up, before - slots(&gpu), "{what}");
        if all {
            assert!(slots(&gpu) < before, "{what}: memory that is not there");
        } else {
            assert_eq!((slots(&gpu), allocated(&gpu, &config)), (before, held.clone()), "{what}");
        }
        // What there is room for goes on, then all, then what was lost comes back.
        for &id in &ids[60..64] {
            step(&mut gpu, &mut cpu, [&mut a, &mut b], &[id]);
        }
        for piece in ids[64..300].chunks(50) {
            step(&mut gpu, &mut cpu, [&mut a, &mut b], piece);
        }
        assert_eq!(cache(&gpu).tokens, 320, "{what}");
        a.truncate(10);
        b.truncate(10);
        for &id in &ids[10..24] {
            step(&mut gpu, &mut cpu, [&mut a, &mut b], &[id]);
        }
        assert_eq!((slots(&gpu), allocated(&gpu, &config)), (before, held), "{what}");
        assert!(gpu.expert_report().unwrap().filled > before / 2, "{what}: experts come back");
    }
}

#[test]
fn a_driver_that_refuses_memory_midway_is_one_error_and_what_was_there_goes_on() {
    check_refusals(1, None, false);
    // The second device refuses when the first has grown.
    check_refusals(2, Some(vec![12, 10]), false);
}

#[test]
fn a_driver_that_gives_no_memory_back_costs_slots_and_no_number() {
    check_refusals(1, None, true);
    check_refusals(2, Some(vec![12, 10]), true);
}

/// What the user was told while whole layers were on trial.
static TRIALS: Mutex<Vec<String>> = Mutex::new(vec![]);

#[test]
fn whole_layers_on_trial_find_and_leave_a_context_beyond_the_first_cache() {
    let fast = RivalProbe { predicted: 0.0, measured: 0.0, fails: false };
    let slow = RivalProbe { measured: 1e9, ..fast };
    let failing = RivalProbe { fails: true, ..fast };
    for (devices, rival, end) in
        [(1, fast, "took the place"), (1, slow, "given up"), (1, failing, "set up"), (2, slow, "given up")]
    {
        let what = format!("{devices} devices, {end}");
        // Two devices would have room for all.
        let few = (devices == 2).then(|| vec![12, 10]);
        let probe = Probe { wait: true, rival: Some(rival), slots: few, ..Probe::default() };
        let Some(config) = elastic(devices, 2, 0.1, probe) else { return };
        let experts = ExpertOptions { guard: true, ..config.experts.clone() };
        let notice = |line: &str| TRIALS.lock().unwrap().push(line.to_owned());
        let config = EngineConfig { experts, notice, ..config };
        TRIALS.lock().unwrap().clear();
        let (mut gpu, mut cpu) = (load(MODEL, &config), reference_engine(2));
        let start = slots(&gpu);
        let ids = prompt();
        let (mut a, mut b) = (Session::new(), Session::new());
        let (mut idle, mut idle_b) = (Session::new(), Session::new());
        step(&mut gpu, &mut cpu, [&mut idle, &mut idle_b], &ids[400..500]);
        for piece in ids[..150].chunks(70) {
            step(&mut gpu, &mut cpu, [&mut a, &mut b], piece);
        }
        assert_eq!(cache(&gpu).tokens, 320, "{what}: two pages and three");
        assert!(slots(&gpu) < start, "{what}: {} of {start}", slots(&gpu));
        let (mut tried, mut paged) = (0, 0);
        for &id in &ids[150..330] {
            step(&mut gpu, &mut cpu, [&mut a, &mut b], &[id]);
            allocated(&gpu, &config);
            match gpu.expert_report().unwrap().rival {
                Some(Standing::Running { .. }) => tried += 1,
                Some(Standing::Lost { .. } | Standing::Failed { .. }) => {
                    paged += 1;
                    // What the idle one held went with the executors; it is computed again when it is wanted.
                    let tokens = a.ids().len().next_multiple_of(PAGE_TOKENS);
                    let report = cache(&gpu);
                    assert_eq!((report.tokens, report.given_up), (tokens, start - slots(&gpu)), "{what}");
                }
                _ => {}
            }
        }
        let told = std::mem::take(&mut *TRIALS.lock().unwrap());
        assert!(told.iter().any(|line| line.contains(end)), "{what}: {told:?}");
        assert_eq!(told.iter().filter(|line| line.starts_with("KV grew")).count(), 1, "{what}: {told:?}");
        assert_eq!((tried > 0, paged > 100), (end != "set up", end != "took the place"), "{what}: {told:?}");
        // The timeline that slept through all of it, which is computed anew.
        for &id in &ids[500..540] {
            step(&mut gpu, &mut cpu, [&mut idle, &mut idle_b], &[id]);
        }
        a.clear();
        b.clear();
        // Its pages lie behind those that the other one had: a short one begins at the first again.
        idle.clear();
        idle_b.clear();
        step(&mut gpu, &mut cpu, [&mut idle, &mut idle_b], &ids[420..430]);
        if paged > 0 {
            assert_eq!((slots(&gpu), cache(&gpu).tokens), (start, 64), "{what}: {:?}", cache(&gpu));
            assert!(cache(&gpu).shrank > 0, "{what}");
        }
        allocated(&gpu, &config);
    }
}
