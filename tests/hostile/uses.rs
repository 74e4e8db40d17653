//! What commands do with a model file, by the library: inspect, tokenize, run, perplexity, and for some quantize.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;

use rynd::chat::{Message, Template};
use rynd::engine::{Engine, EngineConfig, Session, Wanted};
use rynd::gguf::Gguf;
use rynd::quantize::{self, FileType, Job, Options, Recipe, Source, stream};
use rynd::tokenizer::{Encode, Tokenizer, Vocab};

/// Quantising takes a file; one mutant in so many is written to one.
const QUANTIZED: u64 = 4;
const TEXT: &str = "fn main() { println!(\"Hallo, Welt\"); }\n";

#[derive(Debug, PartialEq)]
pub enum Outcome {
    Good,
    /// The first error.
    Refused(String),
    /// A number that is none came out, and no error.
    NoNumber(&'static str),
}

/// Each use is tried, also when another one failed.
pub fn all(bytes: Vec<u8>, file: &Path, number: u64) -> Outcome {
    let quantised = match number % QUANTIZED {
        0 => {
            std::fs::write(file, &bytes).unwrap();
            quantize(file)
        }
        _ => Outcome::Good,
    };
    let gguf = match Gguf::from_bytes(Path::new("mutant.gguf"), bytes.into()) {
        Ok(gguf) => gguf,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let config = EngineConfig { threads: Some(1), context: Some(64), batch: 16, ..EngineConfig::default() };
    let outcomes = [inspect(&gguf, &config), tokenize(&gguf), run(&gguf, &config), quantised];
    let mut first = Outcome::Good;
    for outcome in outcomes {
        match (&first, outcome) {
            (_, Outcome::NoNumber(what)) => return Outcome::NoNumber(what),
            (Outcome::Good, outcome) => first = outcome,
            _ => {}
        }
    }
    first
}

fn refused(error: impl std::fmt::Display) -> Outcome {
    Outcome::Refused(error.to_string())
}

fn inspect(gguf: &Gguf, config: &EngineConfig) -> Outcome {
    for (key, value) in gguf.metadata() {
        black_box((key.len(), value.to_string().len()));
    }
    for tensor in gguf.tensors() {
        black_box((gguf.bytes(tensor).len(), tensor.elements()));
    }
    match Engine::outline(gguf, config) {
        Ok(outline) => {
            black_box(outline.plan.steps.len());
            Outcome::Good
        }
        Err(error) => refused(error),
    }
}

fn tokenize(gguf: &Gguf) -> Outcome {
    let tokenizer = match Vocab::from_gguf(gguf).map(Tokenizer::new) {
        Ok(Ok(tokenizer)) => tokenizer,
        Ok(Err(error)) => return refused(error),
        Err(error) => return refused(error),
    };
    let ids = tokenizer.encode(TEXT, Encode { parse_special: true, add_special: true });
    black_box(tokenizer.decode(&ids, true));
    black_box(tokenizer.decode(&[0, 1, 511, 512, u32::MAX], true));
    match Template::from_gguf(gguf, false).and_then(|template| {
        template.render(&[Message::user(TEXT)], None, true, &serde_json::Map::new()).map(|text| text.len())
    }) {
        Ok(_) => Outcome::Good,
        Err(error) => refused(error),
    }
}

/// A prompt with everybody's logits, as perplexity takes them, then four greedy tokens.
fn run(gguf: &Gguf, config: &EngineConfig) -> Outcome {
    let mut engine = match Engine::new(gguf.clone(), config) {
        Ok(engine) => engine,
        Err(error) => return refused(error),
    };
    let vocab = engine.plan().vocab;
    let mut ids: Vec<u32> = [1, 5, 250, 2, 40].into_iter().filter(|&id| id < vocab as u32).collect();
    if ids.is_empty() {
        return refused("no id of the vocabulary is used");
    }
    let mut session = Session::new();
    let mut score = 0.0;
    let scored = session.extend(&mut engine, &ids, Wanted::All, |_, logits| {
        for row in logits.chunks_exact(vocab) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&x| f64::from(x - most).exp()).sum();
            score += sum.ln() + f64::from(most - row[0]);
        }
        ControlFlow::Continue(())
    });
    if let Err(error) = scored {
        return refused(error);
    }
    if !score.is_finite() {
        return Outcome::NoNumber("the perplexity");
    }
    for _ in 0..4 {
        let next = match session.sync(&mut engine, &ids) {
            Ok(logits) if logits.iter().any(|logit| !logit.is_finite()) => return Outcome::NoNumber("a logit"),
            Ok(logits) => (0..).zip(&*logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id),
            Err(error) => return refused(error),
        };
        ids.push(next);
    }
    Outcome::Good
}

fn quantize(file: &Path) -> Outcome {
    let options = Options {
        recipe: Recipe::new(FileType::from_name("Q8_0").unwrap()),
        imatrix: None,
        allow_requantize: true,
        split_bytes: None,
    };
    let job = match Source::open(file).and_then(|source| Job::new(source, &options)) {
        Ok(job) => job,
        Err(error) => return refused(error),
    };
    if let Some(error) = job.refusal() {
        return refused(error);
    }
    let _ = quantize::job::check_room(file, job.bytes());
    match stream::run(&job, 1, &mut std::io::sink(), file, |_| ControlFlow::Continue(())) {
        Ok(()) => Outcome::Good,
        Err(error) => refused(error),
    }
}
