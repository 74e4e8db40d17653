//! Answers that keep to a grammar: what it takes, what it refuses, and that nothing else can be chosen.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rynd::chat::tools::{Format, Ids, Parser, Tools};
use rynd::sampler::{Constraints, Grammar, Sampler, SamplerConfig, SamplerError};
use rynd::tokenizer::{Encode, TokenType, Tokenizer, Vocab};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::LazyLock;

const MARKS: [&str; 15] = [
    "<|end|>",
    "<|call|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "[TOOL_CALLS]",
    "[ARGS]",
];

/// Bytes as tokens, a few words, and control tokens.
fn tokenizer() -> Tokenizer {
    let bytes: Vec<String> = (0u32..256)
        .map(|b| match b {
            0x00..=0x20 => 0x100 + b,
            0x7f..=0xa0 => 0x121 + b - 0x7f,
            0xad => 0x143,
            _ => b,
        })
        .map(|c| char::from_u32(c).unwrap().to_string())
        .collect();
    let mut tokens: Vec<&str> = bytes.iter().map(String::as_str).chain(["th", "\":", "true", "{\""]).collect();
    let mut types = vec![TokenType::Normal; tokens.len()];
    tokens.extend(MARKS);
    types.resize(tokens.len(), TokenType::Control);
    let merges = vec!["t h", "\" :"];
    Tokenizer::new(Vocab { model: "gpt2", pre: Some("qwen2"), tokens, types, merges, ..Vocab::default() }).unwrap()
}

fn constraints(tokenizer: &Tokenizer) -> Constraints {
    Constraints::new(tokenizer, tokenizer.n_vocab() + 7).unwrap()
}

/// Made once: the tree of the vocabulary is the slow part.
static SHARED: LazyLock<(Tokenizer, Constraints)> = LazyLock::new(|| {
    let tokenizer = tokenizer();
    let constraints = constraints(&tokenizer);
    (tokenizer, constraints)
});

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Encode { add_special: false, parse_special: true })
}

/// How much of a text the grammar takes, and whether it may end there.
fn taken(grammar: &Grammar, text: &str) -> (String, bool) {
    let (tokenizer, constraints) = &*SHARED;
    let mut constraint = constraints.constraint(grammar).unwrap();
    let mut seen = vec![];
    for id in encode(tokenizer, text) {
        let mut logits = vec![0.0; tokenizer.n_vocab() + 7];
        constraint.apply(&mut logits).unwrap();
        if logits[id as usize] == f32::NEG_INFINITY {
            return (tokenizer.decode(&seen, true), false);
        }
        constraint.accept(id).unwrap();
        seen.push(id);
    }
    (tokenizer.decode(&seen, true), constraint.is_complete())
}

fn takes(grammar: &Grammar, text: &str) {
    assert_eq!(taken(grammar, text), (text.to_owned(), true), "{grammar:?}");
}

fn refuses(grammar: &Grammar, text: &str, after: &str) {
    assert_eq!(taken(grammar, text), (after.to_owned(), false), "{grammar:?}\n{text}");
}

#[test]
fn grammars_take_what_they_describe_and_refuse_the_first_token_that_they_do_not() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}, "c": {"$ref": "#/$defs/t"}},
        "required": ["a"], "additionalProperties": false, "$defs": {"t": {"type": "boolean"}}});
    let schema = Grammar::JsonSchema(schema);
    takes(&schema, "{\"a\": -12, \"b\": \"y\", \"c\": true}");
    takes(&schema, "{\"a\":1}");
    refuses(&schema, "{\"a\": \"1\"}", "{\"a\": ");
    refuses(&schema, "{\"b\": \"y\"}", "{\"");
    refuses(&schema, "{\"a\": 1, \"b\": \"z\"}", "{\"a\": 1, \"b\": \"");
    refuses(&schema, "Sure: {\"a\":1}", "");
    takes(&Grammar::JsonObject, "{\"é\": [1, {\"x\": null}], \"th\": \"\\n\"}");
    refuses(&Grammar::JsonObject, "[1]", "");
    refuses(&Grammar::JsonObject, "{\"a\": 1}x", "{\"a\": 1}");
    let regex = Grammar::Regex("[a-c]{2,3}(-[0-9]+)?".to_owned());
    takes(&regex, "abc-17");
    takes(&regex, "ab");
    refuses(&regex, "abd", "ab");
    takes(&Grammar::Lark("start: \"a\" /[0-9]/+ | \"b\"\n".to_owned()), "a123");
    let gbnf = Grammar::Gbnf("root ::= item+ # list\nitem ::= \"- \" [^\\n\"\\]]+ \"\\n\"\n".to_owned());
    takes(&gbnf, "- one\n- zwölf\n");
    refuses(&gbnf, "- a\"", "- a");
}

#[test]
fn a_control_token_is_no_text_of_a_grammar() {
    let any = Grammar::Regex("(?s:.*)".to_owned());
    refuses(&any, "a<|channel|>", "a");
    takes(&any, "a<|chan|>");
}

#[test]
fn what_is_wrong_with_a_grammar_is_told() {
    let tokenizer = tokenizer();
    let constraints = constraints(&tokenizer);
    for grammar in [
        Grammar::JsonSchema(json!({"type": "nothing"})),
        Grammar::JsonSchema(json!({"$ref": "#/nowhere"})),
        Grammar::Regex("[".to_owned()),
        Grammar::Lark("start: missing\n".to_owned()),
        Grammar::Lark("a: \"x\"\n".to_owned()),
        Grammar::Gbnf("root ::= \"a".to_owned()),
    ] {
        let error = constraints.constraint(&grammar).err().unwrap_or_else(|| panic!("{grammar:?} was taken"));
        assert!(error.to_string().len() > 40, "{grammar:?}: {error}");
    }
    let tokens = vec!["a", "b", "ab"];
    let endless =
        Tokenizer::new(Vocab { model: "gpt2", pre: Some("qwen2"), tokens, merges: vec!["a b"], ..Vocab::default() });
    assert!(matches!(Constraints::new(&endless.unwrap(), 3), Err(SamplerError::NoEnd)));
}

/// An answer by a model that knows nothing.
fn draw(tokenizer: &Tokenizer, constraints: &Constraints, grammar: &Grammar, seed: u64, most: usize) -> Option<String> {
    let config = SamplerConfig { temperature: 1.0, seed: Some(seed), ..SamplerConfig::neutral() };
    let mut sampler = Sampler::new(config).unwrap();
    sampler.constrain(constraints.constraint(grammar).unwrap());
    let mut ids = vec![];
    for _ in 0..most {
        // Ends are a little likelier, so that strings do end.
        let mut logits = vec![0.0; tokenizer.n_vocab() + 7];
        for id in encode(tokenizer, "\"}],").into_iter().chain([tokenizer.ends()[0]]) {
            logits[id as usize] = 3.0;
        }
        let id = sampler.sample(&mut logits).unwrap();
        if tokenizer.is_end(id) {
            assert!(sampler.constraint().unwrap().is_complete());
            return Some(tokenizer.decode(&ids, true));
        }
        ids.push(id);
    }
    None
}

#[test]
fn whatever_is_drawn_keeps_to_the_schema() {
    let tokenizer = tokenizer();
    let constraints = constraints(&tokenizer);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99},
        "s": {"type": "string", "maxLength": 12}, "l": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        "required": ["n", "s", "l"], "additionalProperties": false});
    let grammar = Grammar::JsonSchema(schema);
    let mut whole = 0;
    for seed in 0..200 {
        let Some(text) = draw(&tokenizer, &constraints, &grammar, seed, 300) else { continue };
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(value["n"].as_u64().unwrap() < 100 && value["s"].as_str().unwrap().chars().count() <= 12, "{text}");
        assert!(value["l"].as_array().unwrap().iter().all(Value::is_boolean), "{text}");
        whole += 1;
    }
    assert!(whole > 150, "only {whole} of 200 came to an end");
}

#[test]
fn a_constrained_sampler_looks_at_all_logits_also_when_greedy() {
    let tokenizer = tokenizer();
    let mut sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
    assert!(sampler.takes_largest());
    sampler.constrain(constraints(&tokenizer).constraint(&Grammar::Regex("[ab]".to_owned())).unwrap());
    assert!(!sampler.takes_largest());
    let mut logits = vec![0.0; tokenizer.n_vocab() + 7];
    let [b, z] = [encode(&tokenizer, "b")[0], encode(&tokenizer, "z")[0]];
    (logits[z as usize], logits[b as usize]) = (9.0, 1.0);
    assert_eq!(sampler.sample(&mut logits.clone()).unwrap(), b);
    logits[tokenizer.ends()[0] as usize] = -5.0;
    assert!(tokenizer.is_end(sampler.sample(&mut logits).unwrap()), "then only the end is left");
}

fn all_tools() -> Value {
    let function = |name: &str, properties: Value| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}});
    let text = json!({"type": "string"});
    json!([
        function("get_weather", json!({"city": text, "days": {"type": "integer"}})),
        function("write_file", json!({"content": text, "path": text})),
        function(
            "run",
            json!({"args": {"type": "array", "items": text}, "background": {"type": "boolean"}, "command": text,
            "env": {"type": "object"}, "timeout": {"type": "number"}})
        ),
        function("noop", json!({}))
    ])
}

fn forced(format: Format, name: Option<&str>, template: &str) -> Grammar {
    let tokenizer = tokenizer();
    let control = |mark: &str| tokenizer.token_id(mark).filter(|&id| tokenizer.is_special(id));
    Grammar::Lark(format.force(&Tools::new(&all_tools()), name, template, &control).unwrap())
}

#[test]
fn forced_calls_are_what_the_families_templates_write() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read_to_string(fixtures.join("tools/reference.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut taken = 0;
    for case in cases.iter().filter(|case| case["by"] == "template") {
        let (name, format) = (case["name"].as_str().unwrap(), Format::named(case["format"].as_str().unwrap()).unwrap());
        let source = [format!("chat/templates/{name}.jinja"), format!("chat/{name}.json")];
        let Some(source) = source.iter().find_map(|path| std::fs::read_to_string(fixtures.join(path)).ok()) else {
            continue;
        };
        // Ids, a type and the white space around a turn are the template's own.
        let text = case["text"].as_str().unwrap().trim().trim_end_matches("<|call|>");
        if text.contains("\"id\"") || text.contains("[CALL_ID]") || text.starts_with("to=") || name.contains("Nemotron")
        {
            continue;
        }
        let text = text
            .replace("```<｜tool▁call▁end｜>\n", "```<｜tool▁call▁end｜>")
            .replace("</tool_call><tool_call>", "</tool_call>\n<tool_call>");
        takes(&forced(format, None, &source), &text);
        taken += 1;
    }
    assert!(taken >= 60, "{taken}");
}

#[test]
fn a_forced_turn_begins_with_the_call_and_is_read_as_one() {
    let tokenizer = tokenizer();
    let constraints = constraints(&tokenizer);
    for format in Format::names().map(|name| Format::named(name).unwrap()) {
        let name = format.name();
        let grammar = forced(format, Some("noop"), "[ARGS]");
        refuses(&grammar, "I think", "");
        let mut read = 0;
        for seed in 0..10 {
            let Some(text) = draw(&tokenizer, &constraints, &grammar, seed, 400) else { continue };
            let mut parser = Parser::new(format, Tools::new(&all_tools()), Ids::new(seed), "");
            parser.push(&text);
            parser.finish(true);
            let [call] = parser.calls() else { panic!("{name}: {text}") };
            assert!(call.name == "noop" && call.whole, "{name}: {text}");
            read += 1;
        }
        assert!(read > 4, "{name}: {read}");
    }
    let control = |_: &str| None;
    let format = Format::named("hermes").unwrap();
    assert!(format.force(&Tools::default(), None, "", &control).is_err());
    let error = format.force(&Tools::new(&all_tools()), Some("fly"), "", &control).unwrap_err();
    assert!(error.to_string().contains("'fly'"));
}
