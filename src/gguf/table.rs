//! The tensor table: where each tensor's blocks lie and in which format, checked against the file.
//!
//! Sizes come from rynd-quant's table of formats. After these checks a tensor's range is inside its shard, aligned, and
//! shared with no other tensor, so that readers may slice without asking again.

use std::path::Path;

use gguf_rs::GGMLType;
use rynd_quant::Format;

use super::GgufError;
use super::header::{Entry, Header};

/// A tensor of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TensorInfo {
    pub name: String,
    pub format: Format,
    pub shape: Vec<u64>, // 1 to 4 dimensions, none 0, innermost first: (ne0, ne1, ..)
    pub bytes: usize,
    pub shard: usize,  // into Gguf::shards()
    pub offset: usize, // of the first block, from the start of the shard
}

impl TensorInfo {
    /// How many weights.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The tensors of one shard of `len` bytes.
pub(super) fn check(file: &Path, shard: usize, header: &Header, len: usize) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for entry in &header.tensors {
        tensors.push(tensor(file, shard, header, entry, len)?);
    }
    let mut by_offset: Vec<usize> = (0..tensors.len()).collect();
    by_offset.sort_unstable_by_key(|&i| tensors[i].offset);
    for pair in by_offset.windows(2) {
        let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
        if a.offset + a.bytes > b.offset {
            return Err(bad(
                file,
                &header.tensors[pair[1]],
                format!(
                    "starts at byte {}, inside tensor '{}', which ends at {}",
                    b.offset,
                    a.name,
                    a.offset + a.bytes
                ),
            ));
        }
    }
    Ok(tensors)
}

fn tensor(file: &Path, shard: usize, header: &Header, entry: &Entry, len: usize) -> Result<TensorInfo, GgufError> {
    let Some(format) = Format::from_ggml_id(entry.type_id) else { return Err(unknown_type(file, entry)) };
    let bytes = bytes(format, &entry.shape).map_err(|problem| bad(file, entry, problem))?;
    if !entry.offset.is_multiple_of(header.alignment as u64) {
        let problem =
            format!("has the offset {}, which is no multiple of the alignment {}", entry.offset, header.alignment);
        return Err(bad(file, entry, problem));
    }
    let range = usize::try_from(entry.offset)
        .ok()
        .and_then(|offset| header.data.checked_add(offset))
        .and_then(|offset| Some((offset, offset.checked_add(bytes)?)));
    let Some((offset, end)) = range else {
        return Err(bad(file, entry, format!("has the impossible offset {}", entry.offset)));
    };
    if end > len {
        return Err(GgufError::Truncated {
            file: file.to_owned(),
            tensor: entry.name.clone(),
            end: end as u64,
            len: len as u64,
        });
    }
    Ok(TensorInfo { name: entry.name.clone(), format, shape: entry.shape.clone(), bytes, shard, offset })
}

/// Bytes of a tensor of this format and shape (ne0 first), or what is wrong with the shape.
pub(super) fn bytes(format: Format, shape: &[u64]) -> Result<usize, String> {
    if shape.contains(&0) {
        return Err(format!("has the shape {shape:?} with an empty dimension"));
    }
    let row = usize::try_from(shape[0]).ok().and_then(|k| format.row_bytes(k)).ok_or_else(|| {
        format!(
            "has rows of {} weights, which is no whole number of {format} blocks of {}",
            shape[0],
            format.block_len()
        )
    })?;
    // Elements must fit as well: formats below 8 bits a weight have fewer bytes than weights.
    shape[1..]
        .iter()
        .try_fold((shape[0], row), |(elements, bytes), &n| {
            Some((elements.checked_mul(n)?, bytes.checked_mul(usize::try_from(n).ok()?)?))
        })
        .map(|(_, bytes)| bytes)
        .ok_or_else(|| format!("has the shape {shape:?}, whose size overflows"))
}

fn bad(file: &Path, entry: &Entry, problem: String) -> GgufError {
    GgufError::BadTensor { file: file.to_owned(), offset: entry.at as u64, tensor: entry.name.clone(), problem }
}

fn unknown_type(file: &Path, entry: &Entry) -> GgufError {
    let known: Vec<String> = Format::all().map(|f| format!("{} ({})", f.name(), f.ggml_id())).collect();
    GgufError::TensorType {
        file: file.to_owned(),
        offset: entry.at as u64,
        tensor: entry.name.clone(),
        id: entry.type_id,
        name: match GGMLType::try_from(entry.type_id) {
            Ok(name) => format!(" ({name})"),
            Err(_) => String::new(),
        },
        known: known.join(", "),
    }
}
