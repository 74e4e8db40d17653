//! Conversations that come back: from memory, by their text, and from disk after the process is gone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::ops::ControlFlow;
use std::path::Path;

use golden_case::{furthest, ids, load, reference};
use rynd::engine::{DiskOptions, Engine, EngineConfig, Session, Wanted};
use rynd::generate::{Event, Limits, Summary, generate};
use rynd::sampler::{Sampler, SamplerConfig};
use rynd::tokenizer::{Encode, Prompt, Tokenizer, Vocab};

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn config() -> EngineConfig {
    EngineConfig { exact: true, threads: Some(2), batch: 64, context: Some(512), ..EngineConfig::default() }
}

fn tokenizer(engine: &Engine) -> Tokenizer {
    Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap()
}

fn open(model: &str, dir: &Path, config: &EngineConfig) -> (Engine, Tokenizer) {
    let mut engine = load(model, config);
    let tokenizer = tokenizer(&engine);
    engine.keep_on_disk(&DiskOptions { dir: dir.to_owned(), cap_bytes: 1 << 28, always: true }, &tokenizer);
    (engine, tokenizer)
}

/// A greedy answer to a prompt: its text, and what was done.
fn answer(engine: &mut Engine, tokenizer: &Tokenizer, prompt: &[u32], tokens: usize) -> (String, Summary) {
    let mut text = String::new();
    let limits = Limits { tokens: Some(tokens), ignore_end: true, ..Limits::default() };
    let sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
    let summary = generate(engine, tokenizer, sampler, prompt, &limits, |event| {
        if let Event::Text(new) = event {
            text.push_str(new);
        }
        CONTINUE
    })
    .unwrap();
    (text, summary)
}

fn turn(role: &str, text: &str) -> String {
    format!("<|im_start|>{role}\n{text}<|im_end|>\n")
}

#[test]
fn after_a_restart_a_conversation_goes_on_from_disk() {
    for model in ["qwen2", "qwen3moe", "gemma3"] {
        let folder = tempfile::tempdir().unwrap();
        let prompt: Vec<u32> = ids(&reference(model)["prompts"]["long"]["ids"]).into_iter().cycle().take(300).collect();
        let (mut engine, t) = open(model, folder.path(), &config());
        let (first, summary) = answer(&mut engine, &t, &prompt, 8);
        assert_eq!((summary.cached_tokens, summary.disk_tokens), (0, 0));
        drop(engine);
        let (mut engine, t) = open(model, folder.path(), &config());
        let (again, summary) = answer(&mut engine, &t, &prompt, 8);
        assert_eq!((again, summary.cached_tokens, summary.disk_tokens), (first.clone(), 299, 299), "{model}");
        // What follows is bit for bit what it would have been.
        let mut fresh = load(model, &config());
        let mut longer = prompt.clone();
        longer.extend([7, 8, 9]);
        let (mut session, _) = engine.recall(&longer);
        let found = session.sync(&mut engine, &longer).unwrap().to_vec();
        assert!(furthest(&found, Session::new().sync(&mut fresh, &longer).unwrap()) <= 5e-4, "{model}");
        drop(engine);
        // Another cache format is another model's.
        let (mut engine, t) = open(model, folder.path(), &EngineConfig { exact: false, ..config() });
        assert_eq!(answer(&mut engine, &t, &prompt, 8).1.disk_tokens, 0, "{model}");
        drop(engine);
        // Damaged files are as good as none.
        let mut damaged = 0;
        for file in walk(folder.path()) {
            let mut bytes = std::fs::read(&file).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            damaged += 1;
        }
        assert!(damaged >= 2, "{damaged} files");
        let (mut engine, t) = open(model, folder.path(), &config());
        let (text, summary) = answer(&mut engine, &t, &prompt, 8);
        assert_eq!(text, first, "{model}");
        assert!(summary.disk_tokens < 299, "{model}: {}", summary.disk_tokens);
    }
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn what_makes_way_in_memory_is_read_back_when_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    // Room for one long prompt only.
    let (mut engine, t) = open("qwen2", folder.path(), &config());
    let text: Vec<u32> = ids(&reference("qwen2")["prompts"]["long"]["ids"]).into_iter().cycle().take(400).collect();
    let other: Vec<u32> = text.iter().rev().copied().collect();
    let (first, _) = answer(&mut engine, &t, &text, 4);
    answer(&mut engine, &t, &other, 4);
    assert!(engine.remembered(&text) < 128, "{} tokens are still there", engine.remembered(&text));
    assert!(engine.wait_for_disk(std::time::Duration::from_secs(60)));
    let (again, summary) = answer(&mut engine, &t, &text, 4);
    assert_eq!((again, summary.cached_tokens), (first, 399));
    assert!(summary.disk_tokens > 200, "{}", summary.disk_tokens);
}

#[test]
fn an_answer_that_comes_back_as_text_is_not_computed_again() {
    for restarted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (mut engine, t) = open("qwen2", folder.path(), &config());
        let start = turn("system", "Be brief.") + &turn("user", "What is it?") + "<|im_start|>assistant\n";
        let prompt = engine.encode_prompt(&t, &Prompt::from(start.clone()));
        // An answer in tokens of one letter, which its tokenizer would not choose.
        let text = "the then the then";
        let odd: Vec<u32> = text.chars().flat_map(|c| t.encode(&c.to_string(), Encode::default())).collect();
        assert_ne!(odd, t.encode(text, Encode::default()));
        let known = [prompt, odd].concat();
        let (mut session, _) = engine.recall(&known);
        session.sync(&mut engine, &known).unwrap();
        engine.keep(&session);
        drop(session);
        let second = start + text + "<|im_end|>\n" + &turn("user", "And now?") + "<|im_start|>assistant\n";
        let prompt2 = engine.encode_prompt(&t, &Prompt::from(second.clone()));
        assert_eq!(t.decode(&prompt2, true), second);
        assert_eq!(prompt2[..known.len()], known);
        let (mut engine, t) = if restarted {
            drop(engine);
            open("qwen2", folder.path(), &config())
        } else {
            (engine, t)
        };
        let prompt3 = engine.encode_prompt(&t, &Prompt::from(second));
        assert_eq!(prompt3, prompt2, "found by its text, also on disk");
        let (_, summary) = answer(&mut engine, &t, &prompt2, 1);
        assert_eq!(summary.cached_tokens, known.len(), "of {}", prompt2.len());
    }
}

#[test]
fn where_a_prompt_leaves_what_was_remembered_is_told() {
    let mut engine = load("qwen2", &config());
    let t = tokenizer(&engine);
    let text =
        |day: &str| turn("system", &format!("{} Today is {day}. {}", "a b c d e f g h".repeat(8), "z".repeat(60)));
    let first = t.encode_prompt(&text("Sun Mar 22"));
    let second = t.encode_prompt(&text("Mon Mar 23"));
    answer(&mut engine, &t, &first, 1);
    let (_, summary) = answer(&mut engine, &t, &second, 1);
    let parted = summary.parted.unwrap();
    assert_eq!(parted.at, summary.cached_tokens);
    assert!(t.decode(&parted.was, true).starts_with(t.decode(&first[parted.at..parted.at + 2], true).as_str()));
    assert_ne!(parted.was[0], parted.is[0]);
    assert!(answer(&mut engine, &t, &second, 1).1.parted.is_none());
}

#[test]
fn one_copy_of_a_page_is_enough_for_many_and_the_past_makes_way_for_a_long_prompt() {
    let mut engine = load("qwen2", &EngineConfig { sessions: 1, ..config() });
    let t = tokenizer(&engine);
    let long: Vec<u32> = ids(&reference("qwen2")["prompts"]["long"]["ids"]).into_iter().cycle().take(380).collect();
    answer(&mut engine, &t, &long, 2);
    // Short side requests, later and used more often, do not cost the long conversation anything but the last pages.
    for i in 0..30u32 {
        let side: Vec<u32> = (0..60).map(|j| 20 + (i * 7 + j) % 50).collect();
        answer(&mut engine, &t, &side, 2);
    }
    assert!(engine.remembered(&long) >= 320, "{}", engine.remembered(&long));
    let usage = engine.memory().usage();
    assert!(usage.held_pages <= usage.pages && usage.running_pages == 0, "{usage:?}");
    let mut session = Session::new();
    session.extend(&mut engine, &vec![3; 500], Wanted::Last, |_, _| CONTINUE).unwrap();
}
