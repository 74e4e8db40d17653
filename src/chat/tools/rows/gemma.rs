//! Gemma 4 and FunctionGemma: `call:name{key:value}` with strings between markers of their own.

use super::super::row::{DEFAULT, Item, Named, Row};

const NAMED: Named = Named {
    open: "call:",
    after_name: &["{"],
    clean,
    markers: &["<|\"|>", "<escape>"],
    closes: &["<tool_call|>", "<end_function_call>"],
};

fn clean(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|name| !name.is_empty() && !name.contains(char::is_whitespace))
}

pub static ROW: Row = Row {
    name: "gemma",
    signs: &[&["<|tool_call>call:"], &["<start_function_call>"]],
    think: &[("<|channel>thought\n", "<channel|>"), ("<|channel>thought", "<channel|>")],
    opens: &["<|tool_call>", "<start_function_call>"],
    closes: &["<tool_call|>", "<end_function_call>"],
    items: &[Item::Named(NAMED)],
    ends_reasoning: true,
    inner: &["<|\"|>", "<escape>"],
    frame: Some(("<|tool_call>", "<tool_call|>")),
    ..DEFAULT
};
