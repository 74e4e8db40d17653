//! Explicit reads of a model's files: past the page cache where the system allows it, never through the mapping.
//!
//! A page fault in the middle of a product stops a worker for a disk's latency and fills memory that nobody budgeted. So
//! what is not resident is read on threads of its own, with O_DIRECT where the file system takes it; else through the
//! cache, which is then told to forget the range. A read that fails is tried once more. A file that has become shorter
//! is an error that names it: a short read can be told, where a mapping would raise SIGBUS.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::gguf::Gguf;

/// Direct reads begin and end at multiples of this, in the file and in memory.
pub const ALIGN: usize = 4096;

/// A large page, where the system has them.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub shard: usize,
    pub offset: u64,
    pub bytes: usize,
}

impl Extent {
    /// Bytes before the extent in its first aligned block: where its data start in a buffer.
    pub fn lead(&self) -> usize {
        (self.offset % ALIGN as u64) as usize
    }

    /// A buffer for the aligned blocks that cover the extent.
    pub fn buffer_bytes(&self) -> usize {
        (self.lead() + self.bytes).next_multiple_of(ALIGN)
    }
}

/// Why bytes could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "{}: the file has become shorter while it is in use: bytes {offset} to {} are gone; get the whole file back and \
         start again", .file.display(), .offset + *.bytes as u64
    )]
    Shrunk { file: PathBuf, offset: u64, bytes: usize },
    #[error("{}: reading {bytes} bytes at {offset} failed twice: {cause}; check the disk, and try again", .file.display())]
    Read { file: PathBuf, offset: u64, bytes: usize, cause: Arc<io::Error> },
    #[error("{}: can not open the file: {cause}; check the path and its permissions", .file.display())]
    Open { file: PathBuf, cause: Arc<io::Error> },
    #[error("{bytes} bytes to read an expert into were refused by the system; use a smaller --ram")]
    OutOfMemory { bytes: usize },
    #[error("the model is not in a file, so its experts can not be read from disk; leave out --ram")]
    NoFile,
}

/// Called before each read with the file, the offset and the attempt (0, 1): an error stands in for the read's own. For
/// tests of what happens when disks fail.
#[derive(Clone)]
pub struct Fault(pub Arc<Injector>);

/// File, offset and attempt to the error that stands in.
pub type Injector = dyn Fn(&Path, u64, u32) -> Option<io::Error> + Send + Sync;

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fault")
    }
}

/// The files of one model, open for explicit reads.
#[derive(Debug)]
pub struct Disk {
    files: Vec<Shard>,
    fault: Option<Fault>,
    bytes: AtomicU64,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    cached: File,
    direct: Option<File>,
    /// A direct read was refused once (a file system without it): do not ask again.
    refused: AtomicBool,
}

impl Disk {
    /// Opens the files of this model again, for reads.
    pub fn open(gguf: &Gguf, fault: Option<Fault>) -> Result<Disk, DiskError> {
        let open = |path: &PathBuf| {
            let cached =
                File::open(path).map_err(|cause| DiskError::Open { file: path.clone(), cause: Arc::new(cause) })?;
            Ok(Shard { path: path.clone(), cached, direct: open_direct(path), refused: AtomicBool::new(false) })
        };
        let files = gguf.shards().iter().map(open).collect::<Result<_, DiskError>>()?;
        Ok(Disk { files, fault, bytes: AtomicU64::new(0) })
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.files.iter().all(|file| file.direct.is_some() && !file.refused.load(Ordering::Relaxed))
    }

    /// Fills `buffer`, which starts at an aligned address, with the aligned blocks that cover the extent; its bytes then
    /// start at `extent.lead()`. A failure is tried once more.
    pub fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<(), DiskError> {
        assert!(buffer.len() >= extent.buffer_bytes() && (buffer.as_ptr() as usize).is_multiple_of(ALIGN));
        let file = &self.files[extent.shard];
        let mut failure = None;
        for attempt in 0..2 {
            let injected = self.fault.as_ref().and_then(|fault| (fault.0)(&file.path, extent.offset, attempt));
            match injected.map_or_else(|| file.fill(extent, buffer), Err) {
                Ok(()) => {
                    self.bytes.fetch_add(extent.bytes as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => failure = Some(error),
            }
        }
        let (path, offset, bytes) = (file.path.clone(), extent.offset, extent.bytes);
        Err(match failure {
            Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                DiskError::Shrunk { file: path, offset, bytes }
            }
            cause => DiskError::Read {
                file: path,
                offset,
                bytes,
                cause: Arc::new(cause.unwrap_or_else(|| io::ErrorKind::Other.into())),
            },
        })
    }

    /// Asks the system to forget these bytes of the file; pages that are in use elsewhere stay.
    pub fn forget(&self, extent: Extent) {
        forget(&self.files[extent.shard].cached, extent);
    }
}

impl Shard {
    fn fill(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<()> {
        let needed = extent.lead() + extent.bytes;
        let start = extent.offset - extent.lead() as u64;
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) {
            match read_to(direct, start, &mut buffer[..extent.buffer_bytes()], needed) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => self.refused.store(true, Ordering::Relaxed),
                other => return other,
            }
        }
        read_to(&self.cached, start, &mut buffer[..needed], needed)?;
        forget(&self.cached, extent);
        Ok(())
    }
}

/// Reads until at least `needed` bytes are there. The last block of a file may be short; anything before it may not.
fn read_to(file: &File, start: u64, buffer: &mut [u8], needed: usize) -> io::Result<()> {
    let mut done = 0;
    while done < needed {
        match read_at(file, &mut buffer[done..], start + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        // A direct read that goes on from an odd place is refused; it only happens at the end of the file.
        if done < needed && !done.is_multiple_of(ALIGN) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn forget(file: &File, extent: Extent) {
    let len = std::num::NonZeroU64::new(extent.bytes as u64);
    // A hint: where it is refused the pages go when memory gets short.
    let _ = rustix::fs::fadvise(file, extent.offset, len, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn forget(_: &File, _: Extent) {}

/// Memory at an aligned address, zeroed. Pages that were never written cost nothing.
pub struct Aligned {
    start: std::ptr::NonNull<u8>,
    layout: std::alloc::Layout,
}

// SAFETY: plain bytes behind a unique pointer; who may touch them when is up to the owner, as with a Vec.
unsafe impl Send for Aligned {}
// SAFETY: as above; shared access goes through `bytes`, whose callers promise that nobody writes.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// `bytes` of zeroed memory; `None` where the system has no more.
    pub fn zeroed(bytes: usize) -> Option<Aligned> {
        let layout = std::alloc::Layout::from_size_align(bytes.max(ALIGN), ALIGN).ok()?;
        // SAFETY: the layout is not empty.
        let start = std::ptr::NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // Direct reads pin the pages they write to, and large ones are quicker to pin. A hint, so a refusal is fine.
            let inner = start.as_ptr() as usize;
            let (from, to) = (inner.next_multiple_of(HUGE), (inner + layout.size()) / HUGE * HUGE);
            // SAFETY: whole huge pages inside of our own allocation; the advice changes no contents.
            let _ = unsafe {
                rustix::mm::madvise(from as *mut _, to.saturating_sub(from), rustix::mm::Advice::LinuxHugepage)
            };
        }
        Some(Aligned { start, layout })
    }

    /// Bytes from the start.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: the smallest piece is a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Keeps the memory from being swapped out; all of it is then taken from the system at once.
    #[cfg(unix)]
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the whole of our own allocation.
        Ok(unsafe { rustix::mm::mlock(self.start.as_ptr().cast(), self.len()) }?)
    }

    /// Not on this system.
    #[cfg(not(unix))]
    pub fn lock(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A part of the memory, to read.
    ///
    /// # Safety
    /// Nobody writes the range meanwhile.
    pub unsafe fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len());
        // SAFETY: inside the allocation; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// A part of the memory, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes the range meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the owner's states rule out a second access, not the borrow checker")]
    pub unsafe fn bytes_mut(&self, range: std::ops::Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len());
        // SAFETY: inside the allocation; the caller rules out every other access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}
