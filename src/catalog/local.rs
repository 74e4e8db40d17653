//! What lies in the cache: which models are complete, how much of the others is there, and removing them.
//!
//! A file has its final name only when it was verified, so a file of the right size is taken as complete; it is not
//! hashed again at each start (that would cost a second a gigabyte). `rynd.json` in the model's folder records what was
//! verified; for unpinned and hub models it is the only place that knows sizes and sums.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::hub::{self, Hub, Remote};
use super::{Catalog, Entry, Model, partial};
use crate::files;

const MANIFEST: &str = "rynd.json";

/// A model that can be opened.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub model: String,
    /// In the order of their split numbers; at least one.
    pub files: Vec<PathBuf>,
    /// Sampler defaults and hints, where the catalog knows the model.
    pub entry: Option<Entry>,
}

impl Resolved {
    /// The first file, which leads to the others.
    pub fn path(&self) -> &Path {
        &self.files[0]
    }
}

#[derive(Clone, Debug)]
pub enum State {
    Complete(Box<Resolved>),
    /// `have` counts finished files and what an interrupted pull left.
    Missing {
        bytes: Option<u64>,
        have: u64,
    },
}

/// A line of `rynd list`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub description: String,
    pub licence: String,
    pub bytes: Option<u64>,
    /// How many of them are here.
    pub have: u64,
    pub local: bool,
    pub path: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub files: Vec<Record>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Relative to the model's folder, with `/`.
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
    /// False where no source knew the sum beforehand, and this is only what was received.
    pub verified: bool,
    pub source: String,
}

impl Manifest {
    /// An unreadable manifest counts as absent: pulling again writes a new one.
    pub fn read(folder: &Path) -> Manifest {
        let text = fs::read(folder.join(MANIFEST)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub fn record(folder: &Path, record: Record) -> Result<()> {
        let mut manifest = Manifest::read(folder);
        manifest.files.retain(|old| old.name != record.name);
        manifest.files.push(record);
        manifest.write(folder)
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::io(&path)(e.into()))?;
        files::write(&path, text).map_err(Error::io(&path))
    }

    pub fn find(&self, name: &str) -> Option<&Record> {
        self.files.iter().find(|record| record.name == name)
    }

    /// The recorded files that are still there, as a listing.
    fn present(&self, folder: &Path) -> Vec<Remote> {
        let here = self.files.iter().filter(|record| size(&folder.join(&record.name)) == Some(record.bytes));
        here.map(|r| Remote { path: r.name.clone(), bytes: r.bytes, sha256: Some(r.sha256.clone()) }).collect()
    }
}

fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
}

impl Catalog {
    /// The folder of the model in the cache.
    pub(super) fn folder(&self, model: &Model) -> Option<PathBuf> {
        match model {
            Model::File(_) => None,
            Model::Named(entry) => Some(self.home.models().join(&entry.name)),
            Model::Hub(Hub { repo, revision, .. }) => {
                // A revision may hold slashes; in a folder's name they would make a folder below it.
                let revision = revision.as_ref().map(|r| format!("@{}", r.replace('/', "+"))).unwrap_or_default();
                Some(self.home.models().join("hf").join(format!("{repo}{revision}")))
            }
        }
    }

    /// Whether the model is on this machine, and complete.
    pub fn state(&self, model: &Model) -> Result<State> {
        let complete = |files: Vec<PathBuf>, entry: Option<&Entry>| {
            let entry = entry.or_else(|| self.entry_of_file(&files[0])).cloned();
            Ok(State::Complete(Box::new(Resolved { model: model.name(), files, entry })))
        };
        let folder = self.folder(model).unwrap_or_default();
        let manifest = Manifest::read(&folder);
        match model {
            Model::File(path) => complete(vec![path.clone()], None),
            Model::Named(entry) => {
                let paths: Vec<_> = entry.files.iter().map(|file| folder.join(&file.name)).collect();
                let whole = entry.files.iter().zip(&paths).all(|(file, path)| {
                    let expected = file.bytes.or_else(|| manifest.find(&file.name).map(|record| record.bytes));
                    expected.is_some() && size(path) == expected
                });
                if whole {
                    return complete(paths, Some(entry));
                }
                let have = paths.iter().map(|path| size(path).unwrap_or_else(|| partial::kept_bytes(path))).sum();
                Ok(State::Missing { bytes: entry.bytes(), have })
            }
            Model::Hub(hub) => match hub::select(&hub.repo, &manifest.present(&folder), hub.pick.as_deref()) {
                Ok(files) => complete(files.iter().map(|file| folder.join(&file.path)).collect(), None),
                Err(_) => Ok(State::Missing { bytes: None, have: 0 }),
            },
        }
    }

    /// The entry that a file given by its path belongs to: same name, same size.
    fn entry_of_file(&self, path: &Path) -> Option<&Entry> {
        let name = path.file_name()?.to_str()?;
        let bytes = size(path)?;
        self.entries.iter().find(|e| e.files.iter().any(|file| file.name == name && file.bytes == Some(bytes)))
    }

    /// All entries, then the hub models that were fetched.
    pub fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for entry in &self.entries {
            let mut row = Row {
                name: entry.name.clone(),
                description: entry.description.clone(),
                licence: entry.licence.clone(),
                bytes: entry.bytes(),
                have: 0,
                local: false,
                path: None,
            };
            match self.state(&Model::Named(Box::new(entry.clone())))? {
                State::Complete(resolved) => {
                    row.have = resolved.files.iter().filter_map(|path| size(path)).sum();
                    row.bytes = Some(row.have);
                    row.local = true;
                    row.path = resolved.files.into_iter().next();
                }
                State::Missing { have, .. } => row.have = have,
            }
            rows.push(row);
        }
        let hub = self.home.models().join("hf");
        for owner in folders(&hub)? {
            for repo in folders(&owner)? {
                rows.extend(self.hub_rows(&repo));
            }
        }
        Ok(rows)
    }

    fn hub_rows(&self, folder: &Path) -> Vec<Row> {
        let part =
            |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let place = format!("hf:{}/{}", part(folder.parent()), part(Some(folder)));
        let present = Manifest::read(folder).present(folder);
        let mut rows = Vec::new();
        for file in &present {
            // Each set of split files is one model, named by its first file.
            let Ok(set) = hub::select("", &present, Some(&file.path)) else { continue };
            if set[0].path != file.path {
                continue;
            }
            let bytes = set.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
            rows.push(Row {
                name: format!("{place}:{}", file.path),
                description: String::new(),
                licence: "see its page".to_owned(),
                bytes: Some(bytes),
                have: bytes,
                local: true,
                path: Some(folder.join(&file.path)),
            });
        }
        rows
    }

    /// What [`Catalog::remove`] would free: files, partial ones included, and bytes.
    pub fn removable(&self, model: &Model) -> Result<(Vec<PathBuf>, u64)> {
        let folder = self.folder(model).ok_or(Error::NotInCache { path: model.name(), what: "remove" })?;
        let mut paths = Vec::new();
        match model {
            Model::Hub(Hub { repo, pick: Some(pick), .. }) => {
                let present = Manifest::read(&folder).present(&folder);
                let set = hub::select(repo, &present, Some(pick)).unwrap_or_default();
                paths.extend(set.iter().map(|file| folder.join(&file.path)));
            }
            _ => walk(&folder, &mut paths)?,
        }
        let bytes = paths.iter().filter_map(|path| size(path)).sum();
        if paths.is_empty() { Err(Error::NotLocal { model: model.name() }) } else { Ok((paths, bytes)) }
    }

    /// Removes the model from the cache; gives the bytes that were freed.
    pub fn remove(&self, model: &Model) -> Result<u64> {
        let (paths, bytes) = self.removable(model)?;
        let folder = self.folder(model).ok_or(Error::NotInCache { path: model.name(), what: "remove" })?;
        let lock = lock(&folder)?;
        for path in &paths {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(path)(e)),
                _ => {}
            }
        }
        let mut manifest = Manifest::read(&folder);
        let known = manifest.files.len();
        manifest.files.retain(|record| !paths.contains(&folder.join(&record.name)));
        if !manifest.files.is_empty() && manifest.files.len() != known {
            manifest.write(&folder)?;
        } else if manifest.files.is_empty() {
            // Some systems do not remove a folder with an open file in it.
            drop(lock);
            fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        Ok(bytes)
    }
}

/// Holds the model's folder for one process at a time. The lock ends with the returned file.
pub(super) fn lock(folder: &Path) -> Result<fs::File> {
    let path = folder.join(".lock");
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let file = fs::File::create(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { path }),
        Err(fs::TryLockError::Error(e)) => Err(Error::io(&path)(e)),
    }
}

fn folders(of: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(of)?;
    found.retain(|path| path.is_dir());
    Ok(found)
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() && !path.is_symlink() {
            walk(&path, into)?;
        } else if path.file_name().is_some_and(|name| name != ".lock") {
            into.push(path);
        }
    }
    Ok(())
}

/// Sorted; a folder that is not there has none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(Error::io(folder))?,
    };
    let mut paths =
        list.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>().map_err(Error::io(folder))?;
    paths.sort();
    Ok(paths)
}
