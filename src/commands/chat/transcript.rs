//! Saved chats: JSON in the OpenAI shape, or Markdown that people read. Either gives back exactly what was saved.
//!
//! In Markdown a heading of the second level names who speaks. A line of a message that looks like such a heading gets
//! a backslash in front, and loses it when it is read. Only these two formats, chosen by the file's ending; a file that
//! is no saved chat is not overwritten.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::super::input;
use crate::chat::Message;
use crate::files;

/// A chat as it is saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// The model that answered; only told when loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A system message may come first.
    pub messages: Vec<Message>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Json,
    Markdown,
}

const TITLE: &str = "# Chat";
const ROLES: [(&str, &str); 3] = [("system", "## System"), ("user", "## User"), ("assistant", "## Assistant")];

/// Checks that a file could be saved under this name: its ending, and what is there now.
pub fn check_name(path: &Path) -> Result<()> {
    format_of(path)?;
    if path.exists() && std::fs::metadata(path)?.len() > 0 {
        Transcript::load(path).with_context(|| {
            format!("{} is there and is no saved chat, so it is not overwritten; choose another name", path.display())
        })?;
    }
    Ok(())
}

fn format_of(path: &Path) -> Result<Format> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("json") => Ok(Format::Json),
        Some("md" | "markdown") => Ok(Format::Markdown),
        _ => bail!("{}: a chat is saved as .json or .md; give the name one of these endings", path.display()),
    }
}

impl Transcript {
    /// Writes the file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        check_name(path)?;
        let text = match format_of(path)? {
            Format::Json => serde_json::to_string_pretty(self)? + "\n",
            Format::Markdown => self.to_markdown(),
        };
        files::write(path, text).with_context(|| format!("can not write {}", path.display()))
    }

    /// Reads a saved chat.
    pub fn load(path: &Path) -> Result<Transcript> {
        let format = format_of(path)?;
        let text = input::read_file(path)?;
        let parsed = match format {
            Format::Json => serde_json::from_str(&text).map_err(anyhow::Error::from),
            Format::Markdown => Transcript::from_markdown(&text),
        };
        let transcript = parsed.with_context(|| format!("{} is no saved chat", path.display()))?;
        for (at, message) in transcript.messages.iter().enumerate() {
            let role = message.role.as_str();
            if !matches!((role, at), ("system", 0) | ("user" | "assistant", _)) {
                bail!(
                    "{}: message {} has the role '{role}'; a chat has user and assistant messages, and a system \
                     message only in front",
                    path.display(),
                    at + 1
                );
            }
        }
        Ok(transcript)
    }

    fn to_markdown(&self) -> String {
        let mut out = format!("{TITLE}\n\n");
        if let Some(model) = &self.model {
            out.push_str(&format!("Model: {model}\n\n"));
        }
        for message in &self.messages {
            let heading =
                ROLES.iter().find(|(role, _)| *role == message.role).map_or("## User", |(_, heading)| heading);
            out.push_str(&format!("{heading}\n\n"));
            for (at, line) in message.text().split('\n').enumerate() {
                out.push_str(if at > 0 { "\n" } else { "" });
                out.push_str(if role_of(unescaped(line)).is_some() { "\\" } else { "" });
                out.push_str(line);
            }
            out.push_str("\n\n");
        }
        out
    }

    fn from_markdown(text: &str) -> Result<Transcript> {
        let mut lines = text.split('\n').peekable();
        let mut transcript = Transcript::default();
        let mut titled = false;
        while let Some(line) = lines.next_if(|line| role_of(line).is_none()) {
            titled |= line.trim_end() == TITLE;
            if let Some(model) = line.strip_prefix("Model: ") {
                transcript.model = Some(model.trim_end().to_owned());
            }
        }
        if !titled {
            bail!("it does not start with '{TITLE}'");
        }
        while let Some(role) = lines.next().and_then(role_of) {
            let mut body: Vec<&str> = vec![];
            while let Some(line) = lines.next_if(|line| role_of(line).is_none()) {
                body.push(if role_of(unescaped(line)).is_some() { &line[1..] } else { line });
            }
            // One empty line was written before the text. Behind it were two newlines: one ends its last line, the
            // other is an empty line, and the end of the file counts as one more.
            if body.first().is_some_and(|line| line.is_empty()) {
                body.remove(0);
            }
            let ends = if lines.peek().is_none() { 2 } else { 1 };
            for _ in 0..ends {
                if body.len() > 1 && body.last().is_some_and(|line| line.is_empty()) {
                    body.pop();
                }
            }
            transcript.messages.push(Message::new(role, &body.join("\n")));
        }
        Ok(transcript)
    }
}

/// The role that a heading names.
fn role_of(line: &str) -> Option<&'static str> {
    ROLES.iter().find(|(_, heading)| line.trim_end() == *heading).map(|(role, _)| *role)
}

fn unescaped(line: &str) -> &str {
    line.trim_start_matches('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 14] = [
        "plain",
        "",
        "\n",
        "\n\nleading and trailing\n\n",
        "## User",
        "## User\n\n## Assistant\n",
        "\\## User\n\\\\## System  ",
        "# Chat\nModel: x",
        "```rust\nfn main() {}\n```",
        "tabs\t and \r\n windows lines\r\n## User\r",
        "   spaces   ",
        "ünïcode 日本語 🦀\u{0}\u{1b}[31m",
        "\\",
        "- list\n\n1. one\n\n> quote\n\n| a | b |\n|--|--|\n",
    ];

    fn folder(name: &str) -> tempfile::TempDir {
        tempfile::Builder::new().prefix(name).tempdir().unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded_again_exactly() {
        let folder = folder("transcript");
        for (case, first) in TEXTS.iter().enumerate() {
            for second in TEXTS {
                let messages = vec![Message::system(second), Message::user(first), Message::assistant(second)];
                let saved = Transcript { model: Some("m".into()), messages };
                for ending in ["json", "md"] {
                    let path = folder.path().join(format!("{case}.{ending}"));
                    saved.save(&path).unwrap();
                    assert_eq!(Transcript::load(&path).unwrap(), saved, "{ending} {first:?} {second:?}");
                }
            }
        }
        for empty in [Transcript::default(), Transcript { model: None, messages: vec![Message::user("")] }] {
            for name in ["empty.json", "empty.md"] {
                empty.save(&folder.path().join(name)).unwrap();
                assert_eq!(Transcript::load(&folder.path().join(name)).unwrap(), empty);
            }
        }
        let names = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|name| !name.ends_with(".partial")));
    }

    #[test]
    fn markdown_edited_by_hand_is_understood() {
        let folder = folder("byhand");
        let path = folder.path().join("x.md");
        std::fs::write(&path, "# Chat\n## User\nhello\n## Assistant  \n\nhi there").unwrap();
        let loaded = Transcript::load(&path).unwrap();
        assert_eq!(loaded.messages, [Message::user("hello"), Message::assistant("hi there")]);
    }

    #[test]
    fn what_is_no_chat_is_neither_loaded_nor_overwritten() {
        let folder = folder("nochat");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("README.md"), "# My project\n\ntext\n").unwrap();
        std::fs::write(path("package.json"), "{\"name\": \"x\"}").unwrap();
        std::fs::write(path("tool.json"), "{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}").unwrap();
        std::fs::write(path("late.json"), "{\"messages\": [{\"role\": \"user\"}, {\"role\": \"system\"}]}").unwrap();
        for name in ["README.md", "package.json", "tool.json", "late.json"] {
            let before = std::fs::read(path(name)).unwrap();
            let error = Transcript::load(&path(name)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            let error = format!("{:#}", Transcript::default().save(&path(name)).unwrap_err());
            assert!(error.contains("not overwritten"), "{error}");
            assert_eq!(std::fs::read(path(name)).unwrap(), before);
        }
        for name in ["chat", "chat.txt"] {
            let error = Transcript::default().save(&path(name)).unwrap_err().to_string();
            assert!(error.contains(".json or .md"), "{error}");
        }
        assert!(Transcript::default().save(&path("no/folder.md")).is_err());
    }
}
