//! Where calls may begin in the text of an answer: at a format's marks, and where a line begins with an object or a code
//! fence. Whether one does begin there is for `header` to say.

use super::header::starts;
use super::row::{Item, Row};
use super::schema::Tools;
use super::tags::partial;

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    At {
        at: usize,
        inside: usize,
        known: bool,
        fence: bool,
    },
    /// Nothing before this place.
    Held(usize),
}

/// The next opening from a place on, or the place from which on one may begin.
pub(super) fn find(row: &Row, tools: &Tools, text: &str, from: usize, closed: bool) -> Found {
    let rest = &text[from..];
    let mut best: Option<(usize, Found)> = None;
    let mut take = |at: usize, found: Found| {
        if best.as_ref().is_none_or(|(other, _)| at < *other) {
            best = Some((at, found));
        }
    };
    let mut held = 0;
    for &mark in row.opens {
        match rest.find(mark) {
            Some(found) => {
                let at = from + found;
                // An item that begins with this mark reads it itself.
                let own = row.items.iter().any(|item| match item {
                    Item::Named(named) => named.open.starts_with(mark),
                    Item::Xml(xml) => xml.open.starts_with(mark),
                    Item::Object | Item::Python => false,
                });
                let known = own && matches!(row.items.first(), Some(Item::Xml(_)));
                let inside = if own { at } else { at + mark.len() };
                take(at, Found::At { at, inside, known, fence: false });
            }
            None => held = held.max(partial(rest, mark)),
        }
    }
    if row.bare && !tools.is_empty() {
        let line_start =
            |at: usize| text[..at].trim_end_matches([' ', '\t']).chars().next_back().is_none_or(|c| c == '\n');
        for (found, c) in rest.match_indices(['{', '[', '`']) {
            let at = from + found;
            if !line_start(at) {
                continue;
            }
            if c != "`" {
                take(at, Found::At { at, inside: at, known: true, fence: false });
                break;
            }
            match fence(&text[at..]) {
                Some(Some(inside)) => {
                    take(at, Found::At { at, inside: at + inside, known: true, fence: true });
                    break;
                }
                Some(None) if !closed => held = held.max(text.len() - at),
                _ => {}
            }
        }
    }
    let hold = if closed { text.len() } else { text.len() - held };
    match best {
        Some((at, found)) if at <= hold => found,
        _ => Found::Held(hold),
    }
}

/// Where a code fence's content begins, if it may be a call: `None` no fence, `Some(None)` not known yet.
fn fence(text: &str) -> Option<Option<usize>> {
    match starts(text, "```") {
        None => return Some(None),
        Some(false) => return None,
        Some(true) => {}
    }
    let Some(line) = text.find('\n') else {
        let word = &text[3..];
        let languages = ["json", "tool_call", "tool_calls", "tool_code", "xml"];
        return (word.len() < 12 && languages.iter().any(|language| language.starts_with(word.trim()))).then_some(None);
    };
    if !matches!(text[3..line].trim(), "" | "json" | "tool_call" | "tool_calls" | "tool_code" | "xml") {
        return None;
    }
    let rest = text[line..].trim_start();
    match rest.chars().next() {
        None => Some(None),
        Some('{' | '[') => Some(Some(text.len() - rest.len())),
        Some(_) => None,
    }
}
