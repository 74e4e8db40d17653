//! Sequences on a real model, measured: what comes back from disk, how long answers pause, what many share. Run by hand:
//! `RYND_MODEL=model.gguf cargo test --release --test real -- --ignored --nocapture --test-threads 1`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rynd::engine::{DiskOptions, Engine, EngineConfig, Session};
use rynd::generate::{Event, Job, Limits, PROMPT_BUDGET, Scheduler, Summary, generate};
use rynd::sampler::{Sampler, SamplerConfig};
use rynd::tokenizer::{Encode, Tokenizer, Vocab};

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn model() -> PathBuf {
    PathBuf::from(std::env::var_os("RYND_MODEL").expect("RYND_MODEL names a model file"))
}

fn open(config: &EngineConfig, disk: Option<&Path>) -> (Engine, Tokenizer) {
    let mut engine = Engine::load(&model(), config).unwrap();
    let tokenizer = Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap();
    if let Some(dir) = disk {
        let options = DiskOptions { dir: dir.to_owned(), cap_bytes: 10_000_000_000, always: false };
        engine.keep_on_disk(&options, &tokenizer);
    }
    (engine, tokenizer)
}

/// Ids of this project's own source, as many as asked for.
fn text(tokenizer: &Tokenizer, tokens: usize, skip: usize) -> Vec<u32> {
    let mut files: Vec<PathBuf> = vec![];
    for folder in ["src/engine", "src/experts", "src/gpu", "src/plan", "src/quantize"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        files.extend(
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()),
        );
    }
    files.sort();
    let all: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let ids = tokenizer.encode(&all, Encode::default());
    assert!(ids.len() >= tokens + skip, "{} tokens", ids.len());
    ids[skip..skip + tokens].to_vec()
}

fn greedy() -> Sampler {
    Sampler::new(SamplerConfig::greedy()).unwrap()
}

fn limits(tokens: usize) -> Limits {
    Limits { tokens: Some(tokens), ignore_end: true, ..Limits::default() }
}

fn answer(engine: &mut Engine, tokenizer: &Tokenizer, prompt: &[u32], tokens: usize) -> (Vec<u32>, Summary) {
    let mut ids = vec![];
    let summary = generate(engine, tokenizer, greedy(), prompt, &limits(tokens), |event| {
        if let Event::Token(id) = event {
            ids.push(id);
        }
        CONTINUE
    });
    (ids, summary.unwrap())
}

/// Resident bytes without the mapped model file, and swapped ones.
fn own_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    field("RssAnon:") + field("VmSwap:")
}

#[test]
#[ignore = "needs a model and minutes"]
fn a_history_of_12_000_tokens_comes_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig { context: Some(12_288), ..EngineConfig::default() };
    let (mut engine, t) = open(&config, Some(folder.path()));
    let prompt = text(&t, 12_000, 0);
    let (first, summary) = answer(&mut engine, &t, &prompt, 8);
    let computed = summary.prefill;
    let began = Instant::now();
    drop(engine);
    let written = began.elapsed();
    let (mut engine, t) = open(&config, Some(folder.path()));
    let (again, summary) = answer(&mut engine, &t, &prompt, 8);
    println!(
        "12,000 tokens: computed in {computed:.2?}, written at the end in {written:.2?}, first token after {:.3?} with {} \
         from disk: {:.0} times faster",
        summary.prefill,
        summary.disk_tokens,
        computed.as_secs_f64() / summary.prefill.as_secs_f64()
    );
    assert_eq!((again, summary.disk_tokens), (first, 11_999));
}

#[test]
#[ignore = "needs a model and minutes"]
fn while_a_long_prompt_is_read_answers_go_on() {
    let config = EngineConfig { context: Some(17_000), sessions: 2, ..EngineConfig::default() };
    let (mut engine, t) = open(&config, None);
    let mut scheduler = Scheduler::new(2);
    let short =
        scheduler.add(&engine, &t, Job { prompt: text(&t, 200, 0), sampler: greedy(), limits: limits(4000) }).unwrap();
    let (mut last, mut gaps, mut reading) = (Instant::now(), vec![], None);
    let mut long = None;
    loop {
        if gaps.len() == 20 && long.is_none() {
            let job = Job { prompt: text(&t, 16_000, 1000), sampler: greedy(), limits: limits(1) };
            long = Some(scheduler.add(&engine, &t, job).unwrap());
            reading = Some(gaps.len());
        }
        let done = scheduler.step(&mut engine, &t, |id, event| {
            if let (Event::Token(_), true) = (event, id == short) {
                gaps.push(last.elapsed());
                last = Instant::now();
            }
            CONTINUE
        });
        if done.unwrap().iter().any(|done| Some(done.id) == long) {
            break;
        }
    }
    let mut during = gaps[reading.unwrap()..].to_vec();
    during.sort();
    println!(
        "16,000 tokens read beside an answer of {} tokens: gaps of {:.0?} (median), {:.0?} (longest); the budget is {:?}",
        during.len(),
        during[during.len() / 2],
        during[during.len() - 1],
        PROMPT_BUDGET
    );
    assert!(during[during.len() - 1] <= 2 * PROMPT_BUDGET);
}

#[test]
#[ignore = "needs a model and minutes"]
fn eight_sequences_share_a_system_prompt_of_7_000_tokens() {
    let config = EngineConfig { context: Some(8192), sessions: 8, ..EngineConfig::default() };
    let (mut engine, t) = open(&config, None);
    let start = text(&t, 7000, 0);
    let mut one = Session::new();
    let before = own_bytes();
    one.sync(&mut engine, &start).unwrap();
    engine.keep(&one);
    let (single, pages) = (own_bytes() - before, engine.memory().usage().held_pages);
    let mut all = vec![];
    for i in 0..8 {
        let prompt = [start.clone(), text(&t, 50, 8000 + 50 * i)].concat();
        let (mut session, _) = engine.recall(&prompt);
        session.sync(&mut engine, &prompt).unwrap();
        all.push(session);
    }
    let (eight, usage) = (own_bytes() - before, engine.memory().usage());
    println!(
        "one: {pages} pages, {:.1} MB; eight with 50 tokens each: {} pages, {:.1} MB",
        single as f64 / 1e6,
        usage.held_pages,
        eight as f64 / 1e6
    );
    assert!(usage.held_pages <= pages + 8 * 2 * engine.plan().groups.len());
}

#[test]
#[ignore = "needs a model and minutes"]
fn memory_stays_flat_over_2_000_requests() {
    let config = EngineConfig { context: Some(1024), sessions: 2, past_bytes: 64 << 20, ..EngineConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, t) = open(&config, Some(folder.path()));
    let source = text(&t, 30_000, 0);
    let mut seen = vec![];
    for request in 0..2000 {
        let at = request * 37 % 28_000;
        answer(&mut engine, &t, &source[at..at + 20 + request % 90], 3);
        if request % 100 == 99 {
            seen.push(own_bytes());
        }
    }
    let half = &seen[seen.len() / 2..];
    let (least, most) = (half.iter().min().unwrap(), half.iter().max().unwrap());
    println!(
        "own memory after 100 to 2,000 requests, MB: {:?}",
        seen.iter().map(|b| b / 1_000_000).collect::<Vec<_>>()
    );
    println!("second half within {:.2}%", 100.0 * (*most as f64 / *least as f64 - 1.0));
    assert!(*most as f64 <= *least as f64 * 1.02);
    let usage = engine.memory().usage();
    assert!(usage.running_pages == 0 && usage.held_pages <= usage.pages, "{usage:?}");
    assert!(engine.wait_for_disk(Duration::from_secs(60)));
}
