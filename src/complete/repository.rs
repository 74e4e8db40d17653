//! Which other files of a repository help to complete this one.
//!
//! Cheap and deterministic: files that the open file names in its imports come first, then those that share the rarest
//! identifiers with the text around the cursor. Ignore files are honoured; large, binary and generated-looking files are
//! left out. No index is kept.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A file that goes into the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextFile {
    /// Relative to the repository, with forward slashes.
    pub path: String,
    pub text: String,
}

/// Files larger than this are data or generated.
const MAX_BYTES: u64 = 64 << 10;
/// Files looked at; a repository beyond that is cut off in path order.
const MAX_FILES: usize = 2_000;
/// Entries walked over to find them.
const MAX_ENTRIES: usize = 50_000;
/// Bytes around the cursor whose identifiers count.
const NEAR: usize = 4 << 10;

/// The most relevant files for a cursor in `open` (relative to `root`), most relevant last: closest to the prefix.
/// `bytes` bounds their total size.
pub fn relevant(root: &Path, open: &Path, prefix: &str, suffix: &str, bytes: usize) -> Vec<ContextFile> {
    let family = family(open);
    let mut files: Vec<(PathBuf, String)> = vec![];
    let mut walk: Vec<PathBuf> = ignore::WalkBuilder::new(root)
        .sort_by_file_path(|a, b| a.cmp(b))
        .build()
        .take(MAX_ENTRIES)
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()))
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.len() <= MAX_BYTES))
        .map(ignore::DirEntry::into_path)
        .filter(|path| self::family(path) == family)
        .take(MAX_FILES)
        .collect();
    walk.sort();
    for path in walk {
        let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
        if relative == open {
            continue;
        }
        if let Ok(text) = std::fs::read_to_string(&path) {
            files.push((relative, text));
        }
    }

    let words: Vec<HashSet<&str>> = files.iter().map(|(_, text)| identifiers(text).collect()).collect();
    let mut seen_in: HashMap<&str, usize> = HashMap::new();
    words.iter().flatten().for_each(|word| *seen_in.entry(word).or_default() += 1);
    let near =
        format!("{}\n{}", &prefix[floor(prefix, prefix.len().saturating_sub(NEAR))..], &suffix[..floor(suffix, NEAR)]);
    let wanted: HashSet<&str> = identifiers(&near).collect();
    let imports = import_words(prefix);

    let mut ranked: Vec<(f64, usize)> = files
        .iter()
        .enumerate()
        .map(|(i, (path, text))| {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
            let imported = if imports.contains(stem.as_str()) { 100.0 } else { 0.0 };
            let shared: f64 = wanted
                .iter()
                .filter(|word| words[i].contains(*word))
                .map(|word| (files.len() as f64 / seen_in[word] as f64).ln_1p())
                .sum();
            // Longer files share more words by chance.
            (imported + shared / (1.0 + text.len() as f64 / 8192.0).sqrt(), i)
        })
        .filter(|(score, _)| *score > 1.0)
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));

    let mut left = bytes;
    let mut chosen = vec![];
    for (_, i) in ranked {
        let (path, text) = &files[i];
        if text.len() <= left {
            left -= text.len();
            let path = path.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
            chosen.push(ContextFile { path, text: text.clone() });
        }
    }
    chosen.reverse();
    chosen
}

/// The language of a file, as far as its extension tells: headers go with sources, types with scripts.
fn family(path: &Path) -> String {
    const FAMILIES: [&[&str]; 3] = [
        &["c", "h", "cc", "cpp", "cxx", "c++", "hh", "hpp", "hxx", "cu", "cuh"],
        &["ts", "tsx", "js", "jsx", "mjs", "cjs", "mts", "cts", "vue", "svelte"],
        &["py", "pyi", "pyx"],
    ];
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    FAMILIES.iter().find(|family| family.contains(&extension.as_str())).map_or(extension, |family| family[0].to_owned())
}

/// Lines that a cursor may move until the files around it are ranked again.
const NEAR_LINES: usize = 40;

/// The relevant files of a document under work, ranked anew only when that may matter: most of a prompt stands behind
/// them, so a new order costs all of it.
#[derive(Debug, Default)]
pub struct Neighbours {
    known: Option<(Place, Vec<ContextFile>)>,
}

/// What a ranking was made for.
#[derive(Debug)]
struct Place {
    root: PathBuf,
    open: PathBuf,
    line: usize,
    imports: HashSet<String>,
}

impl Neighbours {
    /// As `relevant`, from memory while the cursor stays near and the imports stay the same.
    pub fn relevant(
        &mut self,
        root: &Path,
        open: &Path,
        prefix: &str,
        suffix: &str,
        bytes: usize,
    ) -> &mut Vec<ContextFile> {
        let line = prefix.matches('\n').count();
        let imports = import_words(prefix);
        let near = |place: &Place| {
            place.root == root
                && place.open == open
                && place.line.abs_diff(line) <= NEAR_LINES
                && place.imports == imports
        };
        if !self.known.as_ref().is_some_and(|(place, _)| near(place)) {
            self.known = None;
        }
        let (_, files) = self.known.get_or_insert_with(|| {
            let place = Place { root: root.to_owned(), open: open.to_owned(), line, imports };
            (place, relevant(root, open, prefix, suffix, bytes))
        });
        files
    }
}

/// Identifiers of three characters or more.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| word.len() > 2 && !word.starts_with(|c: char| c.is_ascii_digit()))
}

/// Lower-case words of lines that import something, in the syntaxes that mainstream languages share.
fn import_words(text: &str) -> HashSet<String> {
    const STARTS: [&str; 8] = ["import ", "from ", "use ", "mod ", "pub mod ", "#include", "require", "const "];
    text.lines()
        .map(str::trim_start)
        .filter(|line| STARTS.iter().any(|start| line.starts_with(start)) || line.starts_with('"'))
        .filter(|line| !line.starts_with("const ") || line.contains("require("))
        .flat_map(|line| identifiers(line).map(str::to_lowercase).collect::<Vec<_>>())
        .collect()
}

/// The largest character boundary at or below `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imported_files_come_closest_and_unrelated_ones_stay_out() {
        let root = std::env::temp_dir().join(format!("rynd-repository-{}", std::process::id()));
        std::fs::create_dir_all(root.join("pkg")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
        write("pkg/geometry.py", "def area_of_polygon(points):\n    return 0\n");
        write("pkg/shapes.py", "class Polygon:\n    def perimeter_length(self): ...\n");
        write("pkg/unrelated.py", "xyz = 1\n");
        write("notes.txt", "area_of_polygon perimeter_length geometry\n");
        write("main.py", "");
        let prefix = "from pkg import geometry\n\ndef report(p):\n    total = p.perimeter_length() + ";
        let files = relevant(&root, Path::new("main.py"), prefix, "", 10_000);
        let paths: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(paths.last(), Some(&"pkg/geometry.py"));
        assert!(!paths.contains(&"pkg/unrelated.py") && !paths.contains(&"notes.txt"), "{paths:?}");
    }
}
