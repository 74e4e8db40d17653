//! Words into lines: a word that no longer fits starts the next line, below the text and not below the bullet.
//!
//! The width is asked for at every word, so a resized terminal counts from the next word on. A word is given out when
//! its end is known; wide characters (Chinese, Japanese) may part anywhere.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::paint::{Style, paint};

/// Longer lines are hard to read.
const MOST_COLUMNS: usize = 100;

/// Where the pen is.
#[derive(Debug, Default)]
pub struct Wrap {
    column: usize,
    /// Columns in front of continued lines.
    hang: usize,
    /// Painted and written in front of continued lines, such as the bar of a quote.
    margin: String,
    spaces: String,
    word: Vec<(Style, String)>,
    word_columns: usize,
}

impl Wrap {
    /// Starts a line with `lead` (already painted, `columns` wide); continued lines start with `margin` and blanks.
    pub fn start(&mut self, out: &mut String, lead: &str, columns: usize, margin: &str, margin_columns: usize) {
        out.push_str(lead);
        self.column = columns;
        self.margin = margin.to_owned();
        self.hang = columns.saturating_sub(margin_columns);
    }

    /// Appends text without newlines.
    pub fn put(&mut self, out: &mut String, style: Style, text: &str, width: usize) {
        for c in text.chars() {
            if c == ' ' || c == '\t' {
                self.flush(out, width);
                self.spaces.push_str(if c == '\t' { "    " } else { " " });
                continue;
            }
            let columns = c.width().unwrap_or(0);
            if columns > 1 {
                self.flush(out, width);
            }
            match self.word.last_mut() {
                Some((last, text)) if *last == style => text.push(c),
                _ => self.word.push((style, c.to_string())),
            }
            self.word_columns += columns;
        }
    }

    /// Ends the line.
    pub fn end(&mut self, out: &mut String, width: usize) {
        self.flush(out, width);
        self.spaces.clear();
        out.push('\n');
        self.column = 0;
        self.hang = 0;
        self.margin.clear();
    }

    /// Writes the word whose end is known now.
    fn flush(&mut self, out: &mut String, width: usize) {
        if self.word.is_empty() {
            return;
        }
        // One column stays free: some terminals wrap as soon as the last one is written.
        let width = width.min(MOST_COLUMNS).saturating_sub(1).max(8);
        let margin_columns = visible(&self.margin);
        let hang = self.hang.min(width / 2);
        let start = margin_columns + hang;
        if self.column > start && self.column + self.spaces.len() + self.word_columns > width {
            out.push('\n');
            out.push_str(&self.margin);
            out.extend(std::iter::repeat_n(' ', hang));
            self.column = start;
        } else {
            out.push_str(&self.spaces);
            self.column += self.spaces.len();
        }
        self.spaces.clear();
        for (style, text) in self.word.drain(..) {
            paint(out, style, &text);
        }
        self.column += std::mem::take(&mut self.word_columns);
    }
}

/// Columns of a painted text.
pub fn visible(text: &str) -> usize {
    let mut columns = 0;
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        columns += before.width();
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    columns + rest.width()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(text: &str, width: usize, lead: &str) -> String {
        let (mut wrap, mut out) = (Wrap::default(), String::new());
        wrap.start(&mut out, lead, lead.width(), "", 0);
        text.chars().for_each(|c| wrap.put(&mut out, "", &c.to_string(), width));
        wrap.end(&mut out, width);
        out
    }

    #[test]
    fn words_stay_whole_and_lines_hang_below_the_text() {
        assert_eq!(wrapped("aaa bbb ccc ddd", 12, ""), "aaa bbb ccc\nddd\n");
        assert_eq!(wrapped("aaa bbb ccc ddd", 12, "- "), "- aaa bbb\n  ccc ddd\n");
        assert_eq!(wrapped("a  b   c", 80, ""), "a  b   c\n");
        assert_eq!(wrapped("", 80, ""), "\n");
        assert_eq!(wrapped("trailing   ", 80, ""), "trailing\n");
    }

    #[test]
    fn a_word_longer_than_the_line_is_left_to_the_terminal() {
        assert_eq!(
            wrapped("go https://example.org/a/long/path on", 16, ""),
            "go\nhttps://example.org/a/long/path\non\n"
        );
    }

    #[test]
    fn wide_characters_count_twice_and_part_anywhere() {
        assert_eq!(wrapped("日本語日本語日本語", 13, ""), "日本語日本語\n日本語\n");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_at_any_width() {
        let text = "The quick *brown* fox: jumps over the lazy dog, 日本語 and é too.";
        for width in 12..70 {
            for line in wrapped(text, width, "1. ").lines() {
                assert!(visible(line) < width, "{width}: {line}");
            }
        }
    }
}
