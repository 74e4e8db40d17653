//! Files of one model: finding the shards beside the one that was named, and joining their tensor tables.
//!
//! A shard is named `NAME-00001-of-00005.gguf` and says the same in `split.no` (from 0) and `split.count`. Metadata is
//! that of the first shard; the others repeat nothing but the split keys. Names are taken from the given path as it
//! stands, links unresolved: download caches link well-named files to hashes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header::{self, Header};
use super::image::Image;
use super::{Gguf, GgufError, Inner, table};

/// The path of shard `no` (from 1) of `count` for a model whose whole file would be at `path`.
pub fn shard_path(path: &Path, no: u32, count: u32) -> PathBuf {
    path.with_file_name(shard_name(&path.file_stem().unwrap_or_default().to_string_lossy(), no, count))
}

pub(super) fn shard_name(stem: &str, no: u32, count: u32) -> String {
    format!("{stem}-{no:05}-of-{count:05}.gguf")
}

/// `("NAME", 1, 5)` of `NAME-00001-of-00005.gguf`.
pub(super) fn parse(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        let whole = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        if whole { digits.parse::<u32>().ok() } else { None }
    };
    let (no, count) = (number(no)?, number(count)?);
    (1 <= no && no <= count).then_some((stem, no, count))
}

pub(super) fn open(path: &Path) -> Result<Gguf, GgufError> {
    let image = Image::map(path)?;
    let header = header::read(path, &image)?;
    let count = match split(path, &header, "split.count")? {
        None | Some(0 | 1) => return assemble(vec![(path.to_owned(), image)], Some(header)),
        Some(count) => count,
    };
    let mismatch = |problem| GgufError::ShardMismatch { file: path.to_owned(), problem };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, no, named)) = parse(name) else {
        let pattern = shard_name("NAME", 1, count);
        return Err(mismatch(format!("it is one of {count} shards, but is not named like {pattern}")));
    };
    if named != count {
        return Err(mismatch(format!("its name says {named} shards, but its metadata key 'split.count' says {count}")));
    }
    let mut given = Some(image);
    let mut files = Vec::new();
    for n in 1..=count {
        let shard = path.with_file_name(shard_name(stem, n, count));
        let image = match given.take_if(|_| n == no) {
            Some(image) => image,
            None => Image::map(&shard).map_err(|error| match error {
                GgufError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                    GgufError::MissingShard { file: shard.clone(), beside: path.to_owned(), no: n, count }
                }
                error => error,
            })?,
        };
        files.push((shard, image));
    }
    assemble(files, if no == 1 { Some(header) } else { None })
}

/// Joins the shards of a model, in order. `first` is the first one's header where the caller has read it.
pub(super) fn assemble(files: Vec<(PathBuf, Image)>, first: Option<Header>) -> Result<Gguf, GgufError> {
    let mut headers = Vec::with_capacity(files.len());
    let mut first = first;
    for (path, image) in &files {
        headers.push(match first.take() {
            Some(header) => header,
            None => header::read(path, image)?,
        });
    }
    let (shards, images): (Vec<PathBuf>, Vec<Image>) = files.into_iter().unzip();

    let mut tensors = Vec::new();
    for (i, header) in headers.iter().enumerate() {
        check_place(&shards, i, header)?;
        tensors.extend(table::check(&shards[i], i, header, images[i].len())?);
    }
    let mut names = HashMap::with_capacity(tensors.len());
    let entries = headers.iter().flat_map(|header| &header.tensors);
    for (i, (tensor, entry)) in tensors.iter().zip(entries).enumerate() {
        if let Some(other) = names.insert(tensor.name.clone(), i) {
            return Err(GgufError::BadTensor {
                file: shards[tensor.shard].clone(),
                offset: entry.at as u64,
                tensor: tensor.name.clone(),
                problem: format!("is there twice, first in {}", shards[tensors[other].shard].display()),
            });
        }
    }
    if let Some(total) = split(&shards[0], &headers[0], "split.tensors.count")?
        && total as usize != tensors.len()
    {
        return Err(GgufError::ShardMismatch {
            file: shards[0].clone(),
            problem: format!("'split.tensors.count' says {total} tensors, but the shards hold {}", tensors.len()),
        });
    }
    let header = headers.swap_remove(0);
    Ok(Gguf(Arc::new(Inner {
        shards,
        images,
        version: header.version,
        metadata: header.metadata,
        keys: header.keys,
        tensors,
        names,
    })))
}

/// Whether shard `i` is the one that its name says.
fn check_place(shards: &[PathBuf], i: usize, header: &Header) -> Result<(), GgufError> {
    let file = &shards[i];
    let count = split(file, header, "split.count")?.unwrap_or(1).max(1);
    let no = split(file, header, "split.no")?.unwrap_or(0);
    if count as usize == shards.len() && no as usize == i {
        return Ok(());
    }
    let problem = format!(
        "it should be shard {} of {}, but its metadata says {} of {count}",
        i + 1,
        shards.len(),
        u64::from(no) + 1
    );
    Err(GgufError::ShardMismatch { file: file.clone(), problem })
}

pub(super) fn split(file: &Path, header: &Header, key: &str) -> Result<Option<u32>, GgufError> {
    let Some(value) = header.get(key) else { return Ok(None) };
    match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
        Some(n) => Ok(Some(n)),
        None => Err(GgufError::WrongType {
            file: file.to_owned(),
            key: key.to_owned(),
            expected: "a count",
            found: value.to_string(),
        }),
    }
}
