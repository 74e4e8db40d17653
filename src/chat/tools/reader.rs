//! Reads all formats but harmony: text and reasoning, then calls between the marks of a row of the table.
//!
//! The whole answer is kept, and a position in it moves on once what stands there is certain; so where the text was cut
//! into pieces changes nothing but the moment at which an event is given out.

use super::arguments::{Arguments, Fed};
use super::event::Sink;
use super::header::{self, Begin, Given, Header, Scan, pair, starts};
use super::opening::{self, Found};
use super::python::keywords;
use super::row::{Item, Named, Row};
use super::schema::Tools;
use super::tags::{Step, Tags, partial};

/// Whether text may follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    More,
    /// The model ended its answer.
    Ended,
    /// The answer was cut off.
    Cut,
}

/// Where the next text belongs: what calls are made of is best sampled greedily, what they carry as the user asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Content,
    Reasoning,
    /// Marks, names, keys, quotes and brackets.
    Syntax,
    /// Strings and values.
    Payload,
}

#[derive(Debug)]
enum State {
    Text,
    Thinking {
        close: &'static str,
        began: bool,
    },
    Calls(Calls),
    Object {
        calls: Calls,
        arguments: Arguments,
        raw: bool,
    },
    Tags {
        calls: Calls,
        tags: Tags,
    },
    /// Behind the arguments: the braces and keys of the object around them.
    Tail(Calls),
}

/// Calls between an opening and its end.
#[derive(Debug, Clone)]
struct Calls {
    /// Where it begins, and where the text goes on if it is none.
    start: usize,
    inside: usize,
    count: usize,
    /// Without markers only known tools are called.
    known: bool,
    fence: bool,
    /// Directly behind an opening.
    fresh: bool,
    item: Option<&'static Item>,
}

#[derive(Debug)]
pub(super) struct Reader {
    row: &'static Row,
    tools: Tools,
    text: String,
    at: usize,
    /// Openings before this place were looked at.
    seek: usize,
    state: State,
    /// Nothing but reasoning and calls so far.
    silent: bool,
}

impl Reader {
    pub fn new(row: &'static Row, tools: Tools, reasoning: Option<&'static str>) -> Reader {
        let state = reasoning.map_or(State::Text, |close| State::Thinking { close, began: false });
        Reader { row, tools, text: String::new(), at: 0, seek: 0, state, silent: true }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where the next text belongs.
    pub fn place(&self) -> Place {
        match &self.state {
            State::Text if self.at < self.text.len() && !self.text[self.at..].trim().is_empty() => Place::Syntax,
            State::Text => Place::Content,
            State::Thinking { .. } => Place::Reasoning,
            State::Calls(_) | State::Tail(_) => Place::Syntax,
            State::Object { arguments, .. } => {
                if arguments.in_string() {
                    Place::Payload
                } else {
                    Place::Syntax
                }
            }
            State::Tags { tags, .. } => {
                if tags.in_the_middle() {
                    Place::Payload
                } else {
                    Place::Syntax
                }
            }
        }
    }

    pub fn push(&mut self, text: &str, end: End, sink: &mut Sink) {
        self.text.push_str(text);
        while self.advance(end, sink) {}
    }

    /// One step; false where more text is needed or none is left.
    fn advance(&mut self, end: End, sink: &mut Sink) -> bool {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.in_text(end, sink),
            State::Thinking { close, began } => self.thinking(close, began, end, sink),
            State::Calls(calls) => self.in_calls(calls, end, sink),
            State::Object { calls, arguments, raw } => self.object(calls, arguments, raw, end, sink),
            State::Tags { calls, mut tags } => {
                let step = tags.step(&self.text, &mut self.at, &self.tools, end, sink);
                match step {
                    Step::Need => {
                        self.state = State::Tags { calls, tags };
                        return false;
                    }
                    Step::Again => self.state = State::Tags { calls, tags },
                    Step::Object => self.state = State::Object { calls, arguments: Arguments::default(), raw: false },
                    Step::Done | Step::Short => {
                        let middle = tags.in_the_middle();
                        tags.finish(&self.text, &self.tools, sink);
                        if step == Step::Short {
                            self.at = self.text.len();
                        }
                        sink.end(!middle && (step == Step::Done || end == End::Ended), self.at);
                        self.state = State::Calls(calls);
                    }
                }
                true
            }
            State::Tail(calls) => self.tail(calls, end, sink),
        }
    }

    // ---- text and reasoning ----

    fn in_text(&mut self, end: End, sink: &mut Sink) -> bool {
        let closed = end != End::More;
        let space = self.at + (self.text[self.at..].len() - self.text[self.at..].trim_start().len());
        if self.silent {
            let rest = &self.text[space..];
            if rest.is_empty() && !closed {
                return false;
            }
            let mut open = false;
            for &(mark, close) in self.row.think {
                match starts(rest, mark) {
                    Some(true) => {
                        self.at = space + mark.len();
                        self.state = State::Thinking { close, began: false };
                        return true;
                    }
                    None => open = !rest.is_empty(),
                    Some(false) => {}
                }
            }
            if open && !closed {
                return false;
            }
        }
        let from = self.seek.max(self.at);
        let found = opening::find(self.row, &self.tools, &self.text, from, closed);
        let stop = match found {
            Found::At { at, .. } => at,
            Found::Held(at) => at,
        };
        // White space in front of a call belongs to the call, and at the start to nothing that was said.
        let upto = self.text[..stop].trim_end().len().max(self.at);
        if upto > self.at {
            let start = if self.silent && self.thought() { space.min(upto) } else { self.at };
            sink.content(&self.text[start..upto]);
            self.at = upto;
            self.silent = false;
        }
        match found {
            Found::At { at, inside, known, fence } => {
                let start = self.at;
                self.seek = at;
                self.state = State::Calls(Calls { start, inside, count: 0, known, fence, fresh: true, item: None });
                self.at = inside;
                true
            }
            Found::Held(at) => {
                self.seek = at;
                if closed && self.at < self.text.len() {
                    let only_space = self.text[self.at..].trim().is_empty();
                    if !(only_space && (self.silent && (self.thought() || !sink.calls.is_empty()))) {
                        sink.content(&self.text[self.at..]);
                    }
                    self.at = self.text.len();
                }
                false
            }
        }
    }

    /// Whether this answer began with reasoning.
    fn thought(&self) -> bool {
        self.row.think.iter().any(|(_, close)| self.text[..self.at].trim_end().ends_with(close))
    }

    fn thinking(&mut self, close: &'static str, began: bool, end: End, sink: &mut Sink) -> bool {
        if !began {
            let rest = self.text[self.at..].trim_start();
            if rest.is_empty() && end == End::More {
                self.state = State::Thinking { close, began };
                return false;
            }
            self.at = self.text.len() - rest.len();
        }
        let rest = &self.text[self.at..];
        let calls = self.row.opens.iter().filter(|_| self.row.ends_reasoning);
        let marks = || [close].into_iter().chain(calls.clone().copied());
        let found = marks().filter_map(|mark| Some((rest.find(mark)?, mark))).min();
        let held = marks().map(|mark| partial(rest, mark)).max().unwrap_or(0);
        let stop = self.at + found.map_or(rest.len() - if end == End::More { held } else { 0 }, |(at, _)| at);
        let upto = self.text[..stop].trim_end().len().max(self.at);
        sink.reasoning(&self.text[self.at..upto]);
        self.at = upto;
        match found {
            Some((_, mark)) if mark == close => self.at = stop + close.len(),
            Some(_) => {}
            None if end == End::More => {
                self.state = State::Thinking { close, began: true };
                return false;
            }
            None => self.at = self.text.len(),
        }
        self.seek = self.at;
        true
    }

    // ---- calls ----

    fn in_calls(&mut self, mut calls: Calls, end: End, sink: &mut Sink) -> bool {
        let closed = end != End::More;
        let row = self.row;
        loop {
            let rest = self.text[self.at..].trim_start();
            let at = self.text.len() - rest.len();
            if rest.is_empty() {
                return self.wait(calls, closed);
            }
            let fence: &[&str] = if calls.fence { &["```"] } else { &[] };
            let closes = row.closes.iter().chain(fence).map(|mark| (starts(rest, mark), *mark));
            let mut open = false;
            let mut closing = None;
            for (state, mark) in closes {
                open |= state.is_none();
                closing = closing.or((state == Some(true)).then_some(mark));
            }
            if let Some(mark) = closing.filter(|_| calls.count > 0) {
                self.at = at + mark.len();
                calls.fresh = false;
                calls.fence &= mark != "```";
                continue;
            }
            // The next opening, where a call has no end of its own.
            let mut opened = None;
            for mark in row.opens.iter().filter(|_| calls.count > 0) {
                let state = starts(rest, mark);
                open |= state.is_none();
                opened = opened.or((state == Some(true)).then_some(*mark));
            }
            if opened.is_some() || (calls.count > 0 && open && !closed) {
                if opened.is_none() {
                    return self.wait(calls, closed);
                }
                self.seek = at;
                self.state = State::Text;
                return true;
            }
            let between = rest.chars().next().filter(|c| row.between.contains(c));
            if let Some(c) = between.filter(|c| calls.count > 0 || (calls.fresh && *c != ']')) {
                self.at = at + c.len_utf8();
                continue;
            }
            return self.item(calls, at, end, sink);
        }
    }

    /// A call's beginning at `at`, or none.
    fn item(&mut self, mut calls: Calls, at: usize, end: End, sink: &mut Sink) -> bool {
        let closed = end != End::More;
        let rest = &self.text[at..];
        let items = if self.row.items.is_empty() { &UNMARKED } else { self.row.items };
        let mut need = false;
        for item in items {
            let placed = match item {
                Item::Named(Named { open: "", .. }) | Item::Python => calls.fresh,
                Item::Xml(xml) if xml.open.is_empty() => calls.fresh,
                _ => true,
            };
            if !placed || (calls.known && self.row.bare && !matches!(item, Item::Object)) {
                continue;
            }
            match header::read(item, rest, &self.tools, closed) {
                Header::No => {}
                Header::Need => need = true,
                Header::Yes(begin) if calls.known && !self.tools.knows(&begin.name) => {}
                Header::Yes(begin) => {
                    calls.count += 1;
                    calls.fresh = false;
                    calls.item = Some(item);
                    let start = if calls.count == 1 && self.row.frame.is_some() { calls.inside } else { at };
                    self.begin(calls, begin, start.min(at), at, sink);
                    return true;
                }
            }
            if need {
                break;
            }
        }
        if need && !closed {
            self.state = State::Calls(calls);
            return false;
        }
        self.hand_back(calls);
        true
    }

    fn begin(&mut self, calls: Calls, begin: Begin, start: usize, at: usize, sink: &mut Sink) {
        sink.begin(&begin.name, start);
        self.silent = true;
        self.at = at + begin.at;
        match begin.arguments {
            Given::Object => self.state = State::Object { calls, arguments: Arguments::default(), raw: false },
            Given::Here(json) => {
                sink.arguments(&json);
                sink.end(true, self.at);
                self.state = State::Tail(calls);
            }
            Given::Tags => {
                if let Some(Item::Xml(xml)) = calls.item {
                    let tags = Tags::new(xml, self.row.closes, &begin.name);
                    self.state = State::Tags { calls, tags };
                }
            }
            Given::Keywords(inside) => {
                let json = keywords(&self.text[at + inside.start..at + inside.end], &begin.name, &self.tools);
                sink.arguments(&json);
                sink.end(true, self.at);
                self.state = State::Calls(calls);
            }
        }
    }

    fn object(&mut self, calls: Calls, mut arguments: Arguments, mut raw: bool, end: End, sink: &mut Sink) -> bool {
        let closed = end != End::More;
        let (markers, own): (&[&str], &[&str]) = match calls.item {
            Some(Item::Named(named)) => (named.markers, named.closes),
            Some(Item::Xml(xml)) => (&[], xml.closes),
            _ => (&[], &[]),
        };
        let closes = || own.iter().chain(self.row.closes).copied();
        let mut out = String::new();
        let mut whole = None;
        while let Some(c) = self.text[self.at..].chars().next() {
            let rest = &self.text[self.at..];
            let inside = arguments.in_string();
            if !markers.is_empty() && !raw {
                let seen: Vec<_> = markers.iter().map(|mark| (starts(rest, mark), mark.len())).collect();
                if let Some((_, n)) = seen.iter().find(|(state, _)| *state == Some(true)) {
                    raw = arguments.feed_marker(&mut out) == Fed::Bad;
                    if !raw {
                        self.at += n;
                    }
                    continue;
                }
                if seen.iter().any(|(state, _)| state.is_none()) && !closed {
                    break;
                }
            }
            if !inside || raw {
                let seen: Vec<_> = closes().map(|mark| starts(rest, mark)).collect();
                if seen.contains(&Some(true)) {
                    whole = Some(!raw && arguments.close(&mut out));
                    break;
                }
                if seen.contains(&None) && !closed {
                    break;
                }
            }
            self.at += c.len_utf8();
            if raw {
                out.push(c);
                continue;
            }
            match arguments.feed(c, &mut out) {
                Fed::More => {}
                Fed::Done => {
                    whole = Some(true);
                    break;
                }
                Fed::Bad => raw = true,
            }
        }
        if closed && whole.is_none() && self.at >= self.text.len() {
            whole = Some(end == End::Ended && !raw && arguments.close(&mut out));
        }
        sink.arguments(&out);
        match whole {
            Some(whole) => {
                sink.end(whole, self.at);
                self.state = State::Tail(calls);
                true
            }
            None => {
                self.state = State::Object { calls, arguments, raw };
                false
            }
        }
    }

    fn tail(&mut self, calls: Calls, end: End, sink: &mut Sink) -> bool {
        let closed = end != End::More;
        let object = matches!(calls.item, Some(Item::Object));
        let own: &[&str] = match calls.item {
            Some(Item::Named(named)) => named.closes,
            Some(Item::Xml(xml)) => xml.closes,
            _ => &[],
        };
        loop {
            let rest = self.text[self.at..].trim_start();
            let at = self.text.len() - rest.len();
            if rest.is_empty() && !closed {
                self.state = State::Tail(calls);
                return false;
            }
            if object && rest.starts_with('}') {
                self.at = at + 1;
                sink.extend(self.at);
                continue;
            }
            // Keys behind the arguments, such as an id.
            if object && rest.starts_with(',') {
                let key = rest[1..].trim_start();
                if key.is_empty() && !closed {
                    self.state = State::Tail(calls);
                    return false;
                }
                if key.starts_with('}') {
                    self.at = self.text.len() - key.len();
                    continue;
                }
                if key.starts_with(['"', '\'']) {
                    match pair(rest) {
                        Scan::End(n) => {
                            self.at = at + n;
                            sink.extend(self.at);
                            continue;
                        }
                        Scan::Need if !closed => {
                            self.state = State::Tail(calls);
                            return false;
                        }
                        _ => {}
                    }
                }
            }
            let fence: &[&str] = if !object && matches!(calls.item, Some(Item::Named(_))) { &["```"] } else { &[] };
            let marks: Vec<_> = own.iter().chain(fence).map(|mark| (starts(rest, mark), *mark)).collect();
            if let Some((_, mark)) = marks.iter().find(|(state, _)| *state == Some(true)) {
                if fence.contains(mark) {
                    sink.extend(at + mark.len());
                }
                self.at = at + mark.len();
                if !fence.contains(mark) {
                    break;
                }
                continue;
            }
            if !rest.is_empty() && marks.iter().any(|(state, _)| state.is_none()) && !closed {
                self.state = State::Tail(calls);
                return false;
            }
            break;
        }
        self.state = State::Calls(calls);
        true
    }

    /// Waits for more, or ends.
    fn wait(&mut self, calls: Calls, closed: bool) -> bool {
        if !closed {
            self.state = State::Calls(calls);
            return false;
        }
        self.hand_back(calls);
        true
    }

    /// What looked like calls is text: all of it, or what follows the last call.
    fn hand_back(&mut self, calls: Calls) {
        if calls.count == 0 {
            self.at = calls.start;
            let mark = self.seek + self.text[self.seek..].chars().next().map_or(0, char::len_utf8);
            self.seek = calls.inside.max(mark);
        } else {
            self.seek = self.at;
        }
        self.state = State::Text;
    }
}

/// Of formats without marks.
static UNMARKED: [Item; 1] = [Item::Object];
