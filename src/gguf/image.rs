//! The bytes of one shard: a mapping of the file, or memory; and a range of them that keeps them alive.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::GgufError;
use super::guard::Mapping;

/// How a range of the mapping will be used (madvise).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// The default: moderate read-ahead.
    Normal,
    /// Soon: start reading it in.
    WillNeed,
    /// Not soon: forget the pages. They are read again when touched.
    DontNeed,
    /// In no order: no read-ahead.
    Random,
    /// From front to back: generous read-ahead.
    Sequential,
}

/// All bytes of one shard. Clones share them.
#[derive(Clone)]
pub(super) enum Image {
    Mapped(Arc<Mapping>),
    Memory(Arc<[u8]>),
}

impl Image {
    pub(super) fn map(path: &Path) -> Result<Image, GgufError> {
        let io = |action| {
            move |cause| GgufError::Io { file: path.to_owned(), action, cause, check: "the path and its permissions" }
        };
        // Asked before opening: opening a FIFO would wait for its writer.
        let kind = std::fs::metadata(path).map_err(io("open the file"))?.file_type();
        if !kind.is_file() {
            let what = if kind.is_dir() { "it is a folder" } else { "it is not a regular file" };
            return Err(GgufError::NotGguf {
                file: path.to_owned(),
                problem: format!("{what}; give the path of a .gguf file"),
            });
        }
        let file = File::open(path).map_err(io("open the file"))?;
        // SAFETY: the mapping is read-only and nothing here writes through it. Another process may change the file, as
        // with any mapping: bytes are then garbage, checked again wherever lengths are read, or gone (zeros, see the guard).
        let map = unsafe { Mmap::map(&file) }.map_err(io("map the file into memory"))?;
        let guarded = Mapping::new(map, path).map_err(io("guard the mapping of the file"))?;
        Ok(Image::Mapped(Arc::new(guarded)))
    }

    /// Whether a part of the file was gone when it was read.
    pub(super) fn is_damaged(&self) -> bool {
        matches!(self, Image::Mapped(map) if map.is_damaged())
    }

    pub(super) fn advise(&self, offset: usize, bytes: usize, advice: Advice) {
        let Image::Mapped(map) = self else { return };
        let map = map.map();
        if bytes == 0 {
            return;
        }
        // A refused hint changes speed and nothing else, so results are dropped.
        #[cfg(unix)]
        {
            use memmap2::Advice as A;
            let advice = match advice {
                Advice::Normal => A::Normal,
                Advice::WillNeed => A::WillNeed,
                Advice::Random => A::Random,
                Advice::Sequential => A::Sequential,
                Advice::DontNeed => {
                    // SAFETY: the mapping is shared and never written, so a forgotten page comes back from the file
                    // with the same bytes.
                    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes) };
                    return;
                }
            };
            let _ = map.advise_range(advice, offset, bytes);
        }
        #[cfg(not(unix))]
        let _ = (map, offset, advice);
    }
}

impl Deref for Image {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Image::Mapped(map) => map,
            Image::Memory(bytes) => bytes,
        }
    }
}

/// A range of an image. Lies inside it by construction.
#[derive(Clone)]
pub(super) struct Slice {
    image: Image,
    range: Range<usize>,
}

impl Slice {
    /// Panics when the range does not lie in the image.
    pub(super) fn new(image: &Image, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= image.len());
        Slice { image: image.clone(), range }
    }

    pub(super) fn owned(bytes: Vec<u8>) -> Slice {
        Slice { range: 0..bytes.len(), image: Image::Memory(bytes.into()) }
    }

    /// A part of this slice, counted from its start.
    pub(super) fn part(&self, range: Range<usize>) -> Slice {
        Slice::new(&self.image, self.range.start + range.start..self.range.start + range.end)
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.image[self.range.clone()]
    }
}
