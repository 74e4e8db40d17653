//! Where answers go: a terminal in colours, a terminal without, or a file or pipe that gets the text as it is.
//!
//! Everything of one piece of text is written at once, so nothing flickers. While an answer comes, keys are not echoed
//! into it; they wait for the next prompt.

use std::io::{self, Write};
use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};

use super::markdown::Markdown;
use super::paint::{self, DIM, paint};

/// How answers are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Look {
    /// Markdown in colours.
    Rich,
    /// The text, without what could drive a terminal.
    Plain,
    /// Byte for byte.
    Raw,
}

impl Look {
    /// What suits standard output.
    pub fn of_stdout() -> Look {
        match (paint::has_colours(), io::IsTerminal::is_terminal(&io::stdout())) {
            (true, _) => Look::Rich,
            (false, true) => Look::Plain,
            (false, false) => Look::Raw,
        }
    }
}

/// One answer on its way to standard output.
pub struct Screen {
    look: Look,
    markdown: Markdown,
    bar: Option<ProgressBar>,
    batch: usize,
    ends_with_newline: bool,
    failure: Option<io::Error>,
}

impl Screen {
    /// `batch` is the number of prompt tokens that need no bar.
    pub fn new(look: Look, batch: usize) -> Screen {
        let markdown = Markdown::default();
        Screen { look, markdown, bar: None, batch, ends_with_newline: true, failure: None }
    }

    /// Shows how far the prompt is read, where that takes long.
    pub fn reading(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        if total > self.batch && self.look == Look::Rich {
            let style = || {
                ProgressStyle::with_template("reading {bar:30} {pos}/{len} tokens, {eta} left")
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
            };
            let bar = self.bar.get_or_insert_with(|| ProgressBar::new(total as u64).with_style(style()));
            bar.set_position(done as u64);
            if done == total {
                bar.finish_and_clear();
            }
        }
        ControlFlow::Continue(())
    }

    /// More of the answer.
    pub fn text(&mut self, text: &str) -> ControlFlow<()> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        match self.look {
            Look::Raw => {
                self.ends_with_newline = text.ends_with('\n');
                self.write(text)
            }
            Look::Plain => {
                let text = paint::harmless(text);
                self.ends_with_newline = text.ends_with('\n') || (text.is_empty() && self.ends_with_newline);
                self.write(&text)
            }
            Look::Rich => {
                let mut out = String::new();
                self.markdown.push(&mut out, &paint::harmless(text), columns());
                self.write(&out)
            }
        }
    }

    /// Ends the answer with a newline; tells of the first failure to write.
    pub fn finish(mut self) -> io::Result<()> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let mut out = String::new();
        match self.look {
            Look::Rich => self.markdown.finish(&mut out, columns()),
            Look::Plain | Look::Raw if !self.ends_with_newline => out.push('\n'),
            Look::Plain | Look::Raw => {}
        }
        let _ = self.write(&out);
        self.failure.map_or(Ok(()), Err)
    }

    fn write(&mut self, text: &str) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.failure.get_or_insert(e);
                ControlFlow::Break(())
            }
        }
    }
}

fn columns() -> usize {
    crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns)).max(10)
}

/// A line that is no part of an answer: on the terminal, and on stderr where the answers go to a file or pipe.
pub fn say(text: &str) -> io::Result<()> {
    if io::IsTerminal::is_terminal(&io::stdout()) {
        writeln!(io::stdout(), "{text}")
    } else {
        writeln!(io::stderr(), "{text}")
    }
}

/// As `say`, but less loud.
pub fn remark(text: &str) -> io::Result<()> {
    let mut out = String::new();
    paint(&mut out, if paint::has_colours() { DIM } else { "" }, text);
    say(&out)
}

/// While this lives, keys are not echoed and wait for whoever reads next; Ctrl-C still interrupts.
pub struct Quiet {
    #[cfg(unix)]
    before: Option<rustix::termios::Termios>,
    #[cfg(unix)]
    look: Look,
}

impl Quiet {
    /// Does nothing where standard input is no terminal.
    pub fn new(look: Look) -> Quiet {
        #[cfg(unix)]
        {
            use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
            let before = tcgetattr(io::stdin()).ok();
            if let Some(mut quiet) = before.clone() {
                quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
                // Echoed keys are ugly but harmless, so a failure needs no word.
                let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
                bracketed_paste(look, true);
            }
            Quiet { before, look }
        }
        #[cfg(not(unix))]
        {
            let _ = look;
            Quiet {}
        }
    }
}

/// A paste during an answer must arrive at the next prompt as one piece.
#[cfg(unix)]
fn bracketed_paste(look: Look, on: bool) {
    if look == Look::Rich {
        let mut out = io::stdout().lock();
        let _ = out.write_all(if on { b"\x1b[?2004h" } else { b"\x1b[?2004l" }).and_then(|()| out.flush());
    }
}

#[cfg(unix)]
impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, before);
            bracketed_paste(self.look, false);
        }
    }
}
