//! Where a completion ends: at a dedent, a blank line, a bracket that is not its own, or where the suffix goes on.
//!
//! Models end fill-in-the-middle answers themselves most of the time. These rules cut what runs on, and they know no
//! language: they look at indentation, brackets and equal lines only. Text is judged by whole lines as they come, so a
//! cut never depends on how the tokens fell.

/// Watches a growing completion for its natural end.
pub struct Ends {
    base: usize,         // columns of the cursor's line
    at_line_start: bool, // nothing but blanks before the cursor on its line
    single_line: bool,   // text follows the cursor on its line
    suffix: String,
}

impl Ends {
    /// Rules for the text around a cursor.
    pub fn new(prefix: &str, suffix: &str) -> Ends {
        let line = prefix.rsplit('\n').next().unwrap_or_default();
        let rest = suffix.split('\n').next().unwrap_or_default();
        Ends {
            base: indent(line),
            at_line_start: line.trim().is_empty(),
            // Closers that an editor put in by itself do not make the rest of the line text.
            single_line: rest.chars().any(|c| !c.is_whitespace() && !is_closer(c) && c != ';' && c != ','),
            suffix: suffix.to_owned(),
        }
    }

    /// The length to cut `text` to, if its natural end is inside it. `text` is all that was generated so far.
    pub fn find(&self, text: &str) -> Option<usize> {
        if self.single_line
            && let Some(at) = text.find('\n')
        {
            return Some(at);
        }
        if let Some(at) = self.foreign_closer(text) {
            return Some(at);
        }
        let mut start = 0;
        let mut deepest = 0;
        let mut content = false;
        for (i, line) in text.split_inclusive('\n').enumerate() {
            let end = start + line.len();
            let complete = line.ends_with('\n');
            let blank = line.trim().is_empty();
            if i > 0 && complete && !blank {
                let columns = indent(line);
                let closes = line.trim_start().starts_with(is_closer);
                let back = columns < self.base || columns == self.base && deepest > self.base && !self.at_line_start;
                if content && back {
                    // A closer that pairs with the cursor's own line belongs to the completion, if nobody has it yet.
                    let own = closes && columns == self.base && !self.suffix_has(line.trim());
                    return Some(if own { end - 1 } else { trim_end(text, start) });
                }
                if self.suffix_has(line.trim()) && line.trim().len() > 2 {
                    return Some(trim_end(text, start));
                }
                deepest = deepest.max(columns);
            }
            if i > 0 && complete && blank && content && depth(&text[..start]) <= 0 && deepest <= self.base {
                return Some(trim_end(text, start));
            }
            content |= !blank;
            start = end;
        }
        None
    }

    /// The finished text: blank ends and what the suffix already holds are cut off.
    pub fn finish(&self, text: &str) -> String {
        let text = match self.find(text) {
            Some(at) => &text[..at],
            None => text,
        };
        let text = text.trim_end_matches([' ', '\t', '\n', '\r']);
        let suffix = self.suffix.trim_start();
        let repeated = (1..=text.len().min(suffix.len()))
            .rev()
            .filter(|&n| text.is_char_boundary(text.len() - n) && suffix.is_char_boundary(n))
            .find(|&n| text[text.len() - n..] == suffix[..n] && worth_cutting(&suffix[..n], text));
        text[..text.len() - repeated.unwrap_or(0)].trim_end_matches([' ', '\t', '\n', '\r']).to_owned()
    }

    /// The first closing bracket without an opener in `text`, where the suffix goes on with that very bracket.
    fn foreign_closer(&self, text: &str) -> Option<usize> {
        let next = self.suffix.trim_start().chars().next().filter(|c| is_closer(*c))?;
        let mut open = vec![];
        for (at, c, quoted) in brackets(text) {
            if quoted {
                continue;
            }
            if let Some(closer) = closer_of(c) {
                open.push(closer);
            } else if open.pop() != Some(c) && c == next {
                return Some(trim_end(text, at));
            }
        }
        None
    }

    /// Whether the suffix's first line with content is this one.
    fn suffix_has(&self, line: &str) -> bool {
        self.suffix.lines().map(str::trim).find(|l| !l.is_empty()) == Some(line)
    }
}

/// A repeated end is cut when it is a whole line, closes something, or is long enough not to be chance.
fn worth_cutting(repeated: &str, text: &str) -> bool {
    let whole_line = repeated.contains('\n') || text.len() == repeated.len();
    let closers = repeated.chars().all(|c| is_closer(c) || c == ';' || c == ',' || c.is_whitespace());
    // Closers that the text itself opened are its own.
    if closers { depth(text) < 0 } else { whole_line || repeated.len() >= 12 }
}

fn trim_end(text: &str, at: usize) -> usize {
    text[..at].trim_end_matches([' ', '\t', '\n', '\r']).len()
}

/// Columns of leading blanks; a tab goes to the next multiple of 4.
fn indent(line: &str) -> usize {
    let mut columns = 0;
    for c in line.chars() {
        match c {
            ' ' => columns += 1,
            '\t' => columns = columns / 4 * 4 + 4,
            _ => break,
        }
    }
    columns
}

fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}')
}

fn closer_of(c: char) -> Option<char> {
    match c {
        '(' => Some(')'),
        '[' => Some(']'),
        '{' => Some('}'),
        _ => None,
    }
}

/// Openers minus closers outside of quotes.
fn depth(text: &str) -> i32 {
    brackets(text).filter(|(_, _, quoted)| !quoted).map(|(_, c, _)| if is_closer(c) { -1 } else { 1 }).sum()
}

/// Brackets with their byte offsets, and whether they stand between double quotes on one line.
fn brackets(text: &str) -> impl Iterator<Item = (usize, char, bool)> {
    let mut quoted = false;
    let mut escaped = false;
    text.char_indices().filter_map(move |(at, c)| {
        match c {
            '\n' => quoted = false,
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        (is_closer(c) || closer_of(c).is_some()).then_some((at, c, quoted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(prefix: &str, generated: &str, suffix: &str) -> String {
        Ends::new(prefix, suffix).finish(generated)
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
