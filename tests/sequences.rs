//! What sequences remember: pages that are shared until one writes, given back when the last holder is gone, and never
//! another sequence's values. Random histories of branches, edits and breaks against runs that share nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use golden_case::{argmax, furthest, gpu_budget, gpu_options, ids, load, reference};
use rynd::backend::Phase;
use rynd::engine::{
    DiskOptions, Engine, EngineConfig, ExpertOptions, GpuOptions, Probe, Session, Span, Wanted, advance, advance_unless,
};
use rynd::plan::PAGE_TOKENS;
use rynd::tokenizer::{Tokenizer, Vocab};

const CLOSE: f32 = 5e-4;

/// Models whose sequences remember more than keys and values.
const STATES: [&str; 2] = ["lfm2moe", "qwen3next"];

/// splitmix64: repeatable, and good enough to pick operations.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

fn config(batch: usize, sessions: usize) -> EngineConfig {
    EngineConfig { exact: true, threads: Some(2), batch, sessions, context: Some(256), ..EngineConfig::default() }
}

/// Logits of a history's last token by a run that shares nothing.
struct Fresh {
    engine: Engine,
    known: HashMap<Vec<u32>, Vec<f32>>,
}

impl Fresh {
    fn logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let engine = &mut self.engine;
        let compute = || Session::new().sync(engine, ids).unwrap().to_vec();
        self.known.entry(ids.to_vec()).or_insert_with(compute).clone()
    }
}

/// Up to eight sequences, and what each should hold.
struct Trial {
    engine: Engine,
    fresh: Fresh,
    random: Random,
    sequences: Vec<(Session, Vec<u32>)>,
    counts: HashMap<&'static str, usize>,
}

impl Trial {
    fn new(engine: Engine, fresh: Engine, seed: u64) -> Trial {
        let fresh = Fresh { engine: fresh, known: HashMap::new() };
        Trial { engine, fresh, random: Random(seed), sequences: vec![], counts: HashMap::new() }
    }

    fn tokens(&mut self, most: usize) -> Vec<u32> {
        // Few ids: histories meet again.
        (0..1 + self.random.below(most)).map(|_| 5 + self.random.below(3) as u32).collect()
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.sequences.len())
    }

    /// One operation, and sometimes a comparison.
    fn step(&mut self, compared: usize) {
        let context = self.engine.context();
        let what = match self.random.below(100) {
            _ if self.sequences.is_empty() => "new",
            0..8 if self.sequences.len() < 8 => "new",
            8..18 if self.sequences.len() < 8 => "branch",
            18..22 if self.sequences.len() < 8 => "attach",
            22..24 if self.sequences.len() < 8 => "recall",
            24..40 => "extend",
            40..60 => "decode together",
            60..70 => "truncate",
            70..80 => "edit",
            80..86 => "stopped",
            86..92 => "keep",
            92..98 => "drop",
            98 => "forget",
            _ => "decode together",
        };
        *self.counts.entry(what).or_default() += 1;
        match what {
            "new" => {
                let ids = self.tokens(90);
                let mut session = self.engine.attach(&ids);
                let logits = session.sync(&mut self.engine, &ids).unwrap().to_vec();
                self.compare(&ids, &logits, compared);
                self.sequences.push((session, ids));
            }
            "branch" => {
                let at = self.pick();
                let (session, ids) = &self.sequences[at];
                let branch = (session.fork(), ids.clone());
                self.sequences.push(branch);
            }
            "attach" | "recall" => {
                let at = self.pick();
                if what == "recall" {
                    // To the disk, out of memory, and back.
                    self.engine.keep(&self.sequences[at].0);
                    self.engine.flush_to_disk();
                    assert!(self.engine.wait_for_disk(Duration::from_secs(60)));
                    self.engine.forget();
                }
                let mut ids = self.sequences[at].1.clone();
                ids.truncate(1 + self.random.below(ids.len()));
                ids.extend(self.tokens(5));
                ids.truncate(context);
                let (mut session, read) = self.engine.recall(&ids);
                *self.counts.entry("tokens from disk").or_default() += read;
                assert!(session.ids().len() < ids.len() && ids.starts_with(session.ids()));
                let logits = session.sync(&mut self.engine, &ids).unwrap().to_vec();
                self.compare(&ids, &logits, compared);
                self.sequences.push((session, ids));
            }
            "extend" => {
                let at = self.pick();
                let new = self.tokens(70);
                let (mut session, mut ids) = self.sequences.swap_remove(at);
                if ids.len() + new.len() <= context {
                    let mut logits = vec![];
                    let see = |_, row: &[f32]| {
                        logits = row.to_vec();
                        ControlFlow::Continue(())
                    };
                    session.extend(&mut self.engine, &new, Wanted::Last, see).unwrap();
                    ids.extend(new);
                    self.compare(&ids, &logits, compared);
                }
                self.sequences.push((session, ids));
            }
            "decode together" => {
                let new = self.tokens(8);
                let with: Vec<usize> = (0..self.sequences.len())
                    .filter(|&at| self.sequences[at].1.len() < context)
                    .take(new.len())
                    .collect();
                let mut spans = vec![];
                for (at, (session, _)) in self.sequences.iter_mut().enumerate().filter(|(at, _)| with.contains(at)) {
                    let ids = &new[at % new.len()..at % new.len() + 1];
                    spans.push(Span { session, ids, wanted: Wanted::Last, phase: Phase::Decode, mark: false });
                }
                if spans.is_empty() {
                    return;
                }
                let vocab = self.engine.plan().vocab;
                let logits = advance(&mut self.engine, &mut spans).unwrap().all().to_vec();
                for (&at, row) in with.iter().zip(logits.chunks_exact(vocab)) {
                    self.sequences[at].1.push(new[at % new.len()]);
                    let ids = self.sequences[at].1.clone();
                    self.compare(&ids, row, compared);
                }
            }
            "truncate" => {
                let at = self.pick();
                let (session, ids) = &mut self.sequences[at];
                let to = 1 + self.random.below(ids.len());
                let kept = session.truncate(to);
                assert!(kept <= to);
                // What a window or a state lost is computed again.
                ids.truncate(to);
                let ids = ids.clone();
                let logits = self.sequences[at].0.sync(&mut self.engine, &ids).unwrap().to_vec();
                self.compare(&ids, &logits, compared);
            }
            "edit" => {
                let at = self.pick();
                let mut ids = self.sequences[at].1.clone();
                let here = self.random.below(ids.len());
                ids[here] = 8;
                let session = &mut self.sequences[at].0;
                let logits = session.sync(&mut self.engine, &ids).unwrap().to_vec();
                self.sequences[at].1.clone_from(&ids);
                self.compare(&ids, &logits, compared);
            }
            "stopped" => {
                let at = self.pick();
                let new = vec![9; 20 + self.random.below(30)];
                let (session, ids) = &mut self.sequences[at];
                let stop = AtomicBool::new(true);
                let span = Span { session, ids: &new, wanted: Wanted::Last, phase: Phase::Prompt, mark: true };
                if ids.len() + new.len() <= context && new.len() <= self.engine.batch() {
                    let stopped = advance_unless(&mut self.engine, &mut [span], Some(&stop)).err().unwrap();
                    assert!(stopped.is_stopped(), "{stopped}");
                }
                assert_eq!(self.sequences[at].0.ids(), self.sequences[at].1);
            }
            "keep" => {
                let at = self.pick();
                self.engine.keep(&self.sequences[at].0);
            }
            "drop" => {
                let at = self.pick();
                self.sequences.swap_remove(at);
            }
            _ => self.engine.forget(),
        }
        let usage = self.engine.memory().usage();
        assert!(usage.held_pages <= usage.pages && usage.running_pages <= usage.held_pages, "{usage:?}");
    }

    fn compare(&mut self, ids: &[u32], logits: &[f32], every: usize) {
        if self.random.below(every) == 0 {
            let off = furthest(logits, &self.fresh.logits(ids));
            assert!(off <= CLOSE, "{} tokens: logits are {off} off", ids.len());
            *self.counts.entry("compared").or_default() += 1;
        }
    }

    /// Everything goes back.
    fn end(mut self) -> HashMap<&'static str, usize> {
        self.sequences.clear();
        self.engine.forget();
        let usage = self.engine.memory().usage();
        assert_eq!((usage.held_pages, usage.held_states, usage.branches), (0, 0, 0), "{usage:?}");
        self.counts
    }
}

/// A trial of so many steps, with a disk tier.
fn trial(what: &str, model: &str, config: &EngineConfig, seed: u64, steps: usize) {
    let engine = load(model, config);
    let fresh = load(model, &self::config(64, 1));
    let folder = tempfile::tempdir().unwrap();
    let mut trial = Trial::new(engine, fresh, seed);
    let disk = DiskOptions { dir: folder.path().to_owned(), cap_bytes: 1 << 28, always: true };
    let tokenizer = Tokenizer::new(Vocab::from_gguf(trial.engine.gguf()).unwrap()).unwrap();
    trial.engine.keep_on_disk(&disk, &tokenizer);
    for _ in 0..steps {
        trial.step(8);
    }
    let report = trial.engine.expert_report();
    let counts = trial.end();
    println!("{what}, {model}: {counts:?} {}", report.map_or(String::new(), |report| report.to_string()));
    assert!(counts["compared"] > steps / 20 && (steps < 200 || counts["tokens from disk"] > 0), "{counts:?}");
}

#[test]
fn random_histories_compute_what_fresh_runs_compute_and_give_everything_back() {
    // The windowed one computes most: what a window lost is computed again.
    for (seed, (model, steps)) in
        [("qwen2", 9500), ("qwen3moe", 9500), ("gemma3", 1500), ("lfm2moe", 4000), ("qwen3next", 1000)]
            .into_iter()
            .enumerate()
    {
        // Eight sequences of a whole context could not all be full: the past must make way.
        trial("CPU", model, &config(64, 8), seed as u64, steps);
    }
}

#[test]
fn random_histories_on_gpus_do_too_with_experts_that_come_and_go() {
    let Some(gpu) = gpu_options() else { return };
    trial("GPU", "qwen2", &EngineConfig { gpu: gpu.clone(), ..config(64, 8) }, 11, 250);
    trial("GPU", "gemma3", &EngineConfig { gpu: gpu.clone(), ..config(64, 8) }, 12, 60);
    // Slots for a quarter of the experts, a cache that grows and shrinks by pages, and uploads of which every fifth fails.
    let memory = gpu_budget(&load("qwen3moe", &config(64, 8)), 64, 8 * 256 / PAGE_TOKENS, 0.25);
    let probe = Probe { wait: true, cache_step: Some(4), fail_every: Some(5), ..Probe::default() };
    let experts = ExpertOptions { guard: false, probe, ..ExpertOptions::default() };
    let gpu = GpuOptions { memory: Some(memory), ..gpu };
    trial("paged", "qwen3moe", &EngineConfig { gpu, experts, ..config(64, 8) }, 13, 250);
}

#[test]
fn eight_sequences_over_one_history_take_its_memory_once() {
    let mut engine = load("qwen2", &config(64, 8));
    let start: Vec<u32> = ids(&reference("qwen2")["prompts"]["long"]["ids"]).into_iter().cycle().take(200).collect();
    let mut first = Session::new();
    first.sync(&mut engine, &start).unwrap();
    engine.keep(&first);
    drop(first);
    let mut all = vec![];
    for i in 0..8 {
        let mut ids = start.clone();
        ids.push(10 + i);
        let mut session = engine.attach(&ids);
        assert_eq!(session.ids().len(), 200);
        session.sync(&mut engine, &ids).unwrap();
        all.push(session);
    }
    // Three whole pages for all, the fourth once for each and once for the past.
    assert_eq!(engine.memory().usage().held_pages, 200 / PAGE_TOKENS + 8 + 1);
}

#[test]
fn an_edit_of_a_model_with_states_computes_from_the_mark_before_it_and_no_more() {
    for model in STATES {
        let mut engine = load(model, &config(64, 4));
        let mut fresh = load(model, &config(64, 1));
        let text: Vec<u32> = ids(&reference(model)["prompts"]["long"]["ids"]).into_iter().cycle().take(240).collect();
        // What a chat does: a mark behind every message.
        let messages = [60, 75, 130, 205, 240];
        for edited in [0, 59, 60, 61, 100, 130, 131, 204, 205, 239] {
            let mut session = Session::new();
            let mut from = 0;
            for end in messages {
                session.extend(&mut engine, &text[from..end], Wanted::None, |_, _| ControlFlow::Continue(())).unwrap();
                from = end;
            }
            let mut ids = text.clone();
            ids[edited] += 1;
            let mut computed = 0;
            let logits = session
                .sync_with(&mut engine, &ids, |_, total| {
                    computed = total;
                    ControlFlow::Continue(())
                })
                .unwrap()
                .to_vec();
            let mark = messages.iter().rev().find(|&&mark| mark <= edited).copied().unwrap_or(0);
            // States that trail the end of a run may lie behind the mark.
            assert!(computed <= ids.len() - mark, "{model}, edited at {edited}: {computed} computed");
            let expected = Session::new().sync(&mut fresh, &ids).unwrap().to_vec();
            let off = furthest(&logits, &expected);
            assert!(off <= CLOSE, "{model}, edited at {edited}: logits are {off} off");
        }
    }
}

#[test]
fn equal_runs_give_equal_bits_however_a_sequence_came_about() {
    for model in ["qwen2", "qwen3moe", "gemma3", "lfm2moe", "qwen3next"] {
        let mut engine = load(model, &config(64, 4));
        let text: Vec<u32> = ids(&reference(model)["prompts"]["long"]["ids"]).into_iter().cycle().take(150).collect();
        let read = |engine: &mut Engine, session: &mut Session, ids: &[u32]| {
            ids.chunks(50)
                .for_each(|ids| session.extend(engine, ids, Wanted::None, |_, _| ControlFlow::Continue(())).unwrap());
        };
        let mut alone = Session::new();
        read(&mut engine, &mut alone, &text);
        let expected = alone.decode(&mut engine, 7, Wanted::Last).unwrap().to_vec();
        // A branch of a branch, whose pages lie elsewhere, beside one that writes to the page they shared.
        let mut other = Session::new();
        read(&mut engine, &mut other, &text[..100]);
        let (mut branch, mut sibling) = (other.fork(), other.fork());
        sibling.decode(&mut engine, 3, Wanted::None).unwrap();
        read(&mut engine, &mut branch, &text[100..]);
        other.decode(&mut engine, 4, Wanted::None).unwrap();
        let mut again = branch.fork();
        branch.decode(&mut engine, 5, Wanted::None).unwrap();
        let found = again.decode(&mut engine, 7, Wanted::Last).unwrap().to_vec();
        assert_eq!(found, expected, "{model}");
        assert_eq!(argmax(&found), argmax(&expected));
    }
}
