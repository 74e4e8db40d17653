//! The headers of a model without its data: what a plan of memory and speed needs, and no more.
//!
//! A model that does not fit the disk can still be planned for: the header of a file is a few megabytes, and can be read
//! over the network or from the first part of a split model. Parts that are not there are counted, so that a reader can
//! say what it had to guess. The tensors' bytes can not be reached from here: there may be none.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image::Image;
use super::{Gguf, GgufError, Inner, TensorInfo, Value, header, shards, table};

/// The start of one file: at least its whole header.
#[derive(Clone, Debug)]
pub struct HeaderPart {
    /// Stands for the path in errors.
    pub name: PathBuf,
    pub bytes: Arc<[u8]>,
    /// Of the whole file.
    pub file_bytes: u64,
}

impl HeaderPart {
    /// Whether the header ends within the bytes that are here. `Ok(false)` asks for more of the file; what is wrong
    /// whatever follows is an error.
    pub fn is_whole(&self) -> Result<bool, GgufError> {
        match header::read(&self.name, &Image::Memory(Arc::clone(&self.bytes))) {
            Ok(_) => Ok(true),
            Err(GgufError::Header { .. }) if (self.bytes.len() as u64) < self.file_bytes => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Metadata and tensor table of a model, some of its parts maybe missing.
#[derive(Clone, Debug)]
pub struct Outline {
    gguf: Gguf, // its images may hold headers only, so it is never handed out
    parts: usize,
    missing: usize,
    file_bytes: u64,
}

impl Outline {
    /// The outline of an open model.
    pub fn of(gguf: &Gguf) -> Outline {
        Outline { gguf: gguf.clone(), parts: gguf.shards().len(), missing: 0, file_bytes: gguf.file_bytes() }
    }

    /// Reads the headers of the file at `path`, or of those parts of a split model that lie beside it. The first part
    /// must be there: it has the metadata. A file whose data are incomplete is as good as a whole one.
    pub fn open(path: &Path) -> Result<Outline, GgufError> {
        let image = Image::map(path)?;
        let count = shards::split(path, &header::read(path, &image)?, "split.count")?.unwrap_or(1).max(1);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parts = match shards::parse(name) {
            Some((stem, _, named)) if count > 1 && named == count => {
                let mut parts = Vec::new();
                for no in 1..=count {
                    let part = path.with_file_name(shards::shard_name(stem, no, count));
                    match Image::map(&part) {
                        Ok(image) => parts.push((part, image.len() as u64, image)),
                        Err(GgufError::Io { cause, .. })
                            if cause.kind() == std::io::ErrorKind::NotFound && !parts.is_empty() => {}
                        Err(GgufError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
                            return Err(GgufError::MissingShard { file: part, beside: path.to_owned(), no, count });
                        }
                        Err(error) => return Err(error),
                    }
                }
                parts
            }
            _ => vec![(path.to_owned(), image.len() as u64, image)],
        };
        Outline::assemble(parts)
    }

    /// From the starts of the files, the first part's first.
    pub fn from_parts(parts: Vec<HeaderPart>) -> Result<Outline, GgufError> {
        Outline::assemble(
            parts.into_iter().map(|part| (part.name, part.file_bytes, Image::Memory(part.bytes))).collect(),
        )
    }

    fn assemble(files: Vec<(PathBuf, u64, Image)>) -> Result<Outline, GgufError> {
        let mut tensors = Vec::new();
        let mut first = None;
        let (mut paths, mut images, mut file_bytes) = (vec![], vec![], 0);
        for (shard, (path, bytes, image)) in files.into_iter().enumerate() {
            let header = header::read(&path, &image)?;
            // The data need not be there, so nothing is held against the file's length.
            tensors.extend(table::check(&path, shard, &header, usize::MAX)?);
            first.get_or_insert(header);
            paths.push(path);
            images.push(image);
            file_bytes += bytes;
        }
        let Some(header) = first else {
            return Err(GgufError::NotGguf { file: PathBuf::new(), problem: "no file was given".to_owned() });
        };
        let parts = shards::split(&paths[0], &header, "split.count")?.unwrap_or(1).max(1) as usize;
        let names: HashMap<_, _> = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let gguf = Gguf(Arc::new(Inner {
            shards: paths,
            images,
            version: header.version,
            metadata: header.metadata,
            keys: header.keys,
            tensors,
            names,
        }));
        Ok(Outline { missing: parts.saturating_sub(gguf.shards().len()), gguf, parts, file_bytes })
    }

    /// The path or name of the first file.
    pub fn path(&self) -> &Path {
        self.gguf.path()
    }

    /// Files of the model.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Files whose headers could not be read.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Bytes of the files that are known.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The tensors of the files that are known.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.gguf.tensors()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.gguf.get(key)
    }

    /// A key that must be there, as a string.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.gguf.str(key)
    }

    /// A key that may be missing, as a string.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.gguf.opt_str(key)
    }

    /// A key that must be there, as a number.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.gguf.u32(key)
    }

    /// A key that may be missing, as a number.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.gguf.opt_u32(key)
    }
}
