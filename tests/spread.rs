//! How far activations rounded to int8 move the logits of a model of the user's, and that experts on GPUs, which compute in
//! f32 beside a CPU that rounds, leave the greedy id alone wherever that can not explain another.
//!
//! One text is given to all, token by token. Of each position the exact CPU's two best ids count:
//! - gap: how far the best lies above the second best, by the exact logits;
//! - spread: how far rounding on the CPU alone moves that difference, and the differences of the best to the next nine.
//!
//! Another id is best only where some difference to the best moved by more than its gap. Where the gap is larger than the
//! largest spread of the whole text, that is no rounding: an expert is missing or is another one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use golden_case::{argmax, exact, gpu_options};
use rynd::engine::{Engine, EngineConfig, ExpertOptions, GpuChoice, GpuOptions, Listing, Probe, Session, Wanted};
use rynd::plan::{self, Op};
use rynd::tokenizer::{Encode, Tokenizer, Vocab};

/// Prose: what comes next is often open, so that gaps are small.
const TEXT: &str = "Every morning the old miller walked down to the river and looked at the wheel before he opened the \
                    sluice. That day something was wrong: the water";
const PROMPT: usize = 6;
/// Tokens of the text behind it.
const POSITIONS: usize = 24;
/// Of them the first ones, which GPUs compute too: a software renderer takes seconds for each.
const ON_GPUS: usize = 8;
/// Ids whose logits are compared with the best.
const BEST: usize = 10;

/// Logits after each of so many tokens behind the prompt, each a run of its own.
fn decode(config: &EngineConfig, positions: usize) -> (Vec<Vec<f32>>, Engine) {
    let model = PathBuf::from(std::env::var_os("RYND_MOE_MODEL").unwrap());
    let mut engine = Engine::load(&model, config).unwrap();
    let tokenizer = Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap();
    let ids = tokenizer.encode(TEXT, Encode { add_special: true, parse_special: false });
    let mut session = Session::new();
    session.extend(&mut engine, &ids[..PROMPT], Wanted::None, |_, _| ControlFlow::Continue(())).unwrap();
    let mut all = vec![];
    for id in &ids[PROMPT..PROMPT + positions] {
        all.push(session.decode(&mut engine, *id, Wanted::Last).unwrap().to_vec());
    }
    session.clear();
    (all, engine)
}

/// What the exact logits say of one position.
struct Position {
    best: Vec<usize>, // (BEST), the first is the greedy id
    logits: Vec<f32>, // (BEST)
}

impl Position {
    fn new(logits: &[f32]) -> Position {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(BEST);
        Position { logits: order.iter().map(|&id| logits[id]).collect(), best: order }
    }

    fn gap(&self) -> f32 {
        self.logits[0] - self.logits[1]
    }

    /// How far these logits move the difference of the best to the nth.
    fn moved(&self, logits: &[f32], nth: usize) -> f32 {
        let difference = logits[self.best[0]] - logits[self.best[nth]];
        (difference - (self.logits[0] - self.logits[nth])).abs()
    }

    fn moved_most(&self, logits: &[f32]) -> f32 {
        (1..BEST).map(|nth| self.moved(logits, nth)).fold(0.0, f32::max)
    }
}

fn largest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, f32::max)
}

/// Experts in slots of as many GPUs, in f32 there; the CPU rounds.
fn paged(gpu: &GpuOptions, slots: &[usize], probe: Probe) -> EngineConfig {
    let gpu = GpuOptions {
        choice: GpuChoice::These((0..slots.len()).collect()),
        listing: Some(Listing { copies: slots.len(), software: true }),
        ..gpu.clone()
    };
    let probe = Probe { slots: Some(slots.to_vec()), wait: true, ..probe };
    let experts = ExpertOptions { guard: false, probe, ..ExpertOptions::default() };
    // Token by token: a software renderer takes minutes for a batch.
    EngineConfig { gpu, experts, batch: 1, ..rounding() }
}

fn rounding() -> EngineConfig {
    EngineConfig { exact: false, context: Some(256), batch: 32, ..exact() }
}

/// Needs a mixture of experts: the one that RYND_MOE_MODEL names.
#[test]
#[ignore = "needs a real model"]
fn ids_are_the_exact_ones_wherever_the_gap_is_larger_than_what_int8_moves() {
    let Some(gpu) = gpu_options() else { return };
    let (logits, engine) = decode(&EngineConfig { exact: true, ..rounding() }, POSITIONS);
    let exact: Vec<Position> = logits.iter().map(|logits| Position::new(logits)).collect();
    let experts = |op: &Op| match op {
        Op::Experts(plan::Experts { gate, .. }) => engine.plan().weight(*gate).experts,
        _ => 0,
    };
    let all: usize = engine.plan().steps.iter().map(|step| experts(&step.op)).sum();
    drop(engine);

    let (rounded, _) = decode(&rounding(), POSITIONS);
    println!("position      gap  spread (two best)  (ten best)  id");
    for (at, (position, logits)) in exact.iter().zip(&rounded).enumerate() {
        let same = if argmax(logits) as usize == position.best[0] { "same" } else { "other" };
        let (two, ten) = (position.moved(logits, 1), position.moved_most(logits));
        println!("{at:8} {:8.4} {two:18.4} {ten:11.4}  {same}", position.gap());
    }
    let spread_of = |exact: &[Position], all: &[Vec<f32>], of: fn(&Position, &[f32]) -> f32| {
        assert_eq!(exact.len(), all.len());
        largest(exact.iter().zip(all).map(|(position, logits)| of(position, logits)))
    };
    let two: fn(&Position, &[f32]) -> f32 = |position, logits| position.moved(logits, 1);
    let spread = spread_of(&exact, &rounded, Position::moved_most);
    let there = &exact[..ON_GPUS];
    let wide = |exact: &[Position]| exact.iter().filter(|position| position.gap() > spread).count();
    println!(
        "spread of the text: {:.4} (two best), {spread:.4} (ten best); {} of {POSITIONS} gaps are larger, {} of the first {ON_GPUS}",
        spread_of(&exact, &rounded, two),
        wide(&exact),
        wide(there)
    );
    assert!(wide(there) >= ON_GPUS / 2, "the text says too little");

    println!(
        "\nexperts on GPUs                            moved (two)      (ten)   same ids     hits       s  gaps of others"
    );
    let row = |what: &str, found: &[Vec<f32>], hits: Option<f64>, seconds: f64| {
        let other = there.iter().zip(found).filter(|(position, logits)| argmax(logits) as usize != position.best[0]);
        let other: Vec<f32> = other.map(|(position, _)| position.gap()).collect();
        let same = format!("{} of {}", there.len() - other.len(), there.len());
        let hits = hits.map_or("-".to_owned(), |hits| format!("{hits:.1}%"));
        let (two, ten) = (spread_of(there, found, two), spread_of(there, found, Position::moved_most));
        println!("{what:42} {two:11.4} {ten:10.4} {same:>10} {hits:>8} {seconds:7.0}  {other:.4?}");
        let wrong: Vec<&f32> = other.iter().filter(|gap| **gap > spread).collect();
        assert!(wrong.is_empty(), "{what}: other ids although the gap is larger than {spread}: {wrong:?}");
    };
    row("no GPU", &rounded[..ON_GPUS], None, 0.0);
    let random = |seed| Probe { random_fill: Some(seed), ..Probe::default() };
    let churn = Probe { churn: true, ..Probe::default() };
    let runs: [(&str, Vec<usize>, Probe); 9] = [
        ("none", vec![0], Probe::default()),
        ("one of each layout", vec![1], Probe::default()),
        ("25%", vec![all / 4], Probe::default()),
        ("50%", vec![all / 2], Probe::default()),
        ("100%", vec![all], random(1)),
        ("50%, at random", vec![all / 2], random(2)),
        ("25%, others after every token", vec![all / 4], churn.clone()),
        ("two GPUs, 25% and 33%, at random", vec![all / 4, all / 3], random(3)),
        ("three GPUs, 12%, 25% and 33%, all moving", vec![all / 8, all / 4, all / 3], churn),
    ];
    for (what, slots, probe) in runs {
        let began = Instant::now();
        let (found, engine) = decode(&paged(&gpu, &slots, probe), ON_GPUS);
        let report = engine.expert_report().unwrap();
        assert_eq!(engine.gpus().len(), slots.len());
        let hits = 100.0 * report.counters.hits as f64 / report.counters.picks.max(1) as f64;
        row(what, &found, Some(hits), began.elapsed().as_secs_f64());
    }
}
