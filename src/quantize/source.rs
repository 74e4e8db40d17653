//! The input as a list of tensors and where their bytes lie: a GGUF with its shards, or a Hugging Face checkpoint.
//!
//! Both come down to the same thing, so that everything after this reads one kind of input. Bytes are read from the
//! files and not from a mapping: pages of a mapping count as the process's memory, and a file of a terabyte has many.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rynd_quant::Format;

use super::QuantizeError;
use super::hf;
use super::recipe::ModelFacts;
use crate::gguf::{Gguf, Value};

/// A model to quantise.
#[derive(Debug)]
pub struct Source {
    /// The path that was given.
    pub path: PathBuf,
    pub files: Vec<PathBuf>,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<SourceTensor>,
}

/// A tensor of the input.
#[derive(Clone, Debug)]
pub struct SourceTensor {
    pub name: String,
    pub shape: Vec<u64>, // row length first, as in GGUF
    pub format: Format,
    /// The format in the output when the recipe leaves the tensor alone.
    pub stays: Format,
    pub data: Data,
    pub order: RowOrder,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug)]
pub enum Data {
    /// In the files: one after the other the pieces are the tensor.
    Files(Vec<Piece>),
    /// Here: a small tensor that the files only describe.
    Here(Vec<u8>),
}

/// A range of one of the files.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub file: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// How the rows of the input become the rows of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    AsIs,
    /// Each head's rows (2, rows / 2) become (rows / 2, 2): rotary pairs lie side by side in GGUF's llama.
    Interleave {
        head_rows: u64,
    },
}

impl SourceTensor {
    /// Weights of a row.
    pub fn row(&self) -> u64 {
        self.shape[0]
    }

    /// Rows of all matrices together.
    pub fn rows(&self) -> u64 {
        self.shape[1..].iter().product()
    }

    /// Rows of one matrix: importance is known by matrix.
    pub fn matrix_rows(&self) -> u64 {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// Matrices in the stack.
    pub fn matrices(&self) -> u64 {
        self.shape.iter().skip(2).product()
    }

    /// Bytes in the input.
    pub fn bytes(&self) -> u64 {
        match &self.data {
            Data::Files(pieces) => pieces.iter().map(|piece| piece.bytes).sum(),
            Data::Here(bytes) => bytes.len() as u64,
        }
    }

    /// Bytes of all rows in this format; `None` when a row does not fit its blocks.
    pub fn bytes_as(&self, format: Format) -> Option<u64> {
        self.rows().checked_mul(format.row_bytes(usize::try_from(self.row()).ok()?)? as u64)
    }

    /// Rows that must be read together, so that `order` can be applied.
    pub fn rows_together(&self) -> u64 {
        match self.order {
            RowOrder::Interleave { head_rows } if self.shape.len() > 1 => head_rows,
            RowOrder::Interleave { .. } | RowOrder::AsIs => 1,
        }
    }
}

impl Source {
    /// Opens a GGUF (any shard of it) or a checkpoint folder.
    pub fn open(path: &Path) -> Result<Source, QuantizeError> {
        if path.is_dir() { hf::open(path) } else { Source::from_gguf(path) }
    }

    fn from_gguf(path: &Path) -> Result<Source, QuantizeError> {
        let gguf = Gguf::open(path)?;
        let tensor = |t: &crate::gguf::TensorInfo| SourceTensor {
            name: t.name.clone(),
            shape: t.shape.clone(),
            format: t.format,
            stays: t.format,
            data: Data::Files(vec![Piece { file: t.shard, offset: t.offset as u64, bytes: t.bytes as u64 }]),
            order: RowOrder::AsIs,
        };
        Ok(Source {
            path: path.to_owned(),
            files: gguf.shards().to_vec(),
            metadata: gguf.metadata().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
            tensors: gguf.tensors().iter().map(tensor).collect(),
        })
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// What recipes ask of the model. Keys that are not there count as 0: a recipe then has less to go by.
    pub fn facts(&self) -> ModelFacts {
        let architecture = self.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| {
            let value = self.get(&format!("{architecture}.{key}"))?;
            // Some architectures give a number a layer; the first layer's counts.
            let value = value.as_array().map_or(Some(value.clone()), |array| array.iter().next())?;
            usize::try_from(value.as_u64()?).ok()
        };
        let heads = number("attention.head_count").unwrap_or(0);
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        let names = self.tensors.iter().map(|tensor| tensor.name.as_str());
        let layers = number("block_count").unwrap_or(0);
        ModelFacts::new(architecture, layers, number("expert_count").unwrap_or(0), [heads, kv_heads], names)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(SourceTensor::bytes).sum()
    }
}

/// Reads tensors from the files of a source, which stay open.
pub struct Reader<'a> {
    source: &'a Source,
    files: Vec<Option<File>>,
}

impl<'a> Reader<'a> {
    /// A reader that has opened nothing yet.
    pub fn new(source: &'a Source) -> Reader<'a> {
        Reader { source, files: source.files.iter().map(|_| None).collect() }
    }

    /// Reads rows of a tensor, in the output's order, into `out`. `rows` are whole groups of `rows_together`.
    pub fn read(&mut self, tensor: &SourceTensor, rows: Range<u64>, out: &mut Vec<u8>) -> Result<(), QuantizeError> {
        let row_bytes = tensor.bytes() / tensor.rows();
        let mut bytes = rows.start * row_bytes..rows.end * row_bytes;
        out.resize((bytes.end - bytes.start) as usize, 0);
        let pieces = match &tensor.data {
            Data::Files(pieces) => pieces,
            Data::Here(all) => {
                out.copy_from_slice(&all[bytes.start as usize..bytes.end as usize]);
                return Ok(());
            }
        };
        let (mut filled, mut start) = (0, 0);
        for piece in pieces {
            if bytes.start < start + piece.bytes && bytes.start < bytes.end {
                let skip = bytes.start - start;
                let n = (bytes.end - bytes.start).min(piece.bytes - skip);
                let to = &mut out[filled..filled + n as usize];
                self.read_at(piece.file, piece.offset + skip, to)?;
                filled += n as usize;
                bytes.start += n;
            }
            start += piece.bytes;
        }
        if let RowOrder::Interleave { head_rows } = tensor.order {
            // A bias is one row, and its single values move as a matrix's rows do.
            let unit = if tensor.shape.len() == 1 { row_bytes / tensor.row() } else { row_bytes };
            interleave(out, unit as usize, head_rows as usize);
        }
        Ok(())
    }

    fn read_at(&mut self, file: usize, offset: u64, to: &mut [u8]) -> Result<(), QuantizeError> {
        let path = &self.source.files[file];
        let failed = |cause| QuantizeError::Read { path: path.clone(), cause };
        let file = match &mut self.files[file] {
            Some(file) => file,
            closed => closed.insert(File::open(path).map_err(failed)?),
        };
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(to)).map_err(failed)
    }
}

/// Row `j * half + i` of each head goes to `2 * i + j`.
fn interleave(bytes: &mut [u8], row_bytes: usize, head_rows: usize) {
    let half = head_rows / 2;
    let mut from = vec![0; head_rows * row_bytes];
    for head in bytes.chunks_exact_mut(head_rows * row_bytes) {
        from.copy_from_slice(head);
        for (to, row) in head.chunks_exact_mut(row_bytes).enumerate() {
            let at = (to % 2 * half + to / 2) * row_bytes;
            row.copy_from_slice(&from[at..at + row_bytes]);
        }
    }
}
