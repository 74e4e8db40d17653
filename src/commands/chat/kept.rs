//! Chats that are kept without being asked: one file each, written anew after every answer.
//!
//! Names are times, so that the newest sorts last; of many the oldest go. A chat that is gone on with keeps its file. What
//! the model computed for it is kept elsewhere, with the other pages (`rynd cache`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::transcript::Transcript;
use crate::catalog::Home;

/// Chats that are kept, at most.
const MOST: usize = 200;

/// The file of a chat that begins now; older ones make room. `None` without a place to keep it.
pub fn new() -> Option<PathBuf> {
    let folder = Home::from_env().ok()?.chats();
    std::fs::create_dir_all(&folder).ok()?;
    let all = files(&folder);
    for old in &all[..all.len().saturating_sub(MOST - 1)] {
        // One that can not be removed is no reason not to chat.
        let _ = std::fs::remove_file(old);
    }
    let name = jiff::ZonedDateTime::now().strftime("%Y-%m-%d-%H%M%S").to_string();
    let path = (0..100).map(|n| if n == 0 { name.clone() } else { format!("{name}-{n}") });
    path.map(|name| folder.join(name + ".json")).find(|path| !path.exists())
}

/// The chat of the last answer.
pub fn last() -> Result<PathBuf> {
    let folder = Home::from_env()?.chats();
    let newest = files(&folder).into_iter().max_by_key(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok());
    newest.with_context(|| format!("there is no chat to continue: {} holds none", folder.display()))
}

/// A chat by its name, by the beginning of one, by a number (1 is the newest), or by its path.
pub fn named(name: &str) -> Result<PathBuf> {
    if Path::new(name).is_file() {
        return Ok(PathBuf::from(name));
    }
    let folder = Home::from_env()?.chats();
    let all = files(&folder);
    if let Ok(number @ 1..=MOST) = name.parse::<usize>()
        && let Some(path) = all.iter().rev().nth(number - 1)
    {
        return Ok(path.clone());
    }
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let found: Vec<&PathBuf> = all.iter().filter(|path| stem(path).starts_with(name)).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => bail!("no chat is called '{name}'; '/chats' in a chat lists those in {}", folder.display()),
        [first, ..] => bail!("{} chats begin with '{name}', as {}; give more of the name", found.len(), stem(first)),
    }
}

/// One line a chat, the newest first: number, name, turns, first words.
pub fn list() -> Result<String> {
    let folder = Home::from_env()?.chats();
    let mut out = String::new();
    for (at, path) in files(&folder).iter().rev().enumerate().take(20) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let Ok(chat) = Transcript::load(path) else { continue };
        let questions = || chat.messages.iter().filter(|message| message.role == "user");
        let words: String = questions().next().map(|m| m.text()).unwrap_or_default().chars().take(48).collect();
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        out.push_str(&format!("{:>3}  {name}  {:>3} turns  {words}\n", at + 1, questions().count()));
    }
    Ok(if out.is_empty() { "no chats are kept yet\n".to_owned() } else { out })
}

/// All of them, the oldest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    all.sort();
    all
}
