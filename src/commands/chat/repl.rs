//! The loop of a chat at a terminal: read a line, do what it says, until the user leaves.
//!
//! Every error is told and the chat goes on; only the terminal's own failures end it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

use super::super::interrupt;
use super::super::load::EngineFlags;
use super::attach::{self, Attachment};
use super::complete::Words;
use super::conversation::Conversation;
use super::editor::{Editor, Input};
use super::model::Source;
use super::screen::{Look, Quiet, Screen, remark, say};
use super::session::{Chat, Step};
use super::slash::{self, Slash};
use super::transcript::Transcript;
use super::{external, kept, paint, settings, signals, stats};
use crate::generate::{Finish, Summary};

/// A chat at a terminal.
pub struct Repl<'a> {
    pub chat: Chat,
    pub source: &'a Source,
    pub flags: &'a EngineFlags,
    pub look: Look,
    /// Go with the next message.
    attached: Vec<Attachment>,
}

impl<'a> Repl<'a> {
    pub fn new(chat: Chat, source: &'a Source, flags: &'a EngineFlags) -> Repl<'a> {
        Repl { chat, source, flags, look: Look::of_stdout(), attached: vec![] }
    }

    /// Talks until the user leaves or `over` turns true; `first` is a message that is sent before anything is read.
    pub fn run(&mut self, first: Option<String>, over: Arc<AtomicBool>) -> Result<()> {
        interrupt::keep_session();
        let history = self.source.catalog.as_ref().map(|catalog| catalog.home.chat_history());
        let words = Words { models: self.models() };
        let (mut editor, trouble) =
            Editor::new(paint::is_screen(), paint::has_colours(), history.as_deref(), words, over);
        self.greet()?;
        if let Some(trouble) = trouble {
            remark(&format!("warning: {trouble}"))?;
        }
        if let Some(text) = first {
            say(&format!("> {}", paint::harmless(&text)))?;
            let result = self.send(&text);
            self.tell(result)?;
        }
        let mut clears = 0;
        loop {
            match editor.read()? {
                _ if signals::exit_code().is_some() => break,
                Input::End => break,
                Input::Cleared => {
                    clears += 1;
                    if clears == 2 {
                        remark("Ctrl-D or /quit leaves.")?;
                    }
                    continue;
                }
                Input::Message(text) => {
                    clears = 0;
                    if text.trim().is_empty() {
                        continue;
                    }
                    let result = match slash::parse(&text) {
                        Ok(Some(Slash::Quit)) => break,
                        Ok(Some(command)) => self.command(command),
                        Ok(None) => self.send(&text),
                        Err(error) => Err(error),
                    };
                    self.tell(result)?;
                }
            }
        }
        Ok(())
    }

    fn greet(&self) -> Result<()> {
        let model = &self.chat.model;
        remark(&format!(
            "{}, {} tokens of context; /help for help, Ctrl-D to leave",
            model.name,
            model.engine.context()
        ))?;
        if let Some(note) = &model.note {
            remark(&format!("note: {note}"))?;
        }
        Ok(())
    }

    /// Shows an error; one of the terminal itself ends the chat.
    fn tell(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if super::super::is_broken_pipe(&error) => Err(error),
            Err(error) => {
                let mut out = String::new();
                paint::paint(&mut out, if paint::has_colours() { "31" } else { "" }, "error:");
                Ok(say(&format!("{out} {}", paint::harmless(&format!("{error:#}"))))?)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Sends a message with its files and shows the answer. If that fails, the message is taken back.
    fn send(&mut self, text: &str) -> Result<()> {
        let (mentioned, missing) = attach::mentioned(text)?;
        for word in missing {
            remark(&format!("note: @{word} is no file here, so it is sent as it is"))?;
        }
        let mut files = std::mem::take(&mut self.attached);
        files.extend(
            mentioned.into_iter().filter(|new| !files.iter().any(|file| file.path == new.path)).collect::<Vec<_>>(),
        );
        let before = self.chat.conversation.clone();
        self.chat.conversation.ask(&attach::with_files(&files, text));
        let result = self.answer(before);
        if result.is_err() {
            self.attached = files;
        }
        result
    }

    /// Answers the last message. If nothing comes of it, the conversation is `before` again.
    fn answer(&mut self, before: Conversation) -> Result<()> {
        interrupt::reset();
        self.blank()?;
        let quiet = Quiet::new(self.look);
        let mut screen = Screen::new(self.look, self.chat.model.engine.batch());
        let result = self.chat.reply(|step| match step {
            _ if interrupt::asked() => ControlFlow::Break(()),
            Step::Forgot(turns) => {
                let what = if turns == 1 { "the oldest turn no longer fits" } else { "the oldest turns no longer fit" };
                // A remark that can not be shown ends the answer, as its text would.
                match remark(&format!("({turns} forgotten: {what} the context)\n")) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            }
            Step::Reading { done, total } => screen.reading(done, total),
            Step::Text(text) => screen.text(text),
        });
        let finished = screen.finish();
        drop(quiet);
        let summary = match result {
            Ok(summary) => summary,
            Err(error) => {
                self.chat.conversation = before;
                return Err(error);
            }
        };
        finished?;
        self.after(summary, before)
    }

    fn after(&mut self, summary: Summary, before: Conversation) -> Result<()> {
        match summary.finish {
            Finish::Interrupted if self.chat.last_is_unanswered() => {
                self.chat.conversation = before;
                remark("(stopped before the answer began; the message is taken back)")?;
            }
            Finish::Interrupted => remark("(stopped)")?,
            Finish::Length if self.chat.used_tokens() + 1 >= self.chat.model.engine.context() => {
                remark("(the context is full, so the answer ends here; the next message drops the oldest turns)")?;
            }
            Finish::Length => {
                remark(&format!("(cut at {} tokens, the limit of -n or /set tokens)", summary.generated_tokens))?;
            }
            Finish::End | Finish::Stop => {}
        }
        self.blank()
    }

    /// An empty line around an answer, where people read it.
    fn blank(&self) -> Result<()> {
        if self.look != Look::Raw {
            say("")?;
        }
        Ok(())
    }

    fn command(&mut self, command: Slash) -> Result<()> {
        match command {
            Slash::Help => say(slash::help().trim_end())?,
            Slash::Chats => say(paint::harmless(&kept::list()?).trim_end())?,
            Slash::Stats => say(stats::report(&self.chat).trim_end())?,
            Slash::Set("") => say(settings::show(&self.chat)?.trim_end())?,
            Slash::Set(text) => settings::set(&mut self.chat, text)?,
            Slash::System("") => match self.chat.conversation.system() {
                Some(text) => say(&paint::harmless(text))?,
                None => remark("there is no system prompt of yours; the model's template may have its own")?,
            },
            Slash::System(text) => {
                self.chat.conversation.set_system(if text == "-" { "" } else { text });
            }
            Slash::Clear => {
                self.chat.conversation.clear();
                self.attached.clear();
            }
            Slash::Undo => {
                let text = self.chat.conversation.undo().context("there is nothing to take back")?;
                remark(&format!("took back: {}", paint::harmless(&first_line(&text))))?;
            }
            Slash::Regen => {
                let before = self.chat.conversation.clone();
                if !self.chat.conversation.reopen() {
                    anyhow::bail!("there is no message to answer again");
                }
                self.answer(before)?;
            }
            Slash::Edit => self.edit()?,
            Slash::Save(file) => {
                let path = PathBuf::from(file);
                self.chat.transcript().save(&path)?;
                remark(&format!("saved {} messages to {}", self.chat.conversation.messages().len(), path.display()))?;
            }
            Slash::Load(file) => self.load(Path::new(file))?,
            Slash::Read(file) => {
                let file = Attachment::read(Path::new(file))?;
                remark(&format!("{} ({}) goes with the next message", file.path.display(), lines(file.lines())))?;
                self.attached.retain(|other| other.path != file.path);
                self.attached.push(file);
            }
            Slash::Model("") => {
                say(&self.chat.model.name)?;
                let others = self.models();
                if !others.is_empty() {
                    remark(&format!("here: {}", others.join(", ")))?;
                }
            }
            Slash::Model(name) => {
                interrupt::reset();
                self.chat.switch(self.source, name, self.flags)?;
                self.greet()?;
            }
            Slash::Quit => {}
        }
        Ok(())
    }

    /// Opens the last message in the user's editor and sends what comes out.
    fn edit(&mut self) -> Result<()> {
        let last = self.chat.conversation.last_question();
        let edited = external::edit(last.as_deref().unwrap_or_default())?;
        if edited.trim().is_empty() || last.as_ref() == Some(&edited) {
            remark("nothing was changed, so nothing is sent")?;
            return Ok(());
        }
        let before = self.chat.conversation.clone();
        self.chat.conversation.undo();
        self.chat.conversation.ask(&edited);
        say(&format!("> {}", paint::harmless(&edited)))?;
        self.answer(before)
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let transcript = Transcript::load(path)?;
        let with = transcript.model.as_ref().map(|model| format!(" with {model}")).unwrap_or_default();
        self.chat.take(transcript);
        let count = self.chat.conversation.messages().len();
        remark(&format!("loaded {count} messages of a chat{with}"))?;
        if self.chat.last_is_unanswered() {
            remark("its last message has no answer yet; /regen asks for one")?;
        }
        Ok(())
    }

    /// Models that are on this machine.
    fn models(&self) -> Vec<String> {
        let rows = self.source.catalog.as_ref().and_then(|catalog| catalog.rows().ok()).unwrap_or_default();
        rows.into_iter().filter(|row| row.local).map(|row| row.name).collect()
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(70) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

fn lines(count: usize) -> String {
    format!("{count} line{}", if count == 1 { "" } else { "s" })
}
