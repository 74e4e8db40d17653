//! A grammar of a turn that is nothing but calls, in a format's own syntax, for `tool_choice` required or named.
//!
//! It is Lark with llguidance's extensions: tokens by id where a mark is a control token, JSON by the tool's own schema.
//! A value in tags may be any text up to the tag that ends it. Gemma's arguments follow its syntax, not the schema.

use super::arguments::quote;
use super::schema::Tools;
use super::{Format, rows};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

/// What surrounds the arguments of a call.
enum Shape {
    /// An object with name and arguments between two marks.
    Object(&'static str, &'static str, &'static str),
    /// Around all calls, then before the name, behind it, and behind the arguments.
    Named {
        around: (Vec<Part>, Vec<Part>),
        before: Vec<Part>,
        behind: Vec<Part>,
        after: Vec<Part>,
    },
    Tags {
        around: (&'static str, &'static str),
        tags: Tags,
    },
}

struct Tags {
    open: &'static str,
    name_end: &'static str,
    parameter: &'static str,
    value: &'static str,
    value_end: &'static str,
    close: &'static str,
    /// Whether a parameter says that it is a string.
    typed: bool,
}

#[derive(Clone, Copy)]
enum Part {
    /// A mark, which may be a control token.
    Mark(&'static str),
    Text(&'static str),
    Digits,
}
use Part::{Digits, Mark, Text};

/// Why no grammar can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForceError {
    #[error("tool_choice asks for a call, but there are no tools")]
    NoTools,
    #[error("tool_choice names the tool '{0}', which is not one of the request's")]
    UnknownTool(String),
}

impl Format {
    /// The grammar of one call or more; of exactly one where `name` is given. `template` tells variants of a format
    /// apart, `control` is the id of a mark that is a control token.
    pub fn force(
        &self,
        tools: &Tools,
        name: Option<&str>,
        template: &str,
        control: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<String, ForceError> {
        if let Some(name) = name.filter(|name| !tools.knows(name)) {
            return Err(ForceError::UnknownTool(name.to_owned()));
        }
        let names: Vec<&str> = tools.names().filter(|own| name.is_none_or(|name| name == *own)).collect();
        if names.is_empty() {
            return Err(ForceError::NoTools);
        }
        let writer = Writer { tools, names: &names, once: name.is_some(), control };
        Ok(match shape(self.name(), template) {
            Shape::Object(open, key, close) => writer.objects(open, key, close),
            Shape::Named { around, before, behind, after } => {
                writer.named(&around, &before, &behind, &after, self.name() == "gemma")
            }
            Shape::Tags { around, tags } => writer.tags(around, &tags),
        })
    }
}

fn shape(format: &str, template: &str) -> Shape {
    let named = |around: (Vec<Part>, Vec<Part>), before: Vec<Part>, behind: Vec<Part>, after: Vec<Part>| Shape::Named {
        around,
        before,
        behind,
        after,
    };
    let qwen = Tags {
        open: "<function=",
        name_end: ">\n",
        parameter: "<parameter=KEY>\n",
        value: "",
        value_end: "\n</parameter>\n",
        close: "</function>\n",
        typed: false,
    };
    match format {
        "hermes" => Shape::Object("<tool_call>", "arguments", "</tool_call>"),
        "llama" => Shape::Object("", "parameters", ""),
        "mistral" if !template.contains("[ARGS]") => Shape::Object("[TOOL_CALLS]", "arguments", ""),
        "mistral" => named((vec![], vec![]), vec![Mark("[TOOL_CALLS]")], vec![Mark("[ARGS]")], vec![]),
        "kimi" => named(
            (vec![Mark("<|tool_calls_section_begin|>")], vec![Mark("<|tool_calls_section_end|>")]),
            vec![Mark("<|tool_call_begin|>"), Text("functions.")],
            vec![Text(":"), Digits, Mark("<|tool_call_argument_begin|>")],
            vec![Mark("<|tool_call_end|>")],
        ),
        "deepseek" => {
            let fence = template.contains("```json");
            let (begin, sep) = (Mark("<｜tool▁call▁begin｜>"), Mark("<｜tool▁sep｜>"));
            named(
                (vec![Mark("<｜tool▁calls▁begin｜>")], vec![Mark("<｜tool▁calls▁end｜>")]),
                if fence { vec![begin, Text("function"), sep] } else { vec![begin] },
                if fence { vec![Text("\n```json\n")] } else { vec![sep] },
                if fence {
                    vec![Text("\n```"), Mark("<｜tool▁call▁end｜>")]
                } else {
                    vec![Mark("<｜tool▁call▁end｜>")]
                },
            )
        }
        "gemma" => {
            named((vec![], vec![]), vec![Mark("<|tool_call>"), Text("call:")], vec![], vec![Mark("<tool_call|>")])
        }
        rows::HARMONY => named(
            (vec![], vec![]),
            vec![Mark("<|channel|>"), Text("commentary to=functions.")],
            vec![Text(" "), Mark("<|constrain|>"), Text("json"), Mark("<|message|>")],
            vec![],
        ),
        "qwen_xml" => Shape::Tags { around: ("<tool_call>\n", "</tool_call>"), tags: qwen },
        "glm" => {
            let lines = template.contains("</arg_value>\\n") || template.contains("</arg_value>\n");
            let line = |with: &'static str, without: &'static str| if lines { with } else { without };
            let tags = Tags {
                open: "",
                name_end: line("\n", ""),
                parameter: line("<arg_key>KEY</arg_key>\n", "<arg_key>KEY</arg_key>"),
                value: "<arg_value>",
                value_end: line("</arg_value>\n", "</arg_value>"),
                close: "",
                typed: false,
            };
            Shape::Tags { around: ("<tool_call>", "</tool_call>"), tags }
        }
        "minimax" => {
            let tags = Tags {
                open: "<invoke name=\"",
                name_end: "\">\n",
                parameter: "<parameter name=\"KEY\">",
                value_end: "</parameter>\n",
                close: "</invoke>\n",
                ..qwen
            };
            Shape::Tags { around: ("<minimax:tool_call>\n", "</minimax:tool_call>"), tags }
        }
        "deepseek_dsml" => {
            let tags = Tags {
                open: "<｜DSML｜invoke name=\"",
                name_end: "\">\n",
                parameter: "<｜DSML｜parameter name=\"KEY\" string=\"TYPE\">",
                value_end: "</｜DSML｜parameter>\n",
                close: "</｜DSML｜invoke>\n",
                typed: true,
                ..qwen
            };
            Shape::Tags { around: ("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"), tags }
        }
        _ => Shape::Object("", "arguments", ""),
    }
}

struct Writer<'a> {
    tools: &'a Tools,
    names: &'a [&'a str],
    once: bool,
    control: &'a dyn Fn(&str) -> Option<u32>,
}

impl Writer<'_> {
    fn text(&self, text: &str) -> String {
        let mut out = String::new();
        quote(text, &mut out);
        out
    }

    /// A text that may begin with a mark.
    fn mark(&self, text: &str) -> String {
        let mark = text.trim_end();
        match (self.control)(mark) {
            Some(id) if text.len() > mark.len() => format!("<[{id}]> {}", self.text(&text[mark.len()..])),
            Some(id) => format!("<[{id}]>"),
            None => self.text(text),
        }
    }

    fn parts(&self, parts: &[Part]) -> String {
        let each = parts.iter().map(|part| match part {
            Mark(mark) => self.mark(mark),
            Text(text) => self.text(text),
            Digits => "/[0-9]+/".to_owned(),
        });
        each.collect::<Vec<_>>().join(" ")
    }

    fn schema(&self, name: &str) -> Json {
        let mut schema = self.tools.schema(name).cloned().unwrap_or_else(|| json!({}));
        if let Some(map) = schema.as_object_mut() {
            map.entry("type").or_insert_with(|| "object".into());
        }
        schema
    }

    /// The start: one call, or several with `between`.
    fn start(&self, open: &str, between: &str, close: &str) -> String {
        let more = if self.once { String::new() } else { format!("({between} call)*") };
        format!("start: {open} call {more} {close}\n")
    }

    fn objects(&self, open: &str, key: &str, close: &str) -> String {
        let each = self.names.iter().map(|name| {
            // References inside of the schema lose their root here, so it comes along.
            let mut schema = self.schema(name);
            let definitions = take_definitions(&mut schema);
            let mut properties = Map::new();
            properties.insert("name".to_owned(), json!({"const": name}));
            properties.insert(key.to_owned(), schema);
            let object = json!({"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": false});
            (object, definitions)
        });
        let mut rules = String::new();
        for (at, (mut object, definitions)) in each.enumerate() {
            for (key, value) in definitions {
                object[key] = value;
            }
            writeln!(rules, "o{at}: %json {object}").unwrap_or_default();
        }
        let names = (0..self.names.len()).map(|at| format!("o{at}")).collect::<Vec<_>>().join(" | ");
        if open == "[TOOL_CALLS]" {
            let start = self.start(&format!("{} \"[\"", self.mark(open)), "\", \"", "\"]\"");
            return format!("{start}call: {names}\n{rules}");
        }
        let (open, close) = match open {
            "" => (String::new(), String::new()),
            _ => (format!("{} \"\\n\"", self.mark(open)), format!("\"\\n\" {}", self.mark(close))),
        };
        // Llama and models without marks make one call at a time.
        let between = if open.is_empty() { "\"; \"" } else { "\"\\n\"" };
        format!("{}call: {open} ({names}) {close}\n{rules}", self.start("", between, ""))
    }

    fn named(
        &self,
        around: &(Vec<Part>, Vec<Part>),
        before: &[Part],
        behind: &[Part],
        after: &[Part],
        gemma: bool,
    ) -> String {
        let between = if matches!(before, [Mark("<|channel|>"), ..]) { None } else { Some("") };
        let mut out = match between {
            Some(between) => self.start(&self.parts(&around.0), between, &self.parts(&around.1)),
            // A message of gpt-oss is one call.
            None => "start: call\n".to_owned(),
        };
        let mut calls = vec![];
        for (at, name) in self.names.iter().enumerate() {
            let arguments = if gemma { "g_object".to_owned() } else { format!("a{at}") };
            calls.push(format!(
                "{} {} {} {arguments} {}",
                self.parts(before),
                self.text(name),
                self.parts(behind),
                self.parts(after)
            ));
            if !gemma {
                writeln!(out, "a{at}: %json {}", self.schema(name)).unwrap_or_default();
            }
        }
        writeln!(out, "call: {}", calls.join("\n    | ")).unwrap_or_default();
        if gemma {
            // Where the quote is a control token no text can hold it; else the text ends at it.
            let quote = self.mark("<|\"|>");
            let string = if quote.starts_with("<[") {
                format!("g_string: {quote} /(?s:.*)/ {quote}\n")
            } else {
                format!("g_string: {quote} g_text\ng_text[suffix={quote}]: /(?s:.*)/\n")
            };
            write!(
                out,
                "g_object: \"{{\" (g_pair (\",\" g_pair)*)? \"}}\"\ng_pair: /[A-Za-z_][A-Za-z0-9_.-]{{0,63}}/ \":\" g_value\n\
                 g_value: g_string | /-?[0-9]+(\\.[0-9]+)?([eE][+-]?[0-9]+)?/ | \"true\" | \"false\" | \"null\" | g_object | g_list\n\
                 g_list: \"[\" (g_value (\",\" g_value)*)? \"]\"\n{string}"
            )
            .unwrap_or_default();
        }
        out
    }

    fn tags(&self, around: (&str, &str), tags: &Tags) -> String {
        // Marks of these formats stand once around all calls, or around each where there is no other closing.
        let each = around.0.starts_with("<tool_call>");
        let (open, close) = (self.mark(around.0), self.mark(around.1));
        let mut out = if each { self.start("", "\"\\n\"", "") } else { self.start(&open, "", &close) };
        let mut calls = vec![];
        let mut rules = String::new();
        for (at, name) in self.names.iter().enumerate() {
            let schema = self.schema(name);
            let required: Vec<&str> = schema
                .get("required")
                .and_then(Json::as_array)
                .into_iter()
                .flatten()
                .filter_map(Json::as_str)
                .collect();
            let mut body = String::new();
            let properties = schema.get("properties").and_then(Json::as_object);
            for (n, (key, property)) in properties.into_iter().flatten().enumerate() {
                let rule = format!("p{at}_{n}");
                let is_text = self.tools.is_text(name, key, super::schema::Untyped::Json);
                let kind = if is_text { "true" } else { "false" };
                let mut head = tags.parameter.replace("KEY", key);
                if tags.typed {
                    head = head.replace("TYPE", kind);
                }
                let head = self.text(&format!("{head}{}", tags.value));
                let sign = if required.contains(&key.as_str()) { "" } else { "?" };
                write!(body, " {rule}{sign}").unwrap_or_default();
                if is_text {
                    writeln!(rules, "{rule}: {head} {rule}_v").unwrap_or_default();
                    writeln!(rules, "{rule}_v[suffix={}]: /(?s:.*)/", self.text(tags.value_end)).unwrap_or_default();
                } else {
                    let mut property = property.clone();
                    for (key, value) in take_definitions(&mut schema.clone()) {
                        if let Some(map) = property.as_object_mut() {
                            map.insert(key, value);
                        }
                    }
                    let end = self.text(tags.value_end);
                    // Some templates write booleans as Python does.
                    let value = match property.get("type").and_then(Json::as_str) {
                        Some("boolean") => "/[Tt]rue|[Ff]alse/".to_owned(),
                        _ => format!("%json {property}"),
                    };
                    writeln!(rules, "{rule}: {head} {rule}_v {end}\n{rule}_v: {value}").unwrap_or_default();
                }
            }
            let head = self.text(&format!("{}{name}{}", tags.open, tags.name_end));
            let tail = if tags.close.is_empty() { String::new() } else { self.text(tags.close) };
            let (open, close) = if each { (open.as_str(), close.as_str()) } else { ("", "") };
            calls.push(format!("{open} {head}{body} {tail} {close}"));
        }
        writeln!(out, "call: {}", calls.join("\n    | ")).unwrap_or_default();
        out + &rules
    }
}

/// Definitions that references name by their place from the root.
fn take_definitions(schema: &mut Json) -> Vec<(String, Json)> {
    let Some(map) = schema.as_object_mut() else { return vec![] };
    ["$defs", "definitions"].iter().filter_map(|key| Some(((*key).to_owned(), map.remove(*key)?))).collect()
}
