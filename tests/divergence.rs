//! Divergence statistics and the file of reference logits against llama-perplexity's own.
//!
//! `base.logits` is what it wrote for the Q4_K_M file of the tiny qwen2, `kld.txt` what it then printed for the F32 file, with
//! keys and values in f32 as in our exact mode.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rynd::engine::{Engine, EngineConfig, Session, Wanted};
use rynd::quantize::divergence::{Estimate, Report, TokenScore, score};
use rynd::quantize::reference_logits::{Evaluated, LogitsError, LogitsReader, LogitsWriter};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Label -> the numbers behind it.
fn printed() -> HashMap<String, Vec<f64>> {
    let text = std::fs::read_to_string(fixture("quantize/kld.txt")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(label, numbers)| {
            let numbers = numbers.replace(['%', '\u{b1}'], " ");
            let label = label.split_whitespace().collect::<Vec<_>>().join(" ");
            (label, numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect())
        })
        .collect()
}

/// Logits of the scored positions of every chunk.
fn logits(what: &Evaluated) -> Vec<Vec<f32>> {
    let config = EngineConfig { exact: true, context: Some(what.context), threads: Some(1), ..EngineConfig::default() };
    let mut engine = Engine::load(&fixture("models/qwen2/model.gguf"), &config).unwrap();
    let chunks = what.tokens.chunks_exact(what.context);
    chunks
        .map(|ids| {
            let mut session = Session::new();
            let mut all = vec![];
            session
                .extend(&mut engine, &ids[..what.context - 1], Wanted::All, |_, logits| {
                    all.extend_from_slice(logits);
                    ControlFlow::Continue(())
                })
                .unwrap();
            session.clear();
            all.split_off(what.first() * what.vocab)
        })
        .collect()
}

#[test]
fn the_report_equals_what_llama_perplexity_prints() {
    let bytes = std::fs::read(fixture("quantize/base.logits")).unwrap();
    let mut reader = LogitsReader::new(Cursor::new(bytes)).unwrap();
    let what = reader.evaluated().clone();
    assert_eq!((what.context, what.vocab, what.chunks(), what.rows()), (64, 512, 6, 31));
    let mut scores: Vec<TokenScore> = vec![];
    for (chunk, logits) in logits(&what).iter().enumerate() {
        let rows = reader.next_chunk().unwrap().unwrap();
        let pairs = rows.into_iter().zip(logits.chunks_exact(what.vocab)).enumerate();
        scores.extend(pairs.map(|(row, (base, logits))| score(logits, base, what.target(chunk, row))));
    }
    assert!(reader.next_chunk().unwrap().is_none());

    let report = Report::new(&scores).unwrap();
    let printed = printed();
    let check = |label: &str, found: &[f64], tolerance: f64| {
        let expected = &printed[label];
        assert_eq!(expected.len(), found.len(), "{label}");
        for (e, f) in expected.iter().zip(found) {
            assert!((e - f).abs() <= tolerance * e.abs().max(0.01), "{label}: {found:?}, printed {expected:?}");
        }
    };
    let both = |e: Estimate| [e.value, e.error];
    let percent = |e: Estimate| [100.0 * e.value, 100.0 * e.error];
    check("Mean PPL(Q)", &both(report.perplexity), 1e-4);
    check("Mean PPL(base)", &both(report.base_perplexity), 1e-4);
    check("Cor(ln(PPL(Q)), ln(PPL(base)))", &[100.0 * report.correlation], 1e-4);
    check("Mean ln(PPL(Q)/PPL(base))", &both(report.ln_ratio), 1e-3);
    check("Mean PPL(Q)/PPL(base)", &both(report.ratio), 1e-4);
    check("Mean PPL(Q)-PPL(base)", &both(report.difference), 1e-3);
    check("Mean KLD", &both(report.kld.mean), 1e-3);
    check("Maximum KLD", &[report.kld.most], 1e-3);
    check("Minimum KLD", &[report.kld.least], 1e-3);
    for (percentile, value) in &report.kld.percentiles {
        let label = if *percentile == 50.0 { "Median KLD".into() } else { format!("{percentile:.1}% KLD") };
        if printed.contains_key(&label) {
            check(&label, &[*value], 2e-3);
        }
    }
    // Printed with three digits, some near zero.
    check("Mean \u{394}p", &percent(report.delta_p.mean), 0.1);
    check("Maximum \u{394}p", &[100.0 * report.delta_p.most], 5e-3);
    check("99.9% \u{394}p", &[100.0 * report.delta_p.percentiles[10].1], 5e-3);
    check("RMS \u{394}p", &percent(report.rms_delta_p), 1e-2); // three digits: half of the last is 0.8 % of the error bar
    check("Same top p", &percent(report.same_top), 1e-4);
}

#[test]
fn a_file_that_is_written_is_read_back_within_a_code_step() {
    let what = Evaluated { context: 8, vocab: 5, tokens: (0..16).map(|i| i % 5).collect() };
    let logits: Vec<f32> = (0..2 * 3 * 5).map(|i| ((i * 37 % 23) as f32 - 11.0) * 0.7).collect();
    let mut writer = LogitsWriter::new(vec![], what.clone()).unwrap();
    logits.chunks_exact(3 * 5).for_each(|chunk| writer.write(chunk).unwrap());
    let bytes = writer.finish().unwrap();

    let mut reader = LogitsReader::new(Cursor::new(&bytes)).unwrap();
    assert_eq!(*reader.evaluated(), what);
    let mut worst = 0.0_f64;
    for (chunk, logits) in logits.chunks_exact(3 * 5).enumerate() {
        for (row, (base, logits)) in reader.next_chunk().unwrap().unwrap().into_iter().zip(logits.chunks(5)).enumerate()
        {
            let score = score(logits, base, what.target(chunk, row));
            assert!(score.same_top && (score.nll - score.base_nll).abs() < 3e-4, "{score:?}");
            worst = worst.max(score.kld.abs());
        }
    }
    assert!(worst < 1e-4, "{worst}");
    for cut in [0, 4, 8, 19, 50, bytes.len() - 1] {
        let error = match LogitsReader::new(Cursor::new(&bytes[..cut])) {
            Err(error) => error,
            Ok(mut reader) => loop {
                match reader.next_chunk() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{cut} of {} bytes were enough", bytes.len()),
                    Err(error) => break error,
                }
            },
        };
        let clear = matches!(error, LogitsError::NotLogits | LogitsError::Header(_) | LogitsError::Truncated { .. });
        assert!(clear, "{cut}: {error}");
    }
}

#[test]
fn a_damaged_header_asks_for_no_memory() {
    let header = |numbers: [u32; 3]| {
        let mut bytes = b"_logits_".to_vec();
        numbers.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes
    };
    for numbers in [[u32::MAX, 512, u32::MAX], [512, u32::MAX, 1], [0, 512, 1], [512, 0, 1], [512, 512, 0]] {
        let error = LogitsReader::new(Cursor::new(header(numbers))).err().unwrap();
        assert!(matches!(error, LogitsError::Header(_)), "{numbers:?}: {error}");
    }
}
