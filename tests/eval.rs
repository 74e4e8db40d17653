//! `rynd eval humaneval` from outside: the tiny model solves nothing, so these tests are about what is asked, kept, resumed
//! and refused. What passes and what fails is tested at the sandbox itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn model(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(format!("tests/fixtures/models/{name}/model.gguf")).display().to_string()
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("eval-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// So many problems of the benchmark's shape.
fn problems(path: &Path, n: usize) {
    let line = |i: usize| {
        let name = format!("f{i}");
        json!({
            "task_id": format!("HumanEval/{i}"),
            "prompt": format!("def {name}(x):\n    \"\"\" Return x. \"\"\"\n"),
            "entry_point": name,
            "canonical_solution": "    return x\n",
            "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        })
    };
    let lines: Vec<String> = (0..n).map(|i| line(i).to_string() + "\n").collect();
    std::fs::write(path, lines.concat()).unwrap();
}

fn command(model: &str, data: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.args(["eval", "humaneval", model, "-t", "1", "--data"]).arg(data).args(more).stdin(Stdio::null());
    command
}

fn report(output: Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_problem_gets_one_result_and_a_second_run_does_only_what_is_missing() {
    let folder = folder("resume");
    let (data, file) = (folder.join("problems.jsonl"), folder.join("results.jsonl"));
    problems(&data, 5);
    let flags = ["-n", "6", "--parallel", "2", "--json", "-v", "-o"];
    let run = |limit: &str| {
        let mut command = command(&model("qwen2"), &data, &flags);
        command.arg(&file).args(["--limit", limit]).output().unwrap()
    };
    let first = run("3");
    assert_eq!(String::from_utf8_lossy(&first.stderr).lines().count(), 3);
    let first = report(first);
    assert_eq!((&first["answered"], &first["problems"], &first["passed"]), (&json!(3), &json!(3), &json!(0)));
    let found = lines(&file);
    assert_eq!(found.len(), 1 + 3);
    assert_eq!(found[0], json!({"benchmark": "humaneval", "model": "model.gguf", "tokens": 6}));
    assert!(found[1..].iter().all(|line| line["passed"] == false && line["generated_tokens"].as_u64().unwrap() <= 6));

    // A line that was being written when the power went does not count.
    let mut text = std::fs::read_to_string(&file).unwrap();
    let last = text.trim_end().rfind('\n').unwrap() + 1;
    text.truncate(last + 20);
    std::fs::write(&file, &text).unwrap();
    let second = run("5");
    assert_eq!(String::from_utf8_lossy(&second.stderr).lines().count(), 3, "one was lost and two are new");
    assert_eq!(report(second)["answered"], 5);
    let mut tasks: Vec<String> = lines(&file)[1..].iter().map(|line| line["task_id"].to_string()).collect();
    tasks.sort();
    tasks.dedup();
    assert_eq!(tasks.len(), 5);
    assert!(run("5").stderr.is_empty());

    // Other settings are another measurement.
    let output = command(&model("qwen2"), &data, &["-n", "7", "-o"]).arg(&file).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("results.jsonl") && stderr.contains("another -o"), "{stderr}");
    assert_eq!(lines(&file).len(), 1 + 5);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_done() {
    let folder = folder("interrupt");
    let (data, file) = (folder.join("problems.jsonl"), folder.join("results.jsonl"));
    problems(&data, 40);
    let mut child = command(&model("qwen2"), &data, &["-n", "300", "--parallel", "1", "-v", "-o"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("HumanEval/"), "{line}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let done = lines(&file).len() - 1;
    assert!(0 < done && done < 40, "{done}");
    assert_eq!(text, format!("pass@1 0.0 (0 of {done}, {} of 40 problems not done)\n", 40 - done));
}

#[test]
fn bad_input_gives_one_line_that_names_it() {
    let folder = folder("bad");
    let (good, broken, empty) = (folder.join("good.jsonl"), folder.join("broken.jsonl"), folder.join("empty.jsonl"));
    problems(&good, 1);
    std::fs::write(&broken, std::fs::read_to_string(&good).unwrap() + "{\"task_id\": 5}\n").unwrap();
    std::fs::write(&empty, "\n").unwrap();
    let gz = folder.join("broken.jsonl.gz");
    std::fs::write(&gz, "no gzip").unwrap();
    let notes = folder.join("notes.txt");
    std::fs::write(&notes, "my notes").unwrap();
    let notes = notes.display().to_string();
    let m = model("qwen2");
    let cases: &[(&Path, &[&str], &[&str])] = &[
        (&folder.join("none.jsonl"), &[], &["none.jsonl"]),
        (&broken, &[], &["broken.jsonl", "line 2"]),
        (&empty, &[], &["empty.jsonl", "no problems"]),
        (&gz, &[], &["broken.jsonl.gz", "gzip"]),
        (&good, &["--python", "no-such-python"], &["no-such-python", "--python"]),
        (&good, &["--python", "true"], &["true", "--python"]),
        (&good, &["-o", &notes], &["notes.txt", "another -o"]),
        (&good, &["-c", "8"], &["context of 8"]),
    ];
    for (data, more, words) in cases {
        let output = command(&m, data, more).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {stderr}");
        assert!(output.stdout.is_empty() && stderr.trim_end().lines().count() == 1, "{more:?}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{words:?} are not in: {stderr}");
    }
    assert_eq!(std::fs::read_to_string(notes).unwrap(), "my notes");
}
