//! What can be wrong with a GGUF file, one variant a cause that a caller or a test tells apart.
//!
//! Every message names the file, the place in it (byte, key or tensor) and the next step. Causes are part of the
//! message and not a `source`, so that a printed chain does not repeat them.

use std::io;
use std::path::PathBuf;

/// Why a GGUF file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("{}: cannot {action}: {cause}; check {check}", .file.display())]
    Io { file: PathBuf, action: &'static str, cause: io::Error, check: &'static str },

    #[error("{}: this is not a GGUF file: {problem}", .file.display())]
    NotGguf { file: PathBuf, problem: String },

    #[error(
        "{}: the file is big-endian, and rynd reads little-endian GGUF; get the little-endian file or convert the model \
         again without the converter's --bigendian", .file.display()
    )]
    BigEndian { file: PathBuf },

    #[error(
        "{}: byte 4: GGUF version {version} is not supported, rynd reads 2 and 3; {}", .file.display(),
        if *.version < 2 { "convert the model again with a current converter" } else { "update rynd or get a version 3 file" }
    )]
    Version { file: PathBuf, version: u32 },

    /// The header does not hold together: it ends early, or a count, length or type in it is impossible.
    #[error("{}: byte {offset}: {problem}; the file is damaged or incomplete: download or convert it again", .file.display())]
    Header { file: PathBuf, offset: u64, problem: String },

    #[error("{}: byte {offset}: metadata key '{key}': {problem}; convert the model again", .file.display())]
    BadKey { file: PathBuf, offset: u64, key: String, problem: String },

    #[error("{}: byte {offset}: tensor '{tensor}' {problem}; download or convert the file again", .file.display())]
    BadTensor { file: PathBuf, offset: u64, tensor: String, problem: String },

    #[error(
        "{}: byte {offset}: tensor '{tensor}' has the type id {id}{name}, which rynd cannot read; it reads {known}. \
         Get the model in one of these, or update rynd", .file.display()
    )]
    TensorType { file: PathBuf, offset: u64, tensor: String, id: u32, name: String, known: String },

    /// The header is whole, the tensor data is not: the usual sign of a download that stopped.
    #[error(
        "{}: the file is truncated: tensor '{tensor}' ends at byte {end}, but the file has {len} bytes; download it again",
        .file.display()
    )]
    Truncated { file: PathBuf, tensor: String, end: u64, len: u64 },

    /// The file was whole when it was opened.
    #[error(
        "{}: a part of the file was gone when it was read: it was cut short or its disk failed; nothing computed since is \
         used. Restore the file and start again", .file.display()
    )]
    Damaged { file: PathBuf },

    #[error("{}: shard {no} of {count} is missing; put it beside {} and try again", .file.display(), .beside.display())]
    MissingShard { file: PathBuf, beside: PathBuf, no: u32, count: u32 },

    #[error("{}: {problem}; the shards must belong together and keep their names: download them again", .file.display())]
    ShardMismatch { file: PathBuf, problem: String },

    #[error("{}: metadata key '{key}' is missing; convert the model again with a current converter", .file.display())]
    MissingKey { file: PathBuf, key: String },

    #[error("{}: metadata key '{key}' should be {expected}, but is {found}; convert the model again", .file.display())]
    WrongType { file: PathBuf, key: String, expected: &'static str, found: String },

    /// The writer was given something that no reader would accept, or tensors out of order.
    #[error("{}: cannot write: {problem}", .file.display())]
    Write { file: PathBuf, problem: String },
}
