//! Reads code as brackets, strings and comments, from any point on: what is open, and what closes that was not opened.
//!
//! A string or comment over lines counts as a bracket of its own, so a text that begins inside of one is no special case.
//! One lexeme a step; a line break is always a step of its own. Wrong code is read on: a string that its line does not end
//! is dropped, a bracket that closes another one takes those in between with it.

use super::syntax::{Mark, Syntax};

/// Something that waits for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The character that closes it; `"` for a string, `*` for a comment.
    pub closer: char,
    /// The indentation of the line where it stands.
    pub columns: usize,
}

/// An end of something that was not opened here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    pub closer: char,
    /// The indentation of its line, where nothing but ends stands before it on a line that begins here.
    pub columns: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Code,
    LineComment,
    Directive,
    /// Between the branches of an `#if` that began elsewhere; how many are open within.
    Skipped(usize),
    Comment(usize),
    /// Ends with these characters; whether it may hold line breaks and escapes.
    Text {
        end: String,
        lines: bool,
        escapes: bool,
        template: bool,
    },
    Regex {
        class: bool,
    },
}

/// The state at one point of a text.
#[derive(Clone, Debug)]
pub struct Lexer {
    syntax: &'static Syntax,
    mode: Mode,
    open: Vec<Open>,
    unopened: Vec<Close>,
    templates: Vec<usize>,    // lengths of `open` where `${` went from a template into code
    branches: Vec<Vec<Open>>, // what was open at each `#if`
    columns: usize,           // of the line's leading blanks so far
    fresh: bool,              // nothing but blanks so far on the line
    leading: bool,            // nothing but blanks and ends so far on a line that begins here
    escaped: bool,            // the last character was a backslash that escapes
    spaced: bool,             // the last character of code was a blank
    returns: Vec<usize>,      // counts of `unopened` that lead back into a template of the text before
    before: char,             // the last character of code that is no blank
    word: String,             // the identifier that ends here
    /// Strings that their line did not end.
    pub broken: usize,
}

impl Lexer {
    /// At the start of a text.
    pub fn new(syntax: &'static Syntax) -> Lexer {
        Lexer {
            syntax,
            mode: Mode::Code,
            open: vec![],
            unopened: vec![],
            templates: vec![],
            branches: vec![],
            columns: 0,
            fresh: true,
            leading: true,
            escaped: false,
            spaced: true,
            returns: vec![],
            before: '\n',
            word: String::new(),
            broken: 0,
        }
    }

    /// For a text behind this point, of which nothing is known to be open but the string or comment that it is in.
    pub fn onward(&self, inside: bool) -> Lexer {
        let mut next = Lexer::new(self.syntax);
        // The first line begins elsewhere.
        (next.fresh, next.leading) = (false, false);
        if inside {
            next.mode = self.mode.clone();
        }
        next.returns = self.templates.iter().map(|length| self.open.len() + 1 - length).collect();
        next
    }

    /// Reads a whole text.
    pub fn read(&mut self, text: &str) {
        let mut at = 0;
        while at < text.len() {
            at = self.step(text, at);
        }
    }

    /// How deep it is: less than 0 when more was closed than opened.
    pub fn depth(&self) -> isize {
        self.open.len() as isize - self.unopened.len() as isize
    }

    /// What is open, outermost first.
    pub fn open(&self) -> &[Open] {
        &self.open
    }

    /// What was closed and not opened, innermost first.
    pub fn unopened(&self) -> &[Close] {
        &self.unopened
    }

    /// Whether it is in a string or a comment that another line may end.
    pub fn in_text(&self) -> bool {
        !matches!(self.mode, Mode::Code | Mode::LineComment | Mode::Directive)
    }

    /// Reads one lexeme at `at`; returns where the next one starts.
    pub fn step(&mut self, text: &str, at: usize) -> usize {
        let rest = &text[at..];
        let Some(c) = rest.chars().next() else { return text.len() };
        if c == '\n' {
            self.line_break();
            return at + 1;
        }
        let first = self.fresh && !c.is_whitespace();
        if self.fresh {
            match c {
                ' ' => self.columns += 1,
                '\t' => self.columns = self.columns / 8 * 8 + 8,
                '\r' => {}
                _ => self.fresh = false,
            }
        }
        let taken = match &self.mode {
            Mode::Code => self.code(rest, c, first),
            Mode::LineComment => c.len_utf8(),
            Mode::Directive | Mode::Skipped(_) => self.directive(rest, c),
            Mode::Comment(_) => self.comment(rest, c),
            Mode::Text { .. } => self.text(rest, c),
            Mode::Regex { class } => {
                let class = *class;
                self.regex(c, class)
            }
        };
        at + taken
    }

    fn line_break(&mut self) {
        match &self.mode {
            Mode::LineComment => self.mode = Mode::Code,
            Mode::Directive if !self.escaped => self.mode = Mode::Code,
            Mode::Text { lines: false, .. } | Mode::Regex { .. } if !self.escaped => {
                self.broken += 1;
                self.leave('"');
            }
            _ => {}
        }
        self.escaped = false;
        self.spaced = true;
        self.word.clear();
        (self.columns, self.fresh, self.leading) = (0, true, true);
    }

    fn code(&mut self, rest: &str, c: char, first: bool) -> usize {
        let syntax = self.syntax;
        let spaced = std::mem::replace(&mut self.spaced, c.is_whitespace());
        if c.is_whitespace() {
            if !self.word.is_empty() {
                self.word.push(' '); // the word is over, and may still matter
            }
            return c.len_utf8();
        }
        if syntax.directives && c == '#' && first {
            return self.begin_directive(rest);
        }
        if let Some((begin, _)) = syntax.block_comment
            && rest.starts_with(begin)
        {
            self.enter('*', Mode::Comment(1));
            return begin.len();
        }
        if let Some(begin) = syntax.line_comments.iter().find(|begin| rest.starts_with(**begin))
            && (syntax.round_pairs || spaced)
        {
            self.mode = Mode::LineComment;
            return begin.len();
        }
        let taken = self.quote(rest, c).unwrap_or_else(|| {
            match c {
                '(' | ')' if !syntax.round_pairs => {}
                '(' => self.push(')'),
                '[' => self.push(']'),
                '{' => self.push('}'),
                ')' | ']' | '}' => {
                    self.close(c);
                    // An end leaves the place at the line's start as it is.
                    self.before = c;
                    self.word.clear();
                    return 1;
                }
                _ => {}
            }
            c.len_utf8()
        });
        self.leading = false;
        if c.is_alphanumeric() || c == '_' {
            if self.word.ends_with(' ') {
                self.word.clear();
            }
            self.word.push(c);
        } else {
            self.word.clear();
        }
        self.before = c;
        taken
    }

    /// A string, a character or a regular expression that begins here.
    fn quote(&mut self, rest: &str, c: char) -> Option<usize> {
        let syntax = self.syntax;
        let mark = match c {
            '"' => syntax.double,
            '\'' => syntax.single,
            '`' => syntax.backtick,
            '/' if syntax.regex && self.value_may_start() && !rest.starts_with("/>") => {
                self.enter('"', Mode::Regex { class: false });
                return Some(1);
            }
            'r' | 'R' if syntax.raw_prefix && !self.in_word_but("bcuLU8") => return self.raw(rest),
            _ => return None,
        };
        let triple: String = [c; 3].iter().collect();
        if syntax.triple && mark != Mark::None && rest.starts_with(&triple) {
            self.enter('"', Mode::Text { end: triple, lines: true, escapes: true, template: false });
            return Some(3);
        }
        let (lines, escapes, template) = match mark {
            Mark::None => return None,
            Mark::Line => (false, true, false),
            Mark::Lines => (true, true, false),
            Mark::Raw => (true, false, false),
            Mark::Template => (true, true, true),
            Mark::Character => return self.character(rest),
        };
        self.enter('"', Mode::Text { end: c.to_string(), lines, escapes, template });
        Some(1)
    }

    /// A character in single quotes, or a mark that means something else.
    fn character(&mut self, rest: &str) -> Option<usize> {
        let separates =
            self.word.ends_with(|c: char| c.is_ascii_hexdigit()) && self.word.starts_with(|c: char| c.is_ascii_digit());
        let mut after = rest.chars().skip(1);
        let (next, second) = (after.next(), after.next());
        let is_name = next.is_some_and(|c| c.is_alphabetic() || c == '_');
        // `'a` of Rust and `1'000` of C++; `'ab'` of C is a character.
        let lone = self.syntax.nested_comments && is_name && second != Some('\'');
        if separates || lone {
            return None;
        }
        self.enter('"', Mode::Text { end: "'".to_owned(), lines: false, escapes: true, template: false });
        Some(1)
    }

    /// `r"`, `r#"` and `R"x(`.
    fn raw(&mut self, rest: &str) -> Option<usize> {
        let behind = &rest[1..];
        let hashes = behind.len() - behind.trim_start_matches('#').len();
        let end = if self.syntax.directives {
            let name = behind.strip_prefix('"').filter(|_| rest.starts_with('R'))?;
            format!("){}\"", name.split('(').next().filter(|name| name.len() <= 16 && name.len() < behind.len() - 1)?)
        } else if rest.starts_with('r') && behind[hashes..].starts_with('"') {
            format!("\"{}", "#".repeat(hashes))
        } else {
            return None;
        };
        let taken = 1 + end.len();
        self.enter('"', Mode::Text { end, lines: true, escapes: false, template: false });
        Some(taken)
    }

    /// Whether the identifier so far is more than one of these letters.
    fn in_word_but(&self, prefixes: &str) -> bool {
        let word = self.word.as_str();
        !word.is_empty() && !word.ends_with(' ') && !word.chars().all(|c| prefixes.contains(c))
    }

    /// Whether a slash here begins a regular expression, not a division.
    fn value_may_start(&self) -> bool {
        const WORDS: [&str; 14] = [
            "return", "typeof", "case", "in", "of", "delete", "void", "throw", "new", "else", "if", "unless", "when",
            "and",
        ];
        match self.word.trim_end() {
            "" => "(,=:[!&|?{};+-*%~^\n".contains(self.before) || self.leading,
            word => WORDS.contains(&word),
        }
    }

    fn text(&mut self, rest: &str, c: char) -> usize {
        let Mode::Text { end, escapes, template, .. } = &self.mode else { return c.len_utf8() };
        if std::mem::take(&mut self.escaped) {
            // `\` before a carriage return escapes the whole line break.
            self.escaped = c == '\r';
            return c.len_utf8();
        }
        if *escapes && c == '\\' {
            self.escaped = true;
            return 1;
        }
        if rest.starts_with(end.as_str()) {
            let taken = end.len();
            self.leave('"');
            return taken;
        }
        if *template && rest.starts_with("${") {
            self.push('}');
            self.templates.push(self.open.len());
            self.mode = Mode::Code;
            self.before = '{';
            return 2;
        }
        c.len_utf8()
    }

    fn regex(&mut self, c: char, class: bool) -> usize {
        if std::mem::take(&mut self.escaped) {
            return c.len_utf8();
        }
        match c {
            '\\' => self.escaped = true,
            '[' => self.mode = Mode::Regex { class: true },
            ']' => self.mode = Mode::Regex { class: false },
            '/' if !class => self.leave('"'),
            _ => {}
        }
        c.len_utf8()
    }

    fn comment(&mut self, rest: &str, c: char) -> usize {
        let (Mode::Comment(depth), Some((begin, end))) = (&mut self.mode, self.syntax.block_comment) else {
            return c.len_utf8();
        };
        if rest.starts_with(end) {
            *depth -= 1;
            if *depth == 0 {
                self.leave('*');
            }
            return end.len();
        }
        if self.syntax.nested_comments && rest.starts_with(begin) {
            *depth += 1;
            return begin.len();
        }
        if rest.starts_with(begin) {
            self.broken += 1; // most likely the last one ended before
        }
        c.len_utf8()
    }

    /// A line of the preprocessor. Of the branches of an `#if` only one is open at a time.
    fn begin_directive(&mut self, rest: &str) -> usize {
        self.leading = false;
        self.mode = Mode::Directive;
        let name = rest[1..].trim_start();
        if name.starts_with("if") {
            self.branches.push(self.open.clone());
        } else if name.starts_with("endif") {
            self.branches.pop();
        } else if name.starts_with("el") {
            match self.branches.last() {
                Some(open) => self.open.clone_from(open),
                None => self.mode = Mode::Skipped(0),
            }
        }
        1
    }

    fn directive(&mut self, rest: &str, c: char) -> usize {
        self.escaped = c == '\\';
        if let Mode::Skipped(depth) = &mut self.mode
            && c == '#'
            && self.leading
        {
            let name = rest[1..].trim_start();
            if name.starts_with("if") {
                *depth += 1;
            } else if name.starts_with("endif") {
                match depth.checked_sub(1) {
                    Some(less) => *depth = less,
                    None => self.mode = Mode::Directive,
                }
            }
        }
        if !c.is_whitespace() {
            self.leading = false;
        }
        c.len_utf8()
    }

    fn enter(&mut self, closer: char, mode: Mode) {
        self.push(closer);
        self.mode = mode;
    }

    /// Ends a string or comment.
    fn leave(&mut self, closer: char) {
        self.mode = Mode::Code;
        self.escaped = false;
        self.word.clear();
        self.word.push_str("\" "); // a value, for what follows
        self.before = '"';
        self.close(closer);
        self.leading = false;
    }

    fn push(&mut self, closer: char) {
        self.open.push(Open { closer, columns: self.columns });
    }

    fn close(&mut self, closer: char) {
        match self.open.iter().rposition(|open| open.closer == closer) {
            Some(at) => {
                self.open.truncate(at);
                if self.templates.last().is_some_and(|&length| length > at) {
                    self.templates.pop();
                    self.mode = template();
                }
            }
            None => {
                self.open.clear();
                let columns = Some(self.columns).filter(|_| self.leading);
                self.unopened.push(Close { closer, columns });
                if self.returns.contains(&self.unopened.len()) && closer == '}' {
                    self.mode = template();
                }
            }
        }
    }
}

fn template() -> Mode {
    Mode::Text { end: "`".to_owned(), lines: true, escapes: true, template: true }
}
