//! The importance matrix against llama-imatrix's: the same text and model, and files read both ways.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rynd::engine::{Engine, EngineConfig};
use rynd::quantize::imatrix::{Entry, Imatrix};
use rynd::quantize::{QuantizeError, collect};
use rynd::tokenizer::{Encode, Tokenizer, Vocab};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rynd-imatrix-{}-{name}", std::process::id()))
}

fn reference() -> Imatrix {
    Imatrix::read(&fixture("quantize/qwen3moe.imatrix.gguf")).unwrap()
}

/// The matrix of six chunks of 64 tokens of the fixture's text.
fn collected(batch: usize, output: bool) -> Imatrix {
    let config = EngineConfig {
        exact: true,
        context: Some(64),
        batch,
        threads: Some(2),
        observe_inputs: true,
        ..EngineConfig::default()
    };
    let mut engine = Engine::load(&fixture("models/qwen3moe/model.gguf"), &config).unwrap();
    let tokenizer = Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap();
    let text = std::fs::read_to_string(fixture("quantize/text.py")).unwrap();
    let ids = tokenizer.encode(&text, Encode { add_special: true, parse_special: false });
    for chunk in ids.chunks_exact(64).take(6) {
        collect::read_chunk(&mut engine, chunk, |_, _| ControlFlow::Continue(())).unwrap();
    }
    collect::collected(&engine, vec!["text.py".into()], 6, 64, output)
}

/// The largest relative difference of sums, and whose; counts must be equal.
fn furthest(ours: &Imatrix, theirs: &Imatrix) -> (f32, String) {
    assert_eq!(ours.entries.keys().collect::<Vec<_>>(), theirs.entries.keys().collect::<Vec<_>>());
    let mut furthest = (0.0_f32, String::new());
    for (name, theirs) in &theirs.entries {
        let ours = &ours.entries[name];
        assert_eq!(ours.counts, theirs.counts, "{name}");
        assert_eq!(ours.sums.len(), theirs.sums.len(), "{name}");
        for (a, b) in ours.sums.iter().zip(&theirs.sums) {
            let off = (a - b).abs() / b.max(1e-3);
            if off > furthest.0 {
                furthest = (off, name.clone());
            }
        }
    }
    furthest
}

#[test]
fn a_matrix_equals_llama_imatrix_on_the_same_text_for_any_batch() {
    for batch in [64, 20, 1] {
        let ours = collected(batch, false);
        let (off, name) = furthest(&ours, &reference());
        assert!(off < 1e-4, "batch {batch}: {off} in {name}");
        assert_eq!((ours.chunks, ours.chunk_tokens), (6, 64));
    }
}

#[test]
fn the_output_matrix_is_measured_on_request() {
    let imatrix = collected(64, true);
    assert_eq!(imatrix.entries["output.weight"].counts, [384.0]);
    assert_eq!(imatrix.entries.len(), reference().entries.len() + 1);
}

#[test]
fn what_is_written_is_read_back() {
    let path = file("back.gguf");
    let mut imatrix = reference();
    imatrix.write(&path).unwrap();
    assert_eq!(Imatrix::read(&path).unwrap(), imatrix);
    imatrix.datasets.push("another.txt".into());
    imatrix.write(&path).unwrap();
    assert_eq!(Imatrix::read(&path).unwrap().datasets, ["text.py", "another.txt"]);
}

#[test]
fn the_older_format_says_the_same() {
    let old = Imatrix::read(&fixture("quantize/qwen3moe.imatrix.dat")).unwrap();
    let new = reference();
    assert_eq!(old.entries.len(), new.entries.len());
    assert_eq!((old.chunks, &old.datasets[..]), (6, &["text.py".to_owned()][..]));
    for name in new.entries.keys() {
        let pairs = old.importance(name).unwrap().into_iter().zip(new.importance(name).unwrap());
        let off = pairs.map(|(a, b)| (a - b).abs() / b.max(1e-6)).fold(0.0, f32::max);
        assert!(off < 1e-5, "{name}: {off}");
    }
}

#[test]
fn experts_that_the_text_never_reached_count_alike_and_are_told() {
    let mut imatrix = Imatrix::default();
    let entry = Entry { sums: vec![8.0, 2.0, 0.0, 0.0, 0.0, 9.0], counts: vec![2.0, 0.0, 3.0] };
    imatrix.entries.insert("blk.0.ffn_up_exps.weight".into(), entry);
    let all = Entry { sums: vec![1.0], counts: vec![1.0] };
    imatrix.entries.insert("blk.0.attn_q.weight".into(), all);
    assert_eq!(imatrix.importance("blk.0.ffn_up_exps.weight").unwrap(), [4.0, 1.0, 1.0, 1.0, 0.0, 3.0]);
    assert_eq!(imatrix.unreached().collect::<Vec<_>>(), [("blk.0.ffn_up_exps.weight", 1, 3)]);
    assert!(imatrix.importance("blk.1.attn_q.weight").is_none());
}

#[test]
fn what_is_no_matrix_is_refused_by_name() {
    let error = |path: &Path| Imatrix::read(path).unwrap_err();
    let model = fixture("models/qwen2/model.gguf");
    assert!(matches!(error(&model), QuantizeError::Imatrix { .. }));
    assert!(error(&model).to_string().contains("no importance matrix"));
    assert!(error(&file("missing.gguf")).to_string().contains("missing.gguf"));
    let bytes = std::fs::read(fixture("quantize/qwen3moe.imatrix.dat")).unwrap();
    let path = file("cut.dat");
    for cut in [0, 3, 4, 30, 1000, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let error = error(&path).to_string();
        assert!(error.contains("cut.dat") && error.contains("importance matrix"), "{cut}: {error}");
    }
    // A count that no file can hold.
    let mut huge = 1_i32.to_le_bytes().to_vec();
    huge.extend([i32::MAX.to_le_bytes(), i32::MAX.to_le_bytes()].concat());
    std::fs::write(&path, huge).unwrap();
    assert!(error(&path).to_string().contains("importance matrix"));
}
