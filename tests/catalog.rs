//! The catalog: names, the user's overrides, and pulls from servers on loopback that behave and misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that can not go on fails")]

#[path = "catalog/http.rs"]
mod http;
#[path = "catalog/hub.rs"]
mod hub;
#[path = "catalog/names.rs"]
mod names;
#[cfg(unix)]
#[path = "catalog/pip.rs"]
mod pip;
#[path = "catalog/server.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rynd::catalog::{Catalog, Error, Event, Home, Net, Pull, Resolved};
use sha2::{Digest, Sha256};

/// A home of its own for one test, removed at its end.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn home(&self) -> Home {
        Home::at(self.folder.path())
    }

    /// With this text as the user's models.toml.
    fn with(toml: &str) -> Place {
        let place = Place::new();
        fs::create_dir_all(place.home().config).unwrap();
        fs::write(place.home().user_catalog(), toml).unwrap();
        place
    }

    /// With one model `m`, of one pinned file, from these sources.
    fn with_model(file: &[u8], sources: &str) -> Place {
        Place::with(&format!("{}{sources}", model(&[("m.gguf", file)])))
    }

    fn catalog(&self) -> Catalog {
        Catalog::load(self.home()).unwrap()
    }

    /// The folder of the model `m`.
    fn folder(&self) -> PathBuf {
        self.home().cache.join("models/m")
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.folder().join("m.gguf")).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.folder().join(name).exists()
    }

    fn pull(&self, net: &Net) -> Result<Resolved, Error> {
        let (result, _) = self.pull_told(net, "m");
        result
    }

    /// Also gives what was told, a word an event.
    fn pull_told(&self, net: &Net, text: &str) -> (Result<Resolved, Error>, Vec<String>) {
        let catalog = self.catalog();
        let told = Mutex::new(Vec::new());
        let tell = |event: Event<'_>| told.lock().unwrap().extend(word(&event));
        let pull = Pull { tell: &tell, ..Pull::new(&catalog, net) };
        let result = catalog.find(text).and_then(|model| pull.run(&model));
        (result, told.into_inner().unwrap())
    }

    /// As if the user pressed Ctrl-C after so many bytes.
    fn pull_until(&self, net: &Net, bytes: u64) -> Result<Resolved, Error> {
        let catalog = self.catalog();
        let seen = AtomicU64::new(0);
        let tell = |event: Event<'_>| {
            if let Event::Bytes(count) = event {
                seen.fetch_add(count, Ordering::SeqCst);
            }
        };
        let stop = || seen.load(Ordering::SeqCst) >= bytes;
        Pull { tell: &tell, stop: &stop, ..Pull::new(&catalog, net) }.run(&catalog.find("m").unwrap())
    }
}

fn word(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Present { file } => Some(format!("present {file}")),
        Event::Trying { source, .. } => Some(format!("trying {source}")),
        Event::Failed { source, .. } => Some(format!("failed {source}")),
        Event::Restart => Some("restart".to_owned()),
        Event::Retry { .. } => Some("retry".to_owned()),
        Event::Done { verified, .. } => Some(format!("done verified={verified}")),
        Event::Bytes(_) | Event::Kept(_) | Event::Verifying { .. } => None,
    }
}

/// Small pieces and short patience.
fn net() -> Net {
    Net {
        endpoint: "http://127.0.0.1:9".to_owned(),
        connections: 4,
        piece_bytes: 64 << 10,
        stall_timeout: Duration::from_millis(400),
        attempts: 3,
        pause: Duration::from_millis(5),
        ..Net::default()
    }
}

/// Bytes without a pattern, so that a piece in the wrong place shows.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entry `m` up to its sources.
fn model(files: &[(&str, &[u8])]) -> String {
    let mut text = "[model.m]\ndescription = \"a test\"\nlicence = \"none\"\n".to_owned();
    for (name, bytes) in files {
        let (length, sum) = (bytes.len(), sha256(bytes));
        text.push_str(&format!("[[model.m.file]]\nname = \"{name}\"\nbytes = {length}\nsha256 = \"{sum}\"\n"));
    }
    text
}

fn url_source(url: &str) -> String {
    format!("[[model.m.source]]\nkind = \"url\"\nurl = \"{url}/m.gguf\"\n")
}

/// The failures of a pull that no source could serve.
fn failures(result: Result<Resolved, Error>) -> Vec<Error> {
    match result {
        Err(Error::AllSources { failures, .. }) => failures.into_iter().map(|(_, error)| error).collect(),
        other => panic!("expected all sources to fail, got {other:?}"),
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}
