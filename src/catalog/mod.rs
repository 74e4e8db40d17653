//! From what the user calls a model to its files on this machine, and from the network to there.
//!
//! `models.toml` at the root of the repository is compiled in; `models.toml` in the configuration directory adds
//! entries to it or replaces single keys. [`Catalog::resolve`] never touches the network: it says where the files lie,
//! or which command would fetch them. [`Pull`] fetches: sources in order, pieces in parallel, resumable, and nothing
//! gets its final name before its sum is verified. Whatever is worth telling is handed to a callback; this module
//! prints nothing and asks nothing.

mod entry;
mod error;
mod fetch;
mod home;
mod http;
mod hub;
mod listing;
mod local;
mod partial;
mod peek;
mod pip;
mod pull;
mod route;
mod sum;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use entry::{ChatHints, Entry, File, Fim, Packages, Sampler, Source};
pub use error::{Error, Result};
pub use home::Home;
pub use http::Net;
pub use hub::Hub;
#[cfg(feature = "fuzz")]
pub use listing::models_of_page;
pub use local::{Resolved, Row, State};
pub use peek::peek;
pub use pull::{Event, Pull};

const BUILT_IN: &str = include_str!("../../models.toml");

/// The built-in entries merged with the user's, and the place where models are kept.
#[derive(Debug)]
pub struct Catalog {
    pub home: Home,
    default: String,
    entries: Vec<Entry>,
}

/// What a model argument means; says nothing about whether it is there.
#[derive(Clone, Debug)]
pub enum Model {
    File(PathBuf),
    Named(Box<Entry>),
    Hub(Hub),
}

impl Model {
    /// How the user would write it.
    pub fn name(&self) -> String {
        match self {
            Model::File(path) => path.display().to_string(),
            Model::Named(entry) => entry.name.clone(),
            Model::Hub(hub) => hub.to_string(),
        }
    }
}

impl Catalog {
    /// The catalog of this user.
    pub fn open() -> Result<Catalog> {
        Catalog::load(Home::from_env()?)
    }

    pub fn load(home: Home) -> Result<Catalog> {
        let fail = |file: &str, message: String| Error::Catalog { file: file.to_owned(), entry: None, message };
        let mut table = parse(BUILT_IN).map_err(|message| fail("the built-in models.toml", message))?;
        let user = home.user_catalog();
        let user_name = user.display().to_string();
        let mut touched = Vec::new();
        match std::fs::read_to_string(&user) {
            Ok(text) => {
                let own = parse(&text).map_err(|message| fail(&user_name, message))?;
                touched = own.model.keys().cloned().collect();
                table.merge(own);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&user)(e)),
        }

        let mut entries = Vec::<Entry>::new();
        // The user's entries come last, so that a clash of names is put down to them.
        let (own, built_in): (Vec<_>, Vec<_>) = table.model.into_iter().partition(|(name, _)| touched.contains(name));
        for (name, value) in built_in.into_iter().chain(own) {
            let file = if touched.contains(&name) { user_name.as_str() } else { "the built-in models.toml" };
            let wrong = |message| Error::Catalog { file: file.to_owned(), entry: Some(name.clone()), message };
            let mut entry: Entry = value.try_into().map_err(|e: toml::de::Error| wrong(e.message().to_owned()))?;
            entry.name.clone_from(&name);
            entry.check().map_err(wrong)?;
            for other in &entries {
                if let Some(twice) = entry.names().find(|name| other.names().any(|taken| taken == *name)) {
                    return Err(wrong(format!("'{twice}' already names the model '{}'", other.name)));
                }
            }
            entries.push(entry);
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let default = table.default.unwrap_or_default();
        if !entries.iter().any(|entry| entry.name == default) {
            return Err(fail(&user_name, format!("the default model '{default}' has no entry")));
        }
        Ok(Catalog { home, default, entries })
    }

    /// The model that chat and complete use where none is given.
    pub fn default_model(&self) -> &str {
        &self.default
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a short name or an alias.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.names().any(|n| n == name))
    }

    /// Reads a model argument. A text with a path separator or the ending `.gguf` is a path, so that a file of the
    /// working directory never hides a short name by chance.
    pub fn find(&self, text: &str) -> Result<Model> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return Ok(Model::Hub(Hub::parse(rest)?));
        }
        if let Some(entry) = self.entry(text) {
            return Ok(Model::Named(Box::new(entry.clone())));
        }
        let path = Path::new(text);
        if path.is_file() {
            return Ok(Model::File(path.to_owned()));
        }
        if path.is_dir() && has_separator(text) {
            return Err(Error::Folder { path: path.to_owned() });
        }
        if has_separator(text) || text.to_ascii_lowercase().ends_with(".gguf") {
            return Err(Error::NoSuchFile { path: path.to_owned() });
        }
        match self.entry(&text.to_ascii_lowercase()) {
            Some(entry) => Ok(Model::Named(Box::new(entry.clone()))),
            None => Err(Error::UnknownName { name: text.to_owned(), near: self.near(text) }),
        }
    }

    /// The files of a model that is wholly on this machine; else an error that carries the command to run.
    pub fn resolve(&self, text: &str) -> Result<Resolved> {
        let model = self.find(text)?;
        match self.state(&model)? {
            State::Complete(resolved) => Ok(*resolved),
            State::Missing { bytes, have } => {
                let model = model.name();
                Err(Error::Missing { command: format!("rynd pull {model}"), model, bytes, have })
            }
        }
    }

    /// Up to three names that the text may have meant, nearest first.
    fn near(&self, text: &str) -> Vec<String> {
        let text = text.to_ascii_lowercase();
        let distance = |entry: &Entry| {
            let nearest = entry.names().map(|name| match name.contains(&text) {
                true if text.len() >= 3 => 1,
                _ => strsim::damerau_levenshtein(name, &text),
            });
            nearest.min().unwrap_or(usize::MAX)
        };
        let mut near: Vec<_> = self.entries.iter().map(|entry| (distance(entry), &entry.name)).collect();
        near.retain(|(distance, _)| *distance <= (text.len() / 3).max(2));
        near.sort();
        near.into_iter().take(3).map(|(_, name)| name.clone()).collect()
    }
}

impl Entry {
    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

fn has_separator(text: &str) -> bool {
    text.contains('/') || text.contains(std::path::MAIN_SEPARATOR)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    default: Option<String>,
    #[serde(default)]
    model: toml::Table,
}

fn parse(text: &str) -> std::result::Result<Table, String> {
    toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
}

impl Table {
    fn merge(&mut self, own: Table) {
        self.default = own.default.or(self.default.take());
        merge(&mut self.model, own.model);
    }
}

/// Tables are merged key by key; any other value, lists included, is replaced.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
