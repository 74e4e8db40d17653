//! gpt-oss's format: messages of a header and a body. The channel of a header says what the body is, and its recipient
//! makes it a call. Who is no function of the request is no call: then the body stays what its channel says.

use super::arguments::{Arguments, Fed};
use super::event::Sink;
use super::header::starts;
use super::reader::End;
use super::schema::Tools;
use super::tags::partial;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// What ends a body. The last two begin the next header, where an end was forgotten.
const ENDS: [&str; 5] = ["<|end|>", "<|return|>", "<|call|>", START, CHANNEL];

#[derive(Debug)]
enum State {
    Header,
    Reasoning,
    Content,
    Call { arguments: Arguments, raw: bool, whole: Option<bool> },
}

#[derive(Debug)]
pub(super) struct Harmony {
    tools: Tools,
    text: String,
    at: usize,
    state: State,
}

impl Harmony {
    pub fn new(tools: Tools) -> Harmony {
        Harmony { tools, text: String::new(), at: 0, state: State::Header }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the text is in a call's arguments.
    pub fn in_arguments(&self) -> bool {
        matches!(self.state, State::Call { .. })
    }

    /// Whether a header is being written.
    pub fn in_header(&self) -> bool {
        matches!(self.state, State::Header) && self.text.len() > self.at
    }

    pub fn push(&mut self, text: &str, end: End, sink: &mut Sink) {
        self.text.push_str(text);
        while self.advance(end, sink) {}
        if end != End::More {
            if let State::Call { arguments, raw, whole } = &mut self.state {
                let mut out = String::new();
                let whole = whole.unwrap_or_else(|| end == End::Ended && !*raw && arguments.close(&mut out));
                sink.arguments(&out);
                sink.end(whole, self.text.len());
                self.state = State::Header;
            }
            if self.at < self.text.len() {
                sink.content(&self.text[self.at..]);
                self.at = self.text.len();
            }
        }
    }

    fn advance(&mut self, end: End, sink: &mut Sink) -> bool {
        if matches!(self.state, State::Header) { self.header(end, sink) } else { self.body(end, sink) }
    }

    fn header(&mut self, end: End, sink: &mut Sink) -> bool {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return false;
        }
        let trimmed = rest.trim_start();
        let begins: Vec<_> = [START, CHANNEL, MESSAGE, "to=", "assistant"].map(|mark| starts(trimmed, mark)).to_vec();
        if !begins.contains(&Some(true)) {
            if begins.contains(&None) && end == End::More {
                return false;
            }
            // No header: the text of an answer.
            self.state = State::Content;
            return true;
        }
        let Some(found) = rest.find(MESSAGE) else { return false };
        let header = &rest[..found];
        let inner = header.trim_start().strip_prefix(START).unwrap_or(header);
        let inner = inner.trim_start().strip_prefix("assistant").unwrap_or(inner);
        let start = self.at + found - inner.len();
        let word = |mark: &str| {
            let (_, rest) = inner.split_once(mark)?;
            rest.trim_start().split(|c: char| c.is_whitespace() || c == '<').next()
        };
        let channel = word(CHANNEL).unwrap_or("final");
        let recipient = word("to=").unwrap_or_default();
        self.at += found + MESSAGE.len();
        let function = recipient.strip_prefix("functions.").or(Some(recipient).filter(|name| self.tools.knows(name)));
        self.state = match function.filter(|name| !name.is_empty()) {
            Some(name) => {
                sink.begin(name, start);
                State::Call { arguments: Arguments::default(), raw: false, whole: None }
            }
            None if channel == "analysis" => State::Reasoning,
            None => State::Content,
        };
        true
    }

    fn body(&mut self, end: End, sink: &mut Sink) -> bool {
        let rest = &self.text[self.at..];
        let found = ENDS.iter().filter_map(|mark| Some((rest.find(mark)?, *mark))).min();
        let held = if end == End::More { ENDS.iter().map(|mark| partial(rest, mark)).max().unwrap_or(0) } else { 0 };
        let stop = self.at + found.map_or(rest.len() - held, |(at, _)| at);
        let body = &self.text[self.at..stop];
        match &mut self.state {
            State::Header => {}
            State::Reasoning => sink.reasoning(body),
            State::Content => sink.content(body),
            State::Call { arguments, raw, whole } => {
                let mut out = String::new();
                for c in body.chars() {
                    if *raw {
                        out.push(c);
                        continue;
                    }
                    match (arguments.feed(c, &mut out), &whole) {
                        (Fed::More, _) => {}
                        (Fed::Done, _) => *whole = Some(true),
                        // White space may follow the object.
                        (Fed::Bad, Some(true)) if c.is_whitespace() => {
                            out.pop();
                        }
                        (Fed::Bad, _) => {
                            *raw = true;
                            *whole = Some(false);
                        }
                    }
                }
                if found.is_some() && whole.is_none() {
                    let empty = body.trim().is_empty() && out.trim().is_empty() && arguments.is_empty();
                    if empty {
                        out = "{}".to_owned();
                    }
                    *whole = Some(empty || arguments.close(&mut out));
                }
                sink.arguments(&out);
                if found.is_some() {
                    sink.end(*whole == Some(true), stop);
                }
            }
        }
        self.at = stop;
        let Some((_, mark)) = found else { return false };
        if mark != START && mark != CHANNEL {
            self.at += mark.len();
        }
        self.state = State::Header;
        true
    }
}
