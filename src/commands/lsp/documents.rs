//! The open documents as the client tells them, and its positions in them.
//!
//! A position is a line and a count of units that were agreed on at the start: bytes, UTF-16 units or characters. Places
//! that do not exist are taken to the nearest one that does, as the protocol asks for columns, so that no message of a
//! client that is out of step can do harm.

use std::collections::HashMap;
use std::path::PathBuf;

use lsp_types::{Position, PositionEncodingKind, TextDocumentContentChangeEvent};

/// What a column counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    Utf8,
    #[default]
    Utf16,
    Utf32,
}

impl Encoding {
    /// The first of the client's encodings; all three are known here.
    pub fn negotiate(offered: &[PositionEncodingKind]) -> Encoding {
        let known = |kind: &PositionEncodingKind| match kind.as_str() {
            "utf-8" => Some(Encoding::Utf8),
            "utf-16" => Some(Encoding::Utf16),
            "utf-32" => Some(Encoding::Utf32),
            _ => None,
        };
        offered.iter().find_map(known).unwrap_or_default()
    }

    /// As the protocol names it.
    pub fn kind(self) -> PositionEncodingKind {
        match self {
            Encoding::Utf8 => PositionEncodingKind::UTF8,
            Encoding::Utf16 => PositionEncodingKind::UTF16,
            Encoding::Utf32 => PositionEncodingKind::UTF32,
        }
    }

    /// Units of a text.
    pub fn width(self, text: &str) -> u32 {
        let width = match self {
            Encoding::Utf8 => text.len(),
            Encoding::Utf16 => text.encode_utf16().count(),
            Encoding::Utf32 => text.chars().count(),
        };
        width as u32
    }

    /// Byte offset of a position; a place inside a character is its start.
    pub fn offset(self, text: &str, position: Position) -> usize {
        let line = line_starts(text).nth(position.line as usize).map_or("", |start| &text[start..]);
        let start = text.len() - line.len();
        let line = &line[..line.find(['\n', '\r']).unwrap_or(line.len())];
        let mut left = u64::from(position.character);
        for (at, c) in line.char_indices() {
            let width = match self {
                Encoding::Utf8 => c.len_utf8(),
                Encoding::Utf16 => c.len_utf16(),
                Encoding::Utf32 => 1,
            } as u64;
            if left < width {
                return start + at;
            }
            left -= width;
        }
        start + line.len()
    }
}

/// Byte offsets where lines start; a line ends with \n, \r\n or \r.
fn line_starts(text: &str) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    let ends =
        (0..bytes.len()).filter(move |&i| bytes[i] == b'\n' || bytes[i] == b'\r' && bytes.get(i + 1) != Some(&b'\n'));
    std::iter::once(0).chain(ends.map(|i| i + 1))
}

/// The texts of the open documents, by URI.
#[derive(Debug, Default)]
pub struct Documents {
    texts: HashMap<String, String>,
}

impl Documents {
    /// Opens or replaces a document.
    pub fn open(&mut self, uri: String, text: String) {
        self.texts.insert(uri, text);
    }

    /// Forgets a document.
    pub fn close(&mut self, uri: &str) {
        self.texts.remove(uri);
    }

    /// A document's text.
    pub fn text(&self, uri: &str) -> Option<&str> {
        self.texts.get(uri).map(String::as_str)
    }

    /// The text of the open document at a path.
    pub fn at(&self, path: &std::path::Path) -> Option<&str> {
        let found = self.texts.iter().find(|(uri, _)| self::path(uri).as_deref() == Some(path));
        found.map(|(_, text)| text.as_str())
    }

    /// Applies changes in order; false when the document is not open.
    pub fn change(&mut self, uri: &str, changes: Vec<TextDocumentContentChangeEvent>, encoding: Encoding) -> bool {
        let Some(text) = self.texts.get_mut(uri) else { return false };
        for change in changes {
            match change.range {
                None => *text = change.text,
                Some(range) => {
                    let start = encoding.offset(text, range.start);
                    let end = encoding.offset(text, range.end).max(start);
                    text.replace_range(start..end, &change.text);
                }
            }
        }
        true
    }
}

/// The path that a file: URI names.
pub fn path(uri: &str) -> Option<PathBuf> {
    let rest = uri.strip_prefix("file://")?;
    let rest = &rest[rest.find('/')?..]; // a host's name is of no use here
    let mut bytes = Vec::with_capacity(rest.len());
    let mut left = rest.bytes();
    while let Some(byte) = left.next() {
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let mut ahead = left.clone();
        match (byte, hex(ahead.next()), hex(ahead.next())) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                left = ahead;
            }
            _ => bytes.push(byte),
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    // `/c:/folder` is how Windows' paths are spelled there.
    let drive = cfg!(windows) && text.as_bytes().get(2) == Some(&b':');
    Some(PathBuf::from(if drive { &text[1..] } else { &text[..] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: u32, character: u32) -> Position {
        Position { line, character }
    }

    #[test]
    fn columns_count_what_was_agreed_on() {
        let text = "a\r\nçx𝄞y\rlast";
        for (encoding, columns) in
            [(Encoding::Utf8, [0, 2, 3, 7, 8]), (Encoding::Utf16, [0, 1, 2, 4, 5]), (Encoding::Utf32, [0, 1, 2, 3, 4])]
        {
            let found: Vec<usize> = columns.iter().map(|&column| encoding.offset(text, at(1, column))).collect();
            assert_eq!(found, [3, 5, 6, 10, 11], "{encoding:?}");
        }
        assert_eq!(Encoding::Utf16.offset(text, at(1, 3)), 6, "inside of a surrogate pair");
        assert_eq!(Encoding::Utf16.offset(text, at(0, 99)), 1, "behind the line's end, before its break");
        assert_eq!(Encoding::Utf16.offset(text, at(2, 4)), text.len());
        assert_eq!(Encoding::Utf16.offset(text, at(u32::MAX, u32::MAX)), text.len());
        assert_eq!(Encoding::Utf16.width("ç𝄞"), 3);
    }

    #[test]
    fn edits_are_applied_in_order_and_wrong_ones_do_no_harm() {
        let edit = |start, end, text: &str| TextDocumentContentChangeEvent {
            range: Some(lsp_types::Range { start, end }),
            range_length: None,
            text: text.to_owned(),
        };
        let mut documents = Documents::default();
        documents.open("u".into(), "one\ntwo\n".into());
        let edits = vec![edit(at(1, 0), at(1, 3), "drei"), edit(at(1, 4), at(1, 4), "!"), edit(at(0, 1), at(0, 3), "")];
        assert!(documents.change("u", edits, Encoding::Utf16));
        assert_eq!(documents.text("u"), Some("o\ndrei!\n"));
        documents.change("u", vec![edit(at(1, 9), at(0, 0), "?")], Encoding::Utf16);
        assert_eq!(documents.text("u"), Some("o\ndrei!?\n"));
        let whole = TextDocumentContentChangeEvent { range: None, range_length: None, text: "x".into() };
        documents.change("u", vec![whole], Encoding::Utf16);
        assert_eq!(documents.text("u"), Some("x"));
        assert!(!documents.change("v", vec![], Encoding::Utf16));
    }

    #[cfg(unix)]
    #[test]
    fn file_uris_are_paths() {
        assert_eq!(path("file:///a%20b/%C3%A7.rs"), Some(PathBuf::from("/a b/ç.rs")));
        assert_eq!(path("file://host/a"), Some(PathBuf::from("/a")));
        assert_eq!(path("file:///50%"), Some(PathBuf::from("/50%")));
        assert_eq!(path("untitled:1"), None);
        assert_eq!(path("file:///%ff"), None);
    }

    #[test]
    fn the_clients_first_encoding_is_taken() {
        let kinds =
            |kinds: &[&'static str]| kinds.iter().map(|kind| PositionEncodingKind::new(kind)).collect::<Vec<_>>();
        assert_eq!(Encoding::negotiate(&[]), Encoding::Utf16);
        assert_eq!(Encoding::negotiate(&kinds(&["utf-7", "utf-8", "utf-16"])), Encoding::Utf8);
        assert_eq!(Encoding::negotiate(&kinds(&["utf-32"])), Encoding::Utf32);
    }
}
