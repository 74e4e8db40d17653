//! The files of a repository, as the hub's tree lists them, page after page.
//!
//! A listing comes from outside and may be as long as it likes: pages are parsed as they arrive, only models are kept of
//! them, and bytes, pages and files have their most.

use std::io::{BufReader, Read};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use ureq::http::header;

use super::error::{Error, Result};
use super::http::{Failure, Net, Place, escape, header_text};
use super::hub::Remote;

/// The hub lists a thousand files a page.
const PAGES: usize = 50;
/// A page of a thousand files is below a megabyte.
const PAGE_BYTES: u64 = 8 << 20;
/// Models of one repository; the largest have a few hundred files.
const MOST_FILES: usize = 20_000;
/// Of a file's name in its repository.
const PATH_BYTES: usize = 1024;

/// What the hub's tree says of a file.
#[derive(Deserialize)]
struct Node {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
}

/// A page, whose models go to a list.
struct Page<'a>(&'a mut Vec<Remote>);

impl<'de> DeserializeSeed<'de> for Page<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Page<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut nodes: A) -> std::result::Result<(), A::Error> {
        while let Some(node) = nodes.next_element::<Node>()? {
            let is_model = node.kind == "file" && node.path.to_ascii_lowercase().ends_with(".gguf");
            if !is_model || node.path.len() > PATH_BYTES || !super::entry::is_relative_path(&node.path) {
                continue;
            }
            if self.0.len() == MOST_FILES {
                return Err(A::Error::custom(format!("it has more than {MOST_FILES} models")));
            }
            let sha256 = node.lfs.map(|lfs| lfs.oid).filter(|oid| super::entry::is_sha256(oid));
            self.0.push(Remote { path: node.path, bytes: node.size, sha256 });
        }
        Ok(())
    }
}

impl Net {
    /// All models of a revision.
    pub(super) fn listing(
        &self,
        repo: &str,
        revision: &str,
        stop: &dyn Fn() -> bool,
        tell: &dyn Fn(&Error, Duration),
    ) -> Result<Vec<Remote>> {
        let client = self.client()?;
        let mut files = Vec::new();
        let base = format!("{}/api/models/{repo}/tree/{}", self.endpoint, escape(revision));
        let mut place = Place { url: format!("{base}?recursive=true"), is_hub: true };
        for _ in 0..PAGES {
            let wrong = |message: String| Error::Listing { url: place.url.clone(), message };
            let before = files.len();
            let next = self.retry(stop, tell, || {
                files.truncate(before);
                let response = self.get(&client, &place, None)?;
                let next = header_text(&response, header::LINK).and_then(next_page);
                let mut body = response.into_body().into_reader().take(PAGE_BYTES);
                let mut json = serde_json::Deserializer::from_reader(BufReader::new(&mut body));
                let read = Page(&mut files).deserialize(&mut json).and_then(|()| json.end());
                let too_long = body.limit() == 0;
                read.map_err(|e| match e.io_error_kind() {
                    _ if too_long => Failure::Final(wrong(format!("a page of it has more than {PAGE_BYTES} bytes"))),
                    Some(_) => Failure::Passing { error: self.broken(&place, e.to_string()), wait: None },
                    None => Failure::Final(wrong(e.to_string())),
                })?;
                Ok(next)
            })?;
            match next {
                None => return Ok(files),
                // The token goes along, so the next page must be where this one was.
                Some(url) if url.starts_with(&base) => place.url = url,
                Some(url) => return Err(wrong(format!("its next page lies elsewhere: {url}"))),
            }
        }
        Err(Error::Listing { url: base, message: format!("it has more than {PAGES} pages") })
    }
}

/// How many models a page lists. For fuzzing.
#[cfg(feature = "fuzz")]
pub fn models_of_page(page: impl Read) -> serde_json::Result<usize> {
    let mut files = Vec::new();
    Page(&mut files).deserialize(&mut serde_json::Deserializer::from_reader(page))?;
    Ok(files.len())
}

/// The address of `<address>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\"") || part.contains("rel=next"))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}
