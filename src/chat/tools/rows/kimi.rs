//! Kimi K2: `functions.name:0`, then the arguments, between control tokens.

use super::super::row::{DEFAULT, Item, Named, Row};

const NAMED: Named = Named {
    open: "<|tool_call_begin|>",
    after_name: &["<|tool_call_argument_begin|>"],
    clean,
    markers: &[],
    closes: &["<|tool_call_end|>"],
};

/// The name without `functions.` and the number behind.
fn clean(text: &str) -> Option<&str> {
    let text = text.trim();
    let text = text.strip_prefix("functions.").unwrap_or(text);
    match text.rsplit_once(':') {
        Some((name, number)) if number.bytes().all(|b| b.is_ascii_digit()) => Some(name),
        _ => Some(text),
    }
}

pub static ROW: Row = Row {
    name: "kimi",
    signs: &[&["<|tool_calls_section_begin|>"]],
    opens: &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
    closes: &["<|tool_calls_section_end|>", "<|tool_call_end|>"],
    items: &[Item::Named(NAMED)],
    ends_reasoning: true,
    inner: &["<|tool_call_argument_begin|>"],
    frame: Some(("<|tool_call_begin|>", "<|tool_call_end|>")),
    ..DEFAULT
};
