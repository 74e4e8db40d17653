//! Code in colours, line by line. The syntaxes are loaded when the first code block with a language begins.
//!
//! The theme maps scopes to the terminal's own colours, instead of fixed ones that a light background would swallow.
//! It is written for syntect's matching of scopes; the number of a colour travels in the red channel.

use std::str::FromStr;
use std::sync::LazyLock;

use syntect::easy::HighlightLines;
use syntect::highlighting::{Color, FontStyle, ScopeSelectors, StyleModifier, Theme, ThemeItem, ThemeSettings};
use syntect::parsing::{SyntaxReference, SyntaxSet};

use super::paint::{Style, paint};

static SYNTAXES: LazyLock<SyntaxSet> = LazyLock::new(SyntaxSet::load_defaults_newlines);
static THEME: LazyLock<Theme> = LazyLock::new(theme);

/// By the number in the red channel.
const STYLES: [Style; 8] = ["", "2", "32", "33", "35", "34", "36", "31"];

/// Scopes and the number of their style; later ones win over earlier ones of equal depth.
const SCOPES: &[(&str, u8)] = &[
    ("comment, punctuation.definition.comment", 1),
    ("string, punctuation.definition.string", 2),
    ("constant, constant.numeric, constant.language, constant.character.escape", 3),
    ("keyword, storage.modifier, storage.type, keyword.operator.word", 4),
    ("entity.name.function, support.function, variable.function, entity.name.tag, support.macro", 5),
    (
        "entity.name.type, entity.name.class, entity.name.struct, entity.name.enum, entity.name.trait, support.type, support.class, storage.type.class entity",
        6,
    ),
    ("entity.other.attribute-name, variable.annotation, meta.annotation", 6),
    ("invalid", 7),
    ("keyword.operator", 0),
];

/// The state of one code block.
pub struct Highlighter {
    lines: HighlightLines<'static>,
}

impl Highlighter {
    /// For the word behind a fence; `None` where no syntax is known for it.
    pub fn new(language: &str) -> Option<Highlighter> {
        let language = language.split(|c: char| c.is_whitespace() || ",{".contains(c)).next().unwrap_or_default();
        if language.is_empty() {
            return None;
        }
        Some(Highlighter { lines: HighlightLines::new(find(&language.to_ascii_lowercase())?, &THEME) })
    }

    /// Appends a line (without its end) in colours.
    pub fn line(&mut self, out: &mut String, line: &str) {
        let with_end = format!("{line}\n");
        match self.lines.highlight_line(&with_end, &SYNTAXES) {
            Ok(parts) => {
                for (style, text) in parts {
                    let number = usize::from(style.foreground.r);
                    paint(out, STYLES.get(number).copied().unwrap_or_default(), text.trim_end_matches('\n'));
                }
            }
            // A syntax with a broken pattern: the text matters more than its colours.
            Err(_) => out.push_str(line),
        }
    }
}

fn find(language: &str) -> Option<&'static SyntaxReference> {
    // What the default set lacks is shown as its nearest relative.
    let name = match language {
        "typescript" | "ts" | "tsx" | "jsx" | "mjs" | "node" => "js",
        "c++" | "cxx" | "hpp" | "cuda" | "cu" | "arduino" => "cpp",
        "shell" | "console" | "zsh" | "shell-session" => "sh",
        "golang" => "go",
        "py3" | "python3" => "py",
        "jsonc" | "json5" => "json",
        "kotlin" | "kt" | "swift" | "dart" => "scala",
        "vue" | "svelte" => "html",
        "scss" | "less" => "css",
        other => other,
    };
    let set = &*SYNTAXES;
    let found = set.find_syntax_by_token(name)?;
    (found.name != "Plain Text").then_some(found)
}

fn theme() -> Theme {
    let colour = |r| Color { r, g: 0, b: 0, a: 255 };
    let item = |&(scopes, number): &(&str, u8)| {
        let style =
            StyleModifier { foreground: Some(colour(number)), background: None, font_style: Some(FontStyle::empty()) };
        Some(ThemeItem { scope: ScopeSelectors::from_str(scopes).ok()?, style })
    };
    Theme {
        name: None,
        author: None,
        settings: ThemeSettings { foreground: Some(colour(0)), ..ThemeSettings::default() },
        scopes: SCOPES.iter().filter_map(item).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coloured(language: &str, line: &str) -> String {
        let mut out = String::new();
        Highlighter::new(language).unwrap().line(&mut out, line);
        out
    }

    #[test]
    fn keywords_strings_numbers_and_comments_have_their_colours() {
        let rust = coloured("rust", "fn main() { let x = \"a\"; } // 1");
        assert!(rust.contains("\x1b[35mfn\x1b[0m") && rust.contains("\x1b[34mmain\x1b[0m"), "{rust:?}");
        assert!(rust.contains("\x1b[35mlet\x1b[0m") && rust.contains("\x1b[2m"), "{rust:?}");
        let python = coloured("python", "return 42");
        assert!(python.contains("\x1b[35mreturn\x1b[0m") && python.contains("\x1b[33m42\x1b[0m"), "{python:?}");
    }

    #[test]
    fn every_scope_selector_is_well_formed() {
        assert_eq!(theme().scopes.len(), SCOPES.len());
        assert!(SCOPES.iter().all(|(_, number)| usize::from(*number) < STYLES.len()));
    }

    #[test]
    fn common_names_find_a_syntax_and_unknown_ones_none() {
        for name in [
            "rust",
            "rs",
            "Python",
            "py",
            "c",
            "C++",
            "go",
            "ts",
            "typescript",
            "bash",
            "json",
            "html",
            "sql",
            "rust,ignore",
        ] {
            assert!(Highlighter::new(name).is_some(), "{name}");
        }
        for name in ["", "text", "no-such-language"] {
            assert!(Highlighter::new(name).is_none(), "{name}");
        }
    }

    #[test]
    fn without_its_colours_the_line_is_as_it_was() {
        for (language, line) in
            [("rust", "  let s: &str = \"\\u{1F980}\"; /* é */"), ("js", "a ? `${b}` : /c/g"), ("py", "\tx")]
        {
            let painted = coloured(language, line);
            let mut plain = String::new();
            let mut rest = painted.as_str();
            while let Some((before, after)) = rest.split_once("\x1b[") {
                plain.push_str(before);
                rest = after.split_once('m').unwrap().1;
            }
            assert_eq!(plain + rest, line);
        }
    }
}
