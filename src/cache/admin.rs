//! The cache directory as a whole, for those who look after it: what lies there, of all models, and whether it is sound.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::digest::{Digest, ModelKey};
use super::error::{CacheError, Result};
use super::index::{self, Entry};
use super::{file, write};

/// Bytes of text that a listing shows.
const HEAD_BYTES: usize = 200;

/// All models' folders inside a cache directory.
pub struct Cabinet {
    dir: PathBuf,
}

/// One segment of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    pub path: PathBuf,
    pub key: ModelKey,
    pub name: Digest,
    pub model: String,
    /// Position of its first token, a page's start.
    pub start: usize,
    pub tokens: usize,
    pub states: usize,
    pub bytes: u64,
    pub created_ms: i64,
    /// Roughly when it was used last; later for what was used often.
    pub used_ms: i64,
    /// What computing it again takes.
    pub seconds: f64,
    /// The beginning of its text, at most 200 bytes, as it is.
    pub head: Vec<u8>,
    parent: Digest,
    boundaries: Vec<Digest>,
}

/// A file that is no sound segment.
#[derive(Clone, Debug)]
pub struct Broken {
    pub path: PathBuf,
    pub why: String,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    pub files: usize,
    pub bytes: u64,
    /// They were removed, unless `why` says that it failed.
    pub broken: Vec<Broken>,
}

impl Cabinet {
    /// Nothing is created, and nothing need be there.
    pub fn new(dir: &Path) -> Cabinet {
        Cabinet { dir: dir.to_owned() }
    }

    /// All segments, the last used first, and the files that are none. Reads headers only and changes nothing.
    pub fn list(&self) -> (Vec<Listed>, Vec<Broken>) {
        let (mut listed, mut broken) = (vec![], vec![]);
        for (path, key) in self.files() {
            match read(&path, &key).and_then(|entry| listing(&entry)) {
                Ok(segment) => listed.push(segment),
                Err(CacheError::Gone { .. }) => {}
                Err(e) => broken.push(Broken { path, why: why(e) }),
            }
        }
        listed.sort_by(|a, b| b.used_ms.cmp(&a.used_ms).then(a.name.cmp(&b.name)));
        (listed, broken)
    }

    /// Removes the segments chosen and those that can then no longer be reached; returns what was removed.
    pub fn remove(&self, choose: impl Fn(&Listed) -> bool) -> Result<Vec<Listed>> {
        let (mut listed, broken) = self.list();
        // What others go on from is removed after them.
        listed.sort_by_key(|segment| segment.start);
        let (mut reached, mut gone) = (HashSet::new(), vec![]);
        for segment in listed {
            let reachable = segment.start == 0 || reached.contains(&(segment.key, segment.parent));
            if reachable && !choose(&segment) {
                reached.extend(segment.boundaries.iter().map(|digest| (segment.key, *digest)));
            } else {
                gone.push(segment);
            }
        }
        for segment in gone.iter().rev() {
            remove(&segment.path)?;
        }
        for file in broken {
            remove(&file.path)?;
        }
        for (folder, _) in index::folders(&self.dir) {
            write::sweep(&folder);
            // Refused while anything lies in it.
            let _ = std::fs::remove_dir(folder);
        }
        Ok(gone)
    }

    /// Reads every byte of every file, tells each path before, and removes what is not sound.
    pub fn verify(&self, mut progress: impl FnMut(&Path)) -> Verified {
        let mut found = Verified::default();
        for (folder, _) in index::folders(&self.dir) {
            write::sweep(&folder);
        }
        for (path, key) in self.files() {
            progress(&path);
            match check(&path, &key) {
                Ok(bytes) => {
                    found.files += 1;
                    found.bytes += bytes;
                }
                Err(CacheError::Gone { .. }) => {}
                Err(error) => {
                    // What can not be read now may be sound.
                    let removable = matches!(error, CacheError::Bad { .. });
                    let mut why = why(error);
                    if let Err(e) = if removable { remove(&path) } else { Ok(()) } {
                        why = format!("{why}; it can not be removed: {e}");
                    }
                    found.files += 1;
                    found.broken.push(Broken { path, why });
                }
            }
        }
        found
    }

    fn files(&self) -> Vec<(PathBuf, ModelKey)> {
        let folders = index::folders(&self.dir).into_iter();
        let mut files: Vec<_> =
            folders.flat_map(|(folder, key)| index::files(&folder).into_iter().map(move |path| (path, key))).collect();
        files.sort();
        files
    }
}

fn why(error: CacheError) -> String {
    match error {
        CacheError::Bad { why, .. } => why,
        CacheError::Io { cause, .. } => cause.to_string(),
        other => other.to_string(),
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(CacheError::io(path)(e)),
        _ => Ok(()),
    }
}

fn read(path: &Path, key: &ModelKey) -> Result<Entry> {
    let name = index::name_of(path).ok_or_else(|| CacheError::bad(path, "its name is not that of its content"))?;
    index::read(path, key, &name)
}

fn listing(entry: &Entry) -> Result<Listed> {
    let (body, prefix) = (entry.body()?, &entry.prefix);
    Ok(Listed {
        path: entry.path.clone(),
        key: prefix.key,
        name: prefix.name,
        model: body.model_name.clone(),
        start: prefix.start,
        tokens: prefix.tokens,
        states: body.states.len(),
        bytes: prefix.file_bytes,
        created_ms: prefix.created_ms,
        used_ms: entry.used_ms(),
        seconds: prefix.seconds,
        head: body.text[..body.text.len().min(HEAD_BYTES)].to_vec(),
        parent: prefix.parent,
        boundaries: entry.boundaries()?.to_vec(),
    })
}

/// The bytes of a file that is sound.
fn check(path: &Path, key: &ModelKey) -> Result<u64> {
    let entry = read(path, key)?;
    let (file, body) = (entry.open()?, entry.body()?);
    let mut bytes = vec![];
    for place in body.places() {
        let (_, len) = body.record(place).ok_or_else(|| CacheError::bad(path, "a record is missing"))?;
        if bytes.try_reserve(len).is_err() {
            return Err(CacheError::bad(path, "a record does not fit into memory"));
        }
        bytes.resize(len, 0);
        file::record(path, &file, &entry.prefix, &body, place, &mut bytes)?;
    }
    Ok(entry.prefix.file_bytes)
}
