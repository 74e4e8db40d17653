//! `rynd experts`: what the commands print, write and refuse.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const QWEN: &str = "tests/fixtures/traces/qwen3-30b-a3b.csv.gz";
const GEMMA: &str = "tests/fixtures/traces/gemma-4-26b-a4b.csv.gz";

fn rynd(arguments: &[&str]) -> Output {
    rynd_at(&std::env::temp_dir().join("rynd-no-home"), arguments)
}

fn rynd_at(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.arg("experts").args(arguments).env("RYND_HOME", home).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = rynd(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn error(arguments: &[&str]) -> String {
    let output = rynd(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "one message: {error}");
    error
}

#[test]
fn replay_prints_a_line_for_each_policy_and_the_same_as_json() {
    let arguments = ["replay", QWEN, "--vram", "20%,3.5G", "--policy", "lru,crf-gate,belady", "--ram", "8G"];
    let table = text(&arguments);
    assert_eq!(table.matches("crf-gate").count(), 2, "{table}");
    let json: serde_json::Value = serde_json::from_str(&text(&[&arguments[..], &["--json"]].concat())).unwrap();
    let policies = json["results"][0]["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 3);
    let steady = |i: usize| policies[i]["windows"]["second_half"]["hit_rate"].as_f64().unwrap();
    assert!(steady(2) > steady(1) && table.contains(&format!("{:.1}", 100.0 * steady(1))));
    assert!(policies[1]["windows"]["decode"]["counts"]["disk_bytes"].as_u64().unwrap() > 0, "8 GB hold not all");
}

#[test]
fn show_draws_a_line_for_each_layer_and_compares_texts() {
    let one = text(&["show", QWEN]);
    assert!(one.lines().filter(|line| line.len() > 100).count() >= 48, "{one}");
    assert!(one.contains("shuffled") && one.contains("an expert returns after"), "{one}");
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("experts.html");
    let two = ["show", &format!("a={QWEN}"), &format!("b<i>={QWEN}")].map(str::to_owned);
    let two: Vec<&str> = two.iter().map(String::as_str).collect();
    assert!(text(&two).contains("a / b<i>"));
    assert_eq!(text(&[&two[..], &["--html", page.to_str().unwrap()]].concat()), "", "the page is the output");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains(r#""label":"b\u003ci>""#), "no label ends the script");
    assert!(!html.contains("/*DATA*/null") && !html.contains("https:"));
}

#[test]
fn what_can_not_be_read_or_compared_is_one_clear_error() {
    assert!(error(&["show", "no-such.trace"]).contains("can not read no-such.trace"));
    assert!(error(&["show", "Cargo.toml"]).contains("Cargo.toml: this is no trace"));
    assert!(error(&["show", QWEN, GEMMA]).contains("different models"));
    assert!(error(&["replay", QWEN, GEMMA]).contains("different models"));
    assert!(error(&["replay", QWEN, "--policy", "best"]).contains("unknown policy 'best'"));
    assert!(error(&["show", "tests/fixtures/models/qwen3/model.gguf"]).contains("no experts"));
    assert!(error(&["show", "tests/fixtures/models/qwen3moe/model.gguf"]).contains("nothing was learned"));
    assert_eq!(rynd(&["replay", QWEN, "--vram", "lots"]).status.code(), Some(2));
}

#[test]
fn record_writes_a_trace_that_show_and_replay_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.trace.gz");
    let out = path.to_str().unwrap();
    let model = "tests/fixtures/models/qwen3moe/model.gguf";
    let arguments = ["record", model, "-p", "def fib(n): return", "-n", "20", "--temp", "0", "-o", out, "--gpu", "off"];
    let found = rynd_at(folder.path(), &arguments);
    assert!(found.status.success(), "{found:?}");
    // The last token is sampled and not run.
    assert!(text(&["show", out]).contains("19 generated tokens"));
    let learned = rynd_at(folder.path(), &["show", model]);
    assert!(learned.status.success(), "a run on the CPU leaves heat behind: {learned:?}");
    assert!(text(&["replay", out, "--vram", "25%"]).contains("belady"));
}
