//! Colours by the terminal's own palette, and what of a model's text may reach a terminal.
//!
//! Only the 16 named colours are used: they suit light and dark backgrounds alike, because the user chose them.

use std::borrow::Cow;
use std::io::IsTerminal;

use crate::commands::terminal::is_harmful;

/// The parameters of an SGR sequence; empty is plain.
pub type Style = &'static str;

pub const PLAIN: Style = "";
pub const BOLD: Style = "1";
pub const ITALIC: Style = "3";
pub const BOLD_ITALIC: Style = "1;3";
pub const DIM: Style = "2";
pub const CODE: Style = "36";
pub const HEADING: Style = "1;35";
pub const BULLET: Style = "35";

/// Whether standard output is a terminal on which the cursor can be moved.
pub fn is_screen() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether the user wants colours there (https://no-color.org).
pub fn has_colours() -> bool {
    is_screen() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Appends the text in a style.
pub fn paint(out: &mut String, style: Style, text: &str) {
    if style.is_empty() || text.is_empty() {
        out.push_str(text);
    } else {
        out.push_str("\x1b[");
        out.push_str(style);
        out.push('m');
        out.push_str(text);
        out.push_str("\x1b[0m");
    }
}

/// Without the control characters by which a text could drive the terminal; newlines and tabs stay.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if text.contains(is_harmful) { Cow::Owned(text.replace(is_harmful, "")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_get_through() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c\r\n\td\x07\u{202e}"), "a[2Jbc\n\td");
        assert!(matches!(harmless("plain é\n"), Cow::Borrowed(_)));
    }
}
