//! Models of the Hugging Face hub that no entry names: `hf:owner/repo[@revision][:QUANT or FILE.gguf]`.
//!
//! A repository holds many quantisations of one model, some split into several files. The listing gives each file's
//! size and (for large files) its sha256, so such a model is verified like a catalogued one.

use std::collections::BTreeMap;
use std::fmt;

use super::error::{Error, Result};

/// Taken where the user names none, in this order: what most people run.
const PREFERRED: [&str; 6] = ["Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "Q4_0", "MXFP4", "Q8_0"];

#[derive(Clone, Debug, PartialEq)]
pub struct Hub {
    pub repo: String,
    pub revision: Option<String>,
    /// A quantisation or a file; none for the preferred one.
    pub pick: Option<String>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Remote {
    pub path: String,
    /// Where the listing says it.
    pub bytes: Option<u64>,
    pub sha256: Option<String>,
}

impl Hub {
    /// Reads what follows `hf:`.
    pub(super) fn parse(rest: &str) -> Result<Hub> {
        let wrong = |reason| Error::HubName { text: format!("hf:{rest}"), reason };
        let (place, pick) = match rest.split_once(':') {
            Some((_, "")) => return Err(wrong("nothing follows the last colon")),
            Some((place, pick)) => (place, Some(pick)),
            None => (rest, None),
        };
        let (repo, revision) = match place.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (place, None),
        };
        check_repo(repo).map_err(wrong)?;
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(wrong("the revision is malformed"));
        }
        if pick.is_some_and(|pick| !super::entry::is_relative_path(pick)) {
            return Err(wrong("the quantisation or file is malformed"));
        }
        Ok(Hub { repo: repo.to_owned(), revision: revision.map(str::to_owned), pick: pick.map(str::to_owned) })
    }
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.pick.iter().try_for_each(|pick| write!(f, ":{pick}"))
    }
}

pub(super) fn check_repo(repo: &str) -> std::result::Result<(), &'static str> {
    let Some((owner, name)) = repo.split_once('/') else { return Err("owner/repo is needed") };
    let plain = |part: &str| {
        part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            && !part.is_empty()
            && !part.starts_with('.')
    };
    if plain(owner) && plain(name) { Ok(()) } else { Err("owner and repo are letters, digits, '.', '_' and '-'") }
}

pub(super) fn is_revision(text: &str) -> bool {
    super::entry::is_relative_path(text) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
}

/// The files of one model among those of its repository, in the order of their split numbers.
pub(super) fn select(repo: &str, files: &[Remote], pick: Option<&str>) -> Result<Vec<Remote>> {
    let mut models = BTreeMap::<String, Vec<(u32, u32, &Remote)>>::new();
    for file in files.iter().filter(|file| is_model(&file.path)) {
        let (stem, part, parts) = split(&file.path);
        models.entry(stem.to_owned()).or_default().push((part, parts, file));
    }
    // A set of which a part is missing is no model.
    models.retain(|_, set| {
        set.sort_by_key(|(part, ..)| *part);
        set.iter().zip(1..).all(|((part, parts, _), i)| *part == i && *parts as usize == set.len())
    });

    let by_tag = |wanted: &str| {
        let is = |stem: &&String| quant(stem).is_some_and(|tag| tag.eq_ignore_ascii_case(wanted));
        models.keys().find(is).cloned()
    };
    let stem = match pick {
        Some(file) if file.to_ascii_lowercase().ends_with(".gguf") => {
            models.iter().find(|(_, set)| set.iter().any(|(.., f)| f.path == file)).map(|(stem, _)| stem.clone())
        }
        Some(tag) => by_tag(tag).or_else(|| by_tag(&format!("UD-{tag}"))),
        None if models.len() == 1 => models.keys().next().cloned(),
        None => PREFERRED.iter().find_map(|tag| by_tag(tag)),
    };
    match stem.and_then(|stem| models.remove(&stem)) {
        Some(set) => Ok(set.into_iter().map(|(.., file)| file.clone()).collect()),
        None => Err(Error::NotInRepository {
            repo: repo.to_owned(),
            wanted: pick.unwrap_or("Q4_K_M").to_owned(),
            have: models.keys().map(|stem| quant(stem).unwrap_or_else(|| format!("{stem}.gguf"))).collect(),
        }),
    }
}

/// Projectors and importance matrices are GGUF files too, but no language models.
fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    name.ends_with(".gguf") && !name.starts_with("mmproj") && !name.contains("imatrix")
}

/// `x-00002-of-00004.gguf` is (`x`, 2, 4); a whole file is part 1 of 1.
fn split(path: &str) -> (&str, u32, u32) {
    let stem = &path[..path.len() - ".gguf".len()];
    let number = |text: &str| if text.len() == 5 { text.parse().ok() } else { None };
    let parts = stem.rsplit_once("-of-").and_then(|(left, total)| {
        let (name, part) = left.rsplit_once('-')?;
        Some((name, number(part)?, number(total)?))
    });
    parts.unwrap_or((stem, 1, 1))
}

/// The quantisation that a file name ends with: `UD-Q4_K_XL`, `IQ3_XXS`, `BF16`.
fn quant(stem: &str) -> Option<String> {
    let name = stem.rsplit('/').next().unwrap_or(stem).to_ascii_uppercase();
    let (rest, tag) = name.rsplit_once(['-', '.'])?;
    let known = ["Q", "IQ", "TQ"]
        .iter()
        .any(|family| tag.strip_prefix(family).is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit())));
    if !known && !matches!(tag, "F16" | "F32" | "BF16") && !tag.starts_with("MXFP4") && !tag.starts_with("NVFP4") {
        return None;
    }
    let dynamic = rest.ends_with("-UD") || rest == "UD";
    Some(if dynamic { format!("UD-{tag}") } else { tag.to_owned() })
}
