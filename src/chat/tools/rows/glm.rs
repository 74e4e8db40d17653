//! GLM-4.5 to 4.7: the name, then `<arg_key>` and `<arg_value>`, in `<tool_call>`.

use super::super::row::{DEFAULT, Item, Row, Xml};
use super::super::schema::Untyped;

const XML: Xml = Xml {
    open: "",
    name_end: &["\n", "<arg_key>", "</tool_call>"],
    parameter: "<arg_key>",
    parameter_end: "</arg_key>",
    value: "<arg_value>",
    value_end: "</arg_value>",
    closes: &[],
    lines: false,
    untyped: Untyped::Json,
};

pub static ROW: Row = Row {
    name: "glm",
    signs: &[&["<arg_key>"]],
    opens: &["<tool_call>"],
    closes: &["</tool_call>", "</arg_value>"],
    items: &[Item::Object, Item::Xml(XML)],
    frame: Some(("<tool_call>", "</tool_call>")),
    ..DEFAULT
};
