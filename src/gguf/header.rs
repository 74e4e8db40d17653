//! The header of one shard: magic, version, counts, metadata, and the tensor table as it stands in the file.
//!
//! Structure only: whether the tensors fit the data is for `table`. Reserves no memory by counts found in the file; the
//! limits below bound what a hostile file can make it keep, well above any real model.

use std::collections::HashMap;
use std::path::Path;

use gguf_rs::{
    FILE_MAGIC_GGJT, FILE_MAGIC_GGLA, FILE_MAGIC_GGMF, FILE_MAGIC_GGML, FILE_MAGIC_GGUF_BE, FILE_MAGIC_GGUF_LE,
    GGUF_DEFAULT_ALIGNMENT, GGUF_MAX_DIMS, GGUF_VERSION_V2, GGUF_VERSION_V3,
};

use super::GgufError;
use super::image::{Image, Slice};
use super::value::{Value, ValueType};
use super::walk::{self, head};

const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 20;
/// The format's limit for keys; tensor names are far shorter.
const MAX_NAME_BYTES: usize = (1 << 16) - 1;
/// The fewest bytes of a key (length, type, value) and of a tensor (length, dimensions, one of them, type, offset).
const LEAST_KEY_BYTES: u64 = 13;
const LEAST_TENSOR_BYTES: u64 = 32;

/// What the header of one shard says.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) keys: HashMap<String, usize>, // into metadata
    pub(super) tensors: Vec<Entry>,
    pub(super) data: usize, // first byte of tensor data
    pub(super) alignment: usize,
}

/// A row of the tensor table.
pub(super) struct Entry {
    pub(super) at: usize, // where the row starts
    pub(super) name: String,
    pub(super) shape: Vec<u64>, // ne0 first
    pub(super) type_id: u32,
    pub(super) offset: u64, // from the start of tensor data
}

impl Header {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&i| &self.metadata[i].1)
    }
}

pub(super) fn read(file: &Path, image: &Image) -> Result<Header, GgufError> {
    let version = version(file, image)?;
    let mut cursor = Cursor { file, image, at: 8 };
    let tensor_count = cursor.count("tensors", LEAST_TENSOR_BYTES, MAX_TENSORS)?;
    let key_count = cursor.count("metadata keys", LEAST_KEY_BYTES, MAX_KEYS)?;

    let mut metadata = Vec::new();
    let mut keys = HashMap::new();
    let mut alignment = GGUF_DEFAULT_ALIGNMENT as usize;
    for i in 0..key_count {
        let at = cursor.at;
        let key = cursor.name(&format!("metadata key {i} of {key_count}"))?;
        let value = cursor.value(&key)?;
        if key == "general.alignment" {
            alignment = self::alignment(file, at, &value)?;
        }
        if keys.insert(key.clone(), metadata.len()).is_some() {
            let problem = "stands in the file twice".to_owned();
            return Err(GgufError::BadKey { file: file.to_owned(), offset: at as u64, key, problem });
        }
        metadata.push((key, value));
    }
    let mut tensors = Vec::new();
    for i in 0..tensor_count {
        tensors.push(cursor.tensor(i, tensor_count)?);
    }
    // A file without tensors may end without padding.
    let data = cursor.at.next_multiple_of(alignment).min(image.len().max(cursor.at));
    Ok(Header { version, metadata, keys, tensors, data, alignment })
}

/// Checks magic and version.
fn version(file: &Path, image: &Image) -> Result<u32, GgufError> {
    let not_gguf = |problem: &str| Err(GgufError::NotGguf { file: file.to_owned(), problem: problem.to_owned() });
    let Some(magic) = head(image).map(i32::from_le_bytes) else {
        return not_gguf("it is shorter than 4 bytes; download it again");
    };
    match magic {
        FILE_MAGIC_GGUF_LE => {}
        FILE_MAGIC_GGUF_BE => return Err(GgufError::BigEndian { file: file.to_owned() }),
        FILE_MAGIC_GGML | FILE_MAGIC_GGMF | FILE_MAGIC_GGJT | FILE_MAGIC_GGLA => {
            return not_gguf("it is in a GGML format from before GGUF; convert the original model again");
        }
        _ if image.starts_with(b"version https://git-lfs") => {
            return not_gguf("it is a Git LFS pointer; fetch the file itself with 'git lfs pull'");
        }
        _ if image.starts_with(b"<") => return not_gguf("it looks like a web page; check the download address"),
        _ if image.starts_with(b"PK") => return not_gguf("it is a ZIP archive; unpack or convert it first"),
        _ => return not_gguf("it does not start with 'GGUF'; give the path of a .gguf file"),
    }
    let Some(version) = image.get(4..).and_then(head).map(u32::from_le_bytes) else {
        return not_gguf("it ends before its version; download it again");
    };
    const READ: [u32; 2] = [GGUF_VERSION_V2 as u32, GGUF_VERSION_V3 as u32];
    match version {
        v if READ.contains(&v) => Ok(v),
        // The magic is the same in both byte orders.
        v if (1..=0xffff).contains(&v.swap_bytes()) => Err(GgufError::BigEndian { file: file.to_owned() }),
        version => Err(GgufError::Version { file: file.to_owned(), version }),
    }
}

fn alignment(file: &Path, at: usize, value: &Value) -> Result<usize, GgufError> {
    match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
        // 1 GiB is far above use and keeps the sums below from overflowing.
        Some(n) if n.is_power_of_two() && (8..=1 << 30).contains(&n) => Ok(n),
        _ => Err(GgufError::BadKey {
            file: file.to_owned(),
            offset: at as u64,
            key: "general.alignment".to_owned(),
            problem: format!("is {value}, but must be a power of two from 8 to 2^30"),
        }),
    }
}

struct Cursor<'a> {
    file: &'a Path,
    image: &'a Image,
    at: usize,
}

impl Cursor<'_> {
    fn fault(&self, at: usize, problem: String) -> GgufError {
        GgufError::Header { file: self.file.to_owned(), offset: at as u64, problem }
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let left = &self.image[self.at..];
        let Some(bytes) = head(left) else {
            let problem = format!("{what} needs {N} bytes, but only {} follow in the file", left.len());
            return Err(self.fault(self.at, problem));
        };
        self.at += N;
        Ok(bytes)
    }

    /// How many of something follow, each of at least `least` bytes.
    fn count(&mut self, what: &str, least: u64, limit: u64) -> Result<u64, GgufError> {
        let at = self.at;
        let count = u64::from_le_bytes(self.take(&format!("the count of {what}"))?);
        let len = self.image.len();
        if count > len as u64 / least {
            let problem = format!("the header claims {count} {what}, which cannot fit in a file of {len} bytes");
            return Err(self.fault(at, problem));
        }
        if count > limit {
            return Err(self.fault(at, format!("the header claims {count} {what}; rynd accepts at most {limit}")));
        }
        Ok(count)
    }

    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let at = self.at;
        let end = walk::string(self.image, at)
            .map_err(|fault| self.fault(fault.at, format!("the name of {what}: {}", fault.problem)))?;
        let bytes = &self.image[at + 8..end];
        if bytes.len() > MAX_NAME_BYTES {
            let problem = format!("the name of {what} has {} bytes; the format allows {MAX_NAME_BYTES}", bytes.len());
            return Err(self.fault(at, problem));
        }
        let Ok(name) = std::str::from_utf8(bytes) else {
            return Err(self.fault(at, format!("the name of {what} is not UTF-8")));
        };
        // Names are printed, and no terminal should obey a file.
        if name.contains(char::is_control) {
            return Err(self.fault(at, format!("the name of {what} has control characters: {name:?}")));
        }
        self.at = end;
        Ok(name.to_owned())
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let at = self.at;
        let id = u32::from_le_bytes(self.take(&format!("the type of metadata key '{key}'"))?);
        let kind = ValueType::from_id(id)
            .ok_or_else(|| self.fault(at, format!("metadata key '{key}' has the unknown value type {id}")))?;
        let rest = Slice::new(self.image, self.at..self.image.len());
        let (value, bytes) = Value::decode(kind, &rest)
            .map_err(|fault| self.fault(self.at + fault.at, format!("metadata key '{key}': {}", fault.problem)))?;
        self.at += bytes;
        Ok(value)
    }

    fn tensor(&mut self, i: u64, count: u64) -> Result<Entry, GgufError> {
        let at = self.at;
        let name = self.name(&format!("tensor {i} of {count}"))?;
        let dims = u32::from_le_bytes(self.take("a tensor's dimension count")?);
        if dims == 0 || dims > GGUF_MAX_DIMS {
            let problem = format!("has {dims} dimensions, but must have 1 to {GGUF_MAX_DIMS}");
            return Err(GgufError::BadTensor { file: self.file.to_owned(), offset: at as u64, tensor: name, problem });
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            shape.push(u64::from_le_bytes(self.take("a tensor's dimension")?));
        }
        let type_id = u32::from_le_bytes(self.take("a tensor's type")?);
        let offset = u64::from_le_bytes(self.take("a tensor's offset")?);
        Ok(Entry { at, name, shape, type_id, offset })
    }
}
