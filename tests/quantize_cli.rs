//! `rynd quantize`, `rynd imatrix` and the comparing half of `rynd perplexity` from outside: files, streams, exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rynd::gguf::{Gguf, Value, Writer};
use rynd_quant::Format;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn model(name: &str) -> String {
    fixture(&format!("models/{name}/model.gguf")).display().to_string()
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("quantize-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn rynd(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Both streams of a run that must succeed.
fn done(arguments: &[&str]) -> (String, String) {
    let output = rynd(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// The one line of error of a run that must fail.
fn refused(arguments: &[&str]) -> String {
    let output = rynd(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}: {stderr}");
    stderr
}

#[test]
fn a_dry_run_prints_every_tensor_and_writes_nothing() {
    let folder = folder("dry");
    let out = folder.join("out.gguf").display().to_string();
    let m = model("qwen3moe");
    let (stdout, _) = done(&["quantize", &m, &out, "--dry-run", "Q4_K_M", "--split-max-size", "500k"]);
    let tensors = Gguf::open(Path::new(&m)).unwrap().tensors().len();
    assert!(stdout.lines().filter(|line| line.contains(" -> ") && line.contains(" x ")).count() > 10, "{stdout}");
    assert!(stdout.contains(&format!("total: {tensors} tensors")), "{stdout}");
    assert!(stdout.contains("file 2 of "), "{stdout}");
    assert_eq!(names(&folder), [""; 0]);
    // Without a name, and where the work would be refused.
    let (stdout, _) = done(&["quantize", &m, "--dry-run", "IQ2_XXS"]);
    assert!(stdout.contains("as it stands it would be refused: ") && stdout.contains("--imatrix"), "{stdout}");
}

#[test]
fn flags_choose_formats() {
    let folder = folder("flags");
    let out = folder.join("out.gguf").display().to_string();
    let (_, stderr) = done(&[
        "quantize",
        &model("qwen2"),
        &out,
        "q4_k_s",
        "-t",
        "1",
        "--tensor-type",
        r"blk\.0\..*ffn_down=q5_0",
        "--tensor-type",
        "ffn_down=iq4_nl",
        "--output-tensor-type",
        "q8_0",
        "--token-embedding-type",
        "f16",
    ]);
    assert!(stderr.contains("bits a weight") && stderr.contains("of input"), "{stderr}");
    let gguf = Gguf::open(Path::new(&out)).unwrap();
    for (name, format) in [
        ("blk.0.ffn_down.weight", Format::Q5_0),
        ("blk.1.ffn_down.weight", Format::IQ4_NL),
        ("output.weight", Format::Q8_0),
        ("token_embd.weight", Format::F16),
        ("blk.0.ffn_up.weight", Format::Q4_K),
    ] {
        assert_eq!(gguf.tensor(name).unwrap().format, format, "{name}");
    }
    done(&["quantize", &model("qwen2"), &out, "Q4_K_M", "--pure"]);
    let gguf = Gguf::open(Path::new(&out)).unwrap();
    let matrices = gguf.tensors().iter().filter(|tensor| tensor.shape.len() > 1);
    assert!(matrices.clone().count() > 10 && matrices.into_iter().all(|tensor| tensor.format == Format::Q4_K));
}

#[test]
fn bad_input_is_one_line_of_error_and_leaves_nothing() {
    let folder = folder("bad");
    let out = folder.join("out.gguf").display().to_string();
    let (m, text) = (model("qwen2"), fixture("quantize/text.py").display().to_string());
    let quantised = fixture("quantized/qwen2-Q4_K_M.gguf").display().to_string();
    let other = fixture("quantize/qwen3moe.imatrix.gguf").display().to_string();
    let cases: [(&[&str], &[&str]); 15] = [
        (&[&m, &out, "Q9_K"], &["'Q9_K'", "Q4_K_M, Q4_K_S"]),
        (&[&m, &m, "Q8_0"], &["would replace the input"]),
        (&["no/such.gguf", &out, "Q8_0"], &["no/such.gguf"]),
        (&[&text, &out, "Q8_0"], &["text.py", "not a GGUF"]),
        (&[&m, "no/such/out.gguf", "Q8_0"], &["no/such/out.gguf", "folder"]),
        (&[&m, "Q8_0"], &["no name for the output"]),
        (&["Q8_0"], &["IN, OUT and TYPE"]),
        (&[&m, &out, &out, "Q8_0"], &["IN, OUT and TYPE"]),
        (&[&m, &out, "Q8_0", "--tensor-type", "ffn_dwn=q6_k"], &["ffn_dwn=q6_k", "matches no weight matrix"]),
        (&[&m, &out, "Q8_0", "--tensor-type", "ffn_down"], &["REGEX=FORMAT"]),
        (&[&m, &out, "Q8_0", "--tensor-type", "ffn_down=iq1_s"], &["'iq1_s'", "Q6_K"]),
        (&[&m, &out, "Q8_0", "--split-max-size", "5X"], &["5X", "K, M, G"]),
        (&[&m, &out, "Q8_0", "--imatrix", &text], &["text.py", "no importance matrix"]),
        (&[&m, &out, "Q8_0", "--imatrix", &other], &["qwen3moe.imatrix.gguf", "columns", "rynd imatrix"]),
        (&[&quantised, &out, "Q8_0"], &["is already", "--allow-requantize"]),
    ];
    for (arguments, words) in cases {
        let stderr = refused(&[&["quantize"], arguments].concat());
        for word in words {
            assert!(stderr.contains(word), "{arguments:?} lacks {word:?}: {stderr}");
        }
        assert!(stderr.starts_with("error: ") || stderr.lines().count() == 1, "{stderr}");
    }
    assert_eq!(names(&folder), [""; 0]);
}

#[test]
fn an_importance_matrix_is_measured_written_and_used() {
    let folder = folder("imatrix");
    let path = |name: &str| folder.join(name).display().to_string();
    let (m, text) = (model("qwen3moe"), fixture("quantize/text.py").display().to_string());
    let imatrix = path("imatrix.gguf");
    let (_, stderr) = done(&["imatrix", &m, "-f", &text, "-o", &imatrix, "-c", "64", "--chunks", "2", "-t", "1"]);
    assert!(stderr.contains("16 tensors, 2 of 2 chunks of 64 tokens"), "{stderr}");
    let (_, stderr) = done(&["quantize", &m, &path("out.gguf"), "IQ2_M", "--imatrix", &imatrix, "-t", "1"]);
    assert!(stderr.contains("bits a weight"), "{stderr}");
    let gguf = Gguf::open(&folder.join("out.gguf")).unwrap();
    assert_eq!(gguf.get("quantize.imatrix.chunks_count"), Some(&Value::from(2_u32)));
    // The result is a model that runs.
    let (stdout, _) = done(&["run", &path("out.gguf"), "--raw", "-p", "def", "-n", "4", "--print-ids"]);
    assert!(!stdout.is_empty());
    // A text that is too short for all experts.
    let short = path("short.txt");
    std::fs::write(&short, "a = 1\nb = 2\n").unwrap();
    let (_, stderr) = done(&["imatrix", &m, "-f", &short, "-o", &imatrix, "-c", "4", "--chunks", "1", "-t", "1"]);
    assert!(stderr.contains("the text never reached") && stderr.contains("of 16 experts of 'blk.0.ffn_"), "{stderr}");
    let (_, stderr) = done(&["quantize", &m, &path("out.gguf"), "Q4_0", "--imatrix", &imatrix, "-t", "1"]);
    assert!(stderr.contains("expert matrices were never reached"), "{stderr}");
    let stderr = refused(&["imatrix", &m, "-f", &short, "-o", &imatrix]);
    assert!(stderr.contains("less than one chunk of 512"), "{stderr}");
}

#[test]
fn a_model_diverges_from_its_own_logits_not_at_all_and_from_others_by_what_llama_perplexity_says() {
    let folder = folder("divergence");
    let path = |name: &str| folder.join(name).display().to_string();
    let (m, logits) = (model("qwen2"), path("base.logits"));
    let text = fixture("quantize/text.py").display().to_string();
    let run = ["perplexity", &m, "-f", &text, "-c", "64", "--exact", "-t", "1"];
    let (plain, _) = done(&run);
    let (saving, _) = done(&[&run[..], &["--save-logits", &logits]].concat());
    assert_eq!(plain, saving);
    assert_eq!(names(&folder), ["base.logits"]);
    let json = |flags: &[&str]| -> serde_json::Value {
        let (stdout, _) = done(&[&["perplexity", &m, "--exact", "-t", "1", "--json"], flags].concat());
        serde_json::from_str(&stdout).unwrap()
    };
    let same = json(&["--kl-divergence", &logits]);
    // Codes of 16 bits are what is left.
    assert!(same["kld"]["mean"]["value"].as_f64().unwrap().abs() < 1e-5, "{same}");
    assert_eq!(same["same_top"]["value"], 1.0);
    let printed = plain.split_whitespace().nth(2).unwrap().parse::<f64>().unwrap();
    let found = same["perplexity"]["value"].as_f64().unwrap();
    assert!((found / printed - 1.0).abs() < 1e-4, "{found} against {printed}");
    // The reference run of another program, and what that program printed.
    let base = fixture("quantize/base.logits").display().to_string();
    let other = json(&["--kl-divergence", &base]);
    let kld = other["kld"]["mean"]["value"].as_f64().unwrap();
    assert!((kld - 0.182_954).abs() < 2e-4, "{kld}");
    let (stdout, _) = done(&["perplexity", &m, "--kl-divergence", &base, "--chunks", "1", "-t", "1"]);
    for label in ["tokens scored         31", "KL divergence ", "99.9 %", "RMS delta p", "same top token"] {
        assert!(stdout.contains(label), "{label}: {stdout}");
    }
}

#[test]
fn logits_that_cannot_be_compared_are_refused() {
    let folder = folder("logits");
    let (m, text) = (model("qwen2"), fixture("quantize/text.py").display().to_string());
    let cut = folder.join("cut.logits").display().to_string();
    let bytes = std::fs::read(fixture("quantize/base.logits")).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let mut vocabulary = bytes.clone();
    vocabulary[12] = 0xff; // 512 -> 767
    let odd = folder.join("odd.logits").display().to_string();
    std::fs::write(&odd, vocabulary).unwrap();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--kl-divergence", &text], &["text.py", "--save-logits"]),
        (&["--kl-divergence", "no/such.logits"], &["no/such.logits"]),
        (&["--kl-divergence", &cut], &["cut.logits", "incomplete"]),
        (&["--kl-divergence", &odd], &["odd.logits", "767", "512"]),
        (&["-f", &text, "-c", "64", "--save-logits", "no/such/base.logits"], &["no/such/base.logits", "folder"]),
    ];
    for (arguments, words) in cases {
        let stderr = refused(&[&["perplexity", &m], arguments].concat());
        for word in words {
            assert!(stderr.contains(word), "{arguments:?} lacks {word:?}: {stderr}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files_is_one_line_of_error_and_leaves_nothing() {
    let folder = folder("limit");
    let to = folder.join("out.gguf").display().to_string();
    // Blocks of 512 or 1024 bytes, by the shell: less than the output in any case.
    let script = "ulimit -f 200; exec \"$0\" quantize \"$1\" \"$2\" Q8_0";
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_rynd"), &model("qwen2"), &to];
    let output = Command::new("sh").args(arguments).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("out.gguf") && stderr.contains("too large"), "{stderr}");
    assert_eq!(names(&folder), [""; 0]);
}

#[test]
fn ctrl_c_leaves_nothing_and_exits_with_130() {
    let folder = folder("interrupt");
    let input = folder.join("in.gguf");
    let mut writer = Writer::create(&input).unwrap();
    writer.set("general.architecture", "llama").unwrap();
    writer.declare("blk.0.ffn_up.weight", Format::F32, &[4096, 4096]).unwrap();
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let weights: Vec<u8> = (0..4096 * 4096).flat_map(|_| noise().to_le_bytes()).collect();
    writer.write_tensor("blk.0.ffn_up.weight", &weights).unwrap();
    writer.finish().unwrap();

    let [from, to] = [&input, &folder.join("out.gguf")].map(|path| path.display().to_string());
    let mut child = command(&["quantize", &from, &to, "IQ3_S", "-t", "1"]).spawn().unwrap();
    // The output in the making is there, so it is at work.
    while names(&folder).len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted; nothing was written"), "{stderr}");
    assert_eq!(names(&folder), ["in.gguf"]);
}
