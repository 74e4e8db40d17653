//! What can stop a quantisation, one variant a cause, each with the next step.

use std::io;
use std::path::PathBuf;

use rynd_quant::{EncodeError, Format};

use super::file_type::FileType;
use crate::gguf::GgufError;

/// Why a model could not be quantised or converted.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    #[error(transparent)]
    Gguf(#[from] GgufError),

    #[error("unknown type '{name}'; rynd quantizes to {}", FileType::names())]
    UnknownType { name: String },

    #[error("unknown format '{name}'; rynd writes {}", writable())]
    UnknownFormat { name: String },

    #[error("{}: the output would replace the input; choose another name", .path.display())]
    SameFile { path: PathBuf },

    #[error("cannot read {}: {cause}", .path.display())]
    Read { path: PathBuf, cause: io::Error },

    #[error(
        "cannot write {}: {cause}; the unfinished output is removed. It needs {bytes} bytes there", .path.display()
    )]
    Write { path: PathBuf, cause: io::Error, bytes: u64 },

    #[error(
        "{}: the output needs {needed} bytes, and the disk has room for {free}; make room or choose another place",
        .path.display()
    )]
    NoRoom { path: PathBuf, needed: u64, free: u64 },

    #[error("tensor '{tensor}', row {row}, column {column}: {problem}; the input is damaged: get or convert it again")]
    BadWeight { tensor: String, row: u64, column: u64, problem: String },

    #[error("tensor '{tensor}': {cause}")]
    Encode { tensor: String, cause: EncodeError },

    #[error(
        "tensor '{tensor}' is already {format}; quantising twice costs quality: start from a BF16, F16 or F32 file, or \
         give --allow-requantize"
    )]
    Requantize { tensor: String, format: Format },

    #[error(
        "tensor '{tensor}' would be {format}, which is worthless without an importance matrix; make one with \
         'rynd imatrix MODEL -f TEXT -o FILE' and give it with --imatrix FILE"
    )]
    NeedsImportance { tensor: String, format: Format },

    #[error(
        "tensor '{tensor}' cannot be {format}: rynd reads that format but does not write it; rynd writes {}",
        writable()
    )]
    NoEncoder { tensor: String, format: Format },

    #[error(
        "tensor '{tensor}' has rows of {row} weights, which {format} cannot hold; choose a format with smaller blocks"
    )]
    RowLength { tensor: String, row: u64, format: Format },

    #[error("{}: {problem}", .path.display())]
    Imatrix { path: PathBuf, problem: String },

    #[error("{}: {problem}", .path.display())]
    Checkpoint { path: PathBuf, problem: String },

    #[error("cannot start the worker threads: {problem}; try fewer with -t")]
    Threads { problem: String },

    #[error("interrupted; nothing was written")]
    Interrupted,
}

/// The names of all formats with an encoder.
fn writable() -> String {
    Format::all().filter(|format| format.has_encoder()).map(Format::name).collect::<Vec<_>>().join(", ")
}
