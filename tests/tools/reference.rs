//! What other implementations write and read, against what is read here: `tests/fixtures/tools/make.py` says which.

use super::{Turn, check, format};
use rynd::chat::tools::Format;
use serde_json::Value;
use std::path::PathBuf;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn answers_are_read_as_the_families_own_programs_write_and_read_them() {
    let text = std::fs::read_to_string(fixtures().join("tools/reference.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut by = std::collections::BTreeMap::new();
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let (source, name) = (case["by"].as_str().unwrap(), case["format"].as_str().unwrap());
        println!("{source} {} {text}", case["name"]);
        *by.entry(source).or_insert(0) += 1;
        let mut turn = Turn::default();
        match source {
            "openai-harmony" => {
                turn = Turn::text(case["content"].as_str().unwrap()).reason(case["reasoning"].as_str().unwrap());
            }
            "qwen-agent" if text.starts_with("no call") => turn = Turn::text(text),
            "qwen-agent" if text.starts_with("Let me") => turn = Turn::text("Let me look."),
            "qwen-agent" if text.starts_with("<think>") => turn = turn.reason("I will <tool_call> it."),
            _ => {}
        }
        for call in case["calls"].as_array().unwrap() {
            turn = turn.call(call[0].as_str().unwrap(), call[1].clone());
        }
        check(format(name), "", text, true, turn);
    }
    assert!(
        by["template"] > 120 && by["mistral-common"] == 12 && by["qwen-agent"] == 9 && by["openai-harmony"] == 8,
        "{by:?}"
    );
}

#[test]
fn every_template_has_the_format_of_its_family() {
    let mut seen = 0;
    for (part, name) in [
        ("Kimi", "kimi"),
        ("DeepSeek-V3.2", "deepseek_dsml"),
        ("deepseek-r1", "deepseek"),
        ("DeepSeek-V3.1", "deepseek"),
        ("GLM", "glm"),
        ("MiniMax", "minimax"),
        ("istral", "mistral"),
        ("Llama-3.1-8B-Instruct", "llama"),
        ("gpt-oss", "harmony"),
        ("gemma-4", "gemma"),
        ("gemma-2", "bare"),
        ("Nemotron", "qwen_xml"),
        ("Hermes", "hermes"),
        ("Qwen2.5", "hermes"),
        ("Qwen3-0.6B", "hermes"),
        ("qwen2.5-coder", "hermes"),
        ("Qwen3-Coder", "qwen_xml"),
        ("Qwen3.5", "qwen_xml"),
        ("smollm2", "bare"),
    ] {
        let before = seen;
        for folder in ["chat", "chat/templates"] {
            for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                if !file.contains(part) || (part.starts_with("Llama") && file.contains("Hermes")) || path.is_dir() {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let source = match serde_json::from_str::<Value>(&text) {
                    Ok(golden) => golden["template"].as_str().unwrap().to_owned(),
                    Err(_) => text,
                };
                assert_eq!(Format::of_template(&source).name(), name, "{file}");
                seen += 1;
            }
        }
        assert!(seen > before, "no template of {part}");
    }
}
