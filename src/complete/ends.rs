//! Where a completion ends: where it closes what is not its own, at a dedent, or where the suffix goes on.
//!
//! Models end fill-in-the-middle answers themselves most of the time. These rules cut what runs on, and must not harm what
//! is right: brackets and strings are read as the language has them (`Lexer`), what the prefix leaves open is set against
//! what the suffix closes (`pairs`), and lines are compared with their indentation. Text is judged by whole lines as they
//! come, so a cut never depends on how the tokens fell.

use std::path::Path;

use super::lexer::Lexer;
use super::pairs;
use super::syntax::{self, Syntax};

/// Words that go on with what a line at the same indentation has closed.
const GO_ON: [&str; 12] =
    ["else", "elif", "elsif", "elseif", "except", "finally", "catch", "rescue", "ensure", "while", "until", "then"];

/// Watches a growing completion for its natural end.
pub struct Ends {
    syntax: &'static Syntax,
    start: Lexer,        // the state at the cursor
    floor: isize,        // the depth that the completion must leave to the suffix
    base: usize,         // columns of the cursor's line
    expected: usize,     // columns that its next statement should have
    at_line_start: bool, // nothing but blanks before the cursor on its line
    text_behind: bool,   // text follows the cursor on its line
    line: String,        // the cursor's line up to it
    previous: String,    // the last line before the cursor's that holds something
    suffix: String,
}

impl Ends {
    /// Rules for the text around a cursor. The path tells the language; without it the text does.
    pub fn new(prefix: &str, suffix: &str, path: Option<&Path>) -> Ends {
        let syntax = path.and_then(syntax::by_name).unwrap_or_else(|| syntax::by_text(prefix, suffix));
        let mut start = Lexer::new(syntax);
        start.read(prefix);
        let line = prefix.rsplit('\n').next().unwrap_or_default();
        let rest = suffix.split('\n').next().unwrap_or_default();
        let mut above = prefix[..prefix.len() - line.len()].lines().rev().map(str::trim_end);
        let previous = above.find(|line| !line.is_empty()).unwrap_or_default();
        let opens = previous.ends_with([':', '{', '(', '[']);
        Ends {
            syntax,
            floor: start.depth() - pairs::unclosed(&start, suffix) as isize,
            base: indent(line),
            expected: indent(previous) + usize::from(opens),
            at_line_start: line.trim().is_empty(),
            // Closers that an editor put in by itself do not make the rest of the line text.
            text_behind: rest.chars().any(|c| !c.is_whitespace() && !is_closer(c) && !";,\"'`".contains(c)),
            line: line.to_owned(),
            previous: previous.to_owned(),
            suffix: suffix.to_owned(),
            start,
        }
    }

    /// The length to cut `text` to, if its natural end is inside it. `text` is all that was generated so far.
    pub fn find(&self, text: &str) -> Option<usize> {
        self.scan(text, false)
    }

    /// The finished text: what runs on, what the suffix already holds and a doubled indentation are cut off. Of a text that
    /// was `cut_short` by a limit the unfinished last line goes, if there is one before it.
    pub fn finish(&self, text: &str, cut_short: bool) -> String {
        let cut = self.scan(text, !cut_short);
        let mut text = &text[..cut.unwrap_or(text.len())];
        if cut.is_none() && cut_short {
            text = text.rfind('\n').filter(|&at| !text[..at].trim().is_empty()).map_or(text, |at| &text[..at]);
        }
        text = &text[..text.len() - self.repeated(text)];
        // Text behind the cursor needs the blanks before it, and the line break if the cursor's line is to stay below.
        let text = match self.text_behind {
            true if !text.trim().is_empty() && cut.is_none() => text,
            _ => text.trim_end_matches([' ', '\t', '\n', '\r']),
        };
        self.without_doubled_indent(text).to_owned()
    }

    fn scan(&self, text: &str, ended: bool) -> Option<usize> {
        // A line is finished where text follows it; with nothing before the cursor the answer is lines of its own.
        if self.text_behind
            && !self.at_line_start
            && let Some(at) = text.find('\n')
        {
            let line = text[..at].trim_end();
            let rest = self.suffix.split('\n').next().unwrap_or_default().trim();
            let again = line.strip_suffix(rest).map_or(line.len(), |line| trim_end(line, line.len()));
            return Some(self.scan_lines(&line[..again], true).unwrap_or(again));
        }
        self.scan_lines(text, ended)
    }

    fn scan_lines(&self, text: &str, ended: bool) -> Option<usize> {
        let mut lexer = self.start.clone();
        let mut lines = Lines::new(self);
        let mut below: Option<usize> = None; // where the depth went under the floor, to stay there
        let mut line = Line { start: 0, in_text: lexer.in_text(), round: is_round(&lexer), depth: lexer.depth() };
        let mut at = 0;
        while at < text.len() {
            let next = lexer.step(text, at);
            match lexer.depth() < self.floor {
                true => below = below.or(Some(at)),
                false => below = None,
            }
            if text[at..].starts_with('\n') {
                if let Some(cut) = below
                    && !lexer.in_text()
                {
                    let closer_leads = text.get(line.start..cut).is_some_and(|before| before.trim().is_empty());
                    match goes_on(&text[next..], closer_leads, ended) {
                        Some(true) => {}
                        Some(false) => return Some(trim_end(text, cut)),
                        None => return None,
                    }
                }
                if let Some(cut) = lines.judge(text, &line, next, lexer.depth(), ended) {
                    return Some(cut);
                }
                line = Line { start: next, in_text: lexer.in_text(), round: is_round(&lexer), depth: lexer.depth() };
            }
            at = next;
        }
        if !ended {
            return None;
        }
        below.map(|cut| trim_end(text, cut)).or_else(|| lines.judge(text, &line, text.len(), lexer.depth(), true))
    }

    /// Bytes at the end of a finished text that the suffix begins with.
    fn repeated(&self, text: &str) -> usize {
        let suffix = self.suffix.trim_start();
        let found = (1..=text.len().min(suffix.len()))
            .rev()
            .filter(|&n| text.is_char_boundary(text.len() - n) && suffix.is_char_boundary(n))
            .find(|&n| {
                let (before, again) = text.split_at(text.len() - n);
                // Long enough not to be chance, and not from within a word.
                again == &suffix[..n]
                    && again.chars().filter(|c| c.is_alphanumeric()).count() >= 12
                    && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    && (self.text_behind || suffix[n..].starts_with(['\n', '\r']) || suffix.len() == n)
            });
        found.unwrap_or(0)
    }

    /// The text without blanks in front of it that the cursor's line has already.
    fn without_doubled_indent<'a>(&self, text: &'a str) -> &'a str {
        let bare = text.trim_start_matches([' ', '\t']);
        let doubled =
            self.at_line_start && self.base > 0 && self.base >= self.expected && !bare.starts_with(['\n', '\r']);
        if doubled && !self.start.in_text() { bare } else { text }
    }

    /// Lines of the suffix below the cursor's that hold something, without the blanks at their ends.
    fn below(&self) -> impl Iterator<Item = &str> {
        self.suffix.split('\n').skip(1).map(str::trim_end).filter(|line| !line.is_empty())
    }

    /// Whether a line, the last or before `next`, is where the suffix goes on.
    fn is_suffix(&self, line: &str, next: Option<&str>) -> bool {
        if self.text_behind {
            return false;
        }
        let mut below = self.below();
        below.next() == Some(line) && next.is_none_or(|next| below.next() == Some(next))
    }

    /// Whether the suffix closes the block at these columns by a word.
    fn suffix_ends(&self, columns: usize) -> bool {
        self.below()
            .find(|line| indent(line) <= columns)
            .is_some_and(|line| indent(line) == columns && self.is_ender(line))
    }

    fn is_ender(&self, line: &str) -> bool {
        self.syntax.enders.contains(&first_word(line))
    }
}

/// One line of a completion, where it begins.
struct Line {
    start: usize,
    in_text: bool,
    round: bool, // in round or square brackets, where indentation means nothing
    depth: isize,
}

/// What the lines of a completion tell.
struct Lines<'a> {
    ends: &'a Ends,
    number: usize,
    base: usize,
    at_line_start: bool,
    deepest: usize,
    content: bool,
    loose: Option<usize>, // where dedented comments and the like began, which belong to what comes next
    last: usize,          // columns of the last line
    previous: String,     // the last line that holds something
    again: bool,          // it repeats the one before
    one_block: bool,      // a block that the cursor's line opens is all there is
}

impl<'a> Lines<'a> {
    fn new(ends: &'a Ends) -> Self {
        let Ends { base, at_line_start, .. } = *ends;
        let previous = ends.previous.clone();
        Lines {
            ends,
            previous,
            again: false,
            number: 0,
            base,
            at_line_start,
            deepest: 0,
            content: false,
            loose: None,
            last: base,
            one_block: true,
        }
    }
}

impl Lines<'_> {
    /// Whether the completion ends before this line, and where.
    fn judge(&mut self, text: &str, line: &Line, end: usize, depth: isize, ended: bool) -> Option<usize> {
        let ends = self.ends;
        let number = self.number;
        self.number += 1;
        let start = line.start;
        let whole = text[start..end].trim_end();
        let content = !whole.is_empty();
        let had_content = self.content;
        self.content |= content;
        if number == 0 {
            let line = format!("{}{whole}", ends.line);
            self.one_block = self.base == 0 || is_definition(&line);
        }
        if line.in_text {
            return None;
        }
        let columns = indent(whole);
        if number == 0 && !content {
            return None;
        }
        if !content {
            // Only at the top level: deeper, the dedent to come tells.
            let over = self.base == 0 && depth <= ends.start.depth() && self.last <= self.base;
            let flat = self.deepest <= self.base || !self.at_line_start;
            return (had_content && over && flat).then(|| trim_end(text, start));
        }
        // The line above once more, or the same line a third time, is how a loop begins.
        let full = if number == 0 { format!("{}{whole}", ends.line) } else { whole.to_owned() };
        let again = full == self.previous && full.chars().filter(|c| c.is_alphabetic()).count() > 2;
        let directive = ends.syntax.directives && whole.trim_start().starts_with('#');
        let loops = again && (number == 0 || self.again) && !line.round && !directive;
        (self.again, self.previous) = (again, full);
        if loops {
            return Some(trim_end(text, start));
        }
        if number == 0 {
            return None;
        }
        // Lines that the suffix has. One that may be met by chance must be followed by the suffix's next one.
        if depth <= ends.start.depth() && !directive && whole.chars().filter(|c| c.is_alphanumeric()).count() > 1 {
            let next = text[end..].lines().map(str::trim_end).find(|line| !line.is_empty());
            let next_is_whole = next.is_some() && text[end..].trim_start().contains('\n') || ended;
            if (next_is_whole || next.is_none() && ended) && ends.is_suffix(whole, next) {
                return Some(trim_end(text, start));
            }
        }
        let sibling = columns == self.base && self.deepest > self.base && !self.at_line_start && self.one_block;
        let back = columns < self.base || sibling;
        if line.depth <= ends.start.depth() && !line.round && back && had_content {
            if self.is_loose(whole) {
                self.loose = self.loose.or(Some(start));
                return None;
            }
            let word = first_word(whole);
            let closes =
                whole.trim_start().starts_with(is_closer) || ends.is_ender(whole) && !ends.suffix_ends(columns);
            let goes_on = columns == self.base
                && GO_ON.contains(&word)
                && ends.below().next().is_none_or(|line| indent(line) != columns || first_word(line) != word);
            if !closes && !goes_on {
                return Some(trim_end(text, self.loose.unwrap_or(start)));
            }
            if columns < self.base {
                (self.base, self.at_line_start, self.one_block) = (columns, false, true);
            }
        }
        self.loose = None;
        self.deepest = self.deepest.max(columns);
        self.last = columns;
        None
    }

    /// Lines whose indentation means nothing: comments, directives and labels.
    fn is_loose(&self, line: &str) -> bool {
        let syntax = self.ends.syntax;
        let text = line.trim_start();
        let comments = syntax.line_comments.iter().copied().chain(syntax.block_comment.map(|(begin, _)| begin));
        comments.into_iter().any(|begin| text.starts_with(begin))
            || syntax.directives && (text.starts_with('#') || text.ends_with(':') && !text.contains(['(', '?']))
    }
}

/// Whether what closed one bracket too many goes on in the next line, as `else` under a bracket does; none when that is
/// still to come.
fn goes_on(rest: &str, closer_leads: bool, ended: bool) -> Option<bool> {
    if !closer_leads {
        return Some(false);
    }
    match rest.lines().find(|line| !line.trim().is_empty()) {
        None if ended => Some(false),
        None => None,
        Some(line) if !ended && !rest.trim_start().contains('\n') && line.trim().len() < 8 => None,
        Some(line) => Some(GO_ON.contains(&first_word(line)) || line.trim_start().starts_with('.')),
    }
}

/// Whether a line begins a function, a type or the like: what follows it at its indentation is another matter.
fn is_definition(line: &str) -> bool {
    const WORDS: [&str; 19] = [
        "def",
        "class",
        "fn",
        "func",
        "function",
        "fun",
        "struct",
        "impl",
        "enum",
        "trait",
        "interface",
        "mod",
        "module",
        "namespace",
        "union",
        "public",
        "private",
        "protected",
        "static",
    ];
    const BLOCKS: [&str; 9] = ["if", "for", "while", "switch", "match", "catch", "do", "loop", "unsafe"];
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let method =
        line.trim_end().ends_with(") {") && !line.contains(['=', '|', '.']) && !BLOCKS.contains(&first_word(line));
    method || words.by_ref().take(4).any(|word| WORDS.contains(&word)) && !line.contains('=')
}

fn first_word(line: &str) -> &str {
    let text = line.trim_start();
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Whether the innermost bracket is a round or square one.
fn is_round(lexer: &Lexer) -> bool {
    lexer.open().last().is_some_and(|open| matches!(open.closer, ')' | ']'))
}

fn trim_end(text: &str, at: usize) -> usize {
    text[..at].trim_end_matches([' ', '\t', '\n', '\r']).len()
}

/// Columns of leading blanks; a tab goes to the next multiple of 8: files that mix both mean that.
fn indent(line: &str) -> usize {
    let mut columns = 0;
    for c in line.chars() {
        match c {
            ' ' => columns += 1,
            '\t' => columns = columns / 8 * 8 + 8,
            _ => break,
        }
    }
    columns
}

fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(prefix: &str, generated: &str, suffix: &str) -> String {
        Ends::new(prefix, suffix, None).finish(generated, false)
    }

    #[test]
    fn a_dedent_ends_a_python_body() {
        let text = "return a + b\n\ndef other():\n    pass\n";
        assert_eq!(cut("def add(a, b):\n    ", text, "\n"), "return a + b");
    }

    #[test]
    fn a_body_after_its_header_ends_before_the_next_definition() {
        let text = "\n    x = 1\n    return x\n\ndef g():\n    pass\n";
        assert_eq!(cut("def f():", text, ""), "\n    x = 1\n    return x");
    }

    #[test]
    fn nested_blocks_and_blank_lines_inside_a_body_go_on() {
        let text = "for x in xs:\n        if x:\n\n            y(x)\n    return 1\nprint(2)\n";
        assert_eq!(cut("def f(xs):\n    ", text, ""), "for x in xs:\n        if x:\n\n            y(x)\n    return 1");
    }

    #[test]
    fn the_closing_brace_of_the_cursor_line_is_kept_unless_the_suffix_has_it() {
        let text = "\n    a + b\n}\n\nfn next() {}\n";
        assert_eq!(cut("fn add(a: i32, b: i32) -> i32 {", text, ""), "\n    a + b\n}");
        assert_eq!(cut("fn add(a: i32, b: i32) -> i32 {", text, "\n}\n"), "\n    a + b");
    }

    #[test]
    fn text_behind_the_cursor_makes_it_one_line() {
        assert_eq!(cut("let x = ", "f(1);\nlet y = 2;", " + 3;\n"), "f(1);");
        assert_eq!(cut("foo(", "a, b)\nbar()", ")\n"), "a, b");
    }

    #[test]
    fn what_the_suffix_repeats_is_cut_off() {
        let text = "x = compute()\n    return x\n";
        assert_eq!(cut("def f():\n    ", text, "\n    return x\n"), "x = compute()");
        assert_eq!(cut("a = [", "1, 2, (3)]", "]\n"), "1, 2, (3)");
    }

    #[test]
    fn a_blank_line_ends_statements_at_the_same_depth() {
        assert_eq!(cut("import os\n", "import sys\nimport re\n\nclass A:\n    pass\n", ""), "import sys\nimport re");
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        assert_eq!(cut("f(", "\")\" + x)\ng()\n", ")\n"), "\")\" + x");
    }
}
