//! Markdown to a terminal while it is being written, without ever moving the cursor back.
//!
//! A line's first characters tell what it is; from then on its words are given out as they come. Lines of code and rows
//! of tables are given out whole. What was written stays as it is: a resize changes only what follows.

use super::highlight::Highlighter;
use super::inline::Inline;
use super::paint::{BULLET, DIM, HEADING, PLAIN, Style, paint};
use super::table::Table;
use super::wrap::{Wrap, visible};

/// The state between two pieces of text.
#[derive(Default)]
pub struct Markdown {
    /// The line so far, as long as it is not decided what it is, or it is given out whole.
    line: String,
    now: Now,
    inline: Inline,
    wrap: Wrap,
    fence: Option<Fence>,
    table: Option<Table>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Now {
    /// At the start of a line.
    #[default]
    Undecided,
    /// Inside of text whose base style is this.
    Text(Style),
    /// Inside of a line that is given out whole.
    Held,
}

struct Fence {
    mark: char,
    count: usize,
    highlighter: Option<Highlighter>,
}

/// What the start of a line says.
#[derive(Debug, PartialEq)]
enum Kind {
    Fence,
    Row,
    Rule,
    Heading {
        skip: usize,
    },
    /// A bullet or number of `mark` bytes behind `indent` blanks.
    Item {
        indent: usize,
        mark: usize,
        skip: usize,
    },
    Quote {
        skip: usize,
    },
    Text {
        indent: usize,
    },
}

impl Markdown {
    /// Takes more text; what can be shown is appended to `out`. `width` is the terminal's now.
    pub fn push(&mut self, out: &mut String, text: &str, width: usize) {
        for piece in text.split_inclusive('\n') {
            let line = piece.strip_suffix('\n');
            self.part(out, line.unwrap_or(piece), width);
            if line.is_some() {
                self.end_line(out, width);
            }
        }
    }

    /// Ends the text. The next one starts afresh.
    pub fn finish(&mut self, out: &mut String, width: usize) {
        if self.now != Now::Undecided || !self.line.is_empty() {
            self.end_line(out, width);
        }
        self.end_table(out, width);
        *self = Markdown::default();
    }

    fn part(&mut self, out: &mut String, text: &str, width: usize) {
        match self.now {
            Now::Text(base) => self.text(out, base, text, width, false),
            Now::Held => self.line.push_str(text),
            Now::Undecided => {
                self.line.push_str(text);
                if self.fence.is_some() {
                    self.now = Now::Held;
                } else if let Some(kind) = kind(&self.line, false) {
                    self.begin(out, kind, width);
                }
            }
        }
    }

    /// Starts a line of this kind with what there is of it.
    fn begin(&mut self, out: &mut String, kind: Kind, width: usize) {
        if matches!(kind, Kind::Fence | Kind::Row | Kind::Rule) {
            self.now = Now::Held;
            return;
        }
        self.end_table(out, width);
        let line = std::mem::take(&mut self.line);
        let (base, rest) = match kind {
            Kind::Heading { skip } => {
                self.wrap.start(out, "", 0, "", 0);
                (HEADING, &line[skip..])
            }
            Kind::Item { indent, mark, skip } => {
                let mark = &line[indent..indent + mark];
                let shown = if mark.len() == 1 { "•" } else { mark };
                let mut lead = " ".repeat(indent.min(width / 2));
                paint(&mut lead, BULLET, shown);
                lead.push(' ');
                let columns = visible(&lead);
                self.wrap.start(out, &lead, columns, "", 0);
                (PLAIN, &line[skip..])
            }
            Kind::Quote { skip } => {
                let mut bar = String::new();
                paint(&mut bar, DIM, "│ ");
                self.wrap.start(out, &bar, 2, &bar, 2);
                (PLAIN, &line[skip..])
            }
            Kind::Text { indent } => {
                let columns = indent.min(width / 2);
                self.wrap.start(out, &" ".repeat(columns), columns, "", 0);
                (PLAIN, &line[indent..])
            }
            Kind::Fence | Kind::Row | Kind::Rule => (PLAIN, ""),
        };
        self.now = Now::Text(base);
        self.text(out, base, rest, width, false);
    }

    fn text(&mut self, out: &mut String, base: Style, text: &str, width: usize, last: bool) {
        for (style, text) in self.inline.push(text, last) {
            self.wrap.put(out, if style.is_empty() { base } else { style }, &text, width);
        }
    }

    fn end_line(&mut self, out: &mut String, width: usize) {
        if self.now == Now::Undecided {
            if self.fence.is_some() {
                self.now = Now::Held;
            } else if self.line.trim().is_empty() {
                self.line.clear();
                self.end_table(out, width);
                out.push('\n');
                return;
            } else if let Some(kind) = kind(&self.line, true) {
                self.begin(out, kind, width);
            }
        }
        match std::mem::take(&mut self.now) {
            Now::Text(base) => {
                self.text(out, base, "", width, true);
                self.wrap.end(out, width);
            }
            Now::Held | Now::Undecided => {
                let line = std::mem::take(&mut self.line);
                self.whole(out, &line, width);
            }
        }
    }

    /// A line of code, a fence, a row or a rule.
    fn whole(&mut self, out: &mut String, line: &str, width: usize) {
        if let Some(fence) = &mut self.fence {
            let trimmed = line.trim();
            if trimmed.len() >= fence.count && trimmed.chars().all(|c| c == fence.mark) {
                paint(out, DIM, line);
                self.fence = None;
            } else {
                match &mut fence.highlighter {
                    Some(highlighter) => highlighter.line(out, line),
                    None => out.push_str(line),
                }
            }
            out.push('\n');
            return;
        }
        match kind(line, true) {
            Some(Kind::Row) => return self.table.get_or_insert_default().row(out, line, width),
            Some(Kind::Fence) => {
                self.end_table(out, width);
                let trimmed = line.trim_start();
                let mark = if trimmed.starts_with('~') { '~' } else { '`' };
                let count = trimmed.chars().take_while(|&c| c == mark).count();
                self.fence = Some(Fence { mark, count, highlighter: Highlighter::new(trimmed[count..].trim()) });
                paint(out, DIM, line);
            }
            Some(Kind::Rule) => {
                self.end_table(out, width);
                paint(out, DIM, &"─".repeat(width.saturating_sub(1).min(40)));
            }
            Some(other) => {
                self.line = line.to_owned();
                self.begin(out, other, width);
                return self.end_line(out, width);
            }
            None => {}
        }
        out.push('\n');
    }

    fn end_table(&mut self, out: &mut String, width: usize) {
        if let Some(mut table) = self.table.take() {
            table.end(out, width);
        }
    }
}

/// What a line is, as far as its start tells; `None` where more is needed, which a `whole` line never is.
fn kind(line: &str, whole: bool) -> Option<Kind> {
    let trimmed = line.trim_start_matches([' ', '\t']);
    let indent = line.len() - trimmed.len();
    let text = Kind::Text { indent };
    let first = match trimmed.chars().next() {
        Some(first) => first,
        None => return whole.then_some(text),
    };
    let run = trimmed.chars().take_while(|&c| c == first).count();
    // Only the mark is there, so more may follow.
    let open = trimmed.len() == run && !whole;
    let behind = trimmed[run * first.len_utf8()..].chars().next();
    match first {
        '`' | '~' if run >= 3 => {
            // Backticks behind the opening ones make it code inside of a line.
            if first == '`' && trimmed[run..].contains('`') {
                return Some(text);
            }
            Some(Kind::Fence)
        }
        '`' | '~' => (!open).then_some(text),
        '|' => Some(Kind::Row),
        '#' if run <= 6 => match behind {
            Some(' ' | '\t') => {
                let skip = indent + run;
                let title = line[skip..].trim_start();
                if title.is_empty() && !whole { None } else { Some(Kind::Heading { skip: line.len() - title.len() }) }
            }
            None if !whole => None,
            _ => Some(text),
        },
        '-' | '*' | '_' | '+' => {
            let is_rule =
                first != '+' && trimmed.chars().all(|c| c == first || c == ' ') && trimmed.matches(first).count() >= 3;
            match behind {
                _ if is_rule => whole.then_some(Kind::Rule),
                None if !whole => None,
                Some(' ') if run == 1 && first != '_' => {
                    if !whole && trimmed.chars().all(|c| c == first || c == ' ') {
                        return None;
                    }
                    item(line, indent, 1)
                }
                _ => Some(text),
            }
        }
        '0'..='9' => {
            let digits = trimmed.chars().take_while(char::is_ascii_digit).count();
            let mut rest = trimmed[digits..].chars();
            match (rest.next(), rest.next()) {
                _ if digits > 3 => Some(text),
                (None, _) | (Some('.' | ')'), None) if !whole => None,
                (Some('.' | ')'), Some(' ')) => item(line, indent, digits + 1),
                _ => Some(text),
            }
        }
        '>' => match behind {
            None if !whole => None,
            _ => {
                let inner = trimmed[1..].strip_prefix(' ').unwrap_or(&trimmed[1..]);
                Some(Kind::Quote { skip: line.len() - inner.len() })
            }
        },
        _ => Some(text),
    }
}

fn item(line: &str, indent: usize, mark: usize) -> Option<Kind> {
    let skip = line.len() - line[indent + mark..].trim_start_matches(' ').len();
    Some(Kind::Item { indent, mark, skip })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(pieces: &[&str], width: usize) -> String {
        let (mut markdown, mut out) = (Markdown::default(), String::new());
        pieces.iter().for_each(|piece| markdown.push(&mut out, piece, width));
        markdown.finish(&mut out, width);
        out
    }

    fn plain(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("\x1b[") {
            out.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        out + rest
    }

    const SAMPLE: &str = "# Title\n\nSome **bold** and `code`, *italic*.\n\n- one\n- **two**: long enough to be wrapped at forty\n  * inner\n1. first\n10) tenth\n\n> quoted\n\n| a | b |\n|--|--|\n| 1 | 2 |\n| 3 | 4 |\n\n---\n\n```rust\nfn main() {}\n\n// end\n```\n~~~\n# no heading\n~~~\n#tag 5 * 3 --x\n2024 was a year\n``a``\nend";

    #[test]
    fn blocks_are_shown_as_what_they_are() {
        let shown = plain(&render(&[SAMPLE], 40));
        let expected = "Title\n\nSome bold and code, italic.\n\n• one\n• two: long enough to be wrapped at\n  forty\n  • inner\n1. first\n10) tenth\n\n│ quoted\n\na │ b\n──┼──\n1 │ 2\n3 │ 4\n\n───────────────────────────────────────\n\n```rust\nfn main() {}\n\n// end\n```\n~~~\n# no heading\n~~~\n#tag 5 * 3 --x\n2024 was a year\na\nend\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn text_in_pieces_gives_what_the_whole_gives() {
        let whole = render(&[SAMPLE], 40);
        let chars: Vec<char> = SAMPLE.chars().collect();
        for size in 1..9 {
            let pieces: Vec<String> = chars.chunks(size).map(|piece| piece.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(plain(&render(&pieces, 40)), plain(&whole), "{size}");
        }
    }

    #[test]
    fn the_cursor_never_moves_back() {
        let shown = render(&[SAMPLE], 40);
        let codes =
            shown.split("\x1b[").skip(1).map(|rest| &rest[..rest.find(|c: char| c.is_ascii_alphabetic()).unwrap() + 1]);
        assert!(codes.into_iter().all(|code| code.ends_with('m')), "{shown:?}");
        assert!(!shown.contains('\r'));
    }

    #[test]
    fn words_come_before_the_line_ends_and_code_line_by_line() {
        let (mut markdown, mut out) = (Markdown::default(), String::new());
        markdown.push(&mut out, "Here is", 80);
        markdown.push(&mut out, " some", 80);
        assert_eq!(out, "Here is");
        markdown.push(&mut out, " text:\n```rust\nfn f() {\n    let", 80);
        assert!(plain(&out).ends_with("```rust\nfn f() {\n"), "{out:?}");
        assert!(out.contains("\x1b[35mfn\x1b[0m"), "{out:?}");
        // An answer that ends inside of a code block is ended like any other.
        markdown.finish(&mut out, 80);
        assert!(plain(&out).ends_with("    let\n"));
        markdown.push(&mut out, "plain again ", 80);
        markdown.finish(&mut out, 80);
        assert!(out.ends_with("plain again\n"));
    }

    #[test]
    fn a_resize_counts_from_the_next_word() {
        let (mut markdown, mut out) = (Markdown::default(), String::new());
        markdown.push(&mut out, "one two three four ", 80);
        markdown.push(&mut out, "five six seven eight ", 21);
        markdown.finish(&mut out, 21);
        assert_eq!(out, "one two three four\nfive six seven eight\n");
    }

    #[test]
    fn inner_fences_need_as_many_marks() {
        let shown = plain(&render(&["````md\n```rust\n```\n````\n**b**"], 40));
        assert_eq!(shown, "````md\n```rust\n```\n````\nb\n");
        assert_eq!(plain(&render(&["  ```py\n  x = 1\n  ```\nafter"], 40)), "  ```py\n  x = 1\n  ```\nafter\n");
    }
}
