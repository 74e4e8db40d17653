//! The program at a pseudo-terminal, with what a terminal would show and answer.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// A hang must end the test at some time; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Bracketed paste, as terminals send it.
pub const PASTE: [&str; 2] = ["\x1b[200~", "\x1b[201~"];

pub struct Terminal {
    parser: vt100::Parser,
    master: Box<dyn MasterPty + Send>,
    writer: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    child: Box<dyn Child + Send + Sync>,
    /// All that the program wrote.
    pub raw: Vec<u8>,
    /// RYND_HOME and working directory; files of the test go here.
    pub home: PathBuf,
    /// Of the terminal, before the program began.
    pub modes_before: String,
}

pub fn fixture(model: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model).join("model.gguf");
    path.display().to_string()
}

fn size(rows: u16, cols: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}

fn some(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).unwrap()
}

impl Terminal {
    /// Starts `rynd chat` with these arguments; waits for nothing.
    pub fn start(home: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Terminal {
        let pair = native_pty_system().openpty(size(50, 100)).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_rynd"));
        command.arg("chat");
        command.args(arguments);
        command.cwd(home);
        let own = [("RYND_HOME", home.to_str().unwrap()), ("TERM", "xterm-256color")];
        for name in ["NO_COLOR", "RYND_SIMD", "VISUAL", "EDITOR", "COLORTERM"] {
            command.env_remove(name);
        }
        let variables: HashMap<_, _> = own.into_iter().chain(environment.iter().copied()).collect();
        variables.into_iter().for_each(|(name, value)| command.env(name, value));
        let modes_before = modes(&*pair.master);
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let mut reader = pair.master.try_clone_reader().unwrap();
        let writer = pair.master.take_writer().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let parser = vt100::Parser::new(some(50), some(100), 0);
        Terminal {
            parser,
            master: pair.master,
            writer,
            output,
            child,
            raw: vec![],
            home: home.to_owned(),
            modes_before,
        }
    }

    /// Starts a chat with the tiny qwen2 model and waits for its prompt.
    pub fn chat(home: &Path, arguments: &[&str]) -> Terminal {
        let mut terminal =
            Terminal::start(home, &[&[fixture("qwen2").as_str(), "--temp", "0"], arguments].concat(), &[]);
        terminal.ready();
        terminal
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    pub fn contents(&self) -> String {
        self.parser.screen().contents()
    }

    pub fn send(&mut self, keys: &str) {
        self.writer.write_all(keys.as_bytes()).unwrap();
        self.writer.flush().unwrap();
    }

    /// Types a line, and waits until it is on the screen, for the prompt behind it, and for what came between.
    pub fn line(&mut self, text: &str) {
        self.send(text);
        let end: String = text.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
        self.wait(&format!("'{text}' to be echoed"), |t| t.cursor_row().trim_end().ends_with(&end));
        self.send("\r");
        self.wait("the line to be taken", |t| !t.cursor_row().trim_end().ends_with(&end));
        self.ready();
    }

    /// The row in which the cursor is.
    pub fn cursor_row(&self) -> String {
        let screen = self.parser.screen();
        let (row, _) = screen.cursor_position();
        screen.rows(0, screen.size().1.get()).nth(row.into()).unwrap_or_default()
    }

    /// Waits for an empty prompt.
    pub fn ready(&mut self) {
        self.wait("an empty prompt", |t| {
            t.cursor_row().trim_end() == ">" && t.parser.screen().cursor_position().1 == 2
        });
    }

    pub fn wait_for(&mut self, text: &str) {
        self.wait(text, |t| t.contents().contains(text));
    }

    /// Reads on until the condition holds.
    pub fn wait(&mut self, what: &str, holds: impl Fn(&Terminal) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.take(&bytes),
                Err(RecvTimeoutError::Timeout) if start.elapsed() < PATIENCE => {}
                Err(_) => panic!("waited in vain for {what}; the screen:\n{}", self.contents()),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let asks = count(&self.raw, b"\x1b[6n");
        self.raw.extend_from_slice(bytes);
        self.parser.process(bytes);
        // The program asks where the cursor is, and waits for the answer.
        for _ in asks..count(&self.raw, b"\x1b[6n") {
            let (row, col) = self.parser.screen().cursor_position();
            self.send(&format!("\x1b[{};{}R", row + 1, col + 1));
        }
    }

    pub fn resize(&mut self, rows: u16, cols: u16) {
        self.parser.set_size(some(rows), some(cols));
        self.master.resize(size(rows, cols)).unwrap();
    }

    /// The terminal's modes now.
    pub fn modes(&self) -> String {
        modes(&*self.master)
    }

    /// Sends a signal and returns the exit code.
    pub fn signal(&mut self, name: &str) -> u32 {
        let pid = self.child.process_id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        self.end()
    }

    /// Leaves by Ctrl-D and returns the exit code.
    pub fn leave(mut self) -> u32 {
        self.send("\x04");
        self.end()
    }

    fn end(&mut self) -> u32 {
        let start = Instant::now();
        loop {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.take(&bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if self.child.try_wait().unwrap().is_some() => break,
                Err(RecvTimeoutError::Timeout) => {
                    assert!(start.elapsed() < PATIENCE, "it did not leave:\n{}", self.contents());
                }
            }
        }
        self.child.wait().unwrap().exit_code()
    }
}

fn modes(master: &dyn MasterPty) -> String {
    format!("{:?}", master.get_termios().unwrap())
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

pub fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}
