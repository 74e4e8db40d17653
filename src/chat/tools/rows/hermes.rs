//! Hermes, Qwen2.5, Qwen3, QwQ: an object in `<tool_call>`. Qwen2.5-Coder often leaves the tags out, writes `<tools>`
//! or a code fence, or doubles the braces as its template shows them.

use super::super::row::{DEFAULT, Item, Row};

pub static ROW: Row = Row {
    name: "hermes",
    signs: &[&["<tool_call>"]],
    opens: &["<tool_call>", "<tools>"],
    closes: &["</tool_call>", "</tools>"],
    items: &[Item::Object, Item::Xml(super::qwen_xml::XML)],
    between: &[','],
    bare: true,
    frame: Some(("<tool_call>", "</tool_call>")),
    ..DEFAULT
};
