//! The RAM tier: whatever part of the experts is in memory, and whatever the disk does, the answers are the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rynd::engine::{Engine, EngineConfig, EngineError, ExpertOptions, Session, Wanted};
use rynd::experts::disk::Fault;
use rynd::experts::store::PastSlots;
use rynd::experts::tier::{Ram, Tier, Tiers};
use rynd::gguf::Gguf;
use rynd::models::RopeOverride;
use rynd::plan::{self, Op};
use rynd::weights::Weights;
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn model(name: &str) -> PathBuf {
    if name == "qwen3moe_wide" { golden_case::wide::path() } else { fixture(&format!("models/{name}/model.gguf")) }
}

fn reference(model: &str) -> Value {
    let text = std::fs::read_to_string(fixture(&format!("models/{model}/reference.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn experts(bytes: u64) -> Option<Tiers> {
    Some(Tiers { ram: Ram::Experts(bytes), lock: false, fault: None })
}

fn config(tiers: Option<Tiers>) -> EngineConfig {
    EngineConfig { threads: Some(2), tiers, ..EngineConfig::default() }
}

/// Bytes of one token's picks, and of all experts.
fn sizes(engine: &Engine) -> [u64; 2] {
    let plan = engine.plan();
    let mut sizes = [0; 2];
    for step in &plan.steps {
        if let Op::Experts(plan::Experts { used, gate, up, down, .. }) = step.op {
            let bytes: usize = [gate, up, down].iter().map(|id| plan.weight(*id).expert_bytes()).sum();
            sizes[0] += (used * bytes) as u64;
            sizes[1] += (plan.weight(gate).experts * bytes) as u64;
        }
    }
    sizes
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

fn greedy(engine: &mut Engine, prompt: &[u32], n: usize) -> Result<Vec<u32>, EngineError> {
    let mut session = Session::new();
    let mut answer: Vec<u32> = vec![];
    let mut result = Ok(());
    while answer.len() < n {
        let logits = match answer.last() {
            None => session.sync(engine, prompt),
            Some(&id) => session.decode(engine, id, Wanted::Last),
        };
        match logits {
            Ok(logits) => answer.push(argmax(logits)),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    session.clear();
    result.map(|()| answer)
}

fn all_logits(engine: &mut Engine, prompt: &[u32]) -> Vec<f32> {
    let mut all = vec![];
    let mut session = Session::new();
    let keep = |_: usize, logits: &[f32]| {
        all.extend_from_slice(logits);
        ControlFlow::Continue(())
    };
    session.extend(engine, prompt, Wanted::All, keep).unwrap();
    session.clear();
    all
}

#[test]
fn greedy_ids_equal_the_reference_for_any_budget() {
    for name in ["qwen3moe", "qwen3moe_wide", "mixtral"] {
        let reference = reference(name);
        let [token, all] = sizes(&Engine::load(&model(name), &config(None)).unwrap());
        for budget in [0, token, all / 2, all - 1, all] {
            for batch in [512, 7] {
                let config = EngineConfig { exact: true, batch, ..config(experts(budget)) };
                let mut engine = Engine::load(&model(name), &config).unwrap();
                assert_eq!(engine.tier_counters().is_some(), budget < all);
                for prompt in ["short", "long"] {
                    let expected = ids(&reference["greedy"][prompt]["ids"]);
                    let start = ids(&reference["prompts"][prompt]["ids"]);
                    let found = greedy(&mut engine, &start, expected.len()).unwrap();
                    assert_eq!(found, expected, "{name}, {prompt}, {budget} of {all} bytes, batch {batch}");
                }
            }
        }
    }
}

#[test]
fn a_run_without_a_pager_saves_heat_and_the_tier_of_the_next_starts_with_it() {
    let name = "qwen3moe";
    let reference = reference(name);
    let (start, expected) = (ids(&reference["prompts"]["long"]["ids"]), ids(&reference["greedy"]["long"]["ids"]));
    let folder = tempfile::tempdir().unwrap();
    let [_, all] = sizes(&Engine::load(&model(name), &config(None)).unwrap());
    let with = |tiers: Option<Tiers>, heat: Option<PathBuf>| {
        let experts = ExpertOptions { heat, ..ExpertOptions::default() };
        Engine::load(&model(name), &EngineConfig { exact: true, experts, ..config(tiers) }).unwrap()
    };
    let home = || Some(folder.path().to_owned());
    let saved = || -> serde_json::Value {
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        serde_json::from_slice(&std::fs::read(&files[0]).unwrap()).unwrap()
    };
    let runs = (start.len() + expected.len() - 1) as f64;
    for (run, budget) in [(1.0, None), (2.0, experts(all / 2))] {
        let mut engine = with(budget, home());
        if engine.tier_counters().is_some() {
            let picks = &saved()["picks"];
            let known: Vec<bool> = (0..2).map(|layer| picks[layer][0].as_f64().unwrap() > 0.0).collect();
            let seeded: Vec<bool> = (0..2).map(|layer| engine.tier_worth(layer, 0).unwrap() > 0.0).collect();
            assert_eq!(seeded, known, "the scores begin where the first run ended");
        }
        assert_eq!(greedy(&mut engine, &start, expected.len()).unwrap(), expected);
        drop(engine);
        let tokens = saved()["tokens"].as_f64().unwrap();
        assert!((tokens - run * runs).abs() <= 2.0, "{tokens} tokens after run {run} of {runs}");
        let used = 4.0;
        for layer in saved()["picks"].as_array().unwrap() {
            let picks: f64 = layer.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).sum();
            assert!((picks / (used * tokens) - 1.0).abs() < 0.01, "{picks} picks of {tokens} tokens");
        }
    }
    let nothing = with(experts(all / 2), None);
    assert_eq!(nothing.tier_worth(0, 0), Some(0.0), "no heat is asked for");
}

#[test]
fn logits_are_the_same_numbers_with_and_without_a_tier() {
    for (name, batches) in [("qwen3moe_long", &[512, 33, 1][..]), ("mixtral", &[512, 1])] {
        let reference = reference(name);
        let prompt = &reference["prompts"];
        let prompt = ids(&prompt[if prompt["deep"].is_null() { "long" } else { "deep" }]["ids"]);
        let prompt = &prompt[..prompt.len().min(150)];
        for &batch in batches {
            for exact in [true, false] {
                let without = EngineConfig { batch, exact, ..config(None) };
                let mut engine = Engine::load(&model(name), &without).unwrap();
                let [token, all] = sizes(&engine);
                let expected = all_logits(&mut engine, prompt);
                for budget in [0, token, all / 2, all - 1] {
                    let mut engine =
                        Engine::load(&model(name), &EngineConfig { tiers: experts(budget), ..without.clone() })
                            .unwrap();
                    assert_eq!(all_logits(&mut engine, prompt), expected, "{name}, {budget} of {all}, batch {batch}");
                }
            }
        }
    }
}

#[test]
fn a_budget_is_kept_and_what_is_in_memory_is_not_read_again() {
    let reference = reference("qwen3moe");
    let prompt = ids(&reference["prompts"]["long"]["ids"]);
    let [token, all] = sizes(&Engine::load(&model("qwen3moe"), &config(None)).unwrap());
    let mut reads = vec![];
    for budget in [token, all / 2, all - 1] {
        let mut engine = Engine::load(&model("qwen3moe"), &config(experts(budget))).unwrap();
        let one = all / engine.tier_counters().unwrap().experts;
        greedy(&mut engine, &prompt, 16).unwrap();
        let counters = engine.tier_counters().unwrap();
        assert!(counters.slots * one <= budget, "{counters:?}");
        assert_eq!(counters.bytes_read, counters.read * one);
        assert!(counters.read > 0 && counters.read <= counters.wanted);
        reads.push(counters.read);
    }
    assert!(reads[0] > reads[1] && reads[1] > reads[2], "{reads:?}");
    // With room for all but one, hardly more than the first read of each.
    let experts_of_model = reads[2];
    assert!(experts_of_model < reads[0] / 2, "{reads:?}");
}

/// A tier whose reads fail as `fails(read, attempt)` says; reads are counted from 0.
fn faulty(fails: impl Fn(u64, u32) -> bool + Send + Sync + 'static) -> Option<Tiers> {
    let count = AtomicU64::new(0);
    let fault = move |_: &Path, _: u64, attempt: u32| {
        let read = if attempt == 0 { count.fetch_add(1, Ordering::SeqCst) } else { count.load(Ordering::SeqCst) - 1 };
        fails(read, attempt).then(|| std::io::Error::other("the test's fault"))
    };
    Some(Tiers { ram: Ram::Experts(0), lock: false, fault: Some(Fault(Arc::new(fault))) })
}

#[test]
fn a_read_that_fails_once_is_tried_again() {
    let reference = reference("qwen3moe");
    let prompt = ids(&reference["prompts"]["long"]["ids"]);
    let expected = ids(&reference["greedy"]["long"]["ids"]);
    let tiers = faulty(|_, attempt| attempt == 0);
    let mut engine = Engine::load(&model("qwen3moe"), &EngineConfig { exact: true, ..config(tiers) }).unwrap();
    assert_eq!(greedy(&mut engine, &prompt, expected.len()).unwrap(), expected);
}

#[test]
fn a_read_that_fails_twice_ends_the_run_and_not_the_engine() {
    let reference = reference("qwen3moe");
    let prompt = ids(&reference["prompts"]["long"]["ids"]);
    let expected = ids(&reference["greedy"]["long"]["ids"]);
    for (batch, from) in [(512, 0), (512, 5), (1, 40)] {
        let tiers = faulty(move |read, _| (from..from + 4).contains(&read));
        let config = EngineConfig { exact: true, batch, ..config(tiers) };
        let mut engine = Engine::load(&model("qwen3moe"), &config).unwrap();
        let error = greedy(&mut engine, &prompt, expected.len()).unwrap_err().to_string();
        for words in ["model.gguf", "failed twice", "the test's fault"] {
            assert!(error.contains(words), "'{words}' is not in: {error}");
        }
        assert_eq!(greedy(&mut engine, &prompt, expected.len()).unwrap(), expected, "batch {batch}, from {from}");
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_that_names_it() {
    let reference = reference("qwen3moe");
    let prompt = ids(&reference["prompts"]["long"]["ids"]);
    let expected = ids(&reference["greedy"]["long"]["ids"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shrinking.gguf");
    golden_case::experts_last(&model("qwen3moe"), &path);
    let mut engine = Engine::load(&path, &EngineConfig { exact: true, ..config(experts(0)) }).unwrap();
    assert_eq!(greedy(&mut engine, &prompt, expected.len()).unwrap(), expected);
    let experts_start = Gguf::open(&path).unwrap();
    let experts_start = experts_start.tensors().iter().find(|t| t.name.contains("_exps")).unwrap().offset as u64;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(experts_start.next_multiple_of(4096)).unwrap();
    for _ in 0..2 {
        let error = greedy(&mut engine, &prompt, 1).unwrap_err().to_string();
        assert!(error.contains("shrinking.gguf") && error.contains("has become shorter"), "{error}");
    }
}

#[test]
fn a_budget_below_what_every_token_needs_is_refused_with_the_sum() {
    let tiers = Some(Tiers::total(1 << 20));
    let error = Engine::load(&model("qwen3moe"), &config(tiers)).err().unwrap().to_string();
    for words in ["--ram 1048576 bytes are too few", "larger --ram", "smaller -c"] {
        assert!(error.contains(words), "'{words}' is not in: {error}");
    }
}

/// A tier over the fixture with this many slots.
fn tier_of(name: &str, slots: u64, fault: Option<Fault>) -> Tier {
    let gguf = Gguf::open(&model(name)).unwrap();
    let plan = rynd::models::plan(&gguf, &RopeOverride::default()).unwrap();
    let one: usize = plan.weights.iter().filter(|w| w.experts > 1).take(3).map(|w| w.expert_bytes()).sum();
    let config = Tiers { ram: Ram::Experts(slots * one as u64), lock: false, fault };
    let tier = Tier::open(&Weights::new(gguf, Arc::new(plan)), &config, 0).unwrap().unwrap();
    assert_eq!(tier.store.counters().slots, slots);
    tier
}

/// Picks experts of layer 0 one after the other, and waits until they are there.
fn use_experts(tier: &Tier, ids: impl Iterator<Item = usize>) {
    for id in ids {
        let one = || std::iter::once(id);
        tier.store.picked(0, one());
        assert_eq!(tier.store.want(0, one(), true), 1);
        // SAFETY: pinned by `want`.
        (0..3).for_each(|part| assert!(unsafe { tier.store.part(0, id, part, false) }.is_some()));
        tier.store.release(0, one());
    }
}

#[test]
fn an_expert_in_a_faster_tier_is_the_first_to_lose_its_slot_unless_it_is_lent() {
    let tier = tier_of("qwen3moe", 4, None);
    let here = || (0..16).filter(|id| tier.store.is_ready(0, *id)).collect::<Vec<_>>();
    use_experts(&tier, [0, 1, 2, 3, 0, 0, 0].into_iter());
    assert_eq!(here(), [0, 1, 2, 3]);
    tier.store.set_away(0, 0, true);
    use_experts(&tier, 4..5);
    assert_eq!(here(), [1, 2, 3, 4], "the most picked one was elsewhere too");
    // Picked as often as the newest, and back: worth more than the others again.
    use_experts(&tier, 0..1);
    tier.store.set_away(0, 0, false);
    use_experts(&tier, 5..6);
    assert!(here().contains(&0), "{:?}", here());
    // One that is being copied keeps its slot, whatever it is worth.
    tier.store.set_away(0, 0, true);
    let loan = tier.store.lend(0, 0).unwrap();
    let kept = loan.parts().map(<[u8]>::to_vec);
    use_experts(&tier, 6..12);
    assert!(here().contains(&0), "{:?}", here());
    assert_eq!(loan.parts().map(<[u8]>::to_vec), kept);
    drop(loan);
    use_experts(&tier, 12..13);
    assert!(!here().contains(&0), "{:?}", here());
    // From disk the same bytes come.
    assert!(tier.store.lend(0, 0).is_none());
    let mut past = PastSlots::default();
    tier.store.read_past(0, 0, &mut past).unwrap();
    assert_eq!(past.parts().map(<[u8]>::to_vec), kept);
}
