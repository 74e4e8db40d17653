//! Messages in the OpenAI shape, and the form in which templates want them.
//!
//! Unknown fields are kept and handed to the template: `prefix`, `thinking` and whatever comes next are
//! between the caller and the model's template.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// What a reasoning model thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// On a tool's answer: the call it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    /// Typed parts, such as `{"type": "text", "text": "..."}`.
    Parts(Vec<Value>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", default = "function_type")]
    pub kind: String,
    pub function: FunctionCall,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    pub name: String,
    /// OpenAI sends a string of JSON; an object is taken as well.
    #[serde(default)]
    pub arguments: Value,
}

fn function_type() -> String {
    "function".to_owned()
}

/// The form in which a template gets the arguments of a tool call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Arguments {
    AsGiven,
    Objects,
    Strings,
}

impl Message {
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: Some(Content::Text(text.to_owned())), ..Self::default() }
    }

    pub fn system(text: &str) -> Self {
        Self::new("system", text)
    }

    pub fn user(text: &str) -> Self {
        Self::new("user", text)
    }

    pub fn assistant(text: &str) -> Self {
        Self::new("assistant", text)
    }

    /// All text of the content; parts that are no text are left out.
    pub fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().filter_map(part_text).collect::<Vec<_>>().join("\n"),
        }
    }

    /// Turns the arguments of tool calls from strings of JSON, as OpenAI's clients send them, into the
    /// objects that most templates expect. What is no JSON object stays a string.
    pub fn parse_arguments(&mut self) {
        for call in self.tool_calls.iter_mut().flatten() {
            let given = &mut call.function.arguments;
            if let Some(object) = given.as_str().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok()) {
                *given = Value::Object(object);
            }
        }
    }

    pub(super) fn for_template(&self, arguments: Arguments) -> Value {
        let mut message = self.clone();
        // Templates of text models add strings to the content: parts that are all text become one.
        if let Some(Content::Parts(parts)) = &message.content
            && parts.iter().all(|part| part_text(part).is_some())
        {
            message.content = Some(Content::Text(message.text()));
        }
        match arguments {
            Arguments::AsGiven => {}
            Arguments::Objects => message.parse_arguments(),
            Arguments::Strings => {
                for call in message.tool_calls.iter_mut().flatten() {
                    let given = &mut call.function.arguments;
                    if !given.is_string() {
                        *given = Value::String(given.to_string());
                    }
                }
            }
        }
        // A message has string keys and no numbers of its own: this cannot fail.
        serde_json::to_value(message).unwrap_or_default()
    }
}

fn part_text(part: &Value) -> Option<&str> {
    (part.get("type")?.as_str()? == "text").then_some(part.get("text")?.as_str()?)
}
