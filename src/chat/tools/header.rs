//! The beginning of a call up to its arguments. It is short, so it is read anew from its start whenever text arrives,
//! and nothing has been told of it until it is complete: what turns out to be none is text.

use super::python;
use super::row::{Item, Named, Xml};
use super::schema::Tools;
use std::ops::Range;

/// What is known of a beginning.
#[derive(Debug, PartialEq)]
pub(super) enum Header {
    /// It could still become a call.
    Need,
    No,
    Yes(Begin),
}

/// A call whose arguments follow.
#[derive(Debug, PartialEq)]
pub(super) struct Begin {
    pub name: String,
    /// Where to go on.
    pub at: usize,
    pub arguments: Given,
}

#[derive(Debug, PartialEq)]
pub(super) enum Given {
    /// They follow, as an object; the item's own braces around it that are open.
    Object,
    /// They came before the name, or as a JSON text in quotes.
    Here(String),
    Tags,
    /// Python's keyword arguments, up to the closing parenthesis.
    Keywords(Range<usize>),
}

/// A value's end, by quotes and brackets alone.
pub(super) enum Scan {
    Need,
    Bad,
    End(usize),
}

/// Longest name of a tool.
pub(super) const LONGEST_NAME: usize = 256;

pub(super) fn read(item: &Item, text: &str, tools: &Tools, end: bool) -> Header {
    let header = match item {
        Item::Object => object(text, tools),
        Item::Named(named) => self::named(named, text, tools),
        Item::Xml(xml) => self::xml(xml, text, tools, end),
        Item::Python => python::call(text, tools),
    };
    if end && header == Header::Need { Header::No } else { header }
}

/// `Some(true)`: `text` begins with it; `None`: it may once more has come.
pub(super) fn starts(text: &str, with: &str) -> Option<bool> {
    if text.starts_with(with) {
        Some(true)
    } else if with.starts_with(text) {
        None
    } else {
        Some(false)
    }
}

fn named(named: &Named, text: &str, tools: &Tools) -> Header {
    match starts(text, named.open) {
        None => return Header::Need,
        Some(false) => return Header::No,
        Some(true) => {}
    }
    let rest = &text[named.open.len()..];
    let found = named.after_name.iter().filter_map(|end| Some((rest.find(end)?, *end))).min();
    let Some((at, end)) = found else {
        return if rest.len() > LONGEST_NAME { Header::No } else { Header::Need };
    };
    let Some(name) = (named.clean)(&rest[..at]).filter(|name| is_name(name)) else { return Header::No };
    let mut next = named.open.len() + at + if end == "{" { 0 } else { end.len() };
    if end == "[CALL_ID]" {
        match text[next..].find("[ARGS]") {
            Some(args) => next += args + "[ARGS]".len(),
            None => return Header::Need,
        }
    }
    // White space and a fence may stand before the object; an empty place is an object without members.
    let rest = text[next..].trim_start();
    let fence = ["```json", "```", "``", "`"].iter().find(|fence| rest.starts_with(**fence));
    if let Some(fence) = fence {
        let after = rest.strip_prefix(fence).unwrap_or(rest).trim_start();
        if !after.starts_with('{') {
            let open = after.is_empty() || "```json".starts_with(rest.trim_end());
            return if open { Header::Need } else { Header::No };
        }
        next = text.len() - after.len();
    } else if rest.is_empty() {
        return Header::Need;
    } else if rest.starts_with('{') {
        next = text.len() - rest.len();
    } else if named.closes.iter().any(|close| starts(rest, close) != Some(false)) {
        return if named.closes.iter().any(|close| rest.starts_with(close)) {
            let name = tools.resolve(name);
            Header::Yes(Begin { name, at: next, arguments: Given::Here("{}".to_owned()) })
        } else {
            Header::Need
        };
    } else {
        return Header::No;
    }
    Header::Yes(Begin { name: tools.resolve(name), at: next, arguments: Given::Object })
}

pub(super) fn is_name(name: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "<>{}[]()\"'`,;=".contains(c);
    !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(odd)
}

fn xml(xml: &Xml, text: &str, tools: &Tools, end: bool) -> Header {
    match starts(text, xml.open) {
        None => return Header::Need,
        Some(false) => return Header::No,
        Some(true) => {}
    }
    let rest = &text[xml.open.len()..];
    let found = xml.name_end.iter().filter_map(|end| Some((rest.find(end)?, *end))).min();
    let (at, stop) = match found {
        Some(found) => found,
        None if rest.len() > LONGEST_NAME || !could_be_name(rest) => return Header::No,
        None if end => return Header::No,
        None => return Header::Need,
    };
    let name = attribute(&rest[..at]);
    if !is_name(name) {
        return Header::No;
    }
    let name = tools.resolve(name);
    let next = xml.open.len() + at + if stop == ">" { 1 } else { 0 };
    if xml.open.is_empty() && !tools.knows(&name) {
        // Only its place makes this a name: a parameter or the end must follow.
        let rest = text[next..].trim_start();
        let follows = ["<arg_key>", "</tool_call>"].map(|tag| starts(rest, tag));
        if !follows.contains(&Some(true)) {
            return if follows.contains(&None) { Header::Need } else { Header::No };
        }
    }
    Header::Yes(Begin { name, at: next, arguments: Given::Tags })
}

/// Rejects prose early, so that it is not held back.
fn could_be_name(rest: &str) -> bool {
    let inner = rest.trim_matches(|c: char| c == '"' || c == '\'');
    let mut odd = inner.chars().filter(|c| c.is_control() || "{}`;".contains(*c));
    odd.next().is_none() && !inner.trim().contains(char::is_whitespace)
}

/// `"name" string="true"` or `name`, without the rest.
pub(super) fn attribute(text: &str) -> &str {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner.split(quote).next().unwrap_or(inner);
        }
    }
    text.trim_end_matches(['"', '\''])
}

/// The end of the string, brackets or word at the start of `text`.
pub(super) fn scan(text: &str) -> Scan {
    let (mut depth, mut quote, mut escaped) = (0usize, None, false);
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => {
                quote = None;
                if depth == 0 {
                    return Scan::End(at + c.len_utf8());
                }
            }
            Some(_) => {}
            None => match c {
                '"' | '\'' => quote = Some(c),
                '{' | '[' | '(' => depth += 1,
                '}' | ']' | ')' if depth == 0 => return if at == 0 { Scan::Bad } else { Scan::End(at) },
                '}' | ']' | ')' => {
                    depth -= 1;
                    if depth == 0 {
                        return Scan::End(at + 1);
                    }
                }
                ',' if depth == 0 => return if at == 0 { Scan::Bad } else { Scan::End(at) },
                _ => {}
            },
        }
    }
    Scan::Need
}

/// `{"name": .., "arguments": ..}` in any order, also OpenAI's `{"type": "function", "function": {..}}`.
fn object(text: &str, tools: &Tools) -> Header {
    let mut at = 0;
    let (mut name, mut before) = (None::<String>, None::<String>);
    let mut depth = 0;
    let skip = |at: usize| at + (text[at..].len() - text[at..].trim_start().len());
    loop {
        at = skip(at);
        let rest = &text[at..];
        let Some(c) = rest.chars().next() else { return Header::Need };
        match c {
            // The first brace; a second one where the template doubles them.
            '{' if depth == 0 || (depth == 1 && name.is_none() && before.is_none() && text[..at].trim() == "{") => {
                depth += 1;
                at += 1;
                continue;
            }
            '}' if depth > 0 => {
                let Some(name) = name else { return Header::No };
                let arguments = Given::Here(before.unwrap_or_else(|| "{}".to_owned()));
                return Header::Yes(Begin { name, at, arguments });
            }
            ',' if depth > 0 => {
                at += 1;
                continue;
            }
            '"' | '\'' if depth > 0 => {}
            // A key without quotes.
            'a'..='z' if depth > 0 => {}
            _ => return Header::No,
        }
        let bare = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let scanned = match bare {
            None => Scan::Need,
            Some(0) => scan(rest),
            Some(n) => Scan::End(n),
        };
        let key = match scanned {
            Scan::End(n) => {
                at += n;
                rest[..n].trim_matches(['"', '\''])
            }
            Scan::Need if rest.len() < 32 => return Header::Need,
            _ => return Header::No,
        };
        if !KEYS.contains(&key) && name.is_none() && before.is_none() {
            return Header::No;
        }
        at = skip(at);
        match text[at..].chars().next() {
            None => return Header::Need,
            Some(':') => at = skip(at + 1),
            Some(_) => return Header::No,
        }
        let rest = &text[at..];
        let Some(first) = rest.chars().next() else { return Header::Need };
        match key {
            "function" if first == '{' => {
                at += 1;
                continue;
            }
            "arguments" | "parameters" | "args" | "input" if first == '{' && name.is_some() => {
                let name = name.unwrap_or_default();
                return Header::Yes(Begin { name, at, arguments: Given::Object });
            }
            _ => {}
        }
        let value = match scan(rest) {
            Scan::Need => return Header::Need,
            Scan::Bad => return Header::No,
            Scan::End(n) => &rest[..n],
        };
        at += value.len();
        match key {
            "name" | "function" | "tool" | "tool_name" => {
                let own = serde_json::from_str::<String>(value).ok();
                let own = own.or_else(|| Some(value.strip_prefix('\'')?.strip_suffix('\'')?.to_owned()));
                match own.filter(|own| is_name(own.trim())) {
                    Some(own) => name = Some(tools.resolve(&own)),
                    None => return Header::No,
                }
            }
            "arguments" | "parameters" | "args" | "input" => {
                let inner = serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_owned());
                match super::arguments::mend(&inner) {
                    Some(own) => before = Some(own),
                    None if inner.trim().is_empty() || inner.trim() == "null" => before = Some("{}".to_owned()),
                    None => return Header::No,
                }
            }
            _ => {}
        }
    }
}

/// What the first key of a call's object may be.
const KEYS: &[&str] = &[
    "name",
    "arguments",
    "parameters",
    "args",
    "input",
    "function",
    "tool",
    "tool_name",
    "type",
    "id",
    "tool_call_id",
];

/// The end of `, "key": value`.
pub(super) fn pair(text: &str) -> Scan {
    let mut at = 1;
    let skip = |at: usize| at + (text[at..].len() - text[at..].trim_start().len());
    for colon in [true, false] {
        at = skip(at);
        match scan(&text[at..]) {
            Scan::End(n) => at += n,
            other => return other,
        }
        if colon {
            at = skip(at);
            match text[at..].chars().next() {
                None => return Scan::Need,
                Some(':') => at += 1,
                Some(_) => return Scan::Bad,
            }
        }
    }
    Scan::End(at)
}
