//! Without a terminal: one message from standard input, its answer on standard output.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rynd::gguf::{Gguf, Value, Writer};

use super::terminal::fixture;
use super::{home, questions};

fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.args(arguments).env("RYND_HOME", home).env_remove("RYND_SIMD").current_dir(home);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn chat(home: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = command(home, &[&["chat"], arguments].concat()).spawn().unwrap();
    // A command that is refused may be gone before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// One line on stderr that contains the words, and exit code 1.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty() && stderr.starts_with("rynd: error: "), "{stderr}");
    words.iter().for_each(|word| assert!(stderr.contains(word), "'{word}' is not in: {stderr}"));
}

/// The tiny qwen2 model with some of its metadata changed, or taken out.
fn changed(path: &Path, change: impl Fn(&str, &Value) -> Option<Value>) -> String {
    let from = Gguf::open(Path::new(&fixture("qwen2"))).unwrap();
    let mut to = Writer::create(path).unwrap();
    for (key, value) in from.metadata() {
        if let Some(value) = change(key, value) {
            to.set(key, value).unwrap();
        }
    }
    for tensor in from.tensors() {
        to.declare(&tensor.name, tensor.format, &tensor.shape).unwrap();
    }
    for tensor in from.tensors() {
        to.write_tensor(&tensor.name, from.bytes(tensor)).unwrap();
    }
    to.finish().unwrap();
    path.display().to_string()
}

fn with_template(path: &Path, template: Option<&str>) -> String {
    changed(path, |key, value| match key {
        "tokenizer.chat_template" => template.map(Value::from),
        _ => Some(value.clone()),
    })
}

#[test]
fn the_whole_of_standard_input_is_one_message_and_the_answer_is_plain_text() {
    let home = home();
    let model = fixture("qwen2");
    let flags = ["--temp", "0", "-n", "24", "--system", "be brief"];
    let input = "# **title**\n/help\n\n```rust\nfn x() {}\n```\n";
    let answer = stdout(&chat(home.path(), &[&[model.as_str(), "--save", "chat.json"][..], &flags].concat(), input));
    // The same prompt by the command that knows nothing of chats.
    let text = input.trim_end();
    let run = command(home.path(), &[&["run", &model, "-p", text][..], &flags].concat()).output().unwrap();
    assert_eq!(answer.trim_end_matches('\n'), stdout(&run).trim_end_matches('\n'));
    assert!(answer.ends_with('\n') && !answer.contains("\x1b["));
    assert_eq!(questions(&home.path().join("chat.json")), [text]);
    // A message as an argument comes first.
    chat(home.path(), &[&model, "-n", "1", "-p", "review", "--save", "two.json"], "the patch\n");
    assert_eq!(questions(&home.path().join("two.json")), ["review\n\nthe patch"]);
    // A saved chat goes on.
    chat(home.path(), &[&model, "-n", "1", "--load", "two.json", "--save", "two.json"], "next");
    assert_eq!(questions(&home.path().join("two.json")), ["review\n\nthe patch", "next"]);
    // Statistics are asked for, and nothing else is on stderr.
    let output = chat(home.path(), &[&model, "-n", "1"], "x");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = chat(home.path(), &[&model, "-n", "1", "--stats"], "x");
    assert!(String::from_utf8_lossy(&output.stderr).contains("weights"), "{output:?}");
}

#[test]
fn what_can_not_work_is_one_error() {
    let home = home();
    let model = fixture("qwen2");
    std::fs::write(home.path().join("README.md"), "# Mine\n").unwrap();
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&[], "x", &["qwen2.5-coder-1.5b", "rynd pull qwen2.5-coder-1.5b", "--yes"]),
        (&["smolm2-135"], "x", &["did you mean smollm2-135m?"]),
        (&["no/such.gguf"], "x", &["no/such.gguf: no such file"]),
        (&[&model], " \n", &["the message is empty"]),
        (&[&model, "--top-p", "3"], "x", &["top_p is 3"]),
        (&[&model, "--save", "chat.txt"], "x", &["chat.txt", ".json or .md"]),
        (&[&model, "--save", "README.md"], "x", &["README.md", "not overwritten"]),
        (&[&model, "--load", "README.md"], "x", &["README.md", "no saved chat"]),
        (&[&model, "-c", "16"], "a message of more than sixteen tokens in all", &["the context has 16", "-c"]),
        (&[&model, "--template", "mine"], "x", &["no built-in chat template 'mine'", "chatml"]),
    ];
    for (arguments, input, words) in cases {
        assert_refused(&chat(home.path(), arguments, input), words);
    }
}

#[test]
fn a_template_that_is_broken_loops_or_lacks_a_variable_is_one_error() {
    let home = home();
    let path = home.path().join("t.gguf");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    for (template, words) in [
        ("a\n{% for m in %}", &["t.gguf", "broken in line 2"][..]),
        (endless, &["t.gguf", "does not come to an end"]),
        ("{{ messages[0].nothing.at_all }}", &["t.gguf", "line 1", "not set"]),
        ("{{ raise_exception('only in French') }}", &["t.gguf", "only in French"]),
    ] {
        let model = with_template(&path, Some(template));
        assert_refused(&chat(home.path(), &[&model], "x"), words);
    }
}

#[test]
fn a_model_without_a_template_gets_a_named_one_and_a_base_model_is_sent_elsewhere() {
    let home = home();
    let lent = with_template(&home.path().join("lent.gguf"), None);
    let output = chat(home.path(), &[&lent, "-n", "2"], "x");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("'chatml' (built in) is used"), "{stderr}");

    let base = changed(&home.path().join("base.gguf"), |key, value| match (key, value) {
        ("tokenizer.chat_template", _) => None,
        ("tokenizer.ggml.tokens", Value::Array(tokens)) => {
            let texts: Vec<String> = tokens
                .byte_strings()
                .unwrap()
                .map(|text| String::from_utf8_lossy(text).replace("<|im_", "<|other_"))
                .collect();
            Some(Value::Array(rynd::gguf::Array::of_strings(texts)))
        }
        _ => Some(value.clone()),
    });
    assert_refused(
        &chat(home.path(), &[&base], "x"),
        &["base model", "rynd run", "--raw", "rynd complete", "--template"],
    );
    assert!(chat(home.path(), &[&base, "--template", "chatml", "-n", "1"], "x").status.success());

    // A catalogued base model, by its entry.
    std::fs::create_dir_all(home.path().join("config")).unwrap();
    let bytes = std::fs::metadata(&lent).unwrap().len();
    let entry = format!(
        "[model.mine]\ndescription = \"\"\nlicence = \"\"\nchat = {{ instruct = false }}\nfile = [{{ name = \"lent.gguf\", \
         bytes = {bytes}, sha256 = \"{}\" }}]\nsource = [{{ kind = \"url\", url = \"https://example.org/\" }}]\n",
        "0".repeat(64)
    );
    std::fs::write(home.path().join("config/models.toml"), entry).unwrap();
    assert_refused(&chat(home.path(), &[&lent], "x"), &["mine is a base model"]);
}

#[test]
fn the_catalog_gives_sampling_defaults_and_a_system_prompt_and_flags_win() {
    let home = home();
    let model = home.path().join("m.gguf");
    std::fs::copy(fixture("qwen2"), &model).unwrap();
    let model = model.display().to_string();
    let flags = [model.as_str(), "-n", "24"];
    std::fs::create_dir_all(home.path().join("config")).unwrap();
    let entry = format!(
        "[model.mine]\ndescription = \"\"\nlicence = \"\"\nsampler = {{ temp = 0.0, repeat_penalty = 1.0 }}\n\
         chat = {{ system = \"be brief\" }}\nfile = [{{ name = \"m.gguf\", bytes = {}, sha256 = \"{}\" }}]\n\
         source = [{{ kind = \"url\", url = \"https://example.org/\" }}]\n",
        std::fs::metadata(&model).unwrap().len(),
        "0".repeat(64)
    );
    let greedy = ["--temp", "0", "--system", "be brief"];
    let by_flags = stdout(&chat(home.path(), &[&flags[..], &greedy].concat(), "hello"));
    std::fs::write(home.path().join("config/models.toml"), entry).unwrap();
    assert_eq!(stdout(&chat(home.path(), &flags, "hello")), by_flags, "by the catalog");
    let other = stdout(&chat(
        home.path(),
        &[&flags[..], &["--temp", "1", "--top-k", "0", "--top-p", "1", "--seed", "1"]].concat(),
        "hello",
    ));
    assert_ne!(other, by_flags);
}
