//! Tool calls of every format, cut at every byte; each format's reference parser where one can be installed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod reference;
mod scenarios;
mod special;
mod write;

use rynd::chat::tools::{Event, Format, Ids, Parser, Tools};
use serde_json::{Value, json};

/// What an answer turned out to be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Turn {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Called>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Called {
    pub name: String,
    pub arguments: String,
    pub whole: bool,
}

impl Turn {
    pub fn text(text: &str) -> Turn {
        Turn { content: text.to_owned(), ..Turn::default() }
    }

    pub fn call(mut self, name: &str, arguments: Value) -> Turn {
        self.calls.push(Called { name: name.to_owned(), arguments: arguments.to_string(), whole: true });
        self
    }

    pub fn broken(mut self, name: &str, arguments: &str) -> Turn {
        self.calls.push(Called { name: name.to_owned(), arguments: arguments.to_owned(), whole: false });
        self
    }

    pub fn reason(mut self, text: &str) -> Turn {
        self.reasoning.push_str(text);
        self
    }

    /// Arguments of whole calls by value: their spelling is the model's.
    fn normal(mut self) -> Turn {
        for call in self.calls.iter_mut().filter(|call| call.whole) {
            let value: Value =
                serde_json::from_str(&call.arguments).unwrap_or_else(|e| panic!("{e}: {}", call.arguments));
            assert!(value.is_object(), "{}", call.arguments);
            call.arguments = plain(value).to_string();
        }
        self
    }
}

/// Numbers by what they are worth: `1e3` and `1000.0` are one number, however they are spelled.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(worth) if !number.is_i64() && !number.is_u64() => json!(worth),
            _ => Value::Number(number),
        },
        Value::Array(all) => all.into_iter().map(plain).collect(),
        Value::Object(all) => Value::Object(all.into_iter().map(|(key, value)| (key, plain(value))).collect()),
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

pub fn tools() -> Tools {
    let text = json!({"type": "string"});
    Tools::new(&json!([
        function("get_weather", json!({"city": text, "days": {"type": "integer"}})),
        function("write_file", json!({"path": text, "content": text})),
        function(
            "run",
            json!({"command": text, "timeout": {"type": "number"}, "background": {"type": "boolean"},
            "env": {"type": "object"}, "args": {"type": "array", "items": text}, "note": {"type": ["string", "null"]}})
        ),
        function("noop", json!({})),
        function("mcp__srv-1__do_it", json!({"query": text})),
    ]))
}

fn function(name: &str, properties: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}})
}

pub fn format(name: &str) -> Format {
    Format::named(name).unwrap()
}

/// Reads an answer that comes in these pieces.
pub fn read(format: Format, prompt: &str, pieces: &[&str], ended: bool) -> Turn {
    let mut parser = Parser::new(format, tools(), Ids::new(7), prompt);
    let mut events: Vec<Event> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish(ended));
    let mut turn = Turn::default();
    let mut open = None;
    let mut ids = vec![];
    for event in events {
        match event {
            Event::Content(text) => turn.content.push_str(&text),
            Event::Reasoning(text) => turn.reasoning.push_str(&text),
            Event::CallBegin { id, name } => {
                assert_eq!(open, None, "a call begins inside of another");
                assert!(!ids.contains(&id), "the id {id} comes twice");
                ids.push(id.clone());
                open = Some(id);
                turn.calls.push(Called { name, arguments: String::new(), whole: false });
            }
            Event::Arguments { id, json } => {
                assert_eq!(open.as_ref(), Some(&id));
                turn.calls.last_mut().unwrap().arguments.push_str(&json);
            }
            Event::CallEnd { id, whole } => {
                assert_eq!(open.take(), Some(id));
                turn.calls.last_mut().unwrap().whole = whole;
            }
        }
    }
    assert_eq!(open, None, "a call does not end");
    for (call, (known, id)) in turn.calls.iter().zip(parser.calls().iter().zip(&ids)) {
        assert_eq!(
            (&call.name, &call.arguments, call.whole, id),
            (&known.name, &known.arguments, known.whole, &known.id)
        );
        assert!(parser.generated(id).is_some());
    }
    assert_eq!(parser.text(), pieces.concat());
    turn
}

/// Reads it whole, cut at every character, and in single characters.
pub fn check(format: Format, prompt: &str, text: &str, ended: bool, wanted: Turn) {
    let name = format.name();
    let whole = read(format, prompt, &[text], ended);
    assert_eq!(whole.clone().normal(), wanted.normal(), "{name}\n{text}");
    for (cut, _) in text.char_indices() {
        let (a, b) = text.split_at(cut);
        assert_eq!(read(format, prompt, &[a, b], ended), whole, "{name}, cut at {cut}\n{a}⟂{b}");
    }
    let chars: Vec<String> = text.chars().map(String::from).collect();
    let pieces: Vec<&str> = chars.iter().map(String::as_str).collect();
    assert_eq!(read(format, prompt, &pieces, ended), whole, "{name}, in single characters\n{text}");
}
