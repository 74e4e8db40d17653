//! Tool calls, read from the text that a model generates while it streams.
//!
//! Each family of models was trained on its own way to write a call. A row of the table ([`rows`]) says how, and is chosen
//! from the text of the model's template. Text comes in pieces of any size; content, reasoning and calls go out as events,
//! a call's arguments as one JSON text of the declared types. What is malformed is mended where one reading is possible.
//! Before a call has been told it can still become text; once it has, its bytes are passed on as they are and its end says
//! that it is not whole. White space around calls and reasoning is syntax; nothing else is left out.

mod arguments;
mod event;
mod force;
mod harmony;
mod header;
mod opening;
mod python;
mod reader;
mod row;
mod rows;
mod schema;
mod tags;

pub use event::{Call, Event, Ids};
pub use force::ForceError;
pub use reader::Place;
pub use schema::Tools;

use event::Sink;
use harmony::Harmony;
use reader::{End, Reader};
use row::Row;

/// A family's way to write calls and reasoning.
#[derive(Debug, Clone, Copy)]
pub struct Format(&'static Row);

impl PartialEq for Format {
    fn eq(&self, other: &Format) -> bool {
        self.0.name == other.0.name
    }
}

impl Format {
    /// Of a template, by what it contains; every template has one.
    pub fn of_template(source: &str) -> Format {
        Format(rows::of_template(source))
    }

    /// By its name, such as `hermes`.
    pub fn named(name: &str) -> Option<Format> {
        rows::named(name).map(Format)
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        rows::ROWS.iter().map(|row| row.name)
    }

    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// What stands around one call in a rendered prompt, where bytes that were generated can take its place.
    pub fn frame(&self) -> Option<(&'static str, &'static str)> {
        self.0.frame
    }

    /// Control tokens that a call has inside of its frame.
    pub fn inner(&self) -> &'static [&'static str] {
        self.0.inner
    }

    /// What stands around reasoning, if anything does.
    pub fn reasoning(&self) -> Option<(&'static str, &'static str)> {
        self.0.think.first().copied()
    }

    /// Whether templates of this format refuse ids of calls that have not nine letters or digits.
    pub fn short_ids(&self) -> bool {
        self.0.short_ids
    }

    /// Whether a prompt ends inside of reasoning, so that the answer begins there.
    pub fn reasons_after(&self, prompt: &str) -> bool {
        self.unclosed(prompt).is_some()
    }

    fn unclosed(&self, prompt: &str) -> Option<&'static str> {
        let end = prompt.trim_end();
        self.0.think.iter().find(|(open, _)| end.ends_with(open.trim_end())).map(|(_, close)| *close)
    }
}

/// Reads one answer.
#[derive(Debug)]
pub struct Parser {
    kind: Kind,
    sink: Sink,
    frame: Option<(&'static str, &'static str)>,
}

#[derive(Debug)]
enum Kind {
    Reader(Reader),
    Harmony(Harmony),
}

impl Parser {
    /// For an answer to a prompt, which may end inside of reasoning.
    pub fn new(format: Format, tools: Tools, ids: Ids, prompt: &str) -> Parser {
        let sink = Sink::new(ids, format.0.short_ids);
        let kind = if format.0.name == rows::HARMONY {
            Kind::Harmony(Harmony::new(tools))
        } else {
            Kind::Reader(Reader::new(format.0, tools, format.unclosed(prompt)))
        };
        Parser { kind, sink, frame: format.0.frame }
    }

    /// What another piece of text makes certain.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        self.take(text, End::More)
    }

    /// What is left at the end. `ended`: the model ended its answer, it was not cut off.
    pub fn finish(&mut self, ended: bool) -> Vec<Event> {
        self.take("", if ended { End::Ended } else { End::Cut })
    }

    fn take(&mut self, text: &str, end: End) -> Vec<Event> {
        match &mut self.kind {
            Kind::Reader(reader) => reader.push(text, end, &mut self.sink),
            Kind::Harmony(harmony) => harmony.push(text, end, &mut self.sink),
        }
        std::mem::take(&mut self.sink.events)
    }

    /// The calls so far.
    pub fn calls(&self) -> &[Call] {
        &self.sink.calls
    }

    /// All that was pushed.
    pub fn text(&self) -> &str {
        match &self.kind {
            Kind::Reader(reader) => reader.text(),
            Kind::Harmony(harmony) => harmony.text(),
        }
    }

    /// The bytes that were generated for a call inside of its [`Format::frame`], by its id: with them a later prompt repeats what the cache holds.
    pub fn generated(&self, id: &str) -> Option<&str> {
        let call = self.sink.calls.iter().find(|call| call.id == id)?;
        let (text, mut place) = (self.text(), call.generated.clone());
        if let Some((open, close)) = self.frame {
            if let Some(inside) = text[place.clone()].trim_start().strip_prefix(open) {
                place.start = place.end - inside.len();
            }
            match text[place.clone()].strip_suffix(close) {
                Some(inside) => place.end = place.start + inside.len(),
                None => {
                    let space = text[place.end..].len() - text[place.end..].trim_start().len();
                    place.end += if text[place.end + space..].starts_with(close) { space } else { 0 };
                }
            }
        }
        text.get(place)
    }

    /// Where the next text belongs.
    pub fn place(&self) -> Place {
        match &self.kind {
            Kind::Reader(reader) => reader.place(),
            Kind::Harmony(harmony) if harmony.in_arguments() => Place::Payload,
            Kind::Harmony(harmony) if harmony.in_header() => Place::Syntax,
            Kind::Harmony(_) => Place::Content,
        }
    }
}
