//! What runs learn about a model's experts: none of it is lost when they end at the same time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Barrier;

use rynd::engine::{Engine, EngineConfig, ExpertOptions, Session};

const RUNS: usize = 24;
const IDS: [u32; 5] = [1, 2, 3, 4, 5];

#[test]
fn runs_that_end_at_the_same_time_lose_nothing_of_each_others_heat() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/qwen3moe/model.gguf");
    let experts = ExpertOptions { heat: Some(folder.path().join("experts")), ..ExpertOptions::default() };
    let config = EngineConfig { threads: Some(1), context: Some(64), experts, ..EngineConfig::default() };
    let end = Barrier::new(RUNS);
    std::thread::scope(|scope| {
        for _ in 0..RUNS {
            scope.spawn(|| {
                let mut engine = Engine::load(&model, &config).unwrap();
                Session::new().sync(&mut engine, &IDS).unwrap();
                end.wait();
                drop(engine);
            });
        }
    });
    let names = std::fs::read_dir(folder.path().join("experts")).unwrap().map(|entry| entry.unwrap().path());
    let (json, others): (Vec<_>, Vec<_>) = names.partition(|path| path.extension().is_some_and(|e| e == "json"));
    assert_eq!(json.len(), 1);
    assert!(others.iter().all(|path| path.extension().is_some_and(|e| e == "lock")), "{others:?}");
    let heat: serde_json::Value = serde_json::from_slice(&std::fs::read(&json[0]).unwrap()).unwrap();
    // Later runs make earlier ones count a little less: half after 8192 tokens.
    let (tokens, all) = (heat["tokens"].as_f64().unwrap(), (RUNS * IDS.len()) as f64);
    assert!((0.97 * all..=all).contains(&tokens), "{tokens} of {all} tokens");
    let picks: f64 = heat["picks"].as_array().unwrap()[0].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).sum();
    assert!((picks - 4.0 * tokens).abs() < 0.03 * picks, "{picks} picks in a layer of which a token takes four");
}
