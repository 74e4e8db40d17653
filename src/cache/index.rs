//! What the folders hold, by name and by what lies before: prefixes in memory, bodies when first needed.
//!
//! A folder is listed again when its time of change is another one, or so young that a further change could have the same.
//! Times of use are the files' own times of change, so every process sees them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::digest::{self, Digest, ModelKey};
use super::error::{CacheError, Result};
use super::format::{Body, Prefix};
use super::{Layout, file};

pub const ENDING: &str = "kv";
/// The coarsest time that a file system keeps.
const COARSEST: Duration = Duration::from_secs(2);

/// One segment.
#[derive(Debug)]
pub struct Entry {
    pub path: PathBuf,
    pub prefix: Prefix,
    /// See `evict`: a time that stands for all uses.
    pub used_ms: AtomicI64,
    body: OnceLock<Arc<Body>>,
    boundaries: OnceLock<Vec<Digest>>,
}

impl Entry {
    pub fn new(path: PathBuf, prefix: Prefix, used_ms: i64) -> Entry {
        Entry { path, prefix, used_ms: AtomicI64::new(used_ms), body: OnceLock::new(), boundaries: OnceLock::new() }
    }

    pub fn used_ms(&self) -> i64 {
        self.used_ms.load(Ordering::Relaxed)
    }

    /// Opens the file, which must be the one that was indexed.
    pub fn open(&self) -> Result<File> {
        let (file, prefix) = file::open(&self.path)?;
        // Another process may have written the same content again, with other states.
        if prefix.sum != self.prefix.sum {
            return Err(CacheError::Gone { path: self.path.clone() });
        }
        Ok(file)
    }

    /// The ids, lengths and text, read when first asked for.
    pub fn body(&self) -> Result<Arc<Body>> {
        if let Some(body) = self.body.get() {
            return Ok(body.clone());
        }
        let body = Arc::new(file::body(&self.path, &self.open()?, &self.prefix)?);
        Ok(self.body.get_or_init(|| body).clone())
    }

    /// The digests of the page boundaries inside it, of its end too where that is one.
    pub fn boundaries(&self) -> Result<&[Digest]> {
        let (body, prefix) = (self.body()?, &self.prefix);
        let chain = || digest::chain(prefix.parent, &body.ids, prefix.page_tokens);
        Ok(&self.boundaries.get_or_init(chain)[1..])
    }

    /// The body, of a model with this layout.
    pub fn body_of(&self, layout: &Layout) -> Result<Arc<Body>> {
        let body = self.body()?;
        let p = &self.prefix;
        if p.page_tokens != layout.page_tokens || p.states != layout.states || !body.fits(layout) {
            return Err(CacheError::bad(&self.path, "it has pages of another layout"));
        }
        Ok(body)
    }
}

/// A file that is none of this model's segments.
pub struct BadFile {
    pub path: PathBuf,
    pub why: String,
}

/// The segments of one model key.
pub struct Folder {
    pub path: PathBuf,
    pub key: ModelKey,
    pub entries: HashMap<Digest, Arc<Entry>>,
    /// By the digest of what lies before.
    pub by_parent: HashMap<Digest, Vec<Arc<Entry>>>,
    seen: Option<SystemTime>,
}

impl Folder {
    pub fn new(path: PathBuf, key: ModelKey) -> Folder {
        Folder { path, key, entries: HashMap::new(), by_parent: HashMap::new(), seen: None }
    }

    /// Segments and their bytes.
    pub fn size(&self) -> (usize, u64) {
        (self.entries.len(), self.entries.values().map(|e| e.prefix.file_bytes).sum())
    }

    pub fn add(&mut self, entry: Arc<Entry>) {
        self.forget(&entry.prefix.name);
        self.by_parent.entry(entry.prefix.parent).or_default().push(entry.clone());
        self.entries.insert(entry.prefix.name, entry);
    }

    pub fn forget(&mut self, name: &Digest) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(name)?;
        if let Some(siblings) = self.by_parent.get_mut(&entry.prefix.parent) {
            siblings.retain(|other| other.prefix.name != *name);
            if siblings.is_empty() {
                self.by_parent.remove(&entry.prefix.parent);
            }
        }
        Some(entry)
    }

    /// Takes in what other processes added and removed; returns what does not belong here.
    pub fn refresh(&mut self) -> Vec<BadFile> {
        let changed = std::fs::metadata(&self.path).and_then(|m| m.modified()).ok();
        if changed.is_some() && changed == self.seen {
            return vec![];
        }
        let settled = changed.is_some_and(|t| t.elapsed().is_ok_and(|age| age > COARSEST));
        self.seen = changed.filter(|_| settled);

        let (mut bad, mut there) = (vec![], HashSet::new());
        for path in files(&self.path) {
            let Some(name) = name_of(&path) else { continue };
            there.insert(name);
            if self.entries.contains_key(&name) {
                continue;
            }
            match read(&path, &self.key, &name) {
                Ok(entry) => self.add(Arc::new(entry)),
                Err(CacheError::Bad { path, why }) => bad.push(BadFile { path, why }),
                // Gone meanwhile, or not readable now: nothing that can be said of its content.
                Err(_) => {}
            }
        }
        let gone: Vec<Digest> = self.entries.keys().filter(|name| !there.contains(*name)).copied().collect();
        for name in gone {
            self.forget(&name);
        }
        bad
    }
}

/// Reads the prefix of a file that must be this segment of this model.
pub fn read(path: &Path, key: &ModelKey, name: &Digest) -> Result<Entry> {
    let (file, prefix) = file::open(path)?;
    if prefix.key != *key {
        return Err(CacheError::bad(path, "it belongs to another model"));
    }
    if prefix.name != *name {
        return Err(CacheError::bad(path, "its name is not that of its content"));
    }
    let used = file.metadata().and_then(|m| m.modified()).map_or(prefix.created_ms, millis);
    Ok(Entry::new(path.to_owned(), prefix, used))
}

/// The files of a folder that end as segments do.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(listing) = std::fs::read_dir(folder) else { return vec![] };
    listing.filter_map(|f| f.ok().map(|f| f.path())).filter(|p| p.extension().is_some_and(|e| e == ENDING)).collect()
}

/// The name that a file's name says; `None` where it is no digest.
pub fn name_of(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_stem()?.to_str()?)
}

/// Milliseconds since 1970.
pub fn millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
    }
}

pub fn now_ms() -> i64 {
    millis(SystemTime::now())
}

/// The folders of all models; those of others are looked at when room is needed.
pub struct Index {
    pub own: Folder,
    pub others: HashMap<ModelKey, Folder>,
}

impl Index {
    pub fn new(own: Folder) -> Index {
        Index { own, others: HashMap::new() }
    }

    /// Takes in the folders of the other models inside `dir`; what is bad there is left to their own stores and to `verify`.
    pub fn refresh_others(&mut self, dir: &Path) {
        let mut there = HashSet::new();
        for (path, key) in folders(dir) {
            if key != self.own.key {
                there.insert(key);
                self.others.entry(key).or_insert_with(|| Folder::new(path, key)).refresh();
            }
        }
        self.others.retain(|key, _| there.contains(key));
    }

    pub fn bytes(&self) -> u64 {
        self.own.size().1 + self.others.values().map(|folder| folder.size().1).sum::<u64>()
    }

    pub fn forget(&mut self, entry: &Entry) {
        let key = entry.prefix.key;
        let folder = if key == self.own.key { Some(&mut self.own) } else { self.others.get_mut(&key) };
        if let Some(folder) = folder {
            folder.forget(&entry.prefix.name);
        }
    }
}

/// The models' folders inside a cache directory.
pub fn folders(dir: &Path) -> Vec<(PathBuf, ModelKey)> {
    let Ok(listing) = std::fs::read_dir(dir) else { return vec![] };
    let paths = listing.filter_map(|f| f.ok().map(|f| f.path()));
    let mut found: Vec<_> =
        paths.filter_map(|path| Some((path.clone(), ModelKey::from_hex(path.file_name()?.to_str()?)?))).collect();
    found.sort();
    found
}

/// Notes the time of use for all processes.
pub fn stamp(file: &File, used_ms: i64) {
    let time = UNIX_EPOCH + Duration::from_millis(used_ms.max(0) as u64);
    // A folder that may only be read keeps its order of use as it is.
    let _ = file.set_modified(time);
}
