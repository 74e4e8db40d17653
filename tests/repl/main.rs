//! `rynd chat` driven as a user drives it: at a pseudo-terminal, and by pipes.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod pipes;
mod terminal;

use std::path::Path;

use rynd::gguf::Gguf;
use rynd::tokenizer::{Encode, Tokenizer, Vocab};
use serde_json::Value;
use terminal::{PASTE, Terminal, count, fixture};

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::new(Vocab::from_gguf(&Gguf::open(Path::new(&fixture("qwen2"))).unwrap()).unwrap()).unwrap()
}

/// Flags that keep the tiny model talking: its end tokens are forbidden.
fn endless() -> Vec<String> {
    tokenizer().ends().iter().map(|id| format!("--logit-bias={id}=-inf")).collect()
}

/// The messages of a saved chat, as (role, text).
fn saved(path: &Path) -> Vec<(String, String)> {
    let chat: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    chat["messages"].as_array().unwrap().iter().map(|m| (text(&m["role"]), text(&m["content"]))).collect()
}

fn questions(path: &Path) -> Vec<String> {
    saved(path).into_iter().filter(|(role, _)| role == "user").map(|(_, text)| text).collect()
}

#[test]
fn lines_pasted_continued_or_broken_by_alt_enter_are_one_message() {
    let home = home();
    let mut t = Terminal::chat(home.path(), &["-n", "4"]);
    let pasted = "fn f() {\\\r    /undo\r\r}\r// end";
    t.send(&format!("{}{pasted}{}", PASTE[0], PASTE[1]));
    t.wait_for("// end");
    t.send("\r");
    t.ready();
    t.send("one\\\r");
    t.wait("a second line", |t| t.cursor_row().trim().is_empty());
    t.send("two\x1b\rthree");
    t.wait_for("three");
    t.send("\r");
    t.ready();
    t.line("/save chat.json");
    assert_eq!(questions(&t.file("chat.json")), ["fn f() {\\\n    /undo\n\n}\n// end", "one\ntwo\nthree"]);
    assert_eq!(t.leave(), 0);
}

#[test]
fn ctrl_c_stops_the_answer_and_keeps_the_session() {
    let home = home();
    let endless = endless();
    let flags: Vec<&str> = endless.iter().map(String::as_str).chain(["-c", "60000"]).collect();
    let mut t = Terminal::chat(home.path(), &flags);
    t.send("talk\r");
    // The answer has begun when there are several lines of it, or one that fills the screen's width.
    t.wait("an answer", |t| t.contents().split("> talk").nth(1).is_some_and(|rest| rest.trim().len() > 40));
    t.send("\x03");
    t.wait_for("(stopped)");
    t.ready();
    // Twice at the prompt: a hint, and the session is still there.
    t.send("half a line");
    t.wait_for("half a line");
    t.send("\x03");
    t.ready();
    t.send("\x03");
    t.wait_for("Ctrl-D or /quit leaves.");
    t.ready();
    t.line("/set tokens=4");
    t.line("more");
    t.line("/save chat.json");
    let messages = saved(&t.file("chat.json"));
    let roles: Vec<&str> = messages.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert!(messages[1].1.len() > messages[3].1.len(), "{messages:?}");
    assert_eq!(t.leave(), 0);
}

#[test]
fn undo_regen_edit_and_clear_do_what_they_say() {
    let home = home();
    let editor = home.path().join("editor.sh");
    std::fs::write(&editor, "#!/bin/sh\nprintf 'edited: %s' \"$(cat \"$1\")\" > \"$1.new\" && mv \"$1.new\" \"$1\"\n")
        .unwrap();
    let model = fixture("qwen2");
    let editor = format!("sh {}", editor.display());
    let arguments = [model.as_str(), "--temp", "0", "-n", "4", "--system", "be brief"];
    let mut t = Terminal::start(home.path(), &arguments, &[("EDITOR", editor.as_str())]);
    t.ready();
    t.line("/undo");
    t.wait_for("there is nothing to take back");
    for text in ["first", "second", "third"] {
        t.line(text);
    }
    t.line("/undo");
    t.wait_for("took back: third");
    t.line("/regen");
    t.line("/save a.json");
    assert_eq!(questions(&t.file("a.json")), ["first", "second"]);
    assert_eq!(saved(&t.file("a.json")).len(), 5);
    t.line("/edit");
    t.wait_for("> edited: second");
    t.line("/save b.json");
    assert_eq!(questions(&t.file("b.json")), ["first", "edited: second"]);
    t.line("/clear");
    t.line("/save c.json");
    assert_eq!(saved(&t.file("c.json")), [("system".to_owned(), "be brief".to_owned())]);
    t.line("/frobnicate");
    t.wait_for("there is no command /frobnicate");
    assert_eq!(t.leave(), 0);
}

#[test]
fn a_chat_saved_and_loaded_is_the_same_chat() {
    let home = home();
    let mut t = Terminal::chat(home.path(), &["-n", "6", "--system", "be\n\n## User\nbrief"]);
    t.line("hello there");
    t.line("/save one.json");
    t.line("/save two.md");
    t.line("/clear");
    t.line("/load two.md");
    t.wait_for("loaded 2 messages");
    t.line("/save three.json");
    let one = std::fs::read(t.file("one.json")).unwrap();
    assert_eq!(std::fs::read(t.file("three.json")).unwrap(), one);
    t.line("/load one.json");
    t.line("/save four.md");
    assert_eq!(std::fs::read(t.file("four.md")).unwrap(), std::fs::read(t.file("two.md")).unwrap());
    std::fs::write(t.file("notes.md"), "# Notes\n").unwrap();
    t.line("/save notes.md");
    t.wait_for("is not overwritten");
    t.line("/load nothing.json");
    t.wait_for("can not read nothing.json");
    assert_eq!(t.leave(), 0);
    // And from the command line, with --save at the end.
    let t = Terminal::chat(home.path(), &["--load", "one.json", "--save", "five.json"]);
    let file = t.file("five.json");
    assert_eq!(t.leave(), 0);
    assert_eq!(std::fs::read(file).unwrap(), one);
}

#[test]
fn files_go_along_with_a_message() {
    let home = home();
    std::fs::write(home.path().join("a.rs"), "fn a() {}\n").unwrap();
    std::fs::write(home.path().join("b.py"), "b = 1\n").unwrap();
    let mut t = Terminal::chat(home.path(), &["-n", "2"]);
    t.line("/read a.rs");
    t.wait_for("a.rs (1 line) goes with the next message");
    t.line("compare with @b.py, @no/such and @property");
    t.wait_for("@no/such is no file here");
    t.line("/read missing.rs");
    t.wait_for("can not read missing.rs");
    // Tab completes commands and paths.
    t.send("/sa\t");
    t.wait_for("> /save ");
    t.send("chat.json\r");
    t.ready();
    t.send("@b.\t");
    t.wait_for("> @b.py");
    let expected =
        "a.rs:\n```rs\nfn a() {}\n```\n\nb.py:\n```py\nb = 1\n```\n\ncompare with @b.py, @no/such and @property";
    assert_eq!(questions(&t.file("chat.json")), [expected]);
}

#[test]
fn a_resize_leaves_a_prompt_that_works() {
    let home = home();
    let mut t = Terminal::chat(home.path(), &["-n", "8"]);
    t.line("before");
    let text = "wide enough to go over the edge of a narrow screen";
    for (rows, cols) in [(30, 40), (20, 24), (50, 120)] {
        t.resize(rows, cols);
        t.send(text);
        // What is shown may be wrapped, but nothing of it is lost or doubled.
        t.wait("the text", |t| count(t.contents().replace('\n', "").as_bytes(), text.as_bytes()) > 0);
        t.send("\r");
        t.ready();
    }
    t.line("/save chat.json");
    assert_eq!(questions(&t.file("chat.json")), ["before", text, text, text]);
    t.line("/clear");
    // What was asked last is what the history gives first.
    t.send("\x1b[A");
    t.wait("the last line", |t| t.cursor_row().trim_end() == "> /clear");
    t.send("\x03");
    t.ready();
    assert_eq!(t.leave(), 0);
}

#[test]
fn each_turn_computes_only_its_new_tokens() {
    let home = home();
    let endless = endless();
    let flags: Vec<&str> = endless.iter().map(String::as_str).chain(["-n", "24"]).collect();
    let mut t = Terminal::chat(home.path(), &flags);
    let tokenizer = tokenizer();
    let tokens = |text: &str| tokenizer.encode(text, Encode { add_special: false, parse_special: true }).len();
    let opening = "<|im_start|>user\nhow are you<|im_end|>\n<|im_start|>assistant\n";
    let between = format!("<|im_end|>\n{opening}");
    let mut held = 0;
    for turn in 0..4 {
        t.line("how are you");
        t.line("/stats");
        let new = tokens(if turn == 0 { opening } else { &between });
        // The last token of an answer was chosen but not read yet.
        let unread = usize::from(turn > 0);
        let line = format!(
            "prompt    {} tokens: {held} remembered, 0 from disk, {} computed",
            held + new + unread,
            new + unread
        );
        t.wait_for(&line);
        held += new + unread + 23;
        t.wait_for(&format!("context   {} of 2048 tokens used", held + 1));
    }
    t.line("/regen");
    t.line("/stats");
    t.wait_for(&format!("prompt    {} tokens: {} remembered, 0 from disk, 1 computed", held - 23, held - 24));
    t.wait_for("read by the CPU where they lie");
    assert_eq!(t.leave(), 0);
}

#[test]
fn a_conversation_that_outgrows_the_context_drops_its_oldest_turns_and_says_so() {
    let home = home();
    let mut t = Terminal::chat(home.path(), &["-n", "16", "-c", "200", "--system", "be brief"]);
    let mut turns = 0;
    while !t.contents().contains("forgotten") {
        turns += 1;
        assert!(turns < 12, "{}", t.contents());
        t.line(&format!("message number {turns}"));
    }
    t.line("/save chat.json");
    assert_eq!(questions(&t.file("chat.json")).len(), turns, "what is forgotten is saved all the same");
    assert_eq!(saved(&t.file("chat.json"))[0], ("system".to_owned(), "be brief".to_owned()));
    // A message that can not fit at all is refused, and the chat goes on.
    t.line(&format!("/read {}", t.file("chat.json").display()));
    t.send("explain\r");
    t.wait_for("and the context has 200");
    t.ready();
    assert_eq!(t.leave(), 0);
}

#[test]
fn a_chat_goes_on_with_another_model() {
    let home = home();
    let mut t = Terminal::chat(home.path(), &["-n", "4"]);
    t.line("hello");
    t.line("/model smolm2-135");
    t.wait_for("did you mean smollm2-135m");
    t.line(&format!("/model {}", fixture("llama")));
    t.line("again");
    t.line("/save chat.json");
    assert_eq!(questions(&t.file("chat.json")), ["hello", "again"]);
    assert!(std::fs::read_to_string(t.file("chat.json")).unwrap().contains("models/llama/model.gguf"));
    t.line("/set top_p=2");
    t.wait_for("top_p is 2");
    t.line("/set top_k=7 seed=5");
    t.line("/set");
    t.wait_for("* top_k             7");
    t.wait_for("  top_p             1 ");
    assert_eq!(t.leave(), 0);
}

#[test]
fn no_colour_means_no_styles_and_answers_without_any_escape() {
    let home = home();
    let model = fixture("qwen2");
    let mut t = Terminal::start(home.path(), &[model.as_str(), "-n", "40", "--temp", "0"], &[("NO_COLOR", "1")]);
    t.ready();
    t.line("**hello**");
    let start = t.raw.len();
    t.line("/help");
    t.line("/set");
    let text = String::from_utf8_lossy(&t.raw[start..]).into_owned();
    let help = &text[text.find("/system [TEXT]").unwrap()..text.find("Ctrl-R").unwrap()];
    assert!(!help.contains('\x1b'), "{help:?}");
    // The line editor moves the cursor, which no text can do without; styles there are none.
    for part in String::from_utf8_lossy(&t.raw).split("\x1b[").skip(1) {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        assert!(&part[end..=end] != "m" || part[..end].is_empty() || &part[..end] == "0", "{part:?}");
    }
    assert_eq!(t.leave(), 0);
}

#[test]
fn a_history_that_can_not_be_read_is_told_and_left_alone() {
    let home = home();
    let history = home.path().join("config/chat_history");
    std::fs::create_dir_all(history.parent().unwrap()).unwrap();
    std::fs::write(&history, b"fine\n\xff\xfe\n").unwrap();
    let mut t = Terminal::chat(home.path(), &["-n", "2"]);
    t.line("hello");
    assert_eq!(count(&t.raw, b"chat_history can not be read"), 1, "{}", t.contents());
    t.line("/save chat.json");
    assert_eq!(questions(&t.file("chat.json")), ["hello"]);
    assert_eq!(t.leave(), 0);
    assert_eq!(std::fs::read(&history).unwrap(), b"fine\n\xff\xfe\n");
    // A good one is there again in the next session.
    std::fs::write(&history, b"").unwrap();
    let mut t = Terminal::chat(home.path(), &["-n", "2"]);
    t.line("remember me");
    assert_eq!(t.leave(), 0);
    let mut t = Terminal::chat(home.path(), &["-n", "2"]);
    t.send("\x1b[A");
    t.wait_for("> remember me");
}

#[test]
fn a_signal_ends_the_chat_as_leaving_does_saved_and_with_the_terminal_as_it_was() {
    let endless = endless();
    for signal in ["TERM", "HUP", "QUIT"] {
        for answering in [false, true] {
            let home = home();
            let flags = ["-c", "60000", "--save", "chat.json"];
            let flags: Vec<&str> = endless.iter().map(String::as_str).chain(flags).collect();
            let mut t = Terminal::chat(home.path(), &flags);
            t.send("talk\r");
            t.wait("an answer", |t| t.contents().split("> talk").nth(1).is_some_and(|rest| rest.trim().len() > 40));
            if !answering {
                t.send("\x03");
                t.wait_for("(stopped)");
                t.ready();
                t.send("half a line");
                t.wait_for("half a line");
            }
            let code = t.signal(signal);
            let number = match signal {
                "HUP" => 1,
                "QUIT" => 3,
                _ => 15,
            };
            assert_eq!(code, 128 + number, "{signal}, answering: {answering}");
            let (on, off) = (count(&t.raw, b"\x1b[?2004h"), count(&t.raw, b"\x1b[?2004l"));
            let last = |mode: &[u8]| t.raw.windows(mode.len()).rposition(|window| window == mode);
            assert!(on > 0 && off > 0 && last(b"\x1b[?2004l") > last(b"\x1b[?2004h"), "{signal}: {on} on, {off} off");
            assert_eq!(t.modes(), t.modes_before, "{signal}, answering: {answering}");
            let messages = saved(&t.file("chat.json"));
            assert_eq!(messages[0], ("user".to_owned(), "talk".to_owned()), "{signal}");
        }
    }
}
