//! The same conversations in every format.

use super::write::{self, Call, FORMATS, reader};
use super::{Turn, check, format, read};
use serde_json::{Value, json};

struct Scenario {
    about: &'static str,
    reasoning: &'static str,
    content: &'static str,
    calls: Vec<(&'static str, Value)>,
}

fn scenario(
    about: &'static str,
    reasoning: &'static str,
    content: &'static str,
    calls: Vec<(&'static str, Value)>,
) -> Scenario {
    Scenario { about, reasoning, content, calls }
}

fn file(content: &str) -> Vec<(&'static str, Value)> {
    vec![("write_file", json!({"path": "a.txt", "content": content}))]
}

fn scenarios() -> Vec<Scenario> {
    let rome = || ("get_weather", json!({"city": "Rome", "days": 3}));
    let call = |about, calls| scenario(about, "", "", calls);
    vec![
        call("one call", vec![rome()]),
        call("two calls of one tool", vec![rome(), ("get_weather", json!({"city": "Oslo"}))]),
        call("three tools", vec![rome(), ("noop", json!({})), ("run", json!({"command": "ls", "background": false}))]),
        call(
            "nested JSON",
            vec![("run", json!({"env": {"A": {"b": [1, {"c": []}], "d": {}}}, "args": ["x", "y z"], "timeout": 1.5}))],
        ),
        call("quotes", file("print(\"it's\", 'a \"b\"')")),
        call("angle brackets", file("if a < b && c > d { let v: Vec<Option<&'a str>> = vec![]; }")),
        call("a parameter's end in the value", file("s = \"</parameter>\" + '</arg_value>' # </｜DSML｜parameter>x")),
        call("the calls' end in the value", file("see </tool_call> and </function> and </invoke> here")),
        call("unicode", file("日本語 – «é» 🦀👩‍👩‍👧 \u{202e}אב\u{301}")),
        call("no arguments", vec![("noop", json!({}))]),
        call("an empty value", file("")),
        call("lines", file("\n\nfn main() {\n    println!(\"{}\", 1);\n}\n\n")),
        call("backslashes", file("r'\\d+\\s*\\\\' \\n \\u0041 C:\\temp\\new")),
        call("JSON as text", file("{\"a\": [1, 2, {\"b\": null}]}")),
        call("numbers", vec![("run", json!({"timeout": -2.5e-3, "args": [], "env": {}}))]),
        call("true and false", vec![("run", json!({"background": true, "command": "true"}))]),
        call("null where it may be", vec![("run", json!({"note": null, "command": "x"}))]),
        call("a long value", file(&"let x = f(a, b);\n".repeat(12))),
        call("white space", file("   ")),
        call("tabs", file("a:\n\tb\t\tc")),
        call("text that looks like a number", vec![("get_weather", json!({"city": "007"}))]),
        call("a name with signs", vec![("mcp__srv-1__do_it", json!({"query": "a=b&c=d"}))]),
        call("braces", file("{{ x }} ${y} %s {0} }{")),
        call("a shell", vec![("run", json!({"command": "cat <<'EOF' > f\n<a href=\"x\">&amp;</a>\nEOF\n"}))]),
        call("reasoning marks in a value", file("<think>no</think> [THINK]")),
        call("other order", vec![("run", json!({"timeout": 5, "command": "x", "args": ["</a>"]}))]),
        scenario("text before", "", "I look at it.", vec![rome()]),
        scenario("reasoning before", "The user wants weather.\n\nSo: call.", "", vec![rome()]),
        scenario("reasoning and text before", "Hm.", "Let me see:\n- a\n- b", vec![rome(), rome()]),
        scenario(
            "only text",
            "",
            "No call: a < b, <tool, [1, 2], {\"a\": 1} and\n```rust\nlet x = [1];\n```\nend.",
            vec![],
        ),
        scenario("reasoning, then text", "2 + 2 < 5", "4\n\n{ \"name\": \"nobody\" }\n", vec![]),
        scenario("JSON as answer", "", "{\"result\": {\"name\": \"get\", \"days\": [1, 2]}}", vec![]),
        scenario("nothing", "", "", vec![]),
    ]
}

fn calls(scenario: &Scenario) -> Vec<Call> {
    let each = scenario.calls.iter();
    each.map(|(name, arguments)| Call { name, arguments: arguments.as_object().unwrap().clone() }).collect()
}

fn wanted(scenario: &Scenario) -> Turn {
    let turn = Turn::text(scenario.content).reason(scenario.reasoning);
    scenario.calls.iter().fold(turn, |turn, (name, arguments)| turn.call(name, arguments.clone()))
}

fn written(way: &str, scenario: &Scenario) -> String {
    let (open, close) = write::think(way);
    let mut text = String::new();
    if !scenario.reasoning.is_empty() {
        text += &format!("{open}{}{close}", scenario.reasoning);
    }
    text += scenario.content;
    if !scenario.calls.is_empty() {
        if !scenario.content.is_empty() {
            text += "\n";
        }
        text += &write::calls(way, &calls(scenario));
    }
    text
}

/// All ways to write all scenarios.
fn all() -> Vec<(&'static str, &'static str, String, Turn)> {
    let mut all = vec![];
    for scenario in scenarios() {
        for way in FORMATS {
            all.push((reader(way), scenario.about, written(way, &scenario), wanted(&scenario)));
        }
        let text = write::harmony(scenario.reasoning, scenario.content, &calls(&scenario));
        all.push(("harmony", scenario.about, text, wanted(&scenario)));
    }
    all
}

#[test]
fn every_format_reads_every_scenario_however_it_is_cut() {
    let all = all();
    for name in rynd::chat::tools::Format::names() {
        assert!(all.iter().filter(|(format, ..)| *format == name).count() >= 30, "{name}");
    }
    for (name, about, text, wanted) in all {
        println!("{name}: {about}");
        check(format(name), "", &text, true, wanted);
    }
}

#[test]
fn an_answer_that_is_cut_off_has_no_whole_call_that_is_not() {
    for (name, about, text, wanted) in all() {
        for (cut, _) in text.char_indices() {
            let found = read(format(name), "", &[&text[..cut]], false);
            for (at, call) in found.calls.iter().enumerate() {
                let full = &wanted.calls[at];
                assert_eq!(call.name, full.name, "{name} {about} {cut}");
                let value = serde_json::from_str::<Value>(&call.arguments);
                if call.whole {
                    assert_eq!(value.unwrap().to_string(), full.arguments, "{name} {about} {cut}\n{}", &text[..cut]);
                }
            }
        }
    }
}

#[test]
fn what_was_generated_for_a_call_is_kept() {
    use rynd::chat::tools::{Ids, Parser};
    for (name, about, text, wanted) in all() {
        let mut parser = Parser::new(format(name), super::tools(), Ids::random(), "");
        parser.push(&text);
        parser.finish(true);
        let mut at = 0;
        for (call, wanted) in parser.calls().iter().zip(&wanted.calls) {
            let generated = parser.generated(&call.id).unwrap();
            assert!(generated.contains(&wanted.name), "{name} {about}: {generated}");
            let start = text[at..].find(generated).unwrap() + at;
            at = start + generated.len();
            if let Some((open, close)) = format(name).frame().filter(|_| name != "harmony") {
                assert!(text[..start].ends_with(open), "{name} {about}\n{generated}\n{text}");
                assert!(text[at..].starts_with(close), "{name} {about}\n{generated}⟂{}", &text[at..]);
            }
        }
    }
}
