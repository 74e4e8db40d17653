//! Llama 3: an object with `parameters`, alone or behind `<|python_tag|>`; built-in tools as `name.call(key="value")`.

use super::super::row::{DEFAULT, Item, Row};

pub static ROW: Row = Row {
    name: "llama",
    signs: &[&["<|python_tag|>"], &["<|start_header_id|>", "\"parameters\""], &["<|start_header_id|>", "ipython"]],
    opens: &["<|python_tag|>"],
    items: &[Item::Object, Item::Python],
    between: &[';', ',', '[', ']'],
    bare: true,
    ..DEFAULT
};
