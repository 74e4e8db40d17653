//! MiniMax M2: `<invoke name="..">` with `<parameter name="..">`, in `<minimax:tool_call>`.

use super::super::row::{DEFAULT, Item, Row, Xml};
use super::super::schema::Untyped;

const XML: Xml = Xml {
    open: "<invoke name=",
    name_end: &[">"],
    parameter: "<parameter name=",
    parameter_end: ">",
    value: "",
    value_end: "</parameter>",
    closes: &["</invoke>"],
    lines: false,
    untyped: Untyped::Text,
};

pub static ROW: Row = Row {
    name: "minimax",
    signs: &[&["<minimax:tool_call>"]],
    opens: &["<minimax:tool_call>"],
    closes: &["</minimax:tool_call>", "</invoke>", "</parameter>"],
    items: &[Item::Xml(XML)],
    frame: Some(("<invoke ", "</invoke>")),
    ..DEFAULT
};
