//! Writes answers as each family's template and model do: the opposite of what is tested, and no code of it.

use serde_json::{Map, Value};

pub struct Call {
    pub name: &'static str,
    pub arguments: Map<String, Value>,
}

pub const FORMATS: [&str; 14] = [
    "hermes",
    "bare",
    "bare/fence",
    "qwen_xml",
    "deepseek",
    "deepseek/fence",
    "deepseek_dsml",
    "kimi",
    "glm",
    "mistral",
    "mistral/list",
    "llama",
    "minimax",
    "gemma",
];

/// The format that reads what this way of writing makes.
pub fn reader(way: &str) -> &str {
    way.split('/').next().unwrap()
}

/// What is around reasoning.
pub fn think(way: &str) -> (&'static str, &'static str) {
    match reader(way) {
        "mistral" => ("[THINK]", "[/THINK]"),
        "gemma" => ("<|channel>thought\n", "\n<channel|>"),
        _ => ("<think>\n", "\n</think>\n\n"),
    }
}

/// JSON as Python writes it.
pub fn python(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), python(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn raw(value: &Value) -> String {
    value.as_str().map_or_else(|| python(value), str::to_owned)
}

fn gemma(value: &Value) -> String {
    match value {
        Value::String(text) => format!("<|\"|>{text}<|\"|>"),
        Value::Array(items) => format!("[{}]", items.iter().map(gemma).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("{key}:{}", gemma(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

pub fn calls(way: &str, calls: &[Call]) -> String {
    let each =
        |write: &dyn Fn(&Call) -> String, between: &str| calls.iter().map(write).collect::<Vec<_>>().join(between);
    let json = |call: &Call| python(&Value::Object(call.arguments.clone()));
    let object = |call: &Call, key: &str| format!("{{\"name\": \"{}\", \"{key}\": {}}}", call.name, json(call));
    let xml = |call: &Call, write: &dyn Fn(&str, &Value) -> String| {
        call.arguments.iter().map(|(key, value)| write(key, value)).collect::<String>()
    };
    match way {
        "hermes" => each(&|call| format!("<tool_call>\n{}\n</tool_call>", object(call, "arguments")), "\n"),
        "bare" => each(&|call| object(call, "arguments"), "\n"),
        "bare/fence" => each(&|call| format!("```json\n{}\n```", object(call, "arguments")), "\n"),
        "qwen_xml" => each(
            &|call| {
                let inner = xml(call, &|key, value| format!("<parameter={key}>\n{}\n</parameter>\n", raw(value)));
                format!("<tool_call>\n<function={}>\n{inner}</function>\n</tool_call>", call.name)
            },
            "\n",
        ),
        "deepseek" => {
            let one = |call: &Call| {
                format!("<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>", call.name, json(call))
            };
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", each(&one, ""))
        }
        "deepseek/fence" => {
            let one = |call: &Call| {
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>",
                    call.name,
                    json(call)
                )
            };
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", each(&one, "\n"))
        }
        "deepseek_dsml" => {
            let one = |call: &Call| {
                let inner = xml(call, &|key, value| {
                    let string = value.is_string();
                    format!(
                        "<｜DSML｜parameter name=\"{key}\" string=\"{string}\">{}</｜DSML｜parameter>\n",
                        raw(value)
                    )
                });
                format!("<｜DSML｜invoke name=\"{}\">\n{inner}</｜DSML｜invoke>\n", call.name)
            };
            format!("<｜DSML｜function_calls>\n{}</｜DSML｜function_calls>", each(&one, ""))
        }
        "kimi" => {
            let mut text = String::from("<|tool_calls_section_begin|>");
            for (n, call) in calls.iter().enumerate() {
                text += &format!(
                    "<|tool_call_begin|>functions.{}:{n}<|tool_call_argument_begin|>{}<|tool_call_end|>",
                    call.name,
                    json(call)
                );
            }
            text + "<|tool_calls_section_end|>"
        }
        "glm" => each(
            &|call| {
                let inner = xml(call, &|key, value| {
                    format!("<arg_key>{key}</arg_key>\n<arg_value>{}</arg_value>\n", raw(value))
                });
                format!("<tool_call>{}\n{inner}</tool_call>", call.name)
            },
            "\n",
        ),
        "mistral" => each(&|call| format!("[TOOL_CALLS]{}[ARGS]{}", call.name, json(call)), ""),
        "mistral/list" => {
            let one = |call: &Call| {
                let object = object(call, "arguments");
                format!("{}, \"id\": \"AbC123xyZ\"}}", &object[..object.len() - 1])
            };
            format!("[TOOL_CALLS][{}]", each(&one, ", "))
        }
        "llama" => each(&|call| object(call, "parameters"), "; "),
        "minimax" => {
            let one = |call: &Call| {
                let inner = xml(call, &|key, value| format!("<parameter name=\"{key}\">{}</parameter>\n", raw(value)));
                format!("<invoke name=\"{}\">\n{inner}</invoke>\n", call.name)
            };
            format!("<minimax:tool_call>\n{}</minimax:tool_call>", each(&one, ""))
        }
        "gemma" => each(
            &|call| {
                format!("<|tool_call>call:{}{}<tool_call|>", call.name, gemma(&Value::Object(call.arguments.clone())))
            },
            "",
        ),
        other => panic!("{other}"),
    }
}

/// A whole answer of gpt-oss, behind `<|start|>assistant`.
pub fn harmony(reasoning: &str, content: &str, calls: &[Call]) -> String {
    let mut parts = vec![];
    if !reasoning.is_empty() {
        parts.push(format!("<|channel|>analysis<|message|>{reasoning}<|end|>"));
    }
    if !content.is_empty() {
        let (channel, end) = if calls.is_empty() { ("final", "<|return|>") } else { ("commentary", "<|end|>") };
        parts.push(format!("<|channel|>{channel}<|message|>{content}{end}"));
    }
    for call in calls {
        let json = python(&Value::Object(call.arguments.clone()));
        parts.push(format!(
            "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{json}<|call|>",
            call.name
        ));
    }
    parts.join("<|start|>assistant")
}
