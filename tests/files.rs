//! What rynd writes, from outside: old files, links, devices, pipes, full disks and signals, by the commands that write.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(unix)]

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const TEXT: &str = "fn main() { println!(\"hello\"); }\n// a text of some tokens, for one chunk or two\nlet x = 1;\n";

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn model(name: &str) -> String {
    fixture(&format!("models/{name}/model.gguf")).display().to_string()
}

/// A command that writes one file: its arguments with the output in place of OUT.
struct Writer {
    name: &'static str,
    arguments: Vec<String>,
}

/// Every command that writes a file whose name the user gives.
fn writers(folder: &Path) -> Vec<Writer> {
    let text = folder.join("text.txt");
    std::fs::write(&text, TEXT.repeat(40)).unwrap();
    let text = text.display().to_string();
    let trace = folder.join("made.trace");
    let (dense, mixture) = (model("qwen2"), model("qwen3moe"));
    let writer = |name, arguments: &[&str]| Writer { name, arguments: arguments.iter().map(|a| (*a).into()).collect() };
    let made = writer("trace", &["run", &mixture, "-p", "hello", "--raw", "-n", "4", "--trace", "OUT"]);
    made.write(&trace);
    let trace = trace.display().to_string();
    vec![
        writer("quantize", &["quantize", &dense, "OUT", "Q8_0"]),
        writer("imatrix", &["imatrix", &dense, "-f", &text, "-o", "OUT", "-c", "32", "--chunks", "2"]),
        writer("perplexity", &["perplexity", &dense, "-f", &text, "-c", "32", "--chunks", "2", "--save-logits", "OUT"]),
        writer("logits", &["logits", &dense, "--ids", "1,2,3", "--all", "-o", "OUT"]),
        writer("hidden", &["logits", &dense, "--ids", "1,2,3", "--hidden", "OUT"]),
        writer("record", &["experts", "record", &mixture, "-p", "hello", "-o", "OUT"]),
        writer("html", &["experts", "show", &trace, "--html", "OUT"]),
        made,
    ]
}

impl Writer {
    fn command(&self, out: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
        let out = out.display().to_string();
        command.args(self.arguments.iter().map(|argument| if argument == "OUT" { &out } else { argument }));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("RYND_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("files-home"));
        command
    }

    fn write(&self, out: &Path) {
        let output = self.command(out).output().unwrap();
        assert!(output.status.success(), "{}: {}", self.name, stderr(&output));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A run that holds its output open: it waits for a text that does not come.
fn waiting(out: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rynd"));
    command.args(["imatrix", &model("qwen2"), "-f", "-", "-c", "32", "-o"]).arg(out);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let partial = format!(".{}.{}.partial", out.file_name().unwrap().to_string_lossy(), child.id());
    while !names(out.parent().unwrap()).contains(&partial) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the output is tried before the text is read");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

fn kill(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode_and_a_link_its_target() {
    let folder = tempfile::tempdir().unwrap();
    for writer in writers(folder.path()) {
        let here = folder.path().join(writer.name);
        std::fs::create_dir(&here).unwrap();
        let (fresh, real, link) = (here.join("fresh"), here.join("real"), here.join("link"));
        writer.write(&fresh);
        std::fs::write(&real, "old").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink("real", &link).unwrap();
        writer.write(&link);
        let name = writer.name;
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "{name}: the link is still one");
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        assert_eq!(std::fs::metadata(&real).unwrap().len(), std::fs::metadata(&fresh).unwrap().len(), "{name}");
        assert_eq!(names(&here), ["fresh", "link", "real"], "{name}");
        // A link to what is not there yet makes it.
        std::fs::remove_file(&real).unwrap();
        writer.write(&link);
        assert!(std::fs::symlink_metadata(&real).unwrap().is_file(), "{name}");
    }
}

#[test]
fn devices_and_pipes_are_written_in_place() {
    let folder = tempfile::tempdir().unwrap();
    for writer in writers(folder.path()) {
        let here = folder.path().join(writer.name);
        std::fs::create_dir(&here).unwrap();
        let (fresh, null, pipe) = (here.join("fresh"), here.join("null"), here.join("pipe"));
        writer.write(&fresh);
        symlink("/dev/null", &null).unwrap();
        writer.write(&null);
        assert!(std::fs::metadata(&null).unwrap().file_type().is_char_device(), "{}", writer.name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::read(pipe).unwrap())
        };
        let mut child = writer.command(&pipe).spawn().unwrap();
        let status = child.wait().unwrap();
        if !std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo() {
            panic!("{}: the pipe was replaced by a file", writer.name);
        }
        assert!(status.success(), "{}", writer.name);
        let got = reader.join().unwrap();
        assert_eq!(got.len() as u64, std::fs::metadata(&fresh).unwrap().len(), "{}", writer.name);
        assert_eq!(names(&here), ["fresh", "null", "pipe"]);
    }
}

#[test]
fn a_file_that_does_not_fit_is_one_error_and_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    for writer in writers(folder.path()) {
        let here = folder.path().join(writer.name);
        std::fs::create_dir(&here).unwrap();
        let out = here.join("out");
        writer.write(&out);
        let bytes = std::fs::metadata(&out).unwrap().len();
        std::fs::write(&out, "precious").unwrap();
        // Half of the file fits, and nothing at all does: the first fails in a write, the second at the end.
        for blocks in [bytes / 2 / 512, 0] {
            let plain = writer.command(&out);
            let mut limited = Command::new("sh");
            limited.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$@\"")).arg("sh").arg(plain.get_program());
            limited.args(plain.get_args()).env("RYND_HOME", folder.path().join("home"));
            let output = limited.stdin(Stdio::null()).output().unwrap();
            let text = stderr(&output);
            // What fits into so few bytes, as a trace of two tokens does, is no failure.
            if output.status.success() && bytes < 1024 {
                continue;
            }
            assert!(!output.status.success(), "{}: {blocks} blocks of {bytes} bytes", writer.name);
            assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious", "{}: {text}", writer.name);
            assert_eq!(names(&here), ["out"], "{}", writer.name);
            assert_eq!(text.matches("rynd: error").count(), 1, "{}: {text}", writer.name);
            assert!(text.contains(&out.display().to_string()), "{}: {text}", writer.name);
        }
    }
}

#[test]
fn signals_that_end_the_program_remove_what_is_half_done() {
    use rustix::process::Signal;
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("m.imatrix");
        std::fs::write(&out, "precious").unwrap();
        let mut child = waiting(&out);
        kill(&child, signal);
        let status = child.wait().unwrap();
        assert!(!status.success(), "{signal:?}");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(signal.as_raw()),
            "as without rynd's care"
        );
        assert_eq!(names(folder.path()), ["m.imatrix"], "{signal:?}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.imatrix");
    let mut command = Command::new("sh");
    let script = "trap '' HUP; exec \"$0\" imatrix \"$1\" -f - -c 32 --chunks 1 -o \"$2\"";
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_rynd")).arg(model("qwen2")).arg(&out);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while names(folder.path()).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(&child, rustix::process::Signal::HUP);
    child.stdin.take().unwrap().write_all(TEXT.repeat(40).as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nohup works");
    assert_eq!(names(folder.path()), ["m.imatrix"]);
}

#[test]
fn what_a_killed_process_left_is_swept_at_the_next_start_and_what_is_alive_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m.gguf");
    let mut killed = waiting(&out);
    kill(&killed, rustix::process::Signal::KILL);
    killed.wait().unwrap();
    let mut alive = waiting(&out);
    let left = names(folder.path());
    let theirs = format!(".m.gguf.{}.partial", alive.id());
    assert_eq!(left, std::slice::from_ref(&theirs), "the dead one's is gone, the living one's is there");
    // Files that only look alike, and the parts of a split output.
    let dead = killed.id();
    for name in [format!(".m.gguf.{dead}.partial"), format!(".m-00002-of-00003.gguf.{dead}.partial")] {
        std::fs::write(folder.path().join(name), "left").unwrap();
    }
    let foreign = [format!(".other.gguf.{dead}.partial"), "m.gguf.partial".into(), ".m.gguf.x.partial".into()];
    for name in &foreign {
        std::fs::write(folder.path().join(name), "foreign").unwrap();
    }
    Writer { name: "", arguments: ["quantize", &model("qwen2"), "OUT", "Q8_0"].map(String::from).into() }.write(&out);
    let mut expected: Vec<String> = foreign.into_iter().chain([theirs, "m.gguf".into()]).collect();
    expected.sort();
    assert_eq!(names(folder.path()), expected);
    alive.kill().unwrap();
    alive.wait().unwrap();
}

#[test]
fn standard_output_by_its_device_name_is_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = "{ printf before; \"$0\" logits \"$1\" --ids 1,2 -o /dev/stdout; } > \"$2\"";
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_rynd")).arg(model("qwen2")).arg(&out);
    let status = shell.stdin(Stdio::null()).status().unwrap();
    assert!(status.success());
    let mut bytes = vec![];
    std::fs::File::open(&out).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes.starts_with(b"before\x93NUMPY"), "{:?}", &bytes[..16.min(bytes.len())]);
    assert_eq!(names(folder.path()), ["out"]);
}
