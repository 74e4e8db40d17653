//! Mistral and Devstral: `[TOOL_CALLS]` with a list of objects, or with the name, perhaps an id, and the arguments.

use super::super::row::{DEFAULT, Item, Named, Row};

const NAMED: Named = Named { open: "", after_name: &["[ARGS]", "[CALL_ID]", "{"], clean, markers: &[], closes: &[] };

fn clean(text: &str) -> Option<&str> {
    Some(text.trim()).filter(|name| !name.is_empty() && !name.contains(['[', ' ', '"', '\n']))
}

pub static ROW: Row = Row {
    name: "mistral",
    signs: &[&["[TOOL_CALLS]"], &["[AVAILABLE_TOOLS]"]],
    think: &[("[THINK]", "[/THINK]"), ("<think>", "</think>")],
    opens: &["[TOOL_CALLS]"],
    items: &[Item::Named(NAMED), Item::Object],
    between: &['[', ']', ','],
    ends_reasoning: true,
    short_ids: true,
    ..DEFAULT
};
