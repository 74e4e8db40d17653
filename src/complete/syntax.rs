//! What a family of languages looks like between its words: comments, strings, brackets.
//!
//! Enough to tell a bracket that counts from one in a string, and no more: no grammar, no names. A language that is not
//! here is read as plain text with double quotes. Without a file name the family is guessed from the text.

use std::path::Path;

/// How a quotation mark is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It is a character like any other.
    None,
    /// A text that ends on its line.
    Line,
    /// A text that may go on over lines.
    Lines,
    /// The same without escapes.
    Raw,
    /// A character; a lone mark is a lifetime or a digit separator.
    Character,
    /// A text with `${code}` inside.
    Template,
}

/// One family's marks.
#[derive(Debug, PartialEq, Eq)]
pub struct Syntax {
    pub line_comments: &'static [&'static str],
    pub block_comment: Option<(&'static str, &'static str)>,
    pub nested_comments: bool,
    pub double: Mark,
    pub single: Mark,
    pub backtick: Mark,
    /// Three marks in a row open a text over lines.
    pub triple: bool,
    /// `r#"text"#` and `R"x(text)x"`.
    pub raw_prefix: bool,
    /// `/regex/`, where a value may stand.
    pub regex: bool,
    /// Lines that begin with `#` are the preprocessor's.
    pub directives: bool,
    /// Round brackets come in pairs (a shell's `case` has single ones).
    pub round_pairs: bool,
    /// Words that close a block, as a bracket does.
    pub enders: &'static [&'static str],
}

const PLAIN: Syntax = Syntax {
    line_comments: &[],
    block_comment: None,
    nested_comments: false,
    double: Mark::Line,
    single: Mark::None,
    backtick: Mark::None,
    triple: false,
    raw_prefix: false,
    regex: false,
    directives: false,
    round_pairs: true,
    enders: &[],
};
const SLASHES: Syntax =
    Syntax { line_comments: &["//"], block_comment: Some(("/*", "*/")), single: Mark::Character, ..PLAIN };
const PYTHON: Syntax = Syntax { line_comments: &["#"], single: Mark::Line, triple: true, ..PLAIN };
const RUST: Syntax = Syntax { nested_comments: true, double: Mark::Lines, raw_prefix: true, ..SLASHES };
const C: Syntax = Syntax { raw_prefix: true, directives: true, ..SLASHES };
const SCRIPT: Syntax = Syntax { single: Mark::Line, backtick: Mark::Template, regex: true, ..SLASHES };
const GO: Syntax = Syntax { backtick: Mark::Raw, ..SLASHES };
const JAVA: Syntax = Syntax { triple: true, ..SLASHES };
const PHP: Syntax = Syntax { line_comments: &["//", "#"], double: Mark::Lines, single: Mark::Lines, ..SLASHES };
const RUBY: Syntax = Syntax {
    line_comments: &["#"],
    double: Mark::Lines,
    single: Mark::Lines,
    backtick: Mark::Line,
    regex: true,
    enders: &["end"],
    ..PLAIN
};
const SHELL: Syntax = Syntax {
    line_comments: &["#"],
    double: Mark::Lines,
    single: Mark::Raw,
    round_pairs: false,
    enders: &["fi", "done", "esac"],
    ..PLAIN
};
const LUA: Syntax = Syntax {
    line_comments: &["--"],
    block_comment: Some(("--[[", "]]")),
    single: Mark::Line,
    enders: &["end", "until"],
    ..PLAIN
};
const SQL: Syntax = Syntax { line_comments: &["--"], block_comment: Some(("/*", "*/")), single: Mark::Lines, ..PLAIN };
const SETTINGS: Syntax = Syntax { line_comments: &["#"], single: Mark::Line, triple: true, ..PLAIN };
const STYLE: Syntax = Syntax { block_comment: Some(("/*", "*/")), single: Mark::Line, ..PLAIN };

/// The family of a file by its name; none for names that say nothing.
pub fn by_name(path: &Path) -> Option<&'static Syntax> {
    let extension = path.extension()?.to_str()?.to_lowercase();
    Some(match extension.as_str() {
        "py" | "pyi" | "pyx" | "bzl" => &PYTHON,
        "rs" => &RUST,
        "c" | "h" | "cc" | "cpp" | "cxx" | "c++" | "hh" | "hpp" | "hxx" | "cu" | "cuh" | "m" | "mm" | "cs" => &C,
        "js" | "jsx" | "mjs" | "cjs" | "ts" | "tsx" | "mts" | "cts" | "vue" | "svelte" => &SCRIPT,
        "go" => &GO,
        "java" | "kt" | "kts" | "swift" | "scala" | "dart" | "groovy" | "zig" => &JAVA,
        "php" => &PHP,
        "rb" | "ex" | "exs" | "cr" => &RUBY,
        "jl" => &Syntax { single: Mark::Character, regex: false, ..RUBY },
        "sh" | "bash" | "zsh" => &SHELL,
        "lua" => &LUA,
        "sql" => &SQL,
        "toml" | "yaml" | "yml" | "cfg" | "ini" => &SETTINGS,
        "css" | "scss" | "less" => &STYLE,
        "json" => &PLAIN,
        "txt" | "md" => &PLAIN,
        _ => return None,
    })
}

/// The family that a text looks like: the one with the most telling lines.
pub fn by_text(prefix: &str, suffix: &str) -> &'static Syntax {
    let lines = || prefix.lines().rev().take(400).chain(suffix.lines().take(200)).map(str::trim);
    let count = |telling: &dyn Fn(&str) -> bool| lines().filter(|line| telling(line)).count();
    let starts = |line: &str, words: &[&str]| words.iter().any(|word| line.starts_with(word));
    let found: [(usize, &'static Syntax); 8] = [
        (
            count(&|line| {
                starts(line, &["elif ", "import ", "from "]) && !line.ends_with([';', '\''])
                    || starts(line, &["def ", "class ", "if ", "for ", "while ", "with ", "try", "else"])
                        && line.ends_with(':')
                    || line.starts_with("def ") && line.contains("):")
            }),
            &PYTHON,
        ),
        (
            count(&|line| {
                starts(line, &["fn ", "pub fn", "impl", "let mut ", "use ", "match ", "#[", "pub struct", "mod "])
                    || line.contains("::<")
                    || line.contains("!(")
                    || line.starts_with("let ") && line.ends_with(';') && !line.contains("=>")
            }),
            &RUST,
        ),
        (
            count(&|line| {
                starts(
                    line,
                    &["#include", "#define", "#if", "#endif", "static ", "int ", "char ", "void ", "std::", "struct "],
                ) || line.contains("->") && line.ends_with(';')
            }),
            &C,
        ),
        (
            count(&|line| {
                starts(
                    line,
                    &[
                        "const ",
                        "function ",
                        "export ",
                        "import {",
                        "console.",
                        "var ",
                        "async ",
                        "});",
                        "it('",
                        "describe(",
                    ],
                ) || line.contains("=> {")
                    || line.contains("===")
                    || line.contains("function(")
                    || line.contains("require(")
            }),
            &SCRIPT,
        ),
        (
            count(&|line| starts(line, &["func ", "package ", "import (", "defer ", "if err"]) || line.contains(":= ")),
            &GO,
        ),
        (
            count(&|line| {
                line == "end" || line.ends_with('|') && line.contains(" do |") || starts(line, &["puts ", "require '"])
            }),
            &RUBY,
        ),
        (
            count(&|line| {
                matches!(line, "fi" | "done" | "esac") || starts(line, &["#!/bin/", "#!/usr/bin/env bash", "echo "])
            }),
            &SHELL,
        ),
        (count(&|line| starts(line, &["local ", "--"]) || line.ends_with(" then") && !line.contains(';')), &LUA),
    ];
    // Of equals the first: the order above is that of use.
    let best = found.iter().rev().max_by_key(|(count, _)| *count);
    best.filter(|(count, _)| *count > 0).map_or(&PLAIN, |(_, syntax)| syntax)
}
