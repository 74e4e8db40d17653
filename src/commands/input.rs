//! What a command is given to read: text from an argument, a file or a pipe, and token ids.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where the text comes from.
#[derive(Debug, clap::Args)]
pub struct TextFlags {
    /// The text; without it and -f, standard input is read
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,
    /// A file with the text ('-' is standard input)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl TextFlags {
    /// The text, byte for byte.
    pub fn read(&self) -> Result<String> {
        match (&self.prompt, &self.file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) if path != Path::new("-") => read_file(path),
            (None, Some(_)) => read_stdin(),
            (None, None) if std::io::stdin().is_terminal() => {
                bail!("there is no text; give it with -p TEXT, -f FILE or on standard input")
            }
            (None, None) => read_stdin(),
        }
    }

    /// The text as a prompt: the newline that ends a file or an `echo` is not part of it, and it must not be empty.
    pub fn read_prompt(&self) -> Result<String> {
        let mut text = self.read()?;
        if self.prompt.is_none() && text.ends_with('\n') {
            text.pop();
        }
        if text.is_empty() {
            bail!("the prompt is empty; give it with -p TEXT, -f FILE or on standard input");
        }
        Ok(text)
    }
}

/// A text file, whole.
pub fn read_file(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("can not read {}", path.display()))?;
    text(bytes, &path.display().to_string())
}

/// Standard input, whole.
pub fn read_stdin() -> Result<String> {
    let mut bytes = vec![];
    std::io::stdin().lock().read_to_end(&mut bytes).context("can not read standard input")?;
    text(bytes, "standard input")
}

fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name} is not UTF-8 at byte {at}; convert it to UTF-8 first")
    })
}

/// Token ids, separated by commas or white space.
pub fn ids(text: &str) -> Result<Vec<u32>> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words
        .map(|word| {
            word.parse().ok().with_context(|| {
                format!("'{word}' is no token id; ids are whole numbers separated by commas or spaces, as in 1,2,3")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_may_be_separated_by_commas_and_white_space() {
        assert_eq!(ids("1,2 3\n,4").unwrap(), [1, 2, 3, 4]);
        assert!(ids(" \n").unwrap().is_empty());
        assert!(ids("1,-2").unwrap_err().to_string().contains("'-2'"));
        assert!(ids("4294967296").is_err());
    }
}
