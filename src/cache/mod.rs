//! The disk tier: computed pages and recurrent states in files, found by token ids or by text.
//!
//! A *segment* is one piece of a branch: the tokens from a page boundary to where it ends, their text, one record a page and
//! group, and states. What lies before it is named by a chain of digests over whole pages, so segments find each other
//! however a conversation was cut, and the same content has the same file name in every process. This module knows bytes:
//! what a record holds is the caller's business, which must be told apart by the [`ModelKey`].
//!
//! Nothing here is trusted: a header, a body and each record has its own sum, checked before use; what does not fit is removed
//! and told. Files are never mapped, so one that shrinks is an error and no SIGBUS. Writing may fail at any time (a full disk,
//! a read-only folder); then that is told once and the tier goes on reading. It never holds a lock that another process waits
//! for, and it refuses to guess: a key of another model, version or layout is another folder.

mod admin;
mod digest;
mod error;
mod evict;
mod file;
mod format;
mod index;
mod lookup;
mod text;
mod write;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use admin::{Broken, Cabinet, Listed, Verified};
pub use digest::{Digest, ModelKey};
pub use error::{CacheError, Result};
pub use lookup::Hit;
pub use text::TextHit;
pub use write::{Begin, SegmentWriter};
pub use writer::{Saving, Writer};

use index::{Folder, Index};

/// Where what is worth telling goes: one sentence each, never twice for the same fault.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// One kind of page: the layers whose pages have these bytes and this window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Bytes of one record.
    pub page_bytes: usize,
    /// Tokens that a token sees, itself not counted; `None` sees all. Pages further back may be missing.
    pub window: Option<u32>,
}

/// What the files of a model look like; it belongs into the [`ModelKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub page_tokens: usize,
    pub groups: Vec<Group>,
    /// Whether a sequence goes on only from where a state was kept.
    pub states: bool,
}

/// The model whose pages are kept.
#[derive(Clone, Debug)]
pub struct Model {
    pub key: ModelKey,
    /// As users know it; only shown.
    pub name: String,
    pub layout: Layout,
}

/// How a store behaves.
#[derive(Clone)]
pub struct Options {
    /// Bytes of all files of all models together.
    pub cap_bytes: u64,
    pub notice: Notice,
}

/// A piece of a sequence that is to be kept.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The whole sequence, from position 0 to the end of the piece.
    pub ids: &'a [u32],
    /// Where the piece begins, a multiple of `page_tokens`. A branch inside a page begins at that page's start.
    pub start: usize,
    /// Bytes of text of each token of `ids[start..]`; 0 for one that has none.
    pub lens: &'a [u32],
    /// Those bytes.
    pub text: &'a [u8],
    /// By group: the first page (counted from position 0) that has a record; the last one is the page of the last token.
    pub first_pages: &'a [usize],
    /// Position (tokens before it, `start < position <= ids.len()`) and bytes of each state, ascending.
    pub states: &'a [(usize, usize)],
    /// What it takes to compute `ids[start..]` again, at that depth.
    pub seconds: f64,
}

/// The segments of one model, and the cap on those of all models.
pub struct CacheStore {
    dir: PathBuf,
    folder: PathBuf,
    model: Model,
    root: Digest,
    options: Options,
    index: Mutex<Index>,
    /// Cleared by the first write that fails.
    writing: AtomicBool,
    /// Bytes of the segments that are being written.
    pending: Arc<AtomicU64>,
}

impl CacheStore {
    /// Opens the model's folder inside `dir`, which is created, and sweeps what dead writers left there. Reads the first bytes
    /// of each file; what is not one of this model's segments is removed.
    pub fn open(dir: &Path, model: Model, options: Options) -> Result<Arc<CacheStore>> {
        let layout = &model.layout;
        let sizes_fit = layout.groups.iter().all(|g| g.page_bytes > 0) && layout.groups.len() <= format::MOST_GROUPS;
        if layout.page_tokens == 0 || layout.page_tokens > format::MOST_PAGE_TOKENS || !sizes_fit {
            return Err(CacheError::Layout);
        }
        let folder = dir.join(model.key.to_string());
        std::fs::create_dir_all(&folder).map_err(CacheError::io(&folder))?;
        write::sweep(&folder);
        let index = Mutex::new(Index::new(Folder::new(folder.clone(), model.key)));
        let root = digest::root(&model.key);
        let (writing, pending) = (AtomicBool::new(true), Arc::default());
        let store = CacheStore { dir: dir.to_owned(), folder, model, root, options, index, writing, pending };
        drop(store.refreshed());
        Ok(Arc::new(store))
    }

    /// The model of this store.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether pieces are still taken; false once a write has failed, or with a cap of 0.
    pub fn writes(&self) -> bool {
        self.options.cap_bytes > 0 && self.writing.load(Ordering::Relaxed)
    }

    /// Segments of this model, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        let index = self.refreshed();
        index.own.size()
    }

    fn notice(&self, message: &str) {
        (self.options.notice)(message);
    }

    /// The index as the folder is now.
    fn refreshed(&self) -> MutexGuard<'_, Index> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        for bad in index.own.refresh() {
            self.remove_bad(&bad.path, &bad.why);
        }
        index
    }

    fn remove_bad(&self, path: &Path, why: &str) {
        let path_name = path.display();
        match std::fs::remove_file(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => self.notice(&format!("{path_name} is ignored: {why} (and can not be removed: {e})")),
            Ok(()) => self.notice(&format!("{path_name} was removed: {why}")),
        }
    }

    /// A segment that turned out to be bad; one that is only gone is forgotten without a word.
    fn discard(&self, name: &Digest, error: &CacheError) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = index.own.forget(name)
            && let CacheError::Bad { why, .. } = error
        {
            self.remove_bad(&entry.path, why);
        }
    }

    /// Says once that nothing is written any more.
    fn stop_writing(&self, error: &CacheError) {
        if self.writing.swap(false, Ordering::Relaxed) {
            self.notice(&format!("conversations are no longer kept on disk until the next start: {error}"));
        }
    }
}
