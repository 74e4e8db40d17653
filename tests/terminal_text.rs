//! What a model file says reaches a terminal as text: every command at a pseudo-terminal, with a file whose every name and token
//! tries to drive it; and no source writes past the filter.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(unix)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use rynd::gguf::{Array, Gguf, Value, Writer};

/// Sets the title, clears the screen by C0 and by C1, turns the text round, rings.
const EVIL: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J\u{202e}\u{2066}\u{8}\u{7f}";

fn is_harmful(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') || c.is_control() && !"\n\t".contains(c)
}

/// A model that runs, all of whose words are evil.
fn evil_model(path: &Path, keys: &[(&str, Value)]) {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama/model.gguf");
    let golden = Gguf::open(&golden).unwrap();
    let n = golden.tensor("token_embd.weight").unwrap().shape[1] as usize;
    let mut writer = Writer::create(path).unwrap();
    for (key, value) in golden.metadata().filter(|(key, _)| !key.starts_with("tokenizer.")) {
        writer.set(key, value.clone()).unwrap();
    }
    let tokens: Vec<String> = (0..n).map(|id| format!("{EVIL}{id}")).collect();
    writer.set("tokenizer.ggml.model", "llama").unwrap();
    writer.set("tokenizer.ggml.tokens", Array::of_strings(&tokens)).unwrap();
    writer.set("tokenizer.ggml.scores", Array::from(&vec![0.0_f32; n][..])).unwrap();
    writer.set("tokenizer.ggml.token_type", Array::from(&vec![1_i32; n][..])).unwrap();
    writer.set("tokenizer.ggml.unknown_token_id", 0_u32).unwrap();
    writer.set("tokenizer.ggml.add_bos_token", false).unwrap();
    writer.set("tokenizer.chat_template", format!("{{{{ raise_exception('{EVIL}') }}}}").as_str()).unwrap();
    writer.set("general.name", format!("evil{EVIL}").as_str()).unwrap();
    for (key, value) in keys {
        writer.set(key, value.clone()).unwrap();
    }
    for tensor in golden.tensors() {
        writer.declare(&tensor.name, tensor.format, &tensor.shape).unwrap();
    }
    for tensor in golden.tensors() {
        writer.write_tensor(&tensor.name, golden.bytes(tensor)).unwrap();
    }
    writer.finish().unwrap();
}

/// All that the program writes to its terminal, both streams.
fn at_terminal(home: &Path, arguments: &[&str]) -> String {
    let pair = native_pty_system().openpty(PtySize { rows: 50, cols: 200, pixel_width: 0, pixel_height: 0 }).unwrap();
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_rynd"));
    command.args(arguments);
    command.cwd(home);
    command.env("RYND_HOME", home);
    command.env("TERM", "xterm-256color");
    let mut child = pair.slave.spawn_command(command).unwrap();
    drop(pair.slave);
    let mut reader = pair.master.try_clone_reader().unwrap();
    let mut bytes = vec![];
    // Linux ends a terminal that nobody holds any more with an error.
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = reader.read(&mut piece) {
        bytes.extend_from_slice(&piece[..n]);
    }
    child.wait().unwrap();
    // The terminal itself turns a newline into two characters.
    String::from_utf8_lossy(&bytes).replace("\r\n", "\n")
}

#[test]
fn nothing_in_a_model_file_drives_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let (model, odd) = (folder.path().join("m.gguf"), folder.path().join("odd.gguf"));
    evil_model(&model, &[]);
    evil_model(&odd, &[("general.architecture", Value::from(format!("arch{EVIL}").as_str()))]);
    let (m, o) = (model.to_str().unwrap(), odd.to_str().unwrap());
    for arguments in [
        &["run", m, "-p", "hello", "--raw", "-n", "6", "-q", "--temp", "0", "--gpu", "off"][..],
        &["run", m, "-p", "hello", "-n", "2", "--gpu", "off"],
        &["tokenize", m, "--decode", "5", "6", "7"],
        &["tokenize", m, "--json", "-p", "hello"],
        &["inspect", m],
        &["inspect", m, "--json"],
        &["inspect", m, "--plan"],
        &["plan", m, "--rig", "1x24g-128"],
        &["quantize", m, "--dry-run", "Q8_0"],
        &["inspect", o],
        &["run", o, "-p", "hello", "--raw", "-n", "2", "--gpu", "off"],
        &["plan", o, "--rig", "1x24g-128"],
    ] {
        let text = at_terminal(folder.path(), arguments);
        let found = text.char_indices().find(|(_, c)| is_harmful(*c));
        assert_eq!(found, None, "{arguments:?}: {text:?}");
        assert!(!text.trim().is_empty(), "{arguments:?}");
    }
    assert!(at_terminal(folder.path(), &["tokenize", m, "--decode", "5"]).contains(r"\u001b]0;owned"));
    let json = at_terminal(folder.path(), &["inspect", m, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(value.to_string().contains("\u{9b}2J"), "JSON says the same at a terminal");
}

#[test]
fn a_pipe_gets_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.gguf");
    evil_model(&model, &[]);
    let output = Command::new(env!("CARGO_BIN_EXE_rynd"))
        .args(["tokenize", model.to_str().unwrap(), "--decode", "5"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, format!("{EVIL}5").as_bytes());
}

/// Who writes to a stream by itself, and why that is right.
const PAST_THE_FILTER: &[(&str, &str)] = &[
    ("src/commands/terminal.rs", "is the filter"),
    ("src/commands/chat/screen.rs", "paints, and cleans each piece of text"),
    ("src/commands/chat/repl.rs", "paints, and cleans each piece of text"),
    ("src/commands/chat/editor.rs", "paints what was typed"),
    ("src/commands/lsp/mod.rs", "speaks JSON-RPC to an editor"),
    ("src/commands/logits.rs", "writes an array"),
    ("src/commands/man.rs", "writes rynd's own page"),
    ("src/commands/completions.rs", "writes rynd's own script"),
    ("src/commands/experts/show.rs", "paints numbers"),
    ("src/commands/cache.rs", "paints a line of progress over the last one, and cleans its path"),
];

#[test]
fn every_source_writes_through_the_filter() {
    let mut folders = vec![PathBuf::from("src")];
    let mut found = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.display().to_string().replace('\\', "/");
            if !name.ends_with(".rs") || PAST_THE_FILTER.iter().any(|(file, _)| *file == name) {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            let product = source.split("#[cfg(test)]").next().unwrap();
            for (no, line) in product.lines().enumerate() {
                let stream = ["io::stderr()", "io::stdout()", "println!(", "print!(", "eprint!("]
                    .iter()
                    .any(|w| line.contains(w));
                // Asking what a stream is writes nothing.
                if stream
                    && !line.contains("is_terminal")
                    && !line.contains("DrawTarget")
                    && !line.trim_start().starts_with("//")
                {
                    found.push(format!("{name}:{}: {}", no + 1, line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "write by commands::terminal, or say here why not:\n{}", found.join("\n"));
}
