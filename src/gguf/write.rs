//! Writing a GGUF file of version 3: keys and the tensor table first, then the tensors' blocks as a stream.
//!
//! The file grows under a temporary name in its own folder and gets its real name in `finish`; dropped before that, it
//! is removed, so a stopped conversion never leaves a file that looks whole. Only the header is held in memory. What it
//! refuses: anything that the reader would not accept, and tensors out of the declared order.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gguf_rs::{FILE_MAGIC_GGUF_LE, GGUF_DEFAULT_ALIGNMENT, GGUF_MAX_DIMS, GGUF_VERSION_V3};
use rynd_quant::Format;

use super::{GgufError, Value, table};
use crate::files::Unfinished;

const ZEROS: [u8; 4096] = [0; 4096];

/// A GGUF file in the making.
///
/// First `set` and `declare`, then `write_tensor` for each tensor (or `io::Write`, in pieces), then `finish`.
pub struct Writer {
    path: PathBuf,
    out: Unfinished,
    keys: Vec<(String, Value)>,
    tensors: Vec<Planned>,
    names: HashSet<String>,
    alignment: u64,
    started: bool,
    current: usize, // tensor that the next byte belongs to
    left: u64,      // of its bytes
}

struct Planned {
    name: String,
    format: Format,
    shape: Vec<u64>,
    bytes: u64,
}

impl Writer {
    /// Starts a file that will be at `path`. An existing file stays in place until `finish`.
    pub fn create(path: &Path) -> Result<Writer, GgufError> {
        let out = Unfinished::create(path).map_err(|cause| GgufError::Io {
            file: path.to_owned(),
            action: "create the file",
            cause,
            check: "that the folder exists and is writable",
        })?;
        Ok(Writer::new(out))
    }

    /// Writes into a file that was begun before.
    pub fn new(out: Unfinished) -> Writer {
        Writer {
            path: out.path().to_owned(),
            out,
            keys: vec![],
            tensors: vec![],
            names: HashSet::new(),
            alignment: GGUF_DEFAULT_ALIGNMENT,
            started: false,
            current: 0,
            left: 0,
        }
    }

    /// Sets a key. A key that is there already keeps its place and gets the new value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<(), GgufError> {
        let value = value.into();
        if self.started {
            return Err(self.problem(format!("metadata key '{key}' comes after the first tensor data")));
        }
        if key == "general.alignment" {
            match value.as_u64() {
                Some(n) if n.is_power_of_two() && (8..=1 << 30).contains(&n) => self.alignment = n,
                _ => return Err(self.problem(format!("the alignment {value} is no power of two from 8 to 2^30"))),
            }
        }
        match self.keys.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.to_owned(), value)),
        }
        Ok(())
    }

    /// Adds a tensor to the table; its shape is innermost dimension first. Data follows in the order of declaration.
    pub fn declare(&mut self, name: &str, format: Format, shape: &[u64]) -> Result<(), GgufError> {
        if self.started {
            return Err(self.problem(format!("tensor '{name}' is declared after the first tensor data")));
        }
        if shape.is_empty() || shape.len() > GGUF_MAX_DIMS as usize {
            return Err(
                self.problem(format!("tensor '{name}' has {} dimensions, not 1 to {GGUF_MAX_DIMS}", shape.len()))
            );
        }
        let bytes =
            table::bytes(format, shape).map_err(|problem| self.problem(format!("tensor '{name}' {problem}")))?;
        if !self.names.insert(name.to_owned()) {
            return Err(self.problem(format!("tensor '{name}' is declared twice")));
        }
        self.tensors.push(Planned { name: name.to_owned(), format, shape: shape.to_vec(), bytes: bytes as u64 });
        Ok(())
    }

    /// Writes all blocks of the next tensor, which must be the one of this name.
    pub fn write_tensor(&mut self, name: &str, blocks: &[u8]) -> Result<(), GgufError> {
        self.start().map_err(|cause| self.io(cause))?;
        match self.tensors.get(self.current) {
            Some(next) if next.name == name && next.bytes == self.left && next.bytes == blocks.len() as u64 => {
                self.write_all(blocks).map_err(|cause| self.io(cause))
            }
            Some(next) => Err(self.problem(format!(
                "tensor '{name}' of {} bytes was given where {} of {} bytes of '{}' are due",
                blocks.len(),
                self.left,
                next.bytes,
                next.name
            ))),
            None => Err(self.problem(format!("tensor '{name}' was given, but all declared tensors are written"))),
        }
    }

    /// Completes the file and gives it its name.
    pub fn finish(self) -> Result<(), GgufError> {
        let path = self.path.clone();
        self.seal()?.publish().map_err(|cause| io_error(&path, cause))
    }

    /// Completes the file, which still wants its name: several files of one model get theirs together.
    pub fn seal(mut self) -> Result<Unfinished, GgufError> {
        self.start().map_err(|cause| self.io(cause))?;
        if let Some(next) = self.tensors.get(self.current) {
            return Err(self.problem(format!("tensor '{}' lacks {} of its {} bytes", next.name, self.left, next.bytes)));
        }
        self.out.seal().map_err(|cause| self.io(cause))?;
        Ok(self.out)
    }

    /// Writes the header, once.
    fn start(&mut self) -> io::Result<()> {
        if self.started {
            return Ok(());
        }
        self.started = true;
        let mut header = Vec::new();
        header.extend(FILE_MAGIC_GGUF_LE.to_le_bytes());
        header.extend(GGUF_VERSION_V3.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            header.extend((key.len() as u64).to_le_bytes());
            header.extend(key.as_bytes());
            header.extend(value.kind().id().to_le_bytes());
            value.encode(&mut header);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            header.extend((tensor.name.len() as u64).to_le_bytes());
            header.extend(tensor.name.as_bytes());
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for n in &tensor.shape {
                header.extend(n.to_le_bytes());
            }
            header.extend(tensor.format.ggml_id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(self.alignment);
        }
        header.resize(header.len().next_multiple_of(self.alignment as usize), 0);
        self.left = self.tensors.first().map_or(0, |tensor| tensor.bytes);
        self.out.write_all(&header)
    }

    /// Pads behind a tensor that is complete and moves to the next.
    fn advance(&mut self) -> io::Result<()> {
        let bytes = self.tensors[self.current].bytes;
        let mut padding = (bytes.next_multiple_of(self.alignment) - bytes) as usize;
        while padding > 0 {
            let n = padding.min(ZEROS.len());
            self.out.write_all(&ZEROS[..n])?;
            padding -= n;
        }
        self.current += 1;
        self.left = self.tensors.get(self.current).map_or(0, |tensor| tensor.bytes);
        Ok(())
    }

    fn io(&self, cause: io::Error) -> GgufError {
        io_error(&self.path, cause)
    }

    fn problem(&self, problem: String) -> GgufError {
        GgufError::Write { file: self.path.clone(), problem }
    }
}

/// Tensor data, in pieces of any size; padding between tensors is added on the way.
impl Write for Writer {
    fn write(&mut self, blocks: &[u8]) -> io::Result<usize> {
        self.start()?;
        if blocks.is_empty() {
            return Ok(0);
        }
        if self.current == self.tensors.len() {
            return Err(io::Error::other("more tensor data than the declared tensors have"));
        }
        let n = blocks.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.out.write_all(&blocks[..n])?;
        self.left -= n as u64;
        if self.left == 0 {
            self.advance()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn io_error(path: &Path, cause: io::Error) -> GgufError {
    GgufError::Io { file: path.to_owned(), action: "write the file", cause, check: "the free space of the disk" }
}
