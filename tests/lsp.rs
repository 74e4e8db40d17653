//! The Language Server, driven by a scripted client over its pipes: a tiny model answers, `rynd complete` is the oracle.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// Far more than any answer takes: a test fails by it only when an answer never comes.
const PATIENCE: Duration = Duration::from_secs(300);
/// Makes the model say "a" for ever: the id of "a" in the tiny vocabulary.
const ENDLESS: [&str; 2] = ["--logit-bias", "64=1000"];

fn model() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/models/qwen2/model.gguf").display().to_string()
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lsp-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path.canonicalize().unwrap()
}

struct Editor {
    child: Child,
    stdin: ChildStdin,
    messages: Receiver<Value>,
    log: Receiver<String>,
}

impl Editor {
    fn start(arguments: &[&str]) -> Editor {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rynd"))
            .args(["complete", &model(), "--stdio", "--verbose", "-t", "1", "--cache-disk", "0"])
            .args(if arguments.contains(&"--debounce-ms") { &[][..] } else { &["--debounce-ms", "0"] })
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout, stderr) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (send, messages) = channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            while let Some(message) = read(&mut stdout) {
                let _ = send.send(message);
            }
        });
        let (send, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        Editor { child, stdin, messages, log }
    }

    /// Started, and through the handshake.
    fn ready(arguments: &[&str], initialize: Value) -> Editor {
        let mut editor = Editor::start(arguments);
        editor.ask(json!(0), "initialize", initialize);
        assert!(editor.answer(json!(0))["capabilities"].is_object());
        editor.tell("initialized", json!({}));
        editor
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.stdin.write_all(bytes).unwrap();
        self.stdin.flush().unwrap();
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        self.raw(format!("Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes());
    }

    fn ask(&mut self, id: Value, method: &str, params: Value) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
    }

    fn tell(&mut self, method: &str, params: Value) {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
    }

    /// The next message, which must answer this request.
    fn response(&self, id: Value) -> Value {
        let message = self.messages.recv_timeout(PATIENCE).unwrap();
        assert_eq!(message["id"], id, "{message}");
        message
    }

    fn answer(&self, id: Value) -> Value {
        let message = self.response(id);
        assert!(message.get("error").is_none(), "{message}");
        message["result"].clone()
    }

    fn error(&self, id: Value) -> (i64, String) {
        let message = self.response(id);
        (message["error"]["code"].as_i64().expect("an error"), message["error"]["message"].to_string())
    }

    fn open(&mut self, uri: &str, text: &str) {
        let document = json!({"uri": uri, "languageId": "x", "version": 1, "text": text});
        self.tell("textDocument/didOpen", json!({"textDocument": document}));
    }

    fn edit(&mut self, uri: &str, [start, end]: [(u32, u32); 2], text: &str) {
        let change = json!({"range": {"start": at(start), "end": at(end)}, "text": text});
        self.tell(
            "textDocument/didChange",
            json!({"textDocument": {"uri": uri, "version": 2}, "contentChanges": [change]}),
        );
    }

    fn ask_inline(&mut self, id: Value, uri: &str, position: (u32, u32)) {
        let context = json!({"triggerKind": 2});
        let params = json!({"textDocument": {"uri": uri}, "position": at(position), "context": context});
        self.ask(id, "textDocument/inlineCompletion", params);
    }

    /// The texts of an inline completion.
    fn inline(&mut self, id: u64, uri: &str, position: (u32, u32)) -> Vec<String> {
        self.ask_inline(json!(id), uri, position);
        let answer = self.answer(json!(id));
        let items = answer["items"].as_array().unwrap();
        items.iter().map(|item| item["insertText"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits for the line of the log that tells of a request: prompt tokens, computed, generated; and the line.
    fn cost(&self, id: u64) -> ([usize; 3], String) {
        let start = format!("rynd: request {id}: ");
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap();
            if line.starts_with(&start) {
                let numbers: Vec<usize> =
                    line[start.len()..].split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
                return ([numbers[0], numbers[1], numbers[2]], line);
            }
        }
    }

    /// Ends in order; the exit code.
    fn finish(mut self) -> Option<i32> {
        self.ask(json!("bye"), "shutdown", Value::Null);
        assert_eq!(self.answer(json!("bye")), Value::Null);
        self.tell("exit", Value::Null);
        self.child.wait().unwrap().code()
    }
}

fn read(stdout: &mut impl BufRead) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stdout.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stdout.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).expect("the server's output is the protocol and nothing else"))
}

fn at((line, character): (u32, u32)) -> Value {
    json!({"line": line, "character": character})
}

/// What the one-shot command says to the same place, and its prompt's tokens.
fn one_shot_and_cost(arguments: &[&str]) -> (Vec<String>, usize) {
    let output = Command::new(env!("CARGO_BIN_EXE_rynd"))
        .args(["complete", &model(), "--json", "-t", "1", "--suffix-tokens", "128", "--cache-disk", "0"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let texts = found.as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().to_owned());
    let said = texts.filter(|text| !text.trim().is_empty()).collect();
    (said, found[0]["prompt_tokens"].as_u64().unwrap() as usize)
}

/// The text alone; the tiny model must say something there.
fn one_shot(arguments: &[&str]) -> String {
    one_shot_and_cost(arguments).0.pop().expect("the tiny model says something here")
}

/// Tokens of a text.
fn tokens(text: &str) -> usize {
    let output = Command::new(env!("CARGO_BIN_EXE_rynd")).args(["tokenize", &model(), "-p", text]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().count()
}

#[test]
fn a_session_begins_and_ends_as_the_protocol_says() {
    let mut editor = Editor::start(&[]);
    editor.ask(json!(1), "textDocument/completion", json!({}));
    assert_eq!(editor.error(json!(1)).0, -32002);
    editor.tell("textDocument/didOpen", json!({})); // dropped
    editor.ask(json!("first"), "initialize", json!({"processId": null, "rootUri": null, "capabilities": {}}));
    let result = editor.answer(json!("first"));
    let capabilities = &result["capabilities"];
    assert_eq!(capabilities["positionEncoding"], "utf-16");
    assert_eq!(capabilities["textDocumentSync"]["change"], 2);
    assert!(capabilities["inlineCompletionProvider"].is_object() && capabilities["completionProvider"].is_object());
    assert_eq!(result["serverInfo"]["name"], "rynd");
    editor.ask(json!(2), "initialize", json!({"capabilities": {}}));
    assert_eq!(editor.error(json!(2)).0, -32600);
    editor.ask(json!(3), "shutdown", Value::Null);
    editor.answer(json!(3));
    editor.ask(json!(4), "textDocument/completion", json!({}));
    assert_eq!(editor.error(json!(4)).0, -32600);
    editor.tell("exit", Value::Null);
    assert_eq!(editor.child.wait().unwrap().code(), Some(0));

    let mut hasty = Editor::ready(&[], json!({"capabilities": {}}));
    hasty.tell("exit", Value::Null);
    assert_eq!(hasty.child.wait().unwrap().code(), Some(1));
}

#[test]
fn completions_after_edits_are_those_of_the_text_that_the_edits_make() {
    for (encodings, columns) in [(json!(["utf-16"]), [9, 11]), (json!(["utf-8", "utf-16"]), [13, 15])] {
        let initialize = json!({"capabilities": {"general": {"positionEncodings": encodings}}});
        let mut editor = Editor::ready(&["-n", "12"], initialize);
        let uri = "file:///nowhere/ç d.py";
        editor.open(uri, "def f(x):\n    ç𝄞é =  1\n    return y\n");
        // Columns behind two characters of two bytes and one of four.
        editor.edit(uri, [(1, columns[0]), (1, columns[1])], "= x +");
        editor.edit(uri, [(2, 11), (2, 12)], "x");
        let position = (1, columns[0] + 5);
        let found = editor.inline(1, uri, position);
        let expected =
            one_shot(&["-n", "12", "--prefix", "def f(x):\n    ç𝄞é = x +", "--suffix", " 1\n    return x\n"]);
        assert_eq!(found, [expected], "{encodings}");
        assert_eq!(editor.finish(), Some(0));
    }
}

#[test]
fn a_list_completes_the_word_at_the_cursor() {
    let mut editor = Editor::ready(&["-n", "6"], json!({"capabilities": {}}));
    editor.open("file:///a.py", "é = xyz");
    editor.ask(
        json!(1),
        "textDocument/completion",
        json!({"textDocument": {"uri": "file:///a.py"}, "position": at((0, 7)), "context": {"triggerKind": 1}}),
    );
    let answer = editor.answer(json!(1));
    assert_eq!(answer["isIncomplete"], true);
    let text = format!("xyz{}", one_shot(&["-n", "6", "--prefix", "é = xyz", "--suffix", ""]));
    let item = &answer["items"][0];
    assert_eq!(item["textEdit"], json!({"range": {"start": at((0, 4)), "end": at((0, 7))}, "newText": text}));
    assert_eq!(item["filterText"], text.as_str());
    // The ghost text of the same place comes without work, and goes on from an entry that is selected in the list.
    let ghost = editor.inline(2, "file:///a.py", (0, 7));
    assert_eq!(format!("xyz{}", ghost[0]), text);
    let selected = json!({"range": {"start": at((0, 4)), "end": at((0, 7))}, "text": "xyzx"});
    let context = json!({"triggerKind": 1, "selectedCompletionInfo": selected});
    let params = json!({"textDocument": {"uri": "file:///a.py"}, "position": at((0, 7)), "context": context});
    editor.ask(json!(3), "textDocument/inlineCompletion", params);
    let answer = editor.answer(json!(3));
    let after = one_shot(&["-n", "6", "--prefix", "é = xyzx", "--suffix", ""]);
    assert_eq!(answer["items"][0]["insertText"], format!("xyzx{after}"));
    assert_eq!(answer["items"][0]["range"], json!({"start": at((0, 4)), "end": at((0, 7))}));
    assert_eq!(editor.finish(), Some(0));
}

#[test]
fn a_cancelled_request_stops_while_it_generates() {
    let most = 20_000;
    let (n, c) = (most.to_string(), (most + 100).to_string());
    let mut editor = Editor::ready(&[&ENDLESS[..], &["-n", &n, "-c", &c]].concat(), json!({"capabilities": {}}));
    editor.open("file:///a", "x");
    editor.ask_inline(json!(1), "file:///a", (0, 1));
    // Other requests are answered while the model runs.
    editor.ask(json!(2), "unknown/method", Value::Null);
    assert_eq!(editor.error(json!(2)).0, -32601);
    std::thread::sleep(Duration::from_millis(300));
    editor.tell("$/cancelRequest", json!({"id": 99}));
    editor.tell("$/cancelRequest", json!({"id": 1}));
    let (code, message) = editor.error(json!(1));
    assert_eq!(code, -32800, "{message}");
    let ([_, _, generated], line) = editor.cost(1);
    assert!(generated < most && line.ends_with(", stopped"), "{line}");
    // A shutdown stops what runs as well, and everybody gets an answer.
    editor.ask_inline(json!("again"), "file:///a", (0, 0));
    editor.ask(json!(4), "shutdown", Value::Null);
    let answers: Vec<Value> = (0..2).map(|_| editor.messages.recv_timeout(PATIENCE).unwrap()).collect();
    let of = |id: Value| answers.iter().find(|answer| answer["id"] == id).unwrap();
    assert_eq!(of(json!("again"))["error"]["code"], -32800);
    assert_eq!(of(json!(4))["result"], Value::Null);
    editor.tell("exit", Value::Null);
    assert_eq!(editor.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_newer_request_takes_the_place_of_one_that_runs_or_waits() {
    let most = 20_000;
    let (n, c) = (most.to_string(), (most + 100).to_string());
    let flags = [&ENDLESS[..], &["-n", &n, "-c", &c, "--max-ms", "1500"]].concat();
    let mut editor = Editor::ready(&flags, json!({"capabilities": {}}));
    editor.open("file:///a", "xyz");
    for id in 1..=3 {
        editor.ask_inline(json!(id), "file:///a", (0, id));
    }
    // The one that runs notices when its token is done, so the order is open.
    let mut answers: Vec<Value> = (0..3).map(|_| editor.messages.recv_timeout(PATIENCE).unwrap()).collect();
    answers.sort_by_key(|answer| answer["id"].as_u64());
    for answer in &answers[..2] {
        let (code, message) = (&answer["error"]["code"], answer["error"]["message"].to_string());
        assert!(*code == -32800 && message.contains("superseded"), "{answer}");
    }
    let answer = &answers[2]["result"];
    let text = answer["items"][0]["insertText"].as_str().unwrap();
    assert!(text.starts_with("aaa") && text.len() < most, "the time was over: {} characters", text.len());
    // A list's request leaves the ghost text's alone.
    editor.ask_inline(json!(4), "file:///a", (0, 0));
    let params = json!({"textDocument": {"uri": "file:///a"}, "position": at((0, 1))});
    editor.ask(json!(5), "textDocument/completion", params);
    editor.answer(json!(4));
    editor.answer(json!(5));
    assert_eq!(editor.finish(), Some(0));

    // Within the debounce nothing is computed for the older one.
    let mut editor = Editor::ready(&["-n", "4", "--debounce-ms", "1000"], json!({"capabilities": {}}));
    editor.open("file:///a", "xyz");
    editor.ask_inline(json!(1), "file:///a", (0, 1));
    editor.ask_inline(json!(2), "file:///a", (0, 2));
    assert_eq!(editor.error(json!(1)).0, -32800);
    editor.answer(json!(2));
    let first = editor.log.recv_timeout(PATIENCE).unwrap();
    assert!(first.starts_with("rynd: request 2: "), "{first}");
    assert_eq!(editor.finish(), Some(0));
}

#[test]
fn a_keystroke_computes_the_text_behind_the_cursor_and_little_else() {
    let mut editor = Editor::ready(&[&ENDLESS[..], &["-n", "5"]].concat(), json!({"capabilities": {}}));
    let before = "def alpha(beta, gamma):\n    delta = beta + gamma\n    return delta\n\n".repeat(6);
    let line = before.lines().count() as u32;
    editor.open("file:///a.py", &format!("{before}x = 1\nprint(x)\n"));
    assert_eq!(editor.inline(1, "file:///a.py", (line, 0)), ["aaaaa"]);
    let ([prompt, computed, _], _) = editor.cost(1);
    assert_eq!(computed, prompt, "nothing is known at the start");
    assert!(prompt > 150, "{prompt}");

    // A key that was not proposed: the end of the prefix, the suffix and the two tokens around it.
    let suffix = tokens("x = 1\nprint(x)\n");
    editor.edit("file:///a.py", [(line, 0), (line, 0)], "z");
    editor.inline(2, "file:///a.py", (line, 1));
    let ([prompt, computed, _], _) = editor.cost(2);
    assert!(suffix + 2 < computed && computed <= suffix + 2 + 2, "{computed} of {prompt}");

    // A key that was: no work at all.
    editor.edit("file:///a.py", [(line, 1), (line, 1)], "aa");
    assert_eq!(editor.inline(3, "file:///a.py", (line, 3)), ["aaa"]);
    let line_of_log = editor.log.recv_timeout(PATIENCE).unwrap();
    assert!(line_of_log.contains("request 3: the rest of the last completion"), "{line_of_log}");
    assert_eq!(editor.finish(), Some(0));
}

#[test]
fn files_of_the_workspace_go_into_the_prompt_as_they_are_open() {
    let root = folder("workspace");
    std::fs::create_dir_all(root.join("inner")).unwrap();
    let geometry = "def area_of_polygon(points):\n    return sum(points)\n";
    std::fs::write(root.join("inner/geometry.py"), geometry).unwrap();
    std::fs::write(root.join("inner/other.py"), "unrelated = 1\n").unwrap();
    let main = "import geometry\n\nprint(area_of_polygon(";
    std::fs::write(root.join("inner/main.py"), main).unwrap();
    let uri = |name: &str| format!("file://{}", root.join(name).display());

    let folders = json!([{"uri": uri(""), "name": "outer"}, {"uri": uri("inner"), "name": "inner"}]);
    let mut editor = Editor::ready(&["-n", "6"], json!({"capabilities": {}, "workspaceFolders": folders}));
    editor.open(&uri("inner/main.py"), main);
    let end = main.lines().last().unwrap().len() as u32;
    let found = editor.inline(1, &uri("inner/main.py"), (2, end));
    let ([with_context, ..], _) = editor.cost(1);
    let (file, repo) = (root.join("inner/main.py").display().to_string(), root.join("inner").display().to_string());
    let place = ["-n", "6", "--file", &file, "--line", "3", "--repo", &repo];
    assert_eq!((found, with_context), one_shot_and_cost(&place));

    // Outside of the folders there is no context; so the prompt is shorter.
    editor.tell(
        "workspace/didChangeWorkspaceFolders",
        json!({"event": {"added": [], "removed": [{"uri": uri(""), "name": "outer"}, {"uri": uri("inner"), "name": "inner"}]}}),
    );
    editor.inline(2, &uri("inner/main.py"), (2, end));
    let ([without, ..], _) = editor.cost(2);
    assert!(with_context > without + 15, "{with_context} {without}");

    // What is open counts as the editor has it.
    editor.tell(
        "workspace/didChangeWorkspaceFolders",
        json!({"event": {"added": [{"uri": uri("inner"), "name": "inner"}], "removed": []}}),
    );
    editor.open(&uri("inner/geometry.py"), &format!("{geometry}# not saved yet, and so not on the disk\n"));
    editor.inline(3, &uri("inner/main.py"), (2, end));
    let ([unsaved, ..], _) = editor.cost(3);
    assert!(unsaved > with_context + 5, "{unsaved} {with_context}");
    assert_eq!(editor.finish(), Some(0));
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_client_that_misbehaves_is_told_so_and_served_on() {
    let mut editor = Editor::ready(&["-n", "4"], json!({"capabilities": {}}));
    editor.open("file:///a", "x = ");
    let served = editor.inline(1, "file:///a", (0, 4));

    for bytes in [
        &b"Content-Length: 5\r\n\r\n{oops"[..],
        b"Content-Length: none\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"Content-Length: 2\r\n\r\n\xff\xfe",
    ] {
        editor.raw(bytes);
        assert_eq!(editor.error(Value::Null).0, -32700);
    }
    for message in [json!([1]), json!({"id": 7}), json!({"id": null, "method": "x"}), json!("x")] {
        editor.send(&message);
        assert_eq!(editor.error(Value::Null).0, -32600);
    }
    editor.send(&json!({"id": 5, "result": null})); // an answer to nothing
    editor.ask(json!(2), "textDocument/inlineCompletion", json!({"position": "here"}));
    assert_eq!(editor.error(json!(2)).0, -32602);
    editor.ask_inline(json!(3), "file:///not-open", (0, 0));
    let (code, message) = editor.error(json!(3));
    assert!(code == -32602 && message.contains("not-open"), "{message}");
    editor.tell("$/cancelRequest", json!({}));
    editor.edit("file:///not-open", [(0, 0), (0, 0)], "x");
    editor.edit("file:///a", [(9, 9), (8, 8)], ""); // behind the end, and backwards
    editor.tell("textDocument/didChange", json!({"textDocument": {"uri": 5}}));
    editor.ask_inline(json!(3_000_000_000_u64), "file:///a", (u32::MAX, u32::MAX));
    assert_eq!(editor.answer(json!(3_000_000_000_u64))["items"][0]["insertText"], served[0].as_str());

    editor.tell("textDocument/didClose", json!({"textDocument": {"uri": "file:///a"}}));
    editor.ask_inline(json!(4), "file:///a", (0, 0));
    assert_eq!(editor.error(json!(4)).0, -32602);
    assert_eq!(editor.finish(), Some(0));
}

#[test]
fn the_server_ends_with_its_input() {
    let mut editor = Editor::ready(&ENDLESS, json!({"capabilities": {}}));
    editor.open("file:///a", "x");
    editor.ask_inline(json!(1), "file:///a", (0, 1));
    let Editor { mut child, stdin, .. } = editor;
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
