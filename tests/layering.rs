//! The law of src/lib.rs: a module uses only modules above it, and some not even those.
//!
//! Sources are read as tokens, comments and strings dropped. A use of a module is `crate::x`, `rynd::x`, each name of
//! `crate::{x, y::z}`, or enough `super::` to reach the root; a ban may also name another crate.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

/// Bans beyond the order: (module, what it must not name, why).
const BANS: &[(&str, &[&str], &str)] = &[
    ("cpu", &["models", "gpu"], "an executor runs any plan and knows no architecture and no other executor"),
    ("gpu", &["models", "cpu"], "an executor runs any plan and knows no architecture and no other executor"),
    ("tokenizer", TENSORS, "text never sees tensors"),
    ("chat", TENSORS, "text never sees tensors"),
    ("sampler", TENSORS, "sampling never sees tensors"),
    ("server", &["plan", "cpu", "gpu"], "surfaces go through generate and engine"),
    ("commands", &["plan", "cpu", "gpu"], "surfaces go through generate and engine"),
];
const TENSORS: &[&str] = &["weights", "backend", "plan", "rynd_quant"];

/// A name of this crate's root (or another crate) that a source uses.
#[derive(Debug, PartialEq)]
struct Use {
    line: usize,
    name: String,
}

/// The modules in the order of lib.rs.
fn modules(lib: &str) -> Vec<String> {
    let tokens = tokens(lib);
    tokens.windows(3).filter(|w| w[0].1 == "mod" && w[2].1 == ";").map(|w| w[1].1.to_owned()).collect()
}

/// What a source of this module breaks, one line each. `depth` is how many `super` lead to the root.
fn violations(file: &str, source: &str, module: &str, depth: usize, order: &[String]) -> Vec<String> {
    let own = order.iter().position(|m| m == module);
    let mut found = vec![];
    for Use { line, name } in uses(source, depth, order) {
        let at = format!("{file}:{line}");
        if name == "*" {
            found.push(format!("{at}: '{module}' takes everything from the root; name the modules"));
        }
        if let (Some(own), Some(other)) = (own, order.iter().position(|m| *m == name))
            && other > own
        {
            found.push(format!("{at}: '{module}' uses '{name}', which is below it in src/lib.rs"));
        }
        for (banned, names, why) in BANS {
            if *banned == module && names.contains(&name.as_str()) {
                found.push(format!("{at}: '{module}' uses '{name}': {why}"));
            }
        }
    }
    found
}

fn uses(source: &str, depth: usize, order: &[String]) -> Vec<Use> {
    let tokens = tokens(source);
    let text = |i: usize| tokens.get(i).map_or("", |t| t.1);
    let mut found = vec![];
    let mut i = 0;
    while i < tokens.len() {
        let start = i == 0 || text(i - 1) != "::" || (i > 1 && text(i - 2) == "$");
        i += 1;
        if !start || text(i) != "::" {
            continue;
        }
        let first = text(i - 1);
        if first == "rynd_quant" {
            found.push(Use { line: tokens[i - 1].0, name: first.to_owned() });
            continue;
        }
        let mut supers = 0;
        while text(i - 1) == "super" && text(i) == "::" {
            (supers, i) = (supers + 1, i + 2);
        }
        let root = match first {
            "crate" | "rynd" => {
                i += 1;
                true
            }
            // An inline module adds one level, so a longer chain may stop short of the root; then it names no module.
            "super" => {
                i -= 1;
                supers >= depth
            }
            _ => false,
        };
        if root {
            let is_super = first == "super";
            for (line, name) in tree(&tokens, &mut i) {
                if !is_super || order.iter().any(|m| m == name) {
                    found.push(Use { line, name: name.to_owned() });
                }
            }
        }
    }
    found
}

/// The first names of the use tree that starts at `i`: `a` of `a::b`, `a` and `b` of `{a::{x, y}, b}`.
fn tree<'a>(tokens: &[(usize, &'a str)], i: &mut usize) -> Vec<(usize, &'a str)> {
    let Some(&(line, first)) = tokens.get(*i) else { return vec![] };
    *i += 1;
    if first != "{" {
        return vec![(line, first)];
    }
    let (mut names, mut depth, mut fresh) = (vec![], 1, true);
    while let Some(&(line, token)) = tokens.get(*i) {
        *i += 1;
        match token {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => {
                fresh = true;
                continue;
            }
            name if fresh => names.push((line, name)),
            _ => {}
        }
        fresh = false;
        if depth == 0 {
            break;
        }
    }
    names
}

/// Words and punctuation with their lines; `::` is one token. Comments, strings and characters are left out.
fn tokens(source: &str) -> Vec<(usize, &str)> {
    let bytes = source.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    let (mut found, mut line, mut i) = (vec![], 1, 0);
    while i < bytes.len() {
        let start = i;
        let rest = &source.as_bytes()[i..];
        i += match rest[0] {
            b'/' if rest.starts_with(b"//") => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with(b"/*") => block_comment(rest),
            b'"' => string(rest, 0),
            b'\'' => character(rest),
            b'r' | b'b' | b'c' if raw_string(rest).is_some() => raw_string(rest).unwrap(),
            b if word(b) => {
                let len = rest.iter().position(|&b| !word(b)).unwrap_or(rest.len());
                found.push((line, &source[i..i + len]));
                len
            }
            b':' if rest.starts_with(b"::") => {
                found.push((line, "::"));
                2
            }
            b if b.is_ascii_whitespace() => 1,
            _ => {
                found.push((line, &source[i..i + 1]));
                1
            }
        };
        line += bytes[start..i.min(bytes.len())].iter().filter(|&&b| b == b'\n').count();
    }
    found
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        match &rest[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    rest.len()
}

/// Bytes of a string whose opening quote is at `open`.
fn string(rest: &[u8], open: usize) -> usize {
    let mut i = open + 1;
    while i < rest.len() {
        match rest[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

/// Bytes of a character, or 1 for the quote of a lifetime.
fn character(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', ..] => 3 + rest[3.min(rest.len())..].iter().position(|&b| b == b'\'').map_or(0, |n| n + 1),
        _ => {
            let text = String::from_utf8_lossy(&rest[..rest.len().min(8)]).into_owned();
            let c = text.chars().nth(1).map_or(1, char::len_utf8);
            if rest.get(1 + c) == Some(&b'\'') { c + 2 } else { 1 }
        }
    }
}

/// Bytes of `r"..."`, `r#"..."#`, `b"..."`, `br"..."`, `c"..."`; `None` when it is a word that starts so.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|b| b"brc".contains(b)).count();
    let raw = rest[..prefix].contains(&b'r');
    let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') || (!raw && hashes > 0) || prefix > 2 {
        return None;
    }
    if !raw {
        return Some(string(rest, prefix));
    }
    let end: Vec<u8> = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let body = prefix + hashes + 1;
    let close = rest[body..].windows(end.len()).position(|w| w == end);
    Some(close.map_or(rest.len(), |n| body + n + end.len()))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// Module of a file under src, and how many `super` lead from it to the root.
fn place(relative: &Path) -> (String, usize) {
    let parts: Vec<String> = relative.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let depth = parts.len() - usize::from(parts.last().is_some_and(|p| p == "mod"));
    (parts[0].clone(), depth)
}

#[test]
fn modules_use_only_what_is_above_them() {
    let order = modules(&std::fs::read_to_string("src/lib.rs").unwrap());
    assert!(order.len() > 10, "the modules of src/lib.rs were not found: {order:?}");
    let mut files = vec![];
    sources(Path::new("src"), &mut files);
    let mut found = vec![];
    for path in files {
        let (module, depth) = place(path.strip_prefix("src").unwrap());
        if module == "lib" || module == "main" {
            continue;
        }
        if !order.contains(&module) {
            found.push(format!("{}:1: module '{module}' is not in src/lib.rs", path.display()));
        }
        let source = std::fs::read_to_string(&path).unwrap();
        found.extend(violations(&path.display().to_string(), &source, &module, depth, &order));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// Modules whose bans stand before they do.
const TO_COME: [&str; 2] = ["gpu", "server"];

#[test]
fn every_ban_names_modules_that_exist() {
    let order = modules(&std::fs::read_to_string("src/lib.rs").unwrap());
    for (module, names, _) in BANS {
        for name in [module].into_iter().chain(*names).filter(|name| **name != "rynd_quant") {
            let exists = order.iter().any(|m| m == name) || TO_COME.contains(name);
            assert!(exists, "'{name}' is not a module of src/lib.rs");
        }
    }
}

// ---- the test tested ----

fn check(module: &str, depth: usize, source: &str) -> Vec<String> {
    let lib = "//! x\npub mod gguf;\npub mod sampler; // pub mod comment;\npub mod plan;\npub mod models;\npub mod cpu;\npub mod gpu;";
    let order = modules(lib);
    assert_eq!(order, ["gguf", "sampler", "plan", "models", "cpu", "gpu"]);
    violations("f.rs", source, module, depth, &order)
}

#[test]
fn a_use_of_a_lower_module_is_found_with_its_line() {
    assert_eq!(
        check("plan", 1, "use crate::gguf::Gguf;\n\nuse crate::models::Hyper;"),
        ["f.rs:3: 'plan' uses 'models', which is below it in src/lib.rs"]
    );
    for source in [
        "fn f() { crate::models::x() }",
        "use crate::{gguf::{Gguf, models}, plan, models as m};",
        "use crate::{\n    gguf,\n    models::{a, b},\n};",
        "use super::models::x;",
        "use super::{gguf, models};",
        "use rynd::models;",
        "macro_rules! m { () => { $crate::models::x } }",
        "type T<'a> = &'a crate::models::T;",
        "let c = '\"'; crate::models::x();",
        "let c = '\\''; crate::models::x();",
        "let s = \"\\\"\"; crate::models::x();",
        "let s = r#\"\"\"#; crate::models::x();",
    ] {
        assert_eq!(check("plan", 1, source).len(), 1, "{source}");
    }
    assert_eq!(check("plan", 3, "use super::super::super::models::x;").len(), 1);
    assert_eq!(check("plan", 1, "use crate::*;").len(), 1);
}

#[test]
fn what_is_above_or_only_looks_like_a_use_is_let_through() {
    for source in [
        "use crate::gguf::Gguf; use crate::plan::Op; use crate::{gguf, plan::{Op, models}};",
        "// use crate::models;\n/* crate::models /* crate::gpu */ crate::cpu */",
        "let s = \"crate::models\"; let r = r##\"crate::\"#models\"##; let b = b\"crate::models\";",
        "use other::crate_models; use self::models::x; use super::super::x; other::rynd::models();",
        "mod tests { use super::*; use super::super::plan; }",
    ] {
        assert_eq!(check("plan", 1, source), Vec::<String>::new(), "{source}");
    }
    assert!(check("plan", 2, "use super::models;").is_empty(), "a submodule of plan's own");
}

#[test]
fn bans_hold_beyond_the_order() {
    assert!(check("cpu", 1, "use crate::plan::Plan; use rynd_quant::Format;").is_empty());
    assert_eq!(check("cpu", 1, "use crate::models::x;").len(), 1);
    assert_eq!(check("gpu", 2, "use crate::cpu::x;").len(), 1);
    assert_eq!(check("sampler", 1, "use rynd_quant::Format;").len(), 1);
    assert_eq!(check("sampler", 1, "use crate::plan::Plan;").len(), 2, "below it, and banned");
}

#[test]
fn files_know_their_module_and_depth() {
    assert_eq!(place(Path::new("cpu/mod.rs")), ("cpu".to_owned(), 1));
    assert_eq!(place(Path::new("cpu.rs")), ("cpu".to_owned(), 1));
    assert_eq!(place(Path::new("cpu/dense.rs")), ("cpu".to_owned(), 2));
    assert_eq!(place(Path::new("gpu/ops/mod.rs")), ("gpu".to_owned(), 2));
}
