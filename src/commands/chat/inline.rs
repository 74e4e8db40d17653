//! Bold, italics and code inside of a line, as it comes.
//!
//! A mark is acted on only once its counterpart is there; until then the text from it on is held back. So nothing on
//! the screen has to be taken back, and a lone `*` or `` ` `` stays what it is. Underscores are never marks: in talk
//! about code they are names.

use super::paint::{BOLD, BOLD_ITALIC, CODE, ITALIC, PLAIN, Style};

/// Bytes held back at most: a mark without counterpart must not stop the stream for long.
const HELD_BYTES: usize = 240;
/// What a backslash can take its meaning from.
const ESCAPABLE: &str = "*_`#|<>[]~\\";

/// The unread end of a line.
#[derive(Debug, Default)]
pub struct Inline {
    pending: String,
    before: Option<char>,
}

enum Found {
    /// Bytes inside, and bytes of the marks on either side.
    Span { inside: usize, mark: usize },
    /// There is no counterpart.
    Literal(usize),
    /// More text is needed.
    Unknown,
}

impl Inline {
    /// Takes more text and gives out what is decided; everything, if the line is over.
    pub fn push(&mut self, text: &str, last: bool) -> Vec<(Style, String)> {
        self.pending.push_str(text);
        let mut spans = vec![];
        let done = read(&self.pending, self.before, last, &mut spans);
        self.before = self.pending[..done].chars().next_back().or(self.before);
        self.pending.drain(..done);
        if last {
            self.before = None;
        }
        spans
    }
}

/// The spans of a whole text.
pub fn spans(text: &str) -> Vec<(Style, String)> {
    Inline::default().push(text, true)
}

/// Reads as far as is decided; returns the bytes read.
fn read(text: &str, mut before: Option<char>, last: bool, spans: &mut Vec<(Style, String)>) -> usize {
    let mut at = 0;
    let mut plain = String::new();
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let found = match c {
            '`' => code(rest, last),
            '*' => emphasis(rest, before, last),
            '\\' => {
                match rest[1..].chars().next() {
                    None if !last => break,
                    Some(next) if ESCAPABLE.contains(next) => {
                        plain.push(next);
                        at += 1 + next.len_utf8();
                        before = Some(next);
                    }
                    _ => {
                        plain.push('\\');
                        at += 1;
                        before = Some('\\');
                    }
                }
                continue;
            }
            _ => Found::Literal(rest.find(['`', '*', '\\']).unwrap_or(rest.len())),
        };
        match found {
            Found::Unknown if rest.len() < HELD_BYTES => break,
            Found::Unknown => {
                // Held back for too long: the mark stands for itself.
                let run = rest.chars().take_while(|&mark| mark == c).count();
                plain.push_str(&rest[..run]);
                at += run;
            }
            Found::Literal(bytes) => {
                plain.push_str(&rest[..bytes]);
                at += bytes;
            }
            Found::Span { inside, mark } => {
                if !plain.is_empty() {
                    spans.push((PLAIN, std::mem::take(&mut plain)));
                }
                let inner = &rest[mark..mark + inside];
                match (c, mark) {
                    ('`', _) => spans.push((CODE, without_one_space(inner).to_owned())),
                    (_, mark) => {
                        let style = [ITALIC, BOLD, BOLD_ITALIC][mark.clamp(1, 3) - 1];
                        let mut within = vec![];
                        read(inner, None, true, &mut within);
                        spans.extend(within.into_iter().map(|(own, text)| (joined(style, own), text)));
                    }
                }
                at += inside + 2 * mark;
            }
        }
        before = text[..at].chars().next_back();
    }
    if !plain.is_empty() {
        spans.push((PLAIN, plain));
    }
    at
}

fn joined(outer: Style, inner: Style) -> Style {
    match (outer, inner) {
        (_, PLAIN) => outer,
        (_, CODE) => CODE,
        (BOLD, ITALIC) | (ITALIC, BOLD) => BOLD_ITALIC,
        _ => outer,
    }
}

/// `rest` starts with backticks: as many end the code.
fn code(rest: &str, last: bool) -> Found {
    let mark = run(rest, '`');
    if mark == rest.len() {
        return if last { Found::Literal(mark) } else { Found::Unknown };
    }
    let mut at = mark;
    while let Some(next) = rest[at..].find('`') {
        let start = at + next;
        let len = run(&rest[start..], '`');
        at = start + len;
        if at == rest.len() && !last {
            return Found::Unknown;
        }
        if len == mark {
            return Found::Span { inside: start - mark, mark };
        }
    }
    if last { Found::Literal(mark) } else { Found::Unknown }
}

/// `rest` starts with stars: as many end the emphasis, behind a character that is no space.
fn emphasis(rest: &str, before: Option<char>, last: bool) -> Found {
    let mark = run(rest, '*');
    let Some(next) = rest[mark..].chars().next() else {
        return if last { Found::Literal(mark) } else { Found::Unknown };
    };
    // `2*3` and pointers are no emphasis.
    let inside_word = mark == 1 && before.is_some_and(char::is_alphanumeric);
    if mark > 3 || next.is_whitespace() || inside_word {
        return Found::Literal(mark);
    }
    let mut at = mark;
    while let Some(next) = rest[at..].find(['*', '`']) {
        let start = at + next;
        if rest[start..].starts_with('`') {
            match code(&rest[start..], last) {
                Found::Span { inside, mark } => at = start + inside + 2 * mark,
                Found::Literal(bytes) => at = start + bytes,
                Found::Unknown => return Found::Unknown,
            }
            continue;
        }
        let len = run(&rest[start..], '*');
        at = start + len;
        if at == rest.len() && !last {
            return Found::Unknown;
        }
        let behind_space = rest[..start].ends_with(char::is_whitespace);
        // `**a *b***`: the inner mark may end together with the outer one.
        if !behind_space && (len == mark || (len == 3 && mark == 2)) {
            return Found::Span { inside: at - 2 * mark, mark };
        }
    }
    if last { Found::Literal(mark) } else { Found::Unknown }
}

fn run(text: &str, c: char) -> usize {
    text.bytes().take_while(|&byte| byte == c as u8).count()
}

/// `` ` `` a `` ` `` is how a backtick at the edge is written.
fn without_one_space(code: &str) -> &str {
    match code.strip_prefix(' ').and_then(|rest| rest.strip_suffix(' ')) {
        Some(inner) if !inner.trim().is_empty() => inner,
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(spans: &[(Style, String)]) -> String {
        let mut out = String::new();
        let mut last = "";
        for (style, text) in spans {
            if *style != last {
                out.push_str(&format!("<{style}>"));
                last = style;
            }
            out.push_str(text);
        }
        out
    }

    #[test]
    fn marks_with_counterparts_become_styles() {
        for (text, expected) in [
            ("a **b** c", "a <1>b<> c"),
            ("*a* and ***b***", "<3>a<> and <1;3>b"),
            ("use `x * y` or ``a`b``", "use <36>x * y<> or <36>a`b"),
            ("**with `code` in**!", "<1>with <36>code<1> in<>!"),
            ("**a *b* c**", "<1>a <1;3>b<1> c"),
            ("**bold**: text", "<1>bold<>: text"),
            (r"\*not\* C:\dir \\", r"*not* C:\dir \"),
            ("`` ` ``", "<36>`"),
        ] {
            assert_eq!(show(&spans(text)), expected, "{text}");
        }
    }

    #[test]
    fn lone_marks_stay_what_they_are() {
        for text in [
            "2 * 3 * 4",
            "2*3*4",
            "int *p, **q;",
            "a ` b",
            "__init__ and snake_case",
            "5 ** 2",
            "****",
            "*",
            "`",
            "** x **",
        ] {
            assert_eq!(show(&spans(text)), text);
        }
    }

    #[test]
    fn text_in_pieces_gives_what_the_whole_gives() {
        let text = "Use **`a*b`** or *x*: `y` and **unclosed, ``z`` \\* *é* 2*3 ***all*** `open";
        let whole = show(&spans(text));
        for size in 1..7 {
            let mut inline = Inline::default();
            let mut all = vec![];
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(size) {
                all.extend(inline.push(&piece.iter().collect::<String>(), false));
            }
            all.extend(inline.push("", true));
            assert_eq!(show(&all), whole, "{size}");
        }
    }

    #[test]
    fn a_mark_without_counterpart_does_not_hold_back_for_long() {
        let mut inline = Inline::default();
        assert!(inline.push("**open ", false).is_empty());
        let given: usize =
            (0..80).map(|_| inline.push("word ", false).iter().map(|(_, t)| t.len()).sum::<usize>()).sum();
        assert!(given > 150, "{given}");
        let mut inline = Inline::default();
        assert_eq!(show(&inline.push("plain text ", false)), "plain text ");
    }
}
