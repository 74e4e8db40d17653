//! Files that go along with a message: `/read FILE`, and `@path` inside of the text.
//!
//! A file becomes a named code block in front of the text. A word `@x` that is no file stays a word, since people paste
//! decorators and addresses; one that looks like a path is worth a note.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::super::input;

/// Larger files can not fit any context, and reading one by mistake should not take the memory.
const MOST_BYTES: u64 = 16 << 20;

/// A file as it goes into a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    pub path: PathBuf,
    text: String,
}

impl Attachment {
    /// Reads a text file.
    pub fn read(path: &Path) -> Result<Attachment> {
        let shown = path.display();
        let about = std::fs::metadata(path).with_context(|| format!("can not read {shown}"))?;
        if about.is_dir() {
            bail!("{shown} is a folder; name a file in it");
        }
        if about.len() > MOST_BYTES {
            bail!("{shown} has {} MB, which no context can hold; attach a part of it", about.len() / 1_000_000);
        }
        Ok(Attachment { path: path.to_owned(), text: input::read_file(path)? })
    }

    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }

    fn write(&self, out: &mut String) {
        let name = self.path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let language = self.path.extension().map(|ending| ending.to_string_lossy()).unwrap_or_default();
        // The fence must be longer than any in the file.
        let longest = self.text.lines().map(|line| line.trim_start().chars().take_while(|&c| c == '`').count()).max();
        let fence = "`".repeat(longest.unwrap_or(0).max(2) + 1);
        let shown = if self.path.is_absolute() { name } else { self.path.to_string_lossy() };
        out.push_str(&format!("{shown}:\n{fence}{language}\n{}", self.text));
        out.push_str(if self.text.is_empty() || self.text.ends_with('\n') { "" } else { "\n" });
        out.push_str(&format!("{fence}\n\n"));
    }
}

/// The message with its files in front.
pub fn with_files(files: &[Attachment], text: &str) -> String {
    let mut out = String::new();
    files.iter().for_each(|file| file.write(&mut out));
    out.push_str(text);
    out
}

/// The files that `@path` and `@"path with spaces"` in a text name, and words that look like paths but are no files.
pub fn mentioned(text: &str) -> Result<(Vec<Attachment>, Vec<String>)> {
    let (mut files, mut missing): (Vec<Attachment>, Vec<String>) = (vec![], vec![]);
    for word in mentions(text) {
        // A sentence may go on right behind the path.
        let candidates = [word, word.trim_end_matches(['.', ',', ';', ':', '!', '?', ')'])];
        match candidates.iter().map(Path::new).find(|path| path.is_file()) {
            Some(path) if files.iter().any(|file| file.path == path) => {}
            Some(path) => files.push(Attachment::read(path)?),
            None if word.contains('/') && !missing.iter().any(|m| m == word) => missing.push(word.to_owned()),
            None => {}
        }
    }
    Ok((files, missing))
}

fn mentions(text: &str) -> Vec<&str> {
    let mut found = vec![];
    for (at, _) in text.match_indices('@') {
        if text[..at].chars().next_back().is_some_and(|c| !c.is_whitespace() && !"([{'\"`".contains(c)) {
            continue;
        }
        let rest = &text[at + 1..];
        let word = match rest.strip_prefix('"') {
            Some(quoted) => {
                quoted.split_once('"').filter(|(path, _)| !path.contains('\n')).map_or("", |(path, _)| path)
            }
            None => rest.split(|c: char| c.is_whitespace() || "'\"`".contains(c)).next().unwrap_or_default(),
        };
        if !word.is_empty() {
            found.push(word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_start_a_word() {
        assert_eq!(mentions("see @a.rs and (@b/c.rs) or @\"d e.txt\", not x@y.org"), ["a.rs", "b/c.rs)", "d e.txt"]);
        assert_eq!(mentions("@ @\"open"), [""; 0]);
    }

    #[test]
    fn files_are_fenced_by_more_than_they_contain() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x y.md");
        std::fs::write(&path, "a\n````\nb").unwrap();
        let (files, missing) =
            mentioned(&format!("look at @\"{}\": and @no/such.rs @property", path.display())).unwrap();
        assert_eq!(missing, ["no/such.rs"]);
        let text = with_files(&files, "explain");
        assert_eq!(text, "x y.md:\n`````md\na\n````\nb\n`````\n\nexplain");
        assert_eq!((files.len(), files[0].lines()), (1, 3));
    }

    #[test]
    fn what_can_not_be_attached_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("binary");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        for (path, why) in [(folder.path(), "folder"), (&binary, "UTF-8"), (Path::new("/no/such"), "can not read")] {
            let error = format!("{:#}", Attachment::read(path).unwrap_err());
            assert!(error.contains(why) && error.contains(&path.display().to_string()), "{error}");
        }
    }
}
