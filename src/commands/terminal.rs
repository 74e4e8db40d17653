//! The last step before standard error, and before standard output when it is a terminal: what could drive a terminal is
//! shown in place of being obeyed.
//!
//! Names, templates, tokens and listings come out of files from the internet. A control character in them (C0, DEL, C1)
//! could move the cursor, set the title or answer as the keyboard; a bidirectional override shows a name in another order
//! than it has. Each becomes its JSON escape (`\u001b`), so that JSON at a terminal stays JSON. Newlines and tabs pass, and a
//! carriage return in front of a newline. Bytes that are no UTF-8 become U+FFFD. A pipe or a file gets the bytes as they are.
//!
//! Who paints (the chat, the heat map) writes its own colours past this and cleans the text itself, by [`harmless`].

use std::borrow::Cow;
use std::io::{self, IsTerminal, Stderr, StdoutLock, Write};

/// Whether a terminal could be driven by it, or what is read be made to differ from what is there.
pub fn is_harmful(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') || c.is_control() && c != '\n' && c != '\t'
}

/// The text with its harmful characters as escapes.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let line_end = c == '\r' && chars.peek() == Some(&'\n');
        if is_harmful(c) && !line_end {
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Standard error, cleaned.
pub fn stderr() -> Clean<Stderr> {
    Clean { out: io::stderr(), on: true, pending: vec![] }
}

/// Standard output, cleaned when it is a terminal.
pub fn stdout() -> Clean<StdoutLock<'static>> {
    let out = io::stdout();
    Clean { on: out.is_terminal(), out: out.lock(), pending: vec![] }
}

/// A writer that lets nothing harmful through.
pub struct Clean<W: Write> {
    out: W,
    on: bool,
    pending: Vec<u8>, // the beginning of a character, or a carriage return
}

impl<W: Write> Clean<W> {
    /// Passes on what `pending` and `bytes` hold in whole characters.
    fn pass(&mut self, bytes: &[u8], last: bool) -> io::Result<()> {
        let joined;
        let bytes = if self.pending.is_empty() {
            bytes
        } else {
            joined = [&std::mem::take(&mut self.pending)[..], bytes].concat();
            &joined
        };
        let mut whole = bytes.len();
        if !last {
            // A character's first byte says how long it is, and it is one of the last four.
            let start = bytes.iter().rposition(|b| b & 0xc0 != 0x80).filter(|at| bytes.len() - at < 4);
            if let Some(at) = start {
                let length = match bytes[at] {
                    0xf0.. => 4,
                    0xe0.. => 3,
                    0xc0.. => 2,
                    // What follows may be its newline.
                    b'\r' if at + 1 == bytes.len() => 2,
                    _ => 1,
                };
                whole = if at + length > bytes.len() { at } else { whole };
            }
        }
        self.pending.extend_from_slice(&bytes[whole..]);
        self.out.write_all(harmless(&String::from_utf8_lossy(&bytes[..whole])).as_bytes())
    }
}

impl<W: Write> Write for Clean<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.on {
            return self.out.write(bytes);
        }
        self.pass(bytes, false)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Drop for Clean<W> {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // Nobody is left to tell.
            let _ = self.pass(&[], true).and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(pieces: &[&[u8]]) -> String {
        let mut out = vec![];
        let mut clean = Clean { out: &mut out, on: true, pending: vec![] };
        pieces.iter().for_each(|piece| clean.write_all(piece).unwrap());
        drop(clean);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_drives_a_terminal_is_shown_and_the_rest_passes() {
        let evil = "\u{1b}]0;title\u{7}\u{9b}31m\u{7f}a\rb\u{202e}c\u{2066}\u{0}";
        let shown = r"\u001b]0;title\u0007\u009b31m\u007fa\u000db\u202ec\u2066\u0000";
        assert_eq!(through(&[evil.as_bytes()]), shown);
        assert!(!through(&[evil.as_bytes()]).contains(is_harmful));
        let fine = "tab\t newline\n windows\r\n 日本語 👩‍👩‍👧 עברית e\u{301} \u{200d}";
        assert_eq!(through(&[fine.as_bytes()]), fine);
        assert_eq!(through(&[b"a\x9bb\xff"]), "a\u{fffd}b\u{fffd}", "a C1 byte alone is no UTF-8");
    }

    #[test]
    fn where_a_text_is_cut_changes_nothing() {
        let text = "a\r\nb\rc\u{9b}日本\u{202e}👩‍👧\u{1b}[0m\r".as_bytes();
        let whole = through(&[text]);
        for first in 0..=text.len() {
            for second in first..=text.len() {
                assert_eq!(
                    through(&[&text[..first], &text[first..second], &text[second..]]),
                    whole,
                    "{first} {second}"
                );
            }
        }
        assert_eq!(through(&[b"\xf0\x9f", b"x"]), "\u{fffd}x");
    }

    #[test]
    fn json_stays_json() {
        let value = serde_json::json!({ "name": "\u{9b}31m\u{202e}\u{1b}x\u{7f}" });
        let shown = through(&[value.to_string().as_bytes()]);
        assert!(!shown.contains(is_harmful));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
