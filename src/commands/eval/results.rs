//! Results as JSON Lines: a head that says what was measured, then a line a problem, written as they come.
//!
//! A run that was cut short goes on where its file stands: lines are only appended, and a line that was not finished is
//! cut off first. A file of another model or of other settings is refused instead of being mixed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub benchmark: String,
    pub model: String,
    /// Tokens of an answer, at most.
    pub tokens: usize,
}

/// One problem.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub task_id: String,
    pub passed: bool,
    /// "passed", or why not.
    pub outcome: String,
    /// What ended the answer: its code block, the model, or the limit.
    pub finish: String,
    pub generated_tokens: usize,
    pub answer: String,
}

/// The records so far, and the file that gets more.
pub struct Results {
    file: Option<(PathBuf, File)>,
    pub records: Vec<Record>,
}

impl Results {
    /// Opens or starts a file; without one the records are only kept.
    pub fn open(path: Option<&Path>, head: &Head) -> Result<Results> {
        let Some(path) = path else { return Ok(Results { file: None, records: vec![] }) };
        let name = || format!("can not write {}", path.display());
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("can not read {}", path.display()))?,
        };
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole].lines();
        let mut records: Vec<Record> = vec![];
        match lines.next() {
            None if !text.is_empty() => bail!("{}: this is no file of results; give another -o", path.display()),
            None => {}
            Some(line) => {
                let found: Head = serde_json::from_str(line)
                    .with_context(|| format!("{}: this is no file of results; give another -o", path.display()))?;
                if found != *head {
                    bail!(
                        "{} holds results of {} on {} with {} tokens an answer; give another -o",
                        path.display(),
                        found.model,
                        found.benchmark,
                        found.tokens
                    );
                }
            }
        }
        for (i, line) in lines.enumerate() {
            let record = serde_json::from_str(line)
                .with_context(|| format!("{}: line {} is no result; delete it to go on", path.display(), i + 2))?;
            records.push(record);
        }
        let mut file = OpenOptions::new().append(true).create(true).open(path).with_context(name)?;
        file.set_len(whole as u64).with_context(name)?;
        if whole == 0 {
            writeln!(file, "{}", serde_json::to_string(head)?).with_context(name)?;
        }
        Ok(Results { file: Some((path.to_owned(), file)), records })
    }

    /// Whether a problem has its result.
    pub fn has(&self, task_id: &str) -> bool {
        self.records.iter().any(|record| record.task_id == task_id)
    }

    /// Problems that passed.
    pub fn passed(&self) -> usize {
        self.records.iter().filter(|record| record.passed).count()
    }

    /// Adds a result.
    pub fn add(&mut self, record: Record) -> Result<()> {
        if let Some((path, file)) = &mut self.file {
            let line = serde_json::to_string(&record)? + "\n";
            file.write_all(line.as_bytes()).with_context(|| format!("can not write {}", path.display()))?;
        }
        self.records.push(record);
        Ok(())
    }
}
