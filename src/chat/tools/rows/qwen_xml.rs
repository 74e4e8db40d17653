//! Qwen3-Coder and Qwen3.5: `<function=name>` with `<parameter=key>` on lines of their own, in `<tool_call>`.

use super::super::row::{DEFAULT, Item, Row, Xml};
use super::super::schema::Untyped;

pub const XML: Xml = Xml {
    open: "<function=",
    name_end: &[">"],
    parameter: "<parameter=",
    parameter_end: ">",
    value: "",
    value_end: "</parameter>",
    closes: &["</function>"],
    lines: true,
    untyped: Untyped::Text,
};

pub static ROW: Row = Row {
    name: "qwen_xml",
    signs: &[&["<tool_call>", "<function="]],
    opens: &["<tool_call>", "<function="],
    closes: &["</tool_call>", "</function>", "</parameter>"],
    items: &[Item::Xml(XML), Item::Object],
    frame: Some(("<tool_call>", "</tool_call>")),
    ..DEFAULT
};
