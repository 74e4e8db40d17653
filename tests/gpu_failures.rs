//! What happens when a GPU is not there, too small, or lost: one clear error where it was named, the CPU where it was not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use std::process::{Command, Output};
use std::sync::Mutex;

use golden_case::{exact, fixture, furthest, gpu_options, greedy, ids, load, reference};
use rynd::engine::{EngineConfig, GpuChoice, GpuOptions, Listing, Session};

/// `rynd run` on a tiny model, greedy, with these arguments and environment.
fn run(model: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let prompt: Vec<String> = ids(&reference(model)["prompts"]["short"]["ids"]).iter().map(u32::to_string).collect();
    let file = fixture(&format!("models/{model}/model.gguf"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.arg("run").arg(file).args(["--ids", &prompt.join(","), "--print-ids", "-n", "24", "--temp", "0"]);
    command
        .args(["--ignore-eos", "--kv", "f32", "--cache-disk", "0"])
        .args(arguments)
        .envs(environment.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Failed with one line that holds these words.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    words.iter().for_each(|word| assert!(stderr.contains(word), "'{word}' is not in: {stderr}"));
}

/// The reference's greedy ids.
fn expected(model: &str) -> String {
    let ids: Vec<String> = ids(&reference(model)["greedy"]["short"]["ids"]).iter().map(u32::to_string).collect();
    ids.join(" ")
}

const NO_DRIVER: [(&str, &str); 2] = [("VK_ICD_FILENAMES", "/nowhere.json"), ("VK_DRIVER_FILES", "/nowhere.json")];

#[test]
fn without_an_adapter_a_named_gpu_is_an_error_and_auto_is_the_cpu() {
    assert_refused(&run("qwen2", &["--gpu", "0"], &NO_DRIVER), &["no GPU 0", "rynd devices"]);
    let auto = run("qwen2", &["--gpu", "auto"], &NO_DRIVER);
    assert_eq!(text(&auto.stdout), expected("qwen2"));
    let stderr = text(&auto.stderr);
    assert!(stderr.contains("running on the CPU") && stderr.lines().count() == 1, "{stderr}");
    // Who did not ask is not told.
    assert_eq!(text(&run("qwen2", &[], &NO_DRIVER).stderr), "");
    let mut devices = Command::new(env!("CARGO_BIN_EXE_rynd"));
    let devices = devices.arg("devices").envs(NO_DRIVER).output().unwrap();
    assert!(text(&devices.stdout).contains("no adapter was found"), "{}", text(&devices.stdout));
}

#[test]
fn wrong_gpu_flags_are_usage_errors() {
    for arguments in [["--gpu", "all"], ["--gpu", "0,0"], ["--gpu-layers", "few"], ["--gpu-memory", "8Q"]] {
        assert_eq!(run("qwen2", &arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_gpu_that_is_not_there_or_too_small_is_named() {
    if gpu_options().is_none() {
        return;
    }
    assert_refused(&run("qwen2", &["--gpu", "40"], &[]), &["no GPU 40", "rynd devices"]);
    assert_refused(&run("qwen2", &["--gpu", "0", "--gpu-memory", "1M"], &[]), &["--gpu-memory", "room for 0"]);
    let auto = run("qwen2", &["--gpu-memory", "1M"], &[("RYND_GPU_SOFTWARE", "1")]);
    assert_eq!(text(&auto.stdout), expected("qwen2"));
    let stderr = text(&auto.stderr);
    assert!(stderr.contains("running on the CPU") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn flags_place_layers_and_memory_stays_within_its_budget() {
    if gpu_options().is_none() {
        return;
    }
    let with = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = run("qwen3moe", arguments, environment);
        assert_eq!(text(&output.stdout), expected("qwen3moe"), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let copies = [("RYND_GPU_COPIES", "2")];
    let layers = load("qwen3moe", &exact()).plan().layers + 1;
    let all = with(&["--gpu", "0"], &[]);
    assert!(all.contains(&format!("{layers} of {layers} layers")), "{all}");
    assert!(with(&["--gpu", "0", "--gpu-layers", "2"], &[]).contains(&format!("2 of {layers} layers")));
    let both = with(&["--gpu", "0,1"], &copies);
    assert!(both.contains("GPU 0") && both.contains("GPU 1"), "{both}");
    with(&["--gpu", "0", "--cpu-experts"], &[]);
    // Auto, where software counts as hardware: one GPU is enough.
    let auto = with(&["--gpu", "auto"], &[copies[0], ("RYND_GPU_SOFTWARE", "1")]);
    assert!(auto.contains("GPU 0") && !auto.contains("GPU 1"), "{auto}");
    let small = with(&["--gpu", "0", "--gpu-memory", "70M", "-c", "512", "-b", "16"], &[]);
    assert!(small.contains("of 70.0 MB"), "{small}");
}

/// What the engine told of leaving its GPUs.
static TOLD: Mutex<Vec<String>> = Mutex::new(vec![]);

fn remember(line: &str) {
    TOLD.lock().unwrap().push(line.to_owned());
}

#[test]
fn a_lost_device_is_an_error_where_it_was_named_and_else_the_cpu_goes_on() {
    let Some(gpu) = gpu_options() else { return };
    let reference = reference("qwen3moe");
    let prompt = ids(&reference["prompts"]["long"]["ids"]);
    let expected = ids(&reference["greedy"]["long"]["ids"]);

    let mut engine = load("qwen3moe", &EngineConfig { gpu: gpu.clone(), ..exact() });
    let mut session = Session::new();
    session.sync(&mut engine, &prompt[..30]).unwrap();
    engine.gpus()[0].device().lose();
    let error = session.sync(&mut engine, &prompt).unwrap_err().to_string();
    assert!(error.contains("was lost or failed") && error.contains("--gpu off"), "{error}");

    let listing = Some(Listing { copies: 1, software: true });
    let gpu = GpuOptions { choice: GpuChoice::Auto, listing, ..gpu };
    let mut engine = load("qwen3moe", &EngineConfig { gpu, notice: remember, ..exact() });
    assert_eq!(engine.gpus().len(), 1);
    let (mut session, mut other) = (Session::new(), Session::new());
    session.sync(&mut engine, &prompt[..30]).unwrap();
    engine.gpus()[0].device().lose();
    let logits = session.sync(&mut engine, &prompt).unwrap().to_vec();
    assert!(engine.gpus().is_empty());
    assert_eq!(TOLD.lock().unwrap().len(), 1);
    let mut cpu = load("qwen3moe", &exact());
    assert!(furthest(other.sync(&mut cpu, &prompt).unwrap(), &logits) < 1e-4);
    assert_eq!(greedy(&mut engine, &prompt, expected.len()), expected);
}
