//! Parameters in tags: `<parameter=key>` and its like, as they arrive.
//!
//! A value may hold any text, also the tag that ends values. So a closing tag counts only where another tag of the call
//! follows it, and where the value has opened none of its own that would be the one it closes.

use super::arguments::{escape, quote};
use super::event::Sink;
use super::header::{attribute, starts};
use super::reader::End;
use super::row::Xml;
use super::schema::{Tools, Untyped};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    /// More text is needed.
    Need,
    /// Something was taken; go on.
    Again,
    /// The call is complete.
    Done,
    /// The text ends inside of the call.
    Short,
    /// Instead of tags there is an object.
    Object,
}

/// A call between its name and its end.
#[derive(Debug)]
pub(super) struct Tags {
    xml: &'static Xml,
    /// What ends the calls, around this one.
    outer: &'static [&'static str],
    tool: String,
    parameters: usize,
    value: Option<Value>,
    /// The model ended its answer here.
    ended: bool,
}

#[derive(Debug)]
struct Value {
    key: String,
    start: usize,
    /// Where to look for the end.
    seek: usize,
    /// Passed on up to here, if the value is text.
    sent: Option<usize>,
    untyped: Untyped,
    /// Tags of this format that the value has closed itself.
    closed: usize,
}

impl Tags {
    pub fn new(xml: &'static Xml, outer: &'static [&'static str], tool: &str) -> Tags {
        Tags { xml, outer, tool: tool.to_owned(), parameters: 0, value: None, ended: false }
    }

    /// Takes what it can of `text` from `at` on.
    pub fn step(&mut self, text: &str, at: &mut usize, tools: &Tools, end: End, sink: &mut Sink) -> Step {
        self.ended = end == End::Ended;
        let end = end != End::More;
        match self.value.take() {
            Some(value) => self.in_value(value, text, at, tools, end, sink),
            None => self.between(text, at, tools, end, sink),
        }
    }

    /// Whether a value is unfinished.
    pub fn in_the_middle(&self) -> bool {
        self.value.is_some()
    }

    /// Writes the end of the arguments; an unfinished value is passed on as far as it came.
    pub fn finish(&mut self, text: &str, tools: &Tools, sink: &mut Sink) {
        match self.value.take() {
            Some(Value { sent: Some(sent), .. }) => send(&text[sent..], sink),
            Some(value) => sink.arguments(&tools.coerce(&self.tool, &value.key, &text[value.start..], value.untyped)),
            None => sink.arguments(if self.parameters == 0 { "{}" } else { "}" }),
        }
    }

    fn between(&mut self, text: &str, at: &mut usize, tools: &Tools, end: bool, sink: &mut Sink) -> Step {
        let xml = self.xml;
        let start = *at + (text[*at..].len() - text[*at..].trim_start().len());
        let rest = &text[start..];
        if rest.is_empty() {
            return need(end);
        }
        if rest.starts_with('{') && self.parameters == 0 {
            *at = start;
            return Step::Object;
        }
        let mut open = false;
        match starts(rest, xml.parameter) {
            Some(true) => {
                let name_at = start + xml.parameter.len();
                let Some(name) = text[name_at..].find(xml.parameter_end) else { return need(end) };
                let raw = &text[name_at..name_at + name];
                let mut value_at = name_at + name + xml.parameter_end.len();
                if !xml.value.is_empty() {
                    let rest = text[value_at..].trim_start();
                    match starts(rest, xml.value) {
                        Some(true) => value_at = text.len() - rest.len() + xml.value.len(),
                        None => return need(end),
                        Some(false) => return Step::Done,
                    }
                }
                if xml.lines {
                    match starts(&text[value_at..], "\r\n") {
                        None if !end => return Step::Need,
                        Some(true) => value_at += 2,
                        _ if text[value_at..].starts_with('\n') => value_at += 1,
                        _ => {}
                    }
                }
                self.open_value(raw, value_at, tools, sink);
                *at = value_at;
                return Step::Again;
            }
            None => open = true,
            Some(false) => {}
        }
        for close in xml.closes {
            match starts(rest, close) {
                Some(true) => {
                    *at = start + close.len();
                    return Step::Done;
                }
                None => open = true,
                Some(false) => {}
            }
        }
        for close in self.outer.iter().filter(|close| **close != xml.value_end) {
            match starts(rest, close) {
                Some(true) => return Step::Done,
                None => open = true,
                Some(false) => {}
            }
        }
        match starts(rest, xml.value_end) {
            // Closed twice.
            Some(true) => {
                *at = start + xml.value_end.len();
                return Step::Again;
            }
            None => open = true,
            Some(false) => {}
        }
        if open { need(end) } else { Step::Done }
    }

    fn open_value(&mut self, raw: &str, at: usize, tools: &Tools, sink: &mut Sink) {
        let key = attribute(raw);
        let untyped = match raw.rsplit_once("string=\"") {
            Some((_, kind)) if kind.starts_with("true") => Untyped::Text,
            Some(_) => Untyped::Json,
            None => self.xml.untyped,
        };
        let mut head = String::from(if self.parameters == 0 { "{" } else { ", " });
        quote(key, &mut head);
        head.push_str(": ");
        let text = tools.is_text(&self.tool, key, untyped);
        if text {
            head.push('"');
        }
        sink.arguments(&head);
        self.parameters += 1;
        let sent = text.then_some(at);
        self.value = Some(Value { key: key.to_owned(), start: at, seek: at, sent, untyped, closed: 0 });
    }

    fn in_value(
        &mut self,
        mut value: Value,
        text: &str,
        at: &mut usize,
        tools: &Tools,
        end: bool,
        sink: &mut Sink,
    ) -> Step {
        let xml = self.xml;
        loop {
            let rest = &text[value.seek..];
            let close = rest.find(xml.value_end).map(|found| (value.seek + found, xml.value_end));
            let forgotten = xml.closes.first().and_then(|close| Some((value.seek + rest.find(close)?, *close)));
            let Some((found, tag)) = close.into_iter().chain(forgotten).min() else {
                // What could be the beginning of the end is held back.
                let tags = [xml.value_end].into_iter().chain(xml.closes.first().copied());
                let held = tags.map(|tag| partial(rest, tag)).max().unwrap_or(0);
                value.seek = text.len() - held;
                let safe = text[..value.seek].trim_end_matches(['\n', '\r']).len().max(value.start);
                if let Some(sent) = value.sent.as_mut().filter(|sent| **sent < safe) {
                    send(&text[*sent..safe], sink);
                    *sent = safe;
                }
                *at = value.sent.unwrap_or(value.start);
                self.value = Some(value);
                return need(end);
            };
            match self.ends(&value, text, found, tag, end) {
                None => {
                    self.value = Some(value);
                    return Step::Need;
                }
                Some(false) => {
                    if tag == xml.value_end {
                        value.closed += 1;
                    }
                    value.seek = found + tag.len();
                }
                Some(true) => {
                    let mut stop = found;
                    if xml.lines && stop > value.start && text[value.start..stop].ends_with('\n') {
                        stop -= if text[value.start..stop].ends_with("\r\n") { 2 } else { 1 };
                    }
                    match value.sent {
                        Some(sent) => {
                            send(&text[sent.min(stop)..stop], sink);
                            sink.arguments("\"");
                        }
                        None => {
                            let raw = &text[value.start..stop];
                            sink.arguments(&tools.coerce(&self.tool, &value.key, raw, value.untyped));
                        }
                    }
                    *at = if tag == xml.value_end { found + tag.len() } else { found };
                    return Step::Again;
                }
            }
        }
    }

    /// Whether the tag at `found` ends the value; None where that is not known yet.
    fn ends(&self, value: &Value, text: &str, found: usize, tag: &str, end: bool) -> Option<bool> {
        let xml = self.xml;
        let own = &text[value.start..found];
        let next = text[found + tag.len()..].trim_start();
        let whole_tag = tag == xml.value_end;
        if next.is_empty() {
            return end.then_some(whole_tag || self.ended);
        }
        let follows = |tags: &mut dyn Iterator<Item = &'static str>| {
            let seen: Vec<_> = tags.map(|tag| starts(next, tag)).collect();
            if seen.contains(&Some(true)) {
                Some(true)
            } else if seen.contains(&None) {
                None
            } else {
                Some(false)
            }
        };
        if !whole_tag {
            // The value's own closing tag was forgotten: then the end of the calls must follow.
            let opened = !xml.open.is_empty() && own.contains(xml.open);
            return match follows(&mut self.outer.iter().copied()) {
                None if end => Some(self.ended && !opened),
                other => other.map(|outer| outer && !opened),
            };
        }
        let nested = own.matches(xml.parameter).count().saturating_sub(value.closed) > 0;
        let mut closers = xml.closes.iter().chain(self.outer).copied().filter(|tag| *tag != xml.value_end);
        let closes = follows(&mut closers);
        if closes == Some(true) {
            let call_inside = nested && (xml.open.is_empty() || own.contains(xml.open));
            return Some(!call_inside);
        }
        let goes_on = follows(&mut [xml.parameter, xml.value_end].into_iter());
        match (goes_on, closes) {
            (Some(true), _) => Some(!nested),
            (None, _) | (_, None) => end.then_some(true),
            _ => Some(false),
        }
    }
}

fn need(end: bool) -> Step {
    if end { Step::Short } else { Step::Need }
}

fn send(text: &str, sink: &mut Sink) {
    let mut out = String::with_capacity(text.len() + 8);
    text.chars().for_each(|c| escape(c, &mut out));
    sink.arguments(&out);
}

/// Bytes at the end of `text` that could be the beginning of `tag`.
pub(super) fn partial(text: &str, tag: &str) -> usize {
    let longest = tag.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|&n| text.is_char_boundary(text.len() - n) && tag.starts_with(&text[text.len() - n..]))
        .unwrap_or(0)
}
