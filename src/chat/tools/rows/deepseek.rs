//! DeepSeek V3 and R1 (a type, the name, the arguments in a fence) and V3.1 (the name, the arguments).

use super::super::row::{DEFAULT, Item, Named, Row};

const FENCED: Named = Named {
    open: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    after_name: &["\n"],
    clean,
    markers: &[],
    closes: &["<｜tool▁call▁end｜>"],
};

const PLAIN: Named = Named { open: "<｜tool▁call▁begin｜>", after_name: &["<｜tool▁sep｜>"], ..FENCED };

fn clean(text: &str) -> Option<&str> {
    // V3.1 may have a tool that is called `function`: then an object follows where V3 has the name.
    Some(text.trim()).filter(|name| !name.starts_with('{'))
}

pub static ROW: Row = Row {
    name: "deepseek",
    signs: &[&["<｜tool▁calls▁begin｜>"], &["<｜tool▁call▁begin｜>"]],
    opens: &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
    closes: &["<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"],
    items: &[Item::Named(FENCED), Item::Named(PLAIN)],
    ends_reasoning: true,
    inner: &["<｜tool▁sep｜>"],
    frame: Some(("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")),
    ..DEFAULT
};
