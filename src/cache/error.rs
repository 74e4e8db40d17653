//! What can go wrong with a cache file.

use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, CacheError>;

/// Why a segment could not be read or written. None of them is a reason to stop: what is not in the cache is computed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },
    #[error("{} is no longer there", path.display())]
    Gone { path: PathBuf },
    #[error("{}: {why}", path.display())]
    Bad { path: PathBuf, why: String },
    #[error("a page needs 1 to 65536 tokens, and a record of each of its (at most 64) groups one byte or more")]
    Layout,
    #[error("the piece does not fit its model: {0}")]
    Piece(&'static str),
    #[error("{0} was never given")]
    Incomplete(String),
}

impl CacheError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CacheError {
        let path = path.to_owned();
        move |cause| match cause.kind() {
            std::io::ErrorKind::NotFound => CacheError::Gone { path },
            std::io::ErrorKind::UnexpectedEof => CacheError::Bad { path, why: "it ends too early".to_owned() },
            _ => CacheError::Io { path, cause },
        }
    }

    pub(super) fn bad(path: &Path, why: impl Into<String>) -> CacheError {
        CacheError::Bad { path: path.to_owned(), why: why.into() }
    }
}
