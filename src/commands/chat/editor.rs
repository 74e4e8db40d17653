//! The line in which messages are typed: history, completion, several lines.
//!
//! On a screen that is reedline; where the cursor can not be moved (TERM=dumb, or answers go to a file) lines are read
//! as they come and prompts go to stderr.

use std::borrow::Cow;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use reedline::{
    ColumnarMenu, Emacs, FileBackedHistory, Highlighter, KeyCode, KeyModifiers, MenuBuilder, Prompt, PromptEditMode,
    PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal, StyledText, ValidationResult, Validator,
    default_emacs_keybindings,
};

use super::complete::Words;
use super::external;
use super::screen::remark;

const HISTORY_ENTRIES: usize = 1000;
/// How often the terminal may fail to answer.
const SLOW_TERMINAL: usize = 4;
const MENU: &str = "words";

/// What the user did.
#[derive(Debug, PartialEq)]
pub enum Input {
    Message(String),
    /// Ctrl-C: the line is gone.
    Cleared,
    /// Ctrl-D, or the end of the input.
    End,
}

/// Reads messages.
pub enum Editor {
    Screen { reedline: Box<Reedline>, joints: Joints, scratch: PathBuf },
    Lines,
}

/// Places where Enter behind a backslash went on in the next line: what was before the newline, backslash included.
type Joints = Arc<Mutex<Vec<String>>>;

impl Editor {
    /// An editor for this terminal, which stops reading when `over` turns true, and what is wrong with the history if it can not be used.
    pub fn new(
        is_screen: bool,
        colours: bool,
        history: Option<&Path>,
        words: Words,
        over: Arc<AtomicBool>,
    ) -> (Editor, Option<String>) {
        if !is_screen {
            return (Editor::Lines, None);
        }
        let (joints, scratch) = (Joints::default(), external::scratch_file());
        let mut keys = default_emacs_keybindings();
        let tab = vec![ReedlineEvent::Menu(MENU.to_owned()), ReedlineEvent::MenuNext];
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(tab));
        keys.add_binding(KeyModifiers::SHIFT, KeyCode::BackTab, ReedlineEvent::MenuPrevious);
        let menu = Box::new(ColumnarMenu::default().with_name(MENU).with_marker(""));
        let mut reedline = Reedline::create()
            .use_bracketed_paste(true)
            .with_break_signal(over)
            .with_ansi_colors(colours)
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .with_highlighter(Box::new(Plain))
            .with_validator(Box::new(Continued { joints: Arc::clone(&joints) }))
            .with_completer(Box::new(words))
            .with_menu(ReedlineMenu::EngineCompleter(menu))
            .with_quick_completions(true)
            .with_partial_completions(true)
            .with_buffer_editor(external::command(), scratch.clone());
        let mut trouble = None;
        if let Some(path) = history {
            match open_history(path) {
                Ok(history) => reedline = reedline.with_history(Box::new(history)),
                Err(error) => {
                    trouble = Some(format!(
                        "the history {} can not be read ({error}); this chat's lines are not kept. Move the file away to \
                         start a new one",
                        path.display()
                    ));
                }
            }
        }
        (Editor::Screen { reedline: Box::new(reedline), joints, scratch }, trouble)
    }

    /// The next message.
    pub fn read(&mut self) -> Result<Input> {
        let mut failures = 0;
        while let Editor::Screen { reedline, joints, .. } = self {
            let joints = || std::mem::take(&mut *joints.lock().unwrap_or_else(PoisonError::into_inner));
            joints();
            match reedline.read_line(&Arrow) {
                Ok(Signal::Success(text)) => {
                    // Written at once, so that a crash loses nothing; a full disk is no reason to stop talking.
                    let _ = reedline.sync_history();
                    return Ok(Input::Message(joined(text, &joints())));
                }
                Ok(Signal::CtrlC) => return Ok(Input::Cleared),
                Ok(_) => return Ok(Input::End),
                // A terminal at the end of a slow line may be late to say where its cursor is.
                Err(_) if failures < SLOW_TERMINAL => failures += 1,
                Err(error) => {
                    remark(&format!("note: lines are read without an editor from here on: {error}"))?;
                    *self = Editor::Lines;
                }
            }
        }
        lines()
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        if let Editor::Screen { scratch, .. } = self {
            // Ctrl-O leaves the text there; most sessions never use it.
            let _ = std::fs::remove_file(scratch);
        }
    }
}

/// The history is the user's own business: nobody else may read it.
fn open_history(path: &Path) -> std::result::Result<FileBackedHistory, String> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|e| e.to_string())?;
    FileBackedHistory::with_file(HISTORY_ENTRIES, path.to_owned()).map_err(|e| match e.0 {
        reedline::ReedlineErrorVariants::IOError(e) => e.to_string(),
        other => other.to_string(),
    })
}

/// Takes off the backslashes by which lines were continued; others, as in pasted macros, stay.
fn joined(mut text: String, joints: &[String]) -> String {
    let mut ends: Vec<usize> =
        joints.iter().filter(|joint| text.starts_with(&format!("{joint}\n"))).map(|j| j.len()).collect();
    ends.sort_unstable();
    ends.dedup();
    for end in ends.into_iter().rev() {
        text.remove(end - 1);
    }
    text
}

/// Lines without an editor; a backslash at the end goes on.
fn lines() -> Result<Input> {
    let mut text = String::new();
    loop {
        let mut err = std::io::stderr().lock();
        err.write_all(if text.is_empty() { b"> " } else { b"  " })?;
        err.flush()?;
        let mut line = String::new();
        if !wait_for_input() {
            return Ok(Input::End);
        }
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(if text.is_empty() { Input::End } else { Input::Message(text) });
        }
        let line = line.trim_end_matches(['\n', '\r']);
        match line.strip_suffix('\\') {
            Some(more) => {
                text.push_str(more);
                text.push('\n');
            }
            None => {
                text.push_str(line);
                return Ok(Input::Message(text));
            }
        }
    }
}

/// False when a signal ended the chat first. A terminal gives one line at a time, so none waits in the buffer.
#[cfg(unix)]
fn wait_for_input() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let (stdin, tick) = (std::io::stdin(), Timespec { tv_sec: 0, tv_nsec: 100_000_000 });
    loop {
        if super::signals::exit_code().is_some() {
            return false;
        }
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            // Whatever is wrong, reading says it.
            _ => return true,
        }
    }
}

#[cfg(not(unix))]
fn wait_for_input() -> bool {
    true
}

struct Continued {
    joints: Joints,
}

impl Validator for Continued {
    fn validate(&self, line: &str) -> ValidationResult {
        let slashes = line.len() - line.trim_end_matches('\\').len();
        if slashes.is_multiple_of(2) {
            return ValidationResult::Complete;
        }
        self.joints.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        ValidationResult::Incomplete
    }
}

struct Plain;

impl Highlighter for Plain {
    fn highlight(&self, line: &str, _cursor: usize) -> StyledText {
        let mut text = StyledText::new();
        text.push((Default::default(), line.to_owned()));
        text
    }
}

struct Arrow;

impl Prompt for Arrow {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _mode: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("  ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_backslashes_that_continued_a_line_are_taken_off() {
        let joints = Joints::default();
        let validator = Continued { joints: Arc::clone(&joints) };
        assert!(matches!(validator.validate("a \\"), ValidationResult::Incomplete));
        assert!(matches!(validator.validate("a \\\nb\\"), ValidationResult::Incomplete));
        assert!(matches!(validator.validate("a \\\nb\\\nc \\\\"), ValidationResult::Complete));
        let joints = joints.lock().unwrap().clone();
        assert_eq!(joined("a \\\nb\\\nc \\\\".into(), &joints), "a \nb\nc \\\\");
        let macro_text = "#define X \\\n  1\n";
        assert_eq!(joined(macro_text.into(), &[]), macro_text);
    }
}
