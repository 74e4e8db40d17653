//! A file on its way: `NAME.partial` beside its final place, and `NAME.partial.json`, which says what of it is there.
//!
//! Pieces arrive out of order, so what is there is a set of ranges. The ranges are saved now and then and at the end,
//! after the bytes they speak of were written; a killed program therefore loses a second, never correctness, and the
//! final sum would find a lie. The final name is given only by [`Partial::finish`].

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::files;

#[derive(Debug)]
pub(super) struct Partial {
    target: PathBuf,
    data: PathBuf,
    side: PathBuf,
    state: Mutex<Progress>,
    /// Bytes that may still be written before the disk counts as full; tests lower it.
    room: AtomicU64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// Of the whole file, once known.
    bytes: Option<u64>,
    sha256: Option<String>,
    /// Of the server that sent the ranges; another one means another file.
    etag: Option<String>,
    done: Ranges,
    /// Where the parts of a file that comes in parts end.
    part_ends: Vec<u64>,
    /// Counts the restarts, so that a reader notices that the bytes before it have changed.
    #[serde(skip)]
    restarts: u32,
}

/// Sorted, disjoint, not touching: (start, end).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|range| range.1 < start);
        let last = self.0.partition_point(|range| range.0 <= end);
        let merged = match self.0.get(first..last) {
            Some([]) | None => (start, end),
            Some(touched) => (start.min(touched[0].0), end.max(touched[touched.len() - 1].1)),
        };
        self.0.splice(first..last, [merged]);
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// How far the file is there from its start on.
    pub fn prefix(&self) -> u64 {
        self.0.first().filter(|range| range.0 == 0).map_or(0, |range| range.1)
    }

    /// What is missing of a file of that size.
    pub fn gaps(&self, bytes: u64) -> Vec<(u64, u64)> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|range| range.1));
        let ends = self.0.iter().map(|range| range.0).chain([bytes]);
        starts.zip(ends).filter(|(start, end)| start < end).collect()
    }

    fn is_sound(&self, bytes: Option<u64>) -> bool {
        self.0.iter().all(|(start, end)| start < end)
            && self.0.is_sorted_by(|a, b| a.1 < b.0)
            && self.0.last().is_none_or(|range| bytes.is_none_or(|bytes| range.1 <= bytes))
    }
}

fn data_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn side_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial.json");
    name.into()
}

fn read_side(target: &Path) -> Option<Progress> {
    let progress: Progress = serde_json::from_slice(&fs::read(side_path(target)).ok()?).ok()?;
    let length = fs::metadata(data_path(target)).ok()?.len();
    let reaches = progress.done.0.last().map_or(0, |range| range.1);
    (progress.done.is_sound(progress.bytes) && reaches <= length).then_some(progress)
}

/// What an interrupted pull left of the file.
pub(super) fn kept_bytes(target: &Path) -> u64 {
    read_side(target).map_or(0, |progress| progress.done.total())
}

impl Partial {
    /// Opens what an earlier pull left, if it was of the same file; else starts anew.
    pub fn open(target: &Path, bytes: Option<u64>, sha256: Option<&str>, room: Option<u64>) -> Result<Partial> {
        let data = data_path(target);
        let fresh = || Progress { bytes, sha256: sha256.map(str::to_owned), ..Progress::default() };
        let same = |old: &Progress| {
            // Without a sum only the server's etag can tell, which is looked at when the server answers.
            old.sha256.as_deref() == sha256 && (bytes.is_none() || old.bytes.is_none() || old.bytes == bytes)
        };
        let state = read_side(target).filter(same).unwrap_or_else(fresh);
        let partial = Partial {
            target: target.to_owned(),
            side: side_path(target),
            state: Mutex::new(state),
            room: AtomicU64::new(room.unwrap_or(u64::MAX)),
            data,
        };
        if partial.have() == 0 {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // The guarded value is valid between any two statements, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Throws away what is there.
    pub fn restart(&self) -> Result<()> {
        let mut state = self.lock();
        let restarts = state.restarts + 1;
        *state = Progress { bytes: state.bytes, sha256: state.sha256.take(), restarts, ..Progress::default() };
        drop(state);
        files::open(&self.data, OpenOptions::new().write(true).create(true).truncate(true))
            .map_err(Error::io(&self.data))?;
        self.save()
    }

    /// Keeps the first `bytes` and forgets the rest.
    pub fn keep_first(&self, bytes: u64) {
        let mut state = self.lock();
        state.restarts += 1;
        let Ranges(ranges) = &mut state.done;
        ranges.retain(|range| range.0 < bytes);
        if let Some(last) = ranges.last_mut() {
            last.1 = last.1.min(bytes);
        }
        state.part_ends.retain(|end| *end <= bytes);
    }

    pub fn have(&self) -> u64 {
        self.lock().done.total()
    }

    /// How far the file is there from its start on, and which start that is.
    pub fn prefix(&self) -> (u64, u32) {
        let state = self.lock();
        (state.done.prefix(), state.restarts)
    }

    pub fn bytes(&self) -> Option<u64> {
        self.lock().bytes
    }

    pub fn set_bytes(&self, bytes: u64) {
        self.lock().bytes = Some(bytes);
    }

    pub fn gaps(&self, bytes: u64) -> Vec<(u64, u64)> {
        self.lock().done.gaps(bytes)
    }

    pub fn is_whole(&self) -> bool {
        let state = self.lock();
        state.bytes.is_some_and(|bytes| state.done.prefix() == bytes)
    }

    /// Notes the etag; false if what is there came under another one.
    pub fn accept_etag(&self, etag: Option<&str>) -> bool {
        let mut state = self.lock();
        let differs = matches!((state.etag.as_deref(), etag), (Some(old), Some(new)) if old != new);
        if differs && state.done.total() > 0 {
            return false;
        }
        if etag.is_some() {
            state.etag = etag.map(str::to_owned);
        }
        true
    }

    /// The ends of the parts that are wholly there.
    pub fn part_ends(&self) -> Vec<u64> {
        self.lock().part_ends.clone()
    }

    pub fn end_part(&self, end: u64) {
        self.lock().part_ends.push(end);
    }

    /// A handle of its own for one writer, standing at `offset`.
    pub fn writer(&self, offset: u64) -> Result<Writer<'_>> {
        let fail = Error::io(&self.data);
        let mut file = files::open(&self.data, OpenOptions::new().write(true)).map_err(&fail)?;
        file.seek(SeekFrom::Start(offset)).map_err(&fail)?;
        Ok(Writer { partial: self, file, offset })
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn reader(&self) -> Result<File> {
        files::open(&self.data, OpenOptions::new().read(true)).map_err(Error::io(&self.data))
    }

    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(&*self.lock()).map_err(|e| Error::io(&self.side)(e.into()))?;
        files::write(&self.side, text).map_err(Error::io(&self.side))
    }

    /// Gives the verified file its name.
    pub fn finish(self) -> Result<()> {
        files::name(&self.data, &self.target).map_err(Error::io(&self.target))?;
        fs::remove_file(&self.side).map_err(Error::io(&self.side))
    }

    /// Removes what is there: it is of no use.
    pub fn discard(self) -> Result<()> {
        fs::remove_file(&self.data).map_err(Error::io(&self.data))?;
        fs::remove_file(&self.side).map_err(Error::io(&self.side))
    }
}

pub(super) struct Writer<'a> {
    partial: &'a Partial,
    file: File,
    offset: u64,
}

impl Writer<'_> {
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let length = data.len() as u64;
        let room = &self.partial.room;
        if room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(length)).is_err() {
            return Err(Error::DiskFull { path: self.partial.data.clone() });
        }
        files::write_all(&self.partial.data, &self.file, data).map_err(Error::io(&self.partial.data))?;
        self.partial.lock().done.insert(self.offset, self.offset + length);
        self.offset += length;
        Ok(())
    }
}
