//! Writing a segment: records at their places in a temporary file, which gets its name when all are there and on the disk.
//!
//! The temporary file is locked while its writer lives, so whoever opens the folder can tell what a dead one left, also across
//! containers, whose process numbers say nothing to each other.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::digest::Digest;
use super::error::{CacheError, Result};
use super::format::{Header, Place, record_sum};
use super::index::{ENDING, Entry, now_ms};
use super::{CacheStore, Piece, evict, file};

const TEMPORARY: &str = "tmp";
/// Where files can not be locked, what was not touched for this long is left over.
const LEFT_OVER: Duration = Duration::from_secs(24 * 3600);

/// What became of the wish to write a piece.
pub enum Begin<'a> {
    Started(SegmentWriter<'a>),
    /// It is there already.
    Stored,
    /// It would not fit under the cap.
    TooLarge,
}

/// A segment that is being written. Dropped before [`SegmentWriter::finish`], it leaves nothing behind.
pub struct SegmentWriter<'a> {
    store: &'a CacheStore,
    draft: Box<Draft>,
}

/// The same without its store.
pub(super) struct Draft {
    header: Header,
    file: File,
    temporary: Temporary,
    missing: HashSet<Place>,
}

/// Removed when dropped, unless renamed; until then its bytes are among those that will come.
struct Temporary {
    path: Option<PathBuf>,
    bytes: u64,
    pending: Arc<AtomicU64>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.pending.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl CacheStore {
    /// Starts to write a piece on this thread; [`super::Writer`] does it on another one.
    pub fn begin(&self, piece: &Piece<'_>) -> Result<Begin<'_>> {
        let header = self.header(piece)?;
        Ok(match self.draft(header)? {
            Ok(draft) => Begin::Started(SegmentWriter { store: self, draft: Box::new(draft) }),
            Err(Unwanted::Stored) => Begin::Stored,
            Err(Unwanted::TooLarge) => Begin::TooLarge,
        })
    }

    pub(super) fn header(&self, piece: &Piece<'_>) -> Result<Header> {
        Header::new(&self.model, self.root, piece, now_ms())
    }

    /// Whether a segment is there already; then this was a use of it.
    pub(super) fn stored(&self, name: &Digest) -> bool {
        let index = self.refreshed();
        let Some(entry) = index.own.entries.get(name) else { return false };
        let used = evict::used_again(entry.used_ms(), now_ms());
        entry.used_ms.store(used, Ordering::Relaxed);
        if let Ok(file) = File::open(&entry.path) {
            super::index::stamp(&file, used);
        }
        true
    }

    /// Makes room and opens the temporary file.
    pub(super) fn draft(&self, header: Header) -> Result<std::result::Result<Draft, Unwanted>> {
        if self.stored(&header.prefix.name) {
            return Ok(Err(Unwanted::Stored));
        }
        if !self.make_room(&header.prefix) {
            return Ok(Err(Unwanted::TooLarge));
        }
        let (file, path) = create(&self.folder, &header.prefix.name)?;
        let (bytes, pending) = (header.prefix.file_bytes, self.pending.clone());
        pending.fetch_add(bytes, Ordering::Relaxed);
        let temporary = Temporary { path: Some(path), bytes, pending };
        let missing = header.body.places().collect();
        let draft = Draft { header, file, temporary, missing };
        draft.write(&draft.header.bytes, 0)?;
        Ok(Ok(draft))
    }

    /// Gives a draft its name.
    pub(super) fn complete(&self, draft: Draft) -> Result<Digest> {
        let entry = draft.publish(&self.folder)?;
        let name = entry.prefix.name;
        let mut index = self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        index.own.add(Arc::new(entry));
        Ok(name)
    }
}

/// Why a piece is not written.
pub(super) enum Unwanted {
    Stored,
    TooLarge,
}

impl SegmentWriter<'_> {
    /// The record of a page of a group, counted from position 0; in any order, each once.
    pub fn page(&mut self, group: usize, page: usize, bytes: &[u8]) -> Result<()> {
        self.draft.record(Place::Page(group, page), bytes)
    }

    /// The state of this number among the piece's states.
    pub fn state(&mut self, state: usize, bytes: &[u8]) -> Result<()> {
        self.draft.record(Place::State(state), bytes)
    }

    /// Brings everything to the disk and gives it its name. Refuses while a record is missing.
    pub fn finish(self) -> Result<Digest> {
        self.store.complete(*self.draft)
    }
}

impl Draft {
    pub(super) fn record(&mut self, place: Place, bytes: &[u8]) -> Result<()> {
        let (at, _) = self.header.body.record(place).filter(|(_, n)| *n == bytes.len()).ok_or(WRONG_RECORD)?;
        if !self.missing.remove(&place) {
            return Err(CacheError::Piece("a record was given twice"));
        }
        let sum = record_sum(self.header.prefix.sum, place, bytes);
        self.write(bytes, at)?;
        self.write(&sum.to_le_bytes(), at + bytes.len() as u64)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        file::write_at(&self.file, bytes, at).map_err(|cause| match &self.temporary.path {
            Some(path) => CacheError::Io { path: path.clone(), cause },
            None => WRONG_RECORD,
        })
    }

    fn publish(mut self, folder: &Path) -> Result<Entry> {
        if let Some(place) = self.missing.iter().next() {
            return Err(CacheError::Incomplete(format!("{place:?} of {} records", self.missing.len())));
        }
        let path = folder.join(format!("{}.{ENDING}", self.header.prefix.name));
        let Some(temporary) = self.temporary.path.clone() else { return Err(WRONG_RECORD) };
        self.file.sync_all().map_err(CacheError::io(&temporary))?;
        std::fs::rename(&temporary, &path).map_err(CacheError::io(&temporary))?;
        self.temporary.path = None;
        sync_folder(folder).map_err(CacheError::io(folder))?;
        Ok(Entry::new(path, self.header.prefix.clone(), now_ms()))
    }
}

const WRONG_RECORD: CacheError = CacheError::Piece("a record that it does not have, or of another length, was given");

fn create(folder: &Path, name: &Digest) -> Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The clock tells apart what two containers with equal process numbers write.
    let name = format!("{name}.{}-{}-{number}.{TEMPORARY}", std::process::id(), now_ms());
    let path = folder.join(name);
    // The folder may have been removed meanwhile, with all that was in it.
    std::fs::create_dir_all(folder).map_err(CacheError::io(folder))?;
    let file = File::options().write(true).create_new(true).open(&path).map_err(CacheError::io(&path))?;
    // Where locks are not to be had, `sweep` goes by age.
    let _ = file.try_lock();
    Ok((file, path))
}

/// Removes temporary files whose writers are dead.
pub(super) fn sweep(folder: &Path) {
    let Ok(listing) = std::fs::read_dir(folder) else { return };
    for path in listing.filter_map(|f| f.ok().map(|f| f.path())) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let ours =
            name.ends_with(&format!(".{TEMPORARY}")) && name.get(..64).is_some_and(|n| Digest::from_hex(n).is_some());
        if ours && is_left_over(&path) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn is_left_over(path: &Path) -> bool {
    let Ok(file) = File::options().write(true).open(path) else { return false };
    match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => {
            let age = file.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            age.is_some_and(|age| age > LEFT_OVER)
        }
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A folder can not be synced here; the rename is in the journal.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}
