//! Plans of models that fit no machine here: sizes, placement and speed, against figures published or measured elsewhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod network;
mod shapes;
mod waves;

use std::process::{Command, Output};

use rynd::experts::cost::{self, Context, Hits};
use rynd::experts::rig::Rig;
use rynd::experts::shape::Shape;
use rynd::sizes;
use serde_json::Value;
use shapes::{Model, Tensor};

const Q8_32K: Context = Context { tokens: 32_768, bytes_per_value: 34.0 / 32.0 };
const F16_32K: Context = Context { tokens: 32_768, bytes_per_value: 2.0 };

fn shape(model: &Model, tensors: &[Tensor]) -> Shape {
    Shape::read(&shapes::outline(model, tensors).0).unwrap()
}

#[track_caller]
fn near(found: f64, wanted: f64, tolerance: f64) {
    assert!((found / wanted - 1.0).abs() <= tolerance, "{found} is not within {tolerance} of {wanted}");
}

/// Decode speeds of text that wanders and text that stays, at an empty context.
fn speeds(shape: &Shape, rig: &Rig, context: Context) -> [f64; 2] {
    let placed = cost::place(shape, rig, context);
    [cost::WANDERS, cost::STAYS].map(|exponent| {
        let hits = cost::hits(shape, &placed, exponent);
        cost::decode(shape, rig, &placed, context, 0, hits).tokens_per_second
    })
}

#[test]
fn file_sizes_follow_from_the_header() {
    let (big, next, small) = (shapes::coder_480b(), shapes::coder_next(), shapes::coder_30b());
    // (model, tensors, GB of the file, MB of an expert, active GB a token)
    let rows = [
        (&big, big.quantised("Q4_K_M"), 290.8, 28.57, 21.0),
        (&big, big.quantised("Q3_K_M"), 228.7, 22.46, 16.6),
        (&big, big.mixed("IQ3_XXS", "Q4_K_M"), 195.9, 19.01, 16.2),
        (&next, next.quantised("Q4_K_M"), 48.5, 1.90, 2.38),
        (&small, small.quantised("Q4_K_M"), 18.6, 2.86, 1.93),
    ];
    for (model, tensors, file, expert, active) in rows {
        let (outline, bytes) = shapes::outline(model, &tensors);
        let shape = Shape::read(&outline).unwrap();
        near(bytes as f64 / 1e9, file, 0.01);
        near(shape.tensor_bytes as f64, bytes as f64, 0.001);
        near(shape.experts().unwrap().2 as f64 / 1e6, expert, 0.01);
        near((shape.dense_bytes() + shape.expert_bytes_per_token()) as f64 / 1e9, active, 0.04);
    }
}

#[test]
fn caches_and_state_follow_from_the_header() {
    let cache = |model: Model, per_value: f64| {
        let shape = shape(&model, &model.quantised("Q4_K_M"));
        (shape.kv_values(1) as f64 * per_value, shape.state_bytes() as f64)
    };
    assert_eq!(cache(shapes::coder_480b(), 2.0), (253_952.0, 0.0));
    assert_eq!(cache(shapes::coder_30b(), 2.0), (98_304.0, 0.0));
    let (kv, state) = cache(shapes::coder_next(), 2.0);
    assert_eq!(kv, 24_576.0);
    // 32 heads of 128 x 128 in each of 36 layers, and three columns of each convolution.
    assert_eq!(state, 36.0 * 4.0 * (4096.0 * 128.0 + 3.0 * 8192.0));
}

#[test]
fn the_480b_on_a_mac_needs_the_disk_at_four_bits_and_fits_at_three() {
    let (big, rig) = (shapes::coder_480b(), Rig::named("m3-ultra-256").unwrap());
    let four = shape(&big, &big.quantised("Q4_K_M"));
    assert!(!cost::place(&four, &rig, Q8_32K).fits());
    let [slow, fast] = speeds(&four, &rig, Q8_32K);
    near(slow, 7.0, 0.1);
    near(fast, 13.0, 0.1);
    let three = shape(&big, &big.mixed("IQ3_XXS", "Q4_K_M"));
    assert!(cost::place(&three, &rig, Q8_32K).fits());
    near(speeds(&three, &rig, Q8_32K)[0], 28.0, 0.1);
}

#[test]
fn the_480b_on_four_cards_fits_because_tiers_are_exclusive() {
    let big = shapes::coder_480b();
    let four = shape(&big, &big.quantised("Q4_K_M"));
    for (rig, slow, fast) in [("4x24g-256-2ch", 9.0, 17.0), ("4x24g-256-8ch", 24.0, 29.0)] {
        let rig = Rig::named(rig).unwrap();
        let placed = cost::place(&four, &rig, F16_32K);
        assert!(placed.fits());
        assert!(four.tensor_bytes > rig.ram_bytes, "with a copy in RAM of what is in VRAM it would not");
        near(placed.vram.expert_bytes as f64 / 1e9, 72.0, 0.1);
        near(placed.ram.expert_bytes as f64 / 1e9, 211.0, 0.1);
        let [low, high] = speeds(&four, &rig, F16_32K);
        near(low, slow, 0.1);
        near(high, fast, 0.1);
    }
}

#[test]
fn coder_next_on_one_card_gains_with_its_hit_rate() {
    let next = shapes::coder_next();
    let (shape, rig) = (shape(&next, &next.quantised("Q4_K_M")), Rig::named("1x24g-128").unwrap());
    let placed = cost::place(&shape, &rig, F16_32K);
    assert!(placed.fits() && placed.gpu_layers == 48);
    for (vram, speed) in [(0.0, 49.0), (0.35, 63.0), (0.75, 96.0)] {
        let hits = Hits { vram, memory: 1.0 };
        near(cost::decode(&shape, &rig, &placed, F16_32K, 0, hits).tokens_per_second, speed, 0.1);
    }
}

#[test]
fn a_prompt_streams_through_the_bus_at_its_rate() {
    let big = shapes::coder_480b();
    let shape = shape(&big, &big.quantised("Q4_K_M"));
    let mut rig = Rig::named("4x24g-256-2ch").unwrap();
    // Room for attention and cache, and for no expert.
    rig.vram_bytes = vec![shape.dense_bytes() + cost::cache_bytes(&shape, F16_32K)];
    rig.ram_bytes = 400 << 30;
    let placed = cost::place(&shape, &rig, F16_32K);
    assert_eq!((placed.vram.expert_bytes, placed.gpu_layers), (0, 62));
    for (batch, speed) in [(2048, 181.0), (4096, 361.0), (8192, 723.0)] {
        let prefill = cost::prefill(&shape, &rig, &placed, batch);
        near(prefill.tokens_per_second, speed, 0.05);
        assert_eq!(prefill.bound, "bus");
    }
}

#[test]
fn a_prompt_is_shared_by_cards_and_cpu_where_both_are_known() {
    let big = shapes::coder_480b();
    let shape = shape(&big, &big.quantised("Q4_K_M"));
    let alone = Rig::named("4x24g-256-8ch").unwrap();
    let placed = cost::place(&shape, &alone, F16_32K);
    let both = Rig { cpu_ops: Some(4e12), ..alone.clone() };
    for batch in [512, 2048, 8192] {
        let streamed = cost::prefill(&shape, &alone, &placed, batch);
        let shared = cost::prefill(&shape, &both, &placed, batch);
        assert_eq!((streamed.way, shared.way), (cost::Way::Streamed, cost::Way::Split));
        assert!(shared.tokens_per_second > 1.05 * streamed.tokens_per_second, "{streamed:?} {shared:?}");
    }
    // A CPU too slow to help leaves the work to the cards, and one token is no batch.
    let slow = Rig { cpu_ops: Some(1e9), ..alone.clone() };
    let [streamed, shared] = [&alone, &slow].map(|rig| cost::prefill(&shape, rig, &placed, 4096).tokens_per_second);
    near(shared, streamed, 0.01);
    assert_ne!(cost::prefill(&shape, &both, &placed, 1).way, cost::Way::Streamed);
}

#[test]
fn nothing_is_lost_or_placed_twice() {
    let models = [shapes::coder_480b(), shapes::coder_next(), shapes::coder_30b()];
    for model in &models {
        let shape = shape(model, &model.quantised("Q4_K_M"));
        for vram in ["0", "1G", "7G", "24G"] {
            for ram in ["1G", "8G", "64G", "512G"] {
                let mut rig = Rig::cpu_only("x", sizes::parse(ram).unwrap(), 30e9, 1e9);
                rig.set_cards(&[sizes::parse(vram).unwrap(); 2]);
                let placed = cost::place(&shape, &rig, F16_32K);
                let sum = placed.vram.bytes() + placed.ram.bytes() + placed.disk.bytes();
                assert_eq!(sum, shape.tensor_bytes + cost::cache_bytes(&shape, F16_32K), "{vram} {ram}");
                assert!(placed.vram.bytes() <= rig.vram());
                let held = placed.ram.bytes() + cost::OWN_BYTES;
                assert!(held <= rig.ram_bytes + placed.short_bytes, "{vram} {ram}: {placed:?}");
            }
        }
    }
}

#[test]
fn missing_parts_are_guessed_and_told() {
    let big = shapes::coder_480b();
    let tensors = big.quantised("Q4_K_M");
    let whole = shape(&big, &tensors);
    let folder = tempfile::tempdir().unwrap();
    let first = shapes::write_sparse(folder.path(), &shapes::parts(&big, &tensors, 6));
    for no in 4..=6 {
        std::fs::remove_file(folder.path().join(format!("m-0000{no}-of-00006.gguf"))).unwrap();
    }
    let text = stdout(rynd(&["plan", first.to_str().unwrap(), "--rig", "4x24g-256-8ch"], &[]));
    assert!(text.contains("3 of 6 files were read"), "{text}");
    let json = stdout(rynd(&["plan", first.to_str().unwrap(), "--rig", "4x24g-256-8ch", "--json"], &[]));
    let json: Value = serde_json::from_str(&json).unwrap();
    near(json["model"]["tensor_bytes"].as_f64().unwrap(), whole.tensor_bytes as f64, 0.03);
    // The metadata are in the first part.
    std::fs::remove_file(&first).unwrap();
    let error = rynd(&["plan", folder.path().join("m-00002-of-00006.gguf").to_str().unwrap()], &[]);
    let stderr = String::from_utf8(error.stderr).unwrap();
    assert!(stderr.contains("m-00001-of-00006.gguf") && stderr.contains("shard 1 of 6 is missing"), "{stderr}");
}

#[test]
fn a_sparse_480b_opens_plans_and_inspects() {
    let big = shapes::coder_480b();
    let folder = tempfile::tempdir().unwrap();
    let first = shapes::write_sparse(folder.path(), &shapes::parts(&big, &big.quantised("Q4_K_M"), 6));
    let first = first.to_str().unwrap();
    let text = stdout(rynd(&["plan", first, "--rig", "m3-ultra-256", "--kv", "q8_0", "--what-if"], &[]));
    for words in ["160 experts of 28.5 MB each, 8 used", "It does not fit", "experts stay on disk", "IQ3_XXS"] {
        assert!(text.contains(words), "'{words}' is not in: {text}");
    }
    let text = stdout(rynd(&["inspect", first, "--tensors"], &[]));
    assert!(text.contains("in 6 parts") && text.contains("blk.61.ffn_down_exps.weight"), "{text}");
}

#[test]
fn flags_change_the_machine_and_bad_ones_are_refused() {
    let small = shapes::coder_30b();
    let folder = tempfile::tempdir().unwrap();
    let first = shapes::write_sparse(folder.path(), &shapes::parts(&small, &small.quantised("Q4_K_M"), 2));
    let first = first.to_str().unwrap();
    let plan = |flags: &[&str]| -> Value {
        let machine = ["plan", first, "--rig", "1x24g-128", "--json"];
        serde_json::from_str(&stdout(rynd(&[&machine, flags].concat(), &[]))).unwrap()
    };
    let on_card = plan(&[]);
    assert_eq!(on_card["fits"], true);
    assert_eq!(on_card["placement"]["ram"]["expert_bytes"], 0);
    let without = plan(&["--vram", "0", "--ram", "8G", "--disk", "2", "--hits", "50"]);
    assert_eq!(without["fits"], false);
    assert_eq!(without["placement"]["vram"]["expert_bytes"], 0);
    let experts = 8.0 * on_card["model"]["expert_bytes"].as_f64().unwrap() * 48.0;
    near(without["decode"][0]["disk_bytes"].as_f64().unwrap(), experts / 2.0, 0.01);
    let short = plan(&["--vram", "0", "--ram", "1G", "--ctx", "256K"]);
    assert!(short["placement"]["short_bytes"].as_u64().unwrap() > 20 << 30);
    for flags in [["--rig", "abacus"], ["--bus", "fast"], ["--ram", "much"], ["--hits", "120"], ["--ctx", "0"]] {
        assert_eq!(rynd(&[&["plan", first], &flags[..]].concat(), &[]).status.code(), Some(2), "{flags:?}");
    }
}

/// Runs the program with a cache and configuration of its own.
fn rynd(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.args(arguments).env("RYND_HOME", home.path()).envs(env.iter().copied());
    command.output().unwrap()
}

#[track_caller]
fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
