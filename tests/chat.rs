//! Chat templates against renderings by jinja2 in transformers' configuration.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rynd::chat::{BUILTIN_NAMES, ChatError, Content, Message, Template};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

fn render(source: &str, messages: &[Message], extra: Value) -> Result<String, ChatError> {
    let extra: Map<String, Value> = serde_json::from_value(extra).unwrap();
    Template::new(source, "test")?.render(messages, None, true, &extra)
}

/// Renders with one variable, `x`.
fn with_x(source: &str, x: Value) -> String {
    render(source, &[], json!({ "x": x })).unwrap()
}

#[test]
fn all_golden_conversations_render_as_jinja2_renders_them() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let (mut rendered, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let now = golden["strftime_now_frozen_at"].as_str().unwrap().parse().unwrap();
        let template = Template::new(&text(&golden["template"]), &name).unwrap().at(now);
        let mut extra = Map::new();
        for key in ["bos_token", "eos_token"] {
            extra.insert(key.to_owned(), golden[key].clone());
        }
        for case in golden["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
            let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
            let found = template.render(&messages, tools, add_generation_prompt, &extra);
            if found.as_deref() != Ok(case["output"].as_str().unwrap()) {
                wrong.push(format!("{name} {} {add_generation_prompt}\n{found:?}\n{:?}", case["name"], case["output"]));
            }
            rendered += 1;
        }
    }
    assert_eq!(rendered, 8 * 16);
    assert!(wrong.is_empty(), "{} of {rendered} differ:\n{}", wrong.len(), wrong.join("\n\n"));
}
