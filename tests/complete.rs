//! `rynd complete`, once: the ways to name a cursor, what goes into the prompt, what comes out; and five real functions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn model() -> String {
    fixture("models/qwen2/model.gguf").display().to_string()
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("complete-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn complete(model: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rynd"))
        .args(["complete", model, "-t", "1", "--cache-disk", "0"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str], input: &str) -> Vec<Value> {
    let text = stdout(complete(&model(), &[&["--json"], arguments].concat(), input));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_file_a_pair_of_texts_and_a_marker_name_the_same_cursor() {
    let (prefix, suffix) = ("é = 1\ndef f(x):\n    ", "\n    return x\n");
    let file = folder("cursor").join("a.py");
    std::fs::write(&file, format!("{prefix}{suffix}")).unwrap();
    let file = file.display().to_string();
    let pair = stdout(complete(&model(), &["-n", "9", "--prefix", prefix, "--suffix", suffix], ""));
    assert!(pair.len() > 1, "the tiny model says something here");
    let marked = format!("{prefix}<CURSOR>{suffix}");
    assert_eq!(stdout(complete(&model(), &["-n", "9"], &marked)), pair);
    let marked = format!("{prefix}%%{suffix}");
    assert_eq!(stdout(complete(&model(), &["-n", "9", "--marker", "%%"], &marked)), pair);
    assert_eq!(
        stdout(complete(&model(), &["-n", "9", "--file", &file, "--no-repo", "--line", "3", "--col", "5"], "")),
        pair
    );
    assert_eq!(stdout(complete(&model(), &["-n", "9", "--file", &file, "--no-repo", "--line", "3"], "")), pair);
}

#[test]
fn candidates_share_their_prompt_and_are_repeatable() {
    let flags = ["--candidates", "3", "--temp", "1.5", "--seed", "5", "-n", "8"];
    let first = json(&flags, "x = <CURSOR>\n");
    assert_eq!(first.len(), 3);
    let texts: Vec<&str> = first.iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert!(texts.iter().any(|text| *text != texts[0]), "{texts:?}");
    let cached = |c: &Value| c["cached_tokens"].as_u64().unwrap();
    let prompt = first[0]["prompt_tokens"].as_u64().unwrap();
    assert_eq!((cached(&first[0]), cached(&first[1]), cached(&first[2])), (0, prompt - 1, prompt - 1));
    let again = json(&flags, "x = <CURSOR>\n");
    assert!(again.iter().zip(&texts).all(|(c, text)| c["text"] == **text));

    let text = stdout(complete(&model(), &flags, "x = <CURSOR>\n"));
    assert_eq!(text, format!("{}\n\n--- candidate 2\n{}\n\n--- candidate 3\n{}\n", texts[0], texts[1], texts[2]));
}

#[test]
fn tokens_and_time_bound_the_work() {
    let endless = ["--logit-bias", "64=1000"]; // always "a"
    let found = json(&[&endless[..], &["-n", "7"]].concat(), "x<CURSOR>");
    assert_eq!((&found[0]["text"], &found[0]["finish"]), (&Value::from("aaaaaaa"), &Value::from("length")));
    let flags = [&endless[..], &["-n", "20000", "-c", "20100", "--max-ms", "400"]].concat();
    let found = json(&flags, "x<CURSOR>");
    let generated = found[0]["generated_tokens"].as_u64().unwrap();
    assert!(0 < generated && generated < 20_000, "{generated}");
    assert_eq!(found[0]["finish"], "time");
    assert_eq!(found[0]["text"].as_str().unwrap().len() as u64, generated);
}

#[test]
fn related_files_go_into_the_prompt_as_far_as_they_fit() {
    let root = folder("repo");
    let geometry = "def area_of_polygon(points):\n    return sum(points)\n".repeat(8);
    std::fs::write(root.join("geometry.py"), &geometry).unwrap();
    std::fs::write(root.join("main.py"), "import geometry\n\nprint(area_of_polygon(").unwrap();
    let (file, repo) = (root.join("main.py").display().to_string(), root.display().to_string());
    let prompt = |more: &[&str]| {
        let flags = ["-n", "1", "--file", &file, "--line", "3"];
        json(&[&flags[..], more].concat(), "")[0]["prompt_tokens"].as_u64().unwrap()
    };
    let alone = prompt(&["--no-repo"]);
    let with_files = prompt(&["--repo", &repo]);
    assert!(with_files > alone + 150, "{with_files} {alone}");
    // The git repository around the file is the default.
    std::fs::create_dir_all(root.join(".git")).unwrap();
    assert_eq!(prompt(&[]), with_files);
    let small = prompt(&["--repo", &repo, "--prompt-tokens", "320"]);
    assert!(small < 320 && small < with_files && small >= alone, "{small}");
    // The text behind the cursor has its own bound.
    let suffix = "y = 2\n".repeat(100);
    let behind = |n: &str| {
        json(&["-n", "1", "--prefix", "x", "--suffix", &suffix, "--suffix-tokens", n], "")[0]["prompt_tokens"].as_u64()
    };
    assert_eq!((behind("0"), behind("30")), (Some(4), Some(34)));
}

#[test]
fn a_small_context_keeps_room_for_the_prompt_and_says_so() {
    let prefix = "x = 1\n".repeat(40);
    let output = complete(&model(), &["--json", "-c", "128", "--prefix", &prefix, "--suffix", "\ny"], "");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let found: Value = serde_json::from_str(&stdout(output)).unwrap();
    let prompt = found[0]["prompt_tokens"].as_u64().unwrap();
    assert!((40..=64).contains(&prompt), "{prompt}");
    assert!(stderr.contains("128 tokens") && stderr.contains("-c"), "{stderr}");
}

#[test]
fn bad_input_gives_one_line_that_names_it() {
    let file = folder("bad").join("a.py");
    std::fs::write(&file, "x\n").unwrap();
    let file = file.display().to_string();
    let without_fim = folder("bad").join("no-fim.gguf");
    let mut bytes = std::fs::read(model()).unwrap();
    let name = b"<|fim_middle|>";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + 2..at + 5].copy_from_slice(b"xxx");
    std::fs::write(&without_fim, bytes).unwrap();
    let without_fim = without_fim.display().to_string();
    let m = model();
    let cases: &[(&str, &[&str], &str, &[&str])] = &[
        (&m, &[], "no cursor here", &["standard input|stdin", "<CURSOR>"]),
        (&m, &["--candidates", "2"], "x<CURSOR>", &["--temp"]),
        (&m, &["--file", &file, "--line", "9"], "", &["a.py", "outside"]),
        (&m, &["--file", &file, "--line", "1", "--repo", "/no/such/folder"], "", &["/no/such/folder"]),
        (&m, &["--file", "no/such.py", "--line", "1"], "", &["no/such.py"]),
        (&without_fim, &[], "x<CURSOR>", &["fill-in-the-middle", "qwen2.5-coder"]),
        (&without_fim, &["--stdio"], "", &["fill-in-the-middle", "qwen2.5-coder"]),
    ];
    for (model, arguments, input, words) in cases {
        let output = complete(model, arguments, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty() && stderr.trim_end().lines().count() == 1, "{arguments:?}: {stderr}");
        for word in *words {
            assert!(word.split('|').any(|word| stderr.contains(word)), "'{word}' is not in: {stderr}");
        }
    }
}

/// Runs a program and says what it wrote when it failed; none where the program is not there.
fn tried(program: &str, arguments: &[&str], folder: &Path) -> Option<Result<(), String>> {
    match Command::new(program).args(arguments).current_dir(folder).output() {
        Err(_) => None,
        Ok(output) if output.status.success() => Some(Ok(())),
        Ok(output) => {
            Some(Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).chars().take(2000).collect()))
        }
    }
}

/// Compiles and runs a file that checks itself; none where its tools are not there.
fn runs(name: &str, folder: &Path) -> Option<Result<(), String>> {
    let then_binary = |compiled: Option<Result<(), String>>| match compiled {
        Some(Ok(())) => tried(&folder.join("program").display().to_string(), &[], folder),
        other => other,
    };
    match Path::new(name).extension()?.to_str()? {
        "rs" => then_binary(tried("rustc", &["--edition", "2021", "-o", "program", name], folder)),
        "c" => then_binary(tried("cc", &["-std=c11", "-Wall", "-o", "program", name], folder)),
        "py" => tried("python3", &["-I", name], folder),
        "go" => tried("go", &["run", name], folder),
        "ts" => match tried("tsc", &["--target", "es2020", "--strict", name], folder) {
            Some(Ok(())) => tried("node", &[&name.replace(".ts", ".js")], folder),
            other => other,
        },
        other => panic!("no way to run .{other} files"),
    }
}

/// Needs a real model: the catalog's default one in the cache, or the one that RYND_TEST_MODEL names.
#[test]
#[ignore = "needs a real model"]
fn five_functions_are_filled_in_and_run() {
    let model = std::env::var("RYND_TEST_MODEL").unwrap_or_else(|_| "qwen2.5-coder-1.5b".into());
    let folder = folder("functions");
    let mut failed = vec![];
    let mut skipped = vec![];
    for name in ["binary_search.rs", "word_counts.py", "reverse.go", "gcd.c", "chunk.ts"] {
        let text = std::fs::read_to_string(fixture("complete").join(name)).unwrap();
        let found: Vec<Value> = serde_json::from_str(&stdout(complete(&model, &["--json"], &text))).unwrap();
        let middle = found[0]["text"].as_str().unwrap();
        println!("--- {name} ({}, {} tokens)\n{middle}", found[0]["finish"], found[0]["generated_tokens"]);
        std::fs::write(folder.join(name), text.replace("<CURSOR>", middle)).unwrap();
        match runs(name, &folder) {
            None => skipped.push(name),
            Some(Ok(())) => println!("--- {name} compiles and runs"),
            Some(Err(why)) => failed.push(format!("{name}: {why}")),
        }
    }
    // A skip is loud: the tools of a language are not there.
    println!("not run, because its tools are missing: {skipped:?}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(skipped.len() < 3, "{skipped:?}");
}
