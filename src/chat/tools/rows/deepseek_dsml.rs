//! DeepSeek V3.2: `<｜DSML｜invoke name="..">`, and each parameter says whether it is a string.

use super::super::row::{DEFAULT, Item, Row, Xml};
use super::super::schema::Untyped;

const XML: Xml = Xml {
    open: "<｜DSML｜invoke name=",
    name_end: &[">"],
    parameter: "<｜DSML｜parameter name=",
    parameter_end: ">",
    value: "",
    value_end: "</｜DSML｜parameter>",
    closes: &["</｜DSML｜invoke>"],
    lines: false,
    untyped: Untyped::Json,
};

pub static ROW: Row = Row {
    name: "deepseek_dsml",
    signs: &[&["｜DSML｜"]],
    opens: &["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"],
    closes: &["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>", "</｜DSML｜invoke>", "</｜DSML｜parameter>"],
    items: &[Item::Xml(XML)],
    frame: Some(("<｜DSML｜invoke ", "</｜DSML｜invoke>")),
    ..DEFAULT
};
