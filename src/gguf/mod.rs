//! The GGUF file: metadata, tensor table, splits and the mapping; and writing one.
//!
//! A file is mapped and its header walked once, each count, length and offset checked against the bytes that are really
//! there. Strings, arrays and tensors then borrow from the mapping: opening costs the header's pages and nothing else.
//!
//! The crate gguf-rs supplies the facts of the format (magics, versions, limits, value types, names of tensor types) and
//! is the second opinion in the tests. Its decoder stays out of this path: it allocates what a file claims before it
//! looks, panics on tensor type 40, knows neither newer types nor nested arrays, gets the size of BF16 and of the
//! 32-blocks above id 9 wrong, turns numbers into text, and would take 20 to 50 ms for a vocabulary.
//!
//! Hazard: a file that another process cuts short while it is mapped raises SIGBUS on access; nothing here prevents it.
//! Refused: big-endian files, version 1, tensor types that rynd-quant has no row for.

mod array;
mod error;
mod header;
mod image;
mod keys;
mod outline;
mod shards;
mod show;
mod table;
mod value;
mod walk;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use array::{Array, ByteStrings, Items, Text};
pub use error::GgufError;
pub use image::Advice;
pub use outline::{HeaderPart, Outline};
pub use shards::shard_path;
pub use table::TensorInfo;
pub use value::{Value, ValueType};
pub use write::Writer;

use image::Image;

/// An open model file, all its shards mapped. Clones share the mapping.
#[derive(Clone)]
pub struct Gguf(Arc<Inner>);

struct Inner {
    shards: Vec<PathBuf>,
    images: Vec<Image>, // one a shard
    version: u32,
    metadata: Vec<(String, Value)>, // of the first shard, in file order
    keys: HashMap<String, usize>,   // into metadata
    tensors: Vec<TensorInfo>,       // shard by shard, in file order
    names: HashMap<String, usize>,  // into tensors
}

impl Gguf {
    /// Opens a model by the path of its file or of any shard (`NAME-00002-of-00005.gguf`). Only header pages are read.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        shards::open(path)
    }

    /// Reads an unsplit model from memory; `name` stands for the path in errors.
    pub fn from_bytes(name: &Path, bytes: Arc<[u8]>) -> Result<Gguf, GgufError> {
        shards::assemble(vec![(name.to_owned(), Image::Memory(bytes))], None)
    }

    /// The path of the file, or of the first shard.
    pub fn path(&self) -> &Path {
        &self.0.shards[0]
    }

    /// The paths of all shards, in order; one for an unsplit file.
    pub fn shards(&self) -> &[PathBuf] {
        &self.0.shards
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.0.version
    }

    /// The bytes of all shards together.
    pub fn file_bytes(&self) -> u64 {
        self.0.images.iter().map(|image| image.len() as u64).sum()
    }

    /// Keys and values of the first shard in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key. The typed getters (`u32`, `opt_str`, ...) check presence and type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.keys.get(key).map(|&i| &self.0.metadata[i].1)
    }

    /// The tensor table, shard by shard in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.0.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensor_index(name).map(|i| &self.0.tensors[i])
    }

    /// The place of the tensor of this name in `tensors()`.
    pub fn tensor_index(&self, name: &str) -> Option<usize> {
        self.0.names.get(name).copied()
    }

    /// The tensor's blocks, borrowed from the mapping. Panics when `t` is a tensor of another, longer file.
    pub fn bytes(&self, t: &TensorInfo) -> &[u8] {
        &self.0.images[t.shard][t.offset..t.offset + t.bytes]
    }

    /// Tells the kernel how the tensor's pages will be used. A hint: it may do nothing, and never fails.
    pub fn advise(&self, t: &TensorInfo, advice: Advice) {
        self.advise_range(t, 0..t.bytes, advice);
    }

    /// `advise` for a byte range inside the tensor (an expert, a tile of rows). Widened to whole pages.
    pub fn advise_range(&self, t: &TensorInfo, range: Range<usize>, advice: Advice) {
        let range = range.start.min(t.bytes)..range.end.min(t.bytes);
        self.0.images[t.shard].advise(t.offset + range.start, range.len(), advice);
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({}, {} tensors)", self.path().display(), self.tensors().len())
    }
}
