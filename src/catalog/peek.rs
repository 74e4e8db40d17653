//! The headers of a model that is not here: ranged reads of the first megabytes of its files.
//!
//! A header is as long as its vocabulary, so it is asked for in growing pieces until it is whole. Nothing is written to
//! the disk, and a server that ignores ranges is read no further than needed. Mirrors that hold a model in Python
//! packages have no ranges and are passed over.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::{StatusCode, header};

use super::error::{Error, Result};
use super::http::{Client, Failure, Net, Place, content_range, escape_path, header_text};
use super::{Entry, Model, Source, hub};
use crate::gguf::{HeaderPart, Outline};

/// The first request of each file; the headers of later parts are shorter.
const FIRST_BYTES: u64 = 1 << 20;
/// No header that rynd reads is longer: a vocabulary of 262,144 tokens takes about 16 MB.
const MOST_BYTES: u64 = 256 << 20;

/// Reads the headers of a model over the network. `stop` turns true when the user wants to stop.
pub fn peek(net: &Net, model: &Model, stop: &dyn Fn() -> bool) -> Result<Outline> {
    match model {
        Model::File(path) => Ok(Outline::open(path)?),
        Model::Hub(hub) => {
            let revision = hub.revision.as_deref().unwrap_or("main");
            let listing = net.listing(&hub.repo, revision, stop, &|_, _| {})?;
            let files = hub::select(&hub.repo, &listing, hub.pick.as_deref())?;
            let files = files.iter().map(|file| (file.path.clone(), net.hub_file(&hub.repo, revision, &file.path)));
            outline(net, files, stop)
        }
        Model::Named(entry) => of_entry(net, entry, stop),
    }
}

fn of_entry(net: &Net, entry: &Entry, stop: &dyn Fn() -> bool) -> Result<Outline> {
    let mut failures = Vec::new();
    for source in &entry.sources {
        let place = |name: &str| match source {
            Source::Hf { repo, revision, folder } => {
                let path = folder.as_ref().map_or_else(|| name.to_owned(), |folder| format!("{folder}/{name}"));
                Some(net.hub_file(repo, revision, &path))
            }
            Source::Url { url } if url.ends_with('/') => {
                Some(Place { url: format!("{url}{}", escape_path(name)), is_hub: false })
            }
            Source::Url { url } => Some(Place { url: url.clone(), is_hub: false }),
            Source::Pip { .. } => None,
        };
        let files: Option<Vec<_>> =
            entry.files.iter().map(|file| Some((file.name.clone(), place(&file.name)?))).collect();
        let Some(files) = files else { continue };
        match outline(net, files.into_iter(), stop) {
            Ok(outline) => return Ok(outline),
            Err(error) if error.is_ours() => return Err(error),
            Err(error) => failures.push((source.to_string(), error)),
        }
    }
    Err(Error::AllSources { model: entry.name.clone(), failures })
}

fn outline(net: &Net, files: impl Iterator<Item = (String, Place)>, stop: &dyn Fn() -> bool) -> Result<Outline> {
    let client = net.client()?;
    let parts = files.map(|(name, place)| part(net, &client, &name, &place, stop)).collect::<Result<_>>()?;
    Ok(Outline::from_parts(parts)?)
}

fn part(net: &Net, client: &Client, name: &str, place: &Place, stop: &dyn Fn() -> bool) -> Result<HeaderPart> {
    let mut bytes = Vec::new();
    let mut wanted = FIRST_BYTES;
    loop {
        let have = bytes.len() as u64;
        let (more, file_bytes) =
            net.retry(stop, &|_: &Error, _: Duration| {}, || piece(net, client, place, have, wanted))?;
        bytes.extend(more);
        let part = HeaderPart { name: PathBuf::from(name), bytes: bytes.as_slice().into(), file_bytes };
        let whole = part.is_whole()?;
        if whole || bytes.len() as u64 <= have || wanted >= MOST_BYTES {
            // A header that is still not whole fails where it is read, with the byte at which it ends.
            return Ok(part);
        }
        wanted *= 4;
    }
}

/// Bytes `from..to` of the file (fewer at its end), and the size of the file.
fn piece(
    net: &Net,
    client: &Client,
    place: &Place,
    from: u64,
    to: u64,
) -> std::result::Result<(Vec<u8>, u64), Failure> {
    let response = net.get(client, place, Some((from, Some(to))))?;
    let broken = |cause: &str| Failure::Passing { error: net.broken(place, cause.to_owned()), wait: None };
    let (skip, file_bytes) = match content_range(&response) {
        Some((start, total)) if start == from => (0, total),
        _ if response.status() == StatusCode::PARTIAL_CONTENT => {
            return Err(broken("a partial answer without its range"));
        }
        // The whole file comes, whatever was asked for.
        _ => {
            let total = header_text(&response, header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
            (from, total.ok_or_else(|| broken("an answer without its length"))?)
        }
    };
    let mut reader = response.into_body().into_reader();
    let mut bytes = Vec::new();
    let read = std::io::copy(&mut reader.by_ref().take(skip), &mut std::io::sink())
        .and_then(|_| reader.take(to - from).read_to_end(&mut bytes));
    read.map_err(|e| broken(&e.to_string()))?;
    if (bytes.len() as u64) < to.min(file_bytes) - from.min(file_bytes) {
        return Err(broken("it ended early"));
    }
    Ok((bytes, file_bytes))
}
