//! The safetensors files of a checkpoint: which tensor lies where. Only headers are read.
//!
//! That a tensor's range suits its shape, and that no two overlap, the crate sees to; that the range lies in the file
//! is checked here, because the crate's own reader wants the whole file in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rynd_quant::Format;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::super::QuantizeError;
use super::super::source::Piece;
use super::problem;

/// The crate's own limit for a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor as a checkpoint stores it.
#[derive(Clone, Debug)]
pub struct Stored {
    pub format: Format,
    pub shape: Vec<u64>, // as in the checkpoint: rows first, row length last
    pub piece: Piece,
}

/// All tensors of a checkpoint, by name.
#[derive(Debug)]
pub struct Checkpoint {
    pub files: Vec<PathBuf>,
    pub tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Reads the headers of all shards.
    pub fn open(folder: &Path) -> Result<Checkpoint, QuantizeError> {
        let entries = std::fs::read_dir(folder)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(|cause| QuantizeError::Read { path: folder.to_owned(), cause })?;
        let mut files: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        files.sort();
        // Some repositories hold the model a second time in one file.
        if let Some(index) = super::json(&folder.join("model.safetensors.index.json"))? {
            let named: Vec<&str> = index["weight_map"]
                .as_object()
                .into_iter()
                .flat_map(|map| map.values())
                .filter_map(|v| v.as_str())
                .collect();
            if let Some(missing) = named.iter().find(|name| !folder.join(name).is_file()) {
                return Err(problem(&folder.join(missing), "this shard is missing; download it too"));
            }
            files.retain(|path| path.file_name().is_some_and(|name| named.iter().any(|n| name == *n)));
        }
        if files.is_empty() {
            return Err(problem(
                folder,
                "there are no .safetensors files in this folder; give a folder of a checkpoint",
            ));
        }
        let mut tensors = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            read(path, file, &mut tensors)?;
        }
        Ok(Checkpoint { files, tensors })
    }
}

fn read(path: &Path, file: usize, tensors: &mut BTreeMap<String, Stored>) -> Result<(), QuantizeError> {
    let failed = |cause| QuantizeError::Read { path: path.to_owned(), cause };
    let mut input = File::open(path).map_err(failed)?;
    let length = input.metadata().map_err(failed)?.len();
    let mut size = [0; 8];
    let cut_short = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof => problem(path, "the file is too short for a header; download it again"),
        _ => failed(e),
    };
    input.read_exact(&mut size).map_err(cut_short)?;
    let bytes = u64::from_le_bytes(size);
    if bytes > MAX_HEADER_BYTES.min(length.saturating_sub(8)) {
        return Err(problem(path, "its header is longer than the file or absurdly long; download it again"));
    }
    let mut header = vec![0; bytes as usize];
    input.read_exact(&mut header).map_err(cut_short)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| problem(path, format!("its header is not valid ({e}); download it again")))?;
    for (name, info) in metadata.tensors() {
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            other => {
                let text =
                    format!("tensor '{name}' is {other:?}; rynd converts F32, F16 and BF16: get the BF16 checkpoint");
                return Err(problem(path, text));
            }
        };
        let [start, end] = [info.data_offsets.0 as u64, info.data_offsets.1 as u64];
        if end > length - 8 - bytes {
            return Err(problem(path, format!("tensor '{name}' lies beyond the end of the file; download it again")));
        }
        let shape = info.shape.iter().map(|&n| n as u64).collect();
        let piece = Piece { file, offset: 8 + bytes + start, bytes: end - start };
        if tensors.insert(name.clone(), Stored { format, shape, piece }).is_some() {
            return Err(problem(
                path,
                format!("tensor '{name}' is in another shard too; the shards do not belong together"),
            ));
        }
    }
    Ok(())
}
