//! Several requests in one run against each alone: the same ids, texts and ends, whoever joins or leaves meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use rynd::backend::Phase;
use rynd::engine::{Engine, EngineConfig, EngineError, Session, Span, Wanted, advance};
use rynd::generate::{Event, Finish, GenerateError, Job, Limits, Scheduler, generate};
use rynd::sampler::{Sampler, SamplerConfig};
use rynd::tokenizer::{Tokenizer, Vocab};
use serde_json::Value;

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn folder(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model)
}

fn reference(model: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(model).join("reference.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn load(model: &str, batch: usize, sessions: usize) -> (Engine, Tokenizer) {
    let config =
        EngineConfig { exact: true, threads: Some(2), batch, sessions, context: Some(256), ..EngineConfig::default() };
    let engine = Engine::load(&folder(model).join("model.gguf"), &config).unwrap();
    let tokenizer = Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap();
    (engine, tokenizer)
}

fn limits(tokens: usize) -> Limits {
    Limits { tokens: Some(tokens), ignore_end: true, ..Limits::default() }
}

fn job(prompt: &[u32], tokens: usize) -> Job {
    Job { prompt: prompt.to_vec(), sampler: Sampler::new(SamplerConfig::greedy()).unwrap(), limits: limits(tokens) }
}

/// The greedy ids of one prompt alone.
fn alone(engine: &mut Engine, tokenizer: &Tokenizer, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut found = vec![];
    let sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
    generate(engine, tokenizer, sampler, prompt, &limits(tokens), |event| {
        if let Event::Token(id) = event {
            found.push(id);
        }
        CONTINUE
    })
    .unwrap();
    engine.forget();
    found
}

#[test]
fn requests_that_run_together_get_the_ids_of_the_reference() {
    for model in ["qwen2", "llama", "qwen3moe", "gemma3", "qwen3_yarn"] {
        let reference = reference(model);
        // The small run cuts prompts into pieces, so that answers go on between them.
        for run in [512, 9] {
            let (mut engine, tokenizer) = load(model, run, 4);
            let mut batch = Scheduler::new(4);
            let mut wanted = HashMap::new();
            for prompt in ["short", "long", "short", "long"] {
                let expected = ids(&reference["greedy"][prompt]["ids"]);
                let start = ids(&reference["prompts"][prompt]["ids"]);
                let id = batch.add(&engine, &tokenizer, job(&start, expected.len())).unwrap();
                wanted.insert(id, expected);
            }
            let mut found: HashMap<usize, Vec<u32>> = HashMap::new();
            while !batch.is_empty() {
                let done = batch.step(&mut engine, &tokenizer, |id, event| {
                    if let Event::Token(token) = event {
                        found.entry(id).or_default().push(token);
                    }
                    CONTINUE
                });
                for done in done.unwrap() {
                    assert_eq!(done.result.unwrap().finish, Finish::Length);
                }
            }
            assert_eq!(found, wanted, "{model}, run of {run}");
        }
    }
}

#[test]
fn requests_join_and_leave_without_a_trace_in_the_others() {
    let (mut engine, tokenizer) = load("qwen3moe", 32, 5);
    // Prompts of every length around a page and a run.
    let long = ids(&reference("qwen3moe")["prompts"]["long"]["ids"]);
    let prompts: Vec<Vec<u32>> = [1, 2, 31, 33, 63, 64, 65, 100, 5]
        .iter()
        .map(|&n| (0..n).map(|i| long[(i * 7 + n) % long.len()]).collect())
        .collect();
    let tokens = |i: usize| 3 + 11 * (i % 4);
    let expected: Vec<Vec<u32>> =
        (0..prompts.len()).map(|i| alone(&mut engine, &tokenizer, &prompts[i], tokens(i))).collect();

    let mut batch = Scheduler::new(4);
    let mut found: HashMap<usize, Vec<u32>> = HashMap::new();
    let mut added = 0;
    let mut most = 0;
    while added < prompts.len() || !batch.is_empty() {
        if added < prompts.len() && batch.len() < 4 {
            assert_eq!(batch.add(&engine, &tokenizer, job(&prompts[added], tokens(added))).unwrap(), added);
            added += 1;
        }
        most = most.max(batch.len());
        let done = batch.step(&mut engine, &tokenizer, |id, event| {
            if let Event::Token(token) = event {
                found.entry(id).or_default().push(token);
            }
            CONTINUE
        });
        for done in done.unwrap() {
            let summary = done.result.unwrap();
            assert_eq!(summary.prompt_tokens, prompts[done.id].len());
            assert_eq!(summary.generated_tokens, tokens(done.id));
        }
    }
    assert_eq!(most, 4, "the test must really run several at once");
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(&found[&i], expected, "prompt {i}");
    }
}

#[test]
fn a_request_broken_off_is_remembered_and_the_next_one_starts_from_it() {
    let (mut engine, tokenizer) = load("qwen2", 16, 2);
    let long = ids(&reference("qwen2")["prompts"]["long"]["ids"]);
    let expected = alone(&mut engine, &tokenizer, &long, 8);
    let mut batch = Scheduler::new(4);
    let broken = batch.add(&engine, &tokenizer, job(&long, 8)).unwrap();
    let other = batch.add(&engine, &tokenizer, job(&long[..3], 200)).unwrap();
    let done = batch
        .step(&mut engine, &tokenizer, |id, _| if id == broken { ControlFlow::Break(()) } else { CONTINUE })
        .unwrap();
    assert_eq!((done.len(), done[0].id, batch.len()), (1, broken, 1));
    let Ok(summary) = &done[0].result else { panic!("no summary") };
    assert_eq!((summary.finish, summary.generated_tokens), (Finish::Interrupted, 0));
    let held = engine.remembered(&long);
    assert!(0 < held && held < long.len(), "{held} tokens of one step");

    let again = batch.add(&engine, &tokenizer, job(&long, 8)).unwrap();
    assert!(again != broken && again != other);
    let mut found = vec![];
    let summary = loop {
        let done = batch.step(&mut engine, &tokenizer, |id, event| {
            if let (Event::Token(token), true) = (event, id == again) {
                found.push(token);
            }
            CONTINUE
        });
        if let Some(done) = done.unwrap().into_iter().find(|done| done.id == again) {
            break done.result.unwrap();
        }
    };
    assert_eq!((found, summary.cached_tokens), (expected, held));
    let rest = batch.stop(&mut engine);
    assert_eq!((rest.len(), rest[0].id, batch.is_empty()), (1, other, true));
}

#[test]
fn a_request_that_can_choose_nothing_fails_alone() {
    let (mut engine, tokenizer) = load("qwen2", 16, 2);
    let forbidden = (0..engine.plan().vocab as u32).map(|id| (id, f32::NEG_INFINITY)).collect();
    let config = SamplerConfig { logit_bias: forbidden, ..SamplerConfig::greedy() };
    let mut batch = Scheduler::new(4);
    let good = batch.add(&engine, &tokenizer, job(&[1, 2, 3], 2)).unwrap();
    let bad = Job { sampler: Sampler::new(config).unwrap(), ..job(&[4, 5], 2) };
    let bad = batch.add(&engine, &tokenizer, bad).unwrap();
    let done = batch.step(&mut engine, &tokenizer, |_, _| CONTINUE).unwrap();
    assert_eq!((done.len(), done[0].id), (1, bad));
    assert!(matches!(done[0].result, Err(GenerateError::Sampler(_))));
    let done = batch.step(&mut engine, &tokenizer, |_, _| CONTINUE).unwrap();
    assert_eq!((done.len(), done[0].id, done[0].result.is_ok()), (1, good, true));
}

#[test]
fn too_much_is_refused_before_anything_changes() {
    let (mut engine, tokenizer) = load("qwen2", 2, 3);
    let mut batch = Scheduler::new(4);
    let empty = batch.add(&engine, &tokenizer, job(&[], 1));
    assert!(matches!(empty, Err(GenerateError::Engine(EngineError::EmptyPrompt))));
    let full = batch.add(&engine, &tokenizer, job(&[1; 257], 1));
    assert!(matches!(full, Err(GenerateError::Engine(EngineError::ContextFull { tokens: 257, context: 256 }))));
    let mut session = Session::new();
    let mut spans =
        [Span { session: &mut session, ids: &[1, 2, 3], wanted: Wanted::Last, phase: Phase::Prompt, mark: false }];
    assert!(matches!(advance(&mut engine, &mut spans), Err(EngineError::BatchFull { tokens: 3, batch: 2 })));
    let mut spans =
        [Span { session: &mut session, ids: &[1, 100_000], wanted: Wanted::Last, phase: Phase::Prompt, mark: false }];
    assert!(matches!(advance(&mut engine, &mut spans), Err(EngineError::Backend(_))));
    assert!(session.ids().is_empty());
    // The pages of the failed run serve the next one.
    assert_eq!(session.sync(&mut engine, &[1, 2, 3]).unwrap().len(), engine.plan().vocab);
}

/// Ids by request.
type Answers = HashMap<usize, Vec<u32>>;

/// Steps until all is over: the answers, and the requests in the order in which they ended, with their cached tokens.
fn drain(scheduler: &mut Scheduler, engine: &mut Engine, tokenizer: &Tokenizer) -> (Answers, Vec<(usize, usize)>) {
    let (mut found, mut over) = (Answers::new(), vec![]);
    while !scheduler.is_empty() {
        let done = scheduler.step(engine, tokenizer, |id, event| {
            if let Event::Token(token) = event {
                found.entry(id).or_default().push(token);
            }
            CONTINUE
        });
        for done in done.unwrap() {
            over.push((done.id, done.result.unwrap().cached_tokens));
        }
    }
    (found, over)
}

#[test]
fn a_retry_waits_for_the_prefill_that_still_runs_and_begins_with_it() {
    let (mut engine, tokenizer) = load("qwen2", 16, 4);
    let long: Vec<u32> = ids(&reference("qwen2")["prompts"]["long"]["ids"]).into_iter().cycle().take(120).collect();
    let expected = alone(&mut engine, &tokenizer, &long, 6);
    let mut scheduler = Scheduler::new(4);
    let first = scheduler.add(&engine, &tokenizer, job(&long, 6)).unwrap();
    scheduler.step(&mut engine, &tokenizer, |_, _| CONTINUE).unwrap();
    let second = scheduler.add(&engine, &tokenizer, job(&long, 6)).unwrap();
    let (found, over) = drain(&mut scheduler, &mut engine, &tokenizer);
    assert_eq!((&found[&first], &found[&second]), (&expected, &expected));
    assert_eq!(over, [(first, 0), (second, 119)], "the second computed its last token only");
}

#[test]
fn of_two_prompts_the_short_one_does_not_wait_for_the_long_one() {
    let (mut engine, tokenizer) = load("qwen2", 16, 4);
    let long: Vec<u32> = ids(&reference("qwen2")["prompts"]["long"]["ids"]).into_iter().cycle().take(160).collect();
    let short: Vec<u32> = long.iter().rev().copied().take(12).collect();
    let expected = [alone(&mut engine, &tokenizer, &long, 2), alone(&mut engine, &tokenizer, &short, 2)];
    let mut scheduler = Scheduler::new(4);
    let first = scheduler.add(&engine, &tokenizer, job(&long, 2)).unwrap();
    scheduler.step(&mut engine, &tokenizer, |_, _| CONTINUE).unwrap();
    let second = scheduler.add(&engine, &tokenizer, job(&short, 2)).unwrap();
    let (found, over) = drain(&mut scheduler, &mut engine, &tokenizer);
    assert_eq!([&found[&first], &found[&second]], [&expected[0], &expected[1]]);
    assert_eq!(over.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [second, first]);
}

#[test]
fn when_pages_run_out_the_youngest_makes_way_and_all_end_right() {
    // Pages for one whole context: three prompts of half of it do not fit together.
    let (mut engine, tokenizer) = load("qwen3moe", 16, 1);
    let text = ids(&reference("qwen3moe")["prompts"]["long"]["ids"]);
    let prompt = |start: usize| -> Vec<u32> { text.iter().copied().cycle().skip(start).take(100).collect() };
    let expected: Vec<Vec<u32>> = (0..3).map(|i| alone(&mut engine, &tokenizer, &prompt(i), 60)).collect();
    let mut scheduler = Scheduler::new(3);
    let requests: Vec<usize> =
        (0..3).map(|i| scheduler.add(&engine, &tokenizer, job(&prompt(i), 60)).unwrap()).collect();
    let (found, over) = drain(&mut scheduler, &mut engine, &tokenizer);
    for (request, expected) in requests.iter().zip(&expected) {
        assert_eq!(&found[request], expected, "request {request}");
    }
    assert_eq!(over.len(), 3);
    engine.forget();
    assert_eq!(engine.memory().usage().held_pages, 0);
}

#[test]
fn a_request_is_cancelled_in_the_middle_of_a_run_and_the_others_go_on() {
    let (mut engine, tokenizer) = load("qwen3moe", 256, 4);
    let text = ids(&reference("qwen3moe")["prompts"]["long"]["ids"]);
    let long: Vec<u32> = text.iter().copied().cycle().take(250).collect();
    let expected = alone(&mut engine, &tokenizer, &text[..20], 30);
    let mut scheduler = Scheduler::new(4);
    let other = scheduler.add(&engine, &tokenizer, job(&text[..20], 30)).unwrap();
    let (mut cancelled, mut tries) = (0, 0);
    let mut found = vec![];
    let mut broken = None;
    while !scheduler.is_empty() {
        // One that is over before the other thread runs is no error.
        if broken.is_none() && cancelled < 5 && tries < 50 {
            tries += 1;
            let id = scheduler.add(&engine, &tokenizer, job(&long, 2)).unwrap();
            // Another thread changes its mind while the run is under way.
            let cancel = scheduler.canceller(id).unwrap();
            broken = Some(id);
            std::thread::spawn(move || cancel.cancel());
        }
        let done = scheduler.step(&mut engine, &tokenizer, |id, event| {
            if let (Event::Token(token), true) = (event, id == other) {
                found.push(token);
            }
            CONTINUE
        });
        for done in done.unwrap() {
            if Some(done.id) == broken {
                cancelled += usize::from(done.result.unwrap().finish == Finish::Interrupted);
                broken = None;
            }
        }
    }
    assert!(cancelled > 0);
    assert_eq!(found, expected);
    engine.forget();
    assert_eq!(engine.memory().usage().held_pages, 0);
}
