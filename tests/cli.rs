//! The built program, driven from outside: arguments, streams, files and exit codes, on the tiny reference models.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::CommandFactory;
use rynd::gguf::{Gguf, Writer};
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn model(name: &str) -> String {
    fixture(&format!("models/{name}/model.gguf")).display().to_string()
}

/// A path in the test's own folder that no other test uses.
fn scratch(name: &str) -> String {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).display().to_string()
}

fn reference(model: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(&format!("models/{model}/reference.json"))).unwrap()).unwrap()
}

fn joined(ids: &Value, separator: &str) -> String {
    let ids: Vec<String> = ids.as_array().unwrap().iter().map(Value::to_string).collect();
    ids.join(separator)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    // Nothing of the user's own, and nothing of another test's.
    static HOMES: AtomicUsize = AtomicUsize::new(0);
    let home = format!("cli-home-{}-{}", std::process::id(), HOMES.fetch_add(1, Ordering::Relaxed));
    command.env("RYND_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join(home));
    command.args(arguments).env_remove("RYND_SIMD").stdin(Stdio::null());
    command
}

fn rynd(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Runs the program with this standard input.
fn rynd_reading(arguments: &[&str], input: &str) -> Output {
    let mut child = piped(command(arguments).stdin(Stdio::piped()));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn piped(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The standard output of a run that must succeed.
fn stdout(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "exit {:?}: {stderr}", output.status.code());
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that a run failed with exit code 1, wrote nothing to stdout and one line to stderr that contains `words`.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.starts_with("rynd: error: "), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "'{word}' is not in: {stderr}");
    }
}

/// Shape and values of a little-endian f32 NumPy array.
fn npy(bytes: &[u8]) -> (Vec<usize>, Vec<f32>) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..end]).unwrap();
    assert!(header.contains("'descr': '<f4', 'fortran_order': False"), "{header}");
    let shape = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    (shape, bytes[end..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn assert_close(found: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(found.len(), wanted.len());
    let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "worst difference {worst}");
}

#[test]
fn every_command_explains_itself_with_examples() {
    for subcommand in rynd::commands::Cli::command().get_subcommands() {
        let help = stdout(rynd(&[subcommand.get_name(), "--help"]));
        assert!(help.contains("Usage: rynd") && help.contains("Examples:"), "{}: {help}", subcommand.get_name());
    }
    let help = stdout(rynd(&["--help"]));
    assert!(help.contains("perplexity") && help.contains("RYND_SIMD"), "{help}");
    assert!(stdout(rynd(&["completions", "bash"])).contains("perplexity"));
    assert!(stdout(rynd(&["man", "run"])).contains(".TH"));
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&["run"][..], &["bench", "m.gguf", "-t", "0"], &["run", "m.gguf", "--kv", "q9"], &["mill"]] {
        assert_eq!(rynd(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn greedy_ids_equal_the_reference() {
    for name in ["qwen2", "llama", "qwen3moe", "gemma3"] {
        let reference = reference(name);
        for prompt in ["short", "long"] {
            let ids = joined(&reference["prompts"][prompt]["ids"], ",");
            let wanted = joined(&reference["greedy"][prompt]["ids"], " ");
            let run = ["run", &model(name), "--ids", &ids, "--print-ids", "-n", "24", "--temp", "0"];
            let found = stdout(rynd(&[&run[..], &["--ignore-eos", "--exact"]].concat()));
            assert_eq!(found, wanted + "\n", "{name}, {prompt}");
        }
    }
}

#[test]
fn the_prompt_goes_through_the_chat_template_unless_raw() {
    let m = model("qwen2");
    let greedy = ["--temp", "0", "-n", "8", "--print-ids", "--ignore-eos"];
    let run = |arguments: &[&str]| stdout(rynd(&[&["run", &m], arguments, &greedy].concat()));
    let rendered =
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n";
    let through_template = run(&["-p", "hi there", "--system", "be brief"]);
    assert_eq!(through_template, run(&["--raw", "-p", rendered]));
    assert_ne!(through_template, run(&["--raw", "-p", "hi there"]));
    let ids = stdout(rynd(&["tokenize", &m, "-p", "hi there"]));
    assert_eq!(run(&["--raw", "-p", "hi there"]), run(&["--ids", &ids]));
    // A file's or pipe's last newline is not part of the prompt.
    let from_pipe = rynd_reading(&[&["run", &m, "--raw"][..], &greedy].concat(), "hi there\n");
    assert_eq!(stdout(from_pipe), run(&["--raw", "-p", "hi there"]));
}

#[test]
fn the_text_is_that_of_the_ids_and_the_same_seed_gives_it_again() {
    let m = model("qwen2");
    let run = |more: &[&str]| {
        let run = ["run", &m, "--raw", "-p", "def f(", "-n", "30", "--ignore-eos", "--temp", "1.5", "--seed", "7"];
        rynd(&[&run[..], more].concat())
    };
    let ids: Vec<u32> = stdout(run(&["--print-ids"])).split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(ids.len(), 30);
    let gguf = Gguf::open(Path::new(&m)).unwrap();
    let tokenizer = rynd::tokenizer::Tokenizer::new(rynd::tokenizer::Vocab::from_gguf(&gguf).unwrap()).unwrap();
    let with_stats = run(&["--stats"]);
    let stats = String::from_utf8_lossy(&with_stats.stderr).into_owned();
    assert!(stats.contains("generated 30 tokens (length)") && stats.contains("tok/s"), "{stats}");
    assert_eq!(stdout(with_stats), tokenizer.decode(&ids, false));
}

#[test]
fn a_stop_text_ends_the_answer_and_is_no_part_of_it() {
    let m = model("qwen2");
    let run = ["run", &m, "--raw", "-p", "def f(", "-n", "30", "--ignore-eos", "--temp", "0"];
    let whole = stdout(rynd(&run));
    let stop = whole.chars().skip(5).take(3).collect::<String>();
    let (before, _) = whole.split_once(&stop).unwrap();
    assert_eq!(stdout(rynd(&[&run[..], &["--stop", &stop]].concat())), before);
}

#[test]
fn logits_are_written_as_numpy_reads_them() {
    let (m, reference) = (model("qwen3"), reference("qwen3"));
    let ids = joined(&reference["prompts"]["short"]["ids"], ",");
    let (shape, wanted) = npy(&std::fs::read(fixture("models/qwen3/logits_short.npy")).unwrap());
    let (file, hidden) = (scratch("logits.npy"), scratch("hidden.npy"));
    stdout(rynd(&["logits", &m, "--ids", &ids, "--all", "--exact", "-o", &file, "--hidden", &hidden]));
    let (found_shape, found) = npy(&std::fs::read(&file).unwrap());
    assert_eq!(found_shape, shape);
    assert_close(&found, &wanted, 2e-4);

    let (last_shape, last) = npy(&rynd(&["logits", &m, "--ids", &ids, "--exact", "-o", "-"]).stdout);
    assert_eq!(last_shape, [1, shape[1]]);
    assert_close(&last, &wanted[wanted.len() - shape[1]..], 2e-4);

    let (shape, wanted) = npy(&std::fs::read(fixture("models/qwen3/hidden_short.npy")).unwrap());
    let (found_shape, found) = npy(&std::fs::read(&hidden).unwrap());
    assert_eq!(found_shape, shape);
    assert_close(&found, &wanted, 1e-3);
}

#[test]
fn inspect_tells_the_same_as_the_file() {
    let m = model("qwen3moe");
    let report: Value = serde_json::from_str(&stdout(rynd(&["inspect", &m, "--json", "--tensors", "--plan"]))).unwrap();
    let gguf = Gguf::open(Path::new(&m)).unwrap();
    assert_eq!(report["architecture"], "qwen3moe");
    assert_eq!(report["file_bytes"], std::fs::metadata(&m).unwrap().len());
    assert_eq!(report["tensors"].as_array().unwrap().len(), gguf.tensors().len());
    assert_eq!(report["metadata"]["tokenizer.ggml.tokens"]["items"], 512);
    let plan = report["plan"].as_array().unwrap();
    assert_eq!(report["model"]["steps"], plan.len());
    let bytes: u64 = plan.iter().map(|step| step["bytes_per_token"].as_u64().unwrap()).sum();
    assert_eq!(report["model"]["weight_bytes_per_token"], bytes);
    let experts = plan.iter().find(|step| step["op"] == "experts").unwrap();
    assert_eq!(experts["weights"][0]["shape"].as_array().unwrap().len(), 3);

    let text = stdout(rynd(&["inspect", &m]));
    assert!(text.contains("general.architecture = \"qwen3moe\"") && text.contains("(512 items)"), "{text}");
    let text = stdout(rynd(&["inspect", &m, "--plan"]));
    assert!(text.contains("blk.0.ffn_gate_exps.weight") && text.contains("rope_store"), "{text}");
}

#[test]
fn a_trace_names_the_first_step_above_the_threshold() {
    let m = model("qwen3moe");
    let agree = stdout(rynd(&["inspect", &m, "--trace-step", "312,285,501"]));
    assert!(agree.contains("no step parts"), "{agree}");
    let parts = stdout(rynd(&["inspect", &m, "--trace-step", "312,285,501", "--threshold", "1e-12"]));
    assert!(parts.contains("<- the first above the threshold") && parts.contains("instead of"), "{parts}");
    assert_eq!(parts.lines().count(), 2, "{parts}");
}

/// Perplexity of one chunk, from the logits of its tokens.
fn chunk_perplexity(model: &str, chunk: &[u32]) -> f64 {
    let ids: Vec<String> = chunk.iter().map(u32::to_string).collect();
    let output = rynd(&["logits", model, "--ids", &ids.join(","), "--all", "--exact", "-o", "-"]);
    let (shape, logits) = npy(&output.stdout);
    let first = chunk.len() / 2;
    let losses = (first..chunk.len() - 1).map(|i| {
        let row = &logits[i * shape[1]..(i + 1) * shape[1]];
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[chunk[i + 1] as usize])
    });
    (losses.sum::<f64>() / (chunk.len() - 1 - first) as f64).exp()
}

/// A copy of the tiny qwen2 model whose vocabulary adds BOS.
fn model_with_bos() -> String {
    let path = scratch("bos.gguf");
    let from = Gguf::open(Path::new(&model("qwen2"))).unwrap();
    let mut to = Writer::create(Path::new(&path)).unwrap();
    for (key, value) in from.metadata() {
        to.set(key, value.clone()).unwrap();
    }
    to.set("tokenizer.ggml.bos_token_id", 504_u32).unwrap();
    to.set("tokenizer.ggml.add_bos_token", true).unwrap();
    for tensor in from.tensors() {
        to.declare(&tensor.name, tensor.format, &tensor.shape).unwrap();
    }
    for tensor in from.tensors() {
        to.write_tensor(&tensor.name, from.bytes(tensor)).unwrap();
    }
    to.finish().unwrap();
    path
}

#[test]
fn perplexity_scores_the_second_half_of_each_chunk_and_starts_it_with_bos_where_the_model_does() {
    let text = std::fs::read_to_string(file!()).unwrap();
    for (m, bos) in [(model("qwen2"), None), (model_with_bos(), Some(504))] {
        let flags = ["-c", "48", "--chunks", "1", "--exact", "--json"];
        let output = rynd(&[&["perplexity", &m, "-p", &text[..2000]][..], &flags].concat());
        let report: Value = serde_json::from_str(&stdout(output)).unwrap();
        let ids = stdout(rynd(&["tokenize", &m, "--bos", "--no-special", "-p", &text[..2000]]));
        let mut chunk: Vec<u32> = ids.split_whitespace().take(48).map(|id| id.parse().unwrap()).collect();
        assert_eq!(bos.is_some(), chunk[0] == 504);
        let wanted = chunk_perplexity(&m, &chunk);
        let found = report["perplexity"].as_f64().unwrap();
        assert!((found / wanted - 1.0).abs() < 1e-5, "{found} instead of {wanted}");
        assert_eq!((&report["scored_tokens"], &report["chunks"]), (&Value::from(23), &Value::from(1)));
        assert!(report["error"].as_f64().unwrap() > 0.0);

        // The second chunk alone, by the means of two and of one.
        let flags = ["-c", "48", "--chunks", "2", "--exact", "--json"];
        let output = rynd(&[&["perplexity", &m, "-p", &text[..2000]][..], &flags].concat());
        let both: Value = serde_json::from_str(&stdout(output)).unwrap();
        let second = (2.0 * both["perplexity"].as_f64().unwrap().ln() - found.ln()).exp();
        chunk = ids.split_whitespace().skip(48).take(48).map(|id| id.parse().unwrap()).collect();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        let wanted = chunk_perplexity(&m, &chunk);
        assert!((second / wanted - 1.0).abs() < 1e-5, "{second} instead of {wanted}");
    }
}

#[test]
fn tokenize_and_decode_are_inverse() {
    let (m, reference) = (model("qwen2"), reference("qwen2"));
    for prompt in ["short", "long"] {
        let text = reference["prompts"][prompt]["text"].as_str().unwrap();
        let ids = stdout(rynd(&["tokenize", &m, "-p", text]));
        assert_eq!(ids.trim_end(), joined(&reference["prompts"][prompt]["ids"], " "));
    }
    let text = "naïve 🎉<|im_end|>\n";
    let ids = stdout(rynd_reading(&["tokenize", &m], text));
    assert_eq!(stdout(rynd_reading(&["tokenize", &m, "--decode"], &ids)), text);
    // Half a character is not lost.
    assert_eq!(rynd(&["tokenize", &m, "--decode", "127"]).stdout, [0xc3]);
    assert!(ids.split_whitespace().any(|id| id == "505"), "{ids}");
    let plain = stdout(rynd_reading(&["tokenize", &m, "--no-special"], text));
    assert!(!plain.split_whitespace().any(|id| id == "505"), "{plain}");
    let tokens: Value = serde_json::from_str(&stdout(rynd_reading(&["tokenize", &m, "--json"], text))).unwrap();
    assert_eq!(joined(&tokens.as_array().unwrap().iter().map(|t| t["id"].clone()).collect(), " "), ids.trim_end());
}

#[test]
fn bench_reports_every_test_and_the_same_hash_twice() {
    let run = || -> Value {
        let lengths = ["-p", "16", "-n", "4", "-d", "0,32", "-r", "1", "-t", "1", "--json"];
        serde_json::from_str(&stdout(rynd(&[&["bench", &model("qwen2")][..], &lengths].concat()))).unwrap()
    };
    let (first, second) = (run(), run());
    let lines = first["lines"].as_array().unwrap();
    let names: Vec<String> = lines.iter().map(|l| format!("{}{}@{}", l["kind"], l["tokens"], l["depth"])).collect();
    assert_eq!(names, ["\"prompt\"16@0", "\"generate\"4@0", "\"prompt\"16@32", "\"generate\"4@32"]);
    for (line, again) in lines.iter().zip(second["lines"].as_array().unwrap()) {
        assert!(line["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert_eq!(line["logits_hash"], again["logits_hash"]);
        assert_eq!(line["bytes_per_token"].is_number(), line["kind"] == "generate");
    }
    assert!(first["bandwidth"][0]["bytes_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn bad_input_gives_one_line_that_names_it() {
    let m = model("qwen2");
    let cut = scratch("cut.gguf");
    let whole = std::fs::read(&m).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let not_a_model = fixture("models/qwen2/reference.json").display().to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (&["run", "no/such.gguf", "-p", "x"], &["no/such.gguf"]),
        (&["inspect", &not_a_model], &["reference.json", "not a GGUF"]),
        (&["run", &cut, "-p", "x"], &["cut.gguf", "truncated", "tensor"]),
        (&["run", &m, "-p", ""], &["prompt is empty"]),
        (&["run", &m, "--ids", ""], &["prompt is empty"]),
        (&["run", &m], &["prompt is empty"]),
        (&["run", &m, "--ids", "1,2,3", "-c", "2"], &["3 tokens", "context of 2", "-c"]),
        (&["run", &m, "--ids", "1,x"], &["'x'", "token id"]),
        (&["run", &m, "--ids", "1,512"], &["512", "vocabulary"]),
        (&["run", &m, "-p", "x", "--top-p", "2"], &["top_p"]),
        (&["run", &m, "-p", "x", "--logit-bias", "512=1"], &["512"]),
        (&["run", &m, "-f", "no/such.txt"], &["no/such.txt"]),
        (&["run", &m, "-p", "x", "--rope-scaling", "yarn"], &["yarn", "factor"]),
        (&["logits", &m, "--ids", "1,512", "-o", "-"], &["512", "vocabulary"]),
        (&["logits", &m, "--ids", "1", "-o", "no/such/folder.npy"], &["no/such/folder.npy"]),
        (&["tokenize", &m, "--decode", "512"], &["512", "vocabulary"]),
        (&["perplexity", &m, "-p", "short"], &["tokens", "-c"]),
        (&["bench", &m, "-p", "0", "-n", "0"], &["nothing to measure"]),
        (&["inspect", &m, "--trace-step", ""], &["prompt is empty"]),
    ];
    for (arguments, words) in cases {
        assert_refused(&rynd(arguments), words);
    }
    let output = command(&["tokenize", &m, "-p", "x"]).env("RYND_SIMD", "mmx").output().unwrap();
    assert_refused(&output, &["RYND_SIMD", "mmx", "scalar"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let m = model("qwen2");
    let run: &[&str] = &["run", &m, "--raw", "-p", "a", "-n", "1500", "--ignore-eos", "--print-ids"];
    for arguments in [run, &["inspect", &m, "--plan"], &["completions", "zsh"]] {
        let mut child = piped(&mut command(arguments));
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut [0]).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_tells_what_was_done_and_exits_with_130() {
    let m = model("qwen2");
    let run = ["run", &m, "--raw", "-p", "a", "-n", "2000", "--ignore-eos", "--print-ids"];
    let mut child = piped(&mut command(&run));
    // The first id is there, so it is generating.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("(interrupted)"), "{stderr}");
}

#[test]
fn run_keeps_to_a_json_schema_and_to_grammars() {
    let (schema, gbnf, lark) = (scratch("schema.json"), scratch("list.gbnf"), scratch("list.lark"));
    let text = r#"{"type": "object", "properties": {"a": {"enum": ["x", "yes"]}, "b": {"type": "boolean"}}, "required": ["a", "b"]}"#;
    std::fs::write(&schema, text.replace("]}", "], \"additionalProperties\": false}")).unwrap();
    std::fs::write(&gbnf, "root ::= \"- \" [ab]{2} \"\\n\"\n").unwrap();
    std::fs::write(&lark, "start: \"- \" /[ab]{2}/ \"\\n\"\n").unwrap();
    let run = |flag: &str, file: &str, seed: &str| {
        let model = model("qwen2");
        rynd(&[
            "run", &model, "--raw", "-p", "hi", flag, file, "--temp", "1.5", "--top-p", "1", "--top-k", "0", "--seed",
            seed, "-n", "400",
        ])
    };
    for seed in ["1", "2", "3"] {
        let answer: Value = serde_json::from_str(&stdout(run("--json-schema", &schema, seed))).unwrap();
        assert!(answer["b"].is_boolean() && ["x", "yes"].contains(&answer["a"].as_str().unwrap()), "{answer}");
        for grammar in [&gbnf, &lark] {
            let answer = stdout(run("--grammar", grammar, seed));
            assert!(answer.starts_with("- ") && answer.ends_with('\n') && answer.len() == 5, "{answer:?}");
        }
    }
    std::fs::write(&schema, "{\"type\": \"nothing\"}").unwrap();
    std::fs::write(&gbnf, "root ::= (").unwrap();
    for (flag, file) in
        [("--json-schema", &schema), ("--grammar", &gbnf), ("--grammar", &schema), ("--json-schema", &gbnf)]
    {
        let output = run(flag, file, "1");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && output.stdout.is_empty() && error.contains(file.as_str()),
            "{flag} {file}: {error}"
        );
    }
}

#[test]
fn text_of_a_prompt_is_text_unless_special_tokens_are_asked_for() {
    let ids = |more: &[&str]| {
        let model = model("qwen2");
        let arguments = ["run", &model, "-p", "a<|im_end|>b", "--stats", "-n", "1", "--temp", "0"];
        let output = rynd(&[&arguments[..], more].concat());
        let stats = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stats}");
        stats.split_once("prompt").unwrap().1.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    };
    let (text, special) = (ids(&[]), ids(&["--parse-special"]));
    assert!(text > special, "{text} tokens as text, {special} with the token");
    assert_eq!(ids(&["--raw", "--parse-special"]), ids(&["--raw"]), "a raw prompt always says its tokens");
}
