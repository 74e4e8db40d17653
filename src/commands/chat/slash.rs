//! The commands of the prompt: what they are called and what a line means.
//!
//! Only a word of letters behind the first character is a command, so that `/usr/bin/x fails` and a pasted comment are
//! messages. A wrong name is never sent to the model.

use anyhow::{Result, bail};

/// A command that was typed, its argument trimmed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Slash<'a> {
    Help,
    System(&'a str),
    Regen,
    Undo,
    Edit,
    Clear,
    Save(&'a str),
    Load(&'a str),
    Read(&'a str),
    Set(&'a str),
    Stats,
    Chats,
    Model(&'a str),
    Quit,
}

/// Name, argument and explanation of each command, in the order of /help.
pub const COMMANDS: &[(&str, &str, &str)] = &[
    ("help", "", "this list"),
    ("system", "[TEXT]", "show the system prompt or set it; '/system -' takes it away"),
    ("regen", "", "answer the last message again"),
    ("undo", "", "take the last message and its answer back"),
    ("edit", "", "change the last message in $EDITOR and send it again"),
    ("clear", "", "start over; the system prompt stays"),
    ("save", "FILE", "save the chat, as .json or .md"),
    ("load", "FILE", "go on with a saved chat"),
    ("read", "FILE", "send a file with the next message, as @FILE in it does"),
    ("set", "[KEY=VALUE]", "show the sampling settings or change some"),
    ("chats", "", "chats that are kept; 'rynd chat --resume' goes on with one"),
    ("stats", "", "speed, context, memory, and where the weights lie"),
    ("model", "[NAME]", "go on with another model, or list those that are here"),
    ("quit", "", "leave, as Ctrl-D does"),
];

const KEYS: &[(&str, &str)] = &[
    ("Alt-Enter", "a new line, as \\ before Enter; a paste keeps its lines"),
    ("Ctrl-C", "stop the answer, or clear the line"),
    ("Ctrl-D", "leave"),
    ("Ctrl-R", "search what was typed before"),
    ("Ctrl-O", "write the message in $EDITOR"),
    ("Tab", "complete commands and paths"),
];

/// The command in a line; `None` is a message for the model.
pub fn parse(line: &str) -> Result<Option<Slash<'_>>> {
    let Some(rest) = line.strip_prefix('/') else { return Ok(None) };
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let argument = argument.trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic()) {
        return Ok(None);
    }
    let name = name.to_ascii_lowercase();
    if argument.is_empty() && matches!(name.as_str(), "save" | "load" | "read") {
        bail!("/{name} needs the name of a file");
    }
    let file = argument.trim_matches('"');
    let command = match name.as_str() {
        "help" => Slash::Help,
        "system" => Slash::System(argument),
        "regen" => Slash::Regen,
        "undo" => Slash::Undo,
        "edit" => Slash::Edit,
        "clear" => Slash::Clear,
        "save" => Slash::Save(file),
        "load" => Slash::Load(file),
        "read" => Slash::Read(file),
        "set" => Slash::Set(argument),
        "chats" => Slash::Chats,
        "stats" => Slash::Stats,
        "model" => Slash::Model(argument),
        "quit" | "exit" => Slash::Quit,
        other => {
            let near = COMMANDS.iter().map(|(name, ..)| (strsim::damerau_levenshtein(name, other), *name)).min();
            let hint = near.filter(|(distance, _)| *distance <= 2).map(|(_, name)| format!(" (did you mean /{name}?)"));
            bail!(
                "there is no command /{name}{}; /help lists them, and a space in front sends the line as it is",
                hint.unwrap_or_default()
            );
        }
    };
    let takes_none = matches!(
        command,
        Slash::Help
            | Slash::Chats
            | Slash::Regen
            | Slash::Undo
            | Slash::Edit
            | Slash::Clear
            | Slash::Stats
            | Slash::Quit
    );
    if takes_none && !argument.is_empty() {
        bail!("/{name} takes no argument");
    }
    Ok(Some(command))
}

/// The text of /help.
pub fn help() -> String {
    let mut out = String::new();
    for (name, argument, about) in COMMANDS {
        out.push_str(&format!("  {:18}{about}\n", format!("/{name} {argument}")));
    }
    out.push('\n');
    for (keys, about) in KEYS {
        out.push_str(&format!("  {keys:18}{about}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_messages_are_told_apart() {
        let cases = [
            ("/help", Some(Slash::Help)),
            ("/UNDO ", Some(Slash::Undo)),
            ("/system be brief\nand kind", Some(Slash::System("be brief\nand kind"))),
            ("/set", Some(Slash::Set(""))),
            ("/save \"a b.md\"", Some(Slash::Save("a b.md"))),
            ("/exit", Some(Slash::Quit)),
            ("hello", None),
            (" /help", None),
            ("/usr/bin/x fails", None),
            ("/** comment", None),
            ("// comment", None),
            ("/", None),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn wrong_commands_are_errors_with_advice() {
        for (line, words) in [
            ("/halp", "did you mean /help?"),
            ("/xyzzyplugh", "/help lists them"),
            ("/save", "needs the name of a file"),
            ("/undo 2", "takes no argument"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn help_fits_a_narrow_terminal() {
        assert!(help().lines().all(|line| line.len() < 80), "{}", help());
    }

    #[test]
    fn every_command_of_the_list_is_understood() {
        for (name, argument, _) in COMMANDS {
            let line = format!("/{name} {}", if argument.is_empty() { "" } else { "x" });
            assert!(parse(&line).unwrap().is_some(), "{line}");
        }
    }
}
