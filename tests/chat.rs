//! Chat templates against renderings by jinja2 in transformers' configuration.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use rynd::chat::{BUILTIN_NAMES, ChatError, Content, Message, Template};
use rynd::gguf::{Gguf, Writer};
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
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
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
            if found.as_deref().ok() != case["output"].as_str() {
                wrong.push(format!("{name} {} {add_generation_prompt}\n{found:?}\n{:?}", case["name"], case["output"]));
            }
            rendered += 1;
        }
    }
    assert_eq!(rendered, 8 * 16);
    assert!(wrong.is_empty(), "{} of {rendered} differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn json_is_written_as_python_writes_it() {
    let x =
        json!({"b": [1, 2.0, null, true], "a": {"é\u{2028}": "\"\\/\n\t\u{8}\u{c}\u{1}\u{7f}<>&'"}, "e": {}, "l": []});
    // Made with json.dumps(x, ensure_ascii=False) and the arguments named.
    let plain = "{\"b\": [1, 2.0, null, true], \"a\": {\"é\u{2028}\": \"\\\"\\\\/\\n\\t\\b\\f\\u0001\u{7f}<>&'\"}, \"e\": {}, \"l\": []}";
    assert_eq!(with_x("{{ x|tojson }}", x.clone()), plain);
    let ascii = plain.replace('é', "\\u00e9").replace('\u{2028}', "\\u2028");
    assert_eq!(with_x("{{ x|tojson(ensure_ascii=true) }}", x), ascii);
    assert_eq!(with_x("{{ x|tojson(ensure_ascii=true) }}", json!("😀")), "\"\\ud83d\\ude00\"");
    let x = json!({"b": [1, {}], "a": {"c": []}});
    assert_eq!(with_x("{{ x|tojson(separators=(',', ':')) }}", x.clone()), r#"{"b":[1,{}],"a":{"c":[]}}"#);
    assert_eq!(with_x("{{ x|tojson(sort_keys=true) }}", x.clone()), r#"{"a": {"c": []}, "b": [1, {}]}"#);
    let indented = "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": {\n    \"c\": []\n  }\n}";
    assert_eq!(with_x("{{ x|tojson(indent=2) }}", x), indented);
    let numbers =
        json!([1e16, 1e15, 123456789.125, 1e-4, 1e-5, -1.5e-7, 1.5e300, 0.1, -0.0, 9223372036854775808u64, -5]);
    let python = "[1e+16, 1000000000000000.0, 123456789.125, 0.0001, 1e-05, -1.5e-07, 1.5e+300, 0.1, -0.0, 9223372036854775808, -5]";
    assert_eq!(with_x("{{ x|tojson }}", numbers), python);
    assert_eq!(with_x("{{ {1: 'a', true: 2, none: 3}|tojson }}", json!(0)), r#"{"1": 2, "null": 3}"#);
    assert_eq!(with_x("{{ [0.1, 'a']|string ~ none ~ true }}", json!(0)), "[0.1, 'a']NoneTrue");
}

#[test]
fn python_methods_and_tests_mean_what_they_mean_in_python() {
    let x = json!({"text": "  a</think>b  ", "list": [1, "b"], "none": null});
    let cases = [
        ("{{ x.text.strip() }}", "a</think>b"),
        ("{{ x.text.split('</think>')[-1].rstrip() }}", "b"),
        ("{{ x.text.split('</think>', 1)[0].lstrip() }}", "a"),
        ("{{ 'a.b.c'.rsplit('.', 1) }}", "['a.b', 'c']"),
        ("{{ 'a.b.c'.rsplit('.') }}", "['a', 'b', 'c']"),
        ("{{ 'xay'.removeprefix('x').removesuffix('y') ~ 'xay'.removeprefix('y') }}", "axay"),
        ("{{ x.text.startswith('  a') and not x.text.endswith(('x', 'y')) }}", "True"),
        ("{{ x.get('nothing', 'other') }}{{ x.get('nothing') }}", "otherNone"),
        ("{% for key, value in x.items() %}{{ key }},{% endfor %}", "text,list,none,"),
        ("{{ x.keys()|list }}", "['text', 'list', 'none']"),
        (
            "{{ x.none is iterable }}{{ x.text is iterable }}{{ x.list is iterable }}{{ x is iterable }}",
            "FalseTrueTrueTrue",
        ),
        ("{{ x.list is sequence }}{{ x is sequence }}{{ x.text is sequence }}{{ 1 is sequence }}", "TrueTrueTrueFalse"),
        ("{{ '{}-{:>3}'.format(1, 'b') }}", "1-  b"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{{ x.list[::-1] }}{{ x.nothing }}|{{ x.nothing is defined }}", "['b', 1]|False"),
    ];
    for (source, expected) in cases {
        assert_eq!(with_x(source, x.clone()), expected, "{source}");
    }
}

#[test]
fn blocks_are_trimmed_and_generation_marks_do_nothing() {
    let source = "a\n  {% if true %}\nb\n  {% endif %}\n{%- generation -%}\n c \n{%- endgeneration %}\nd\n{% generation %}\ne\n{% endgeneration %}";
    assert_eq!(render(source, &[], json!({})).unwrap(), "a\nb\ncd\ne\n");
}

#[test]
fn the_clock_can_be_read_and_stopped() {
    let source = "{{ strftime_now('%d %b %Y, %H:%M') }}";
    let stopped = Template::new(source, "t").unwrap().at("2024-07-26T12:00:00".parse().unwrap());
    assert_eq!(stopped.render(&[], None, false, &Map::new()).unwrap(), "26 Jul 2024, 12:00");
    let year: u32 = render("{{ strftime_now('%Y') }}", &[], json!({})).unwrap().parse().unwrap();
    assert!(year >= 2025);
    assert!(matches!(render("{{ strftime_now('%!') }}", &[], json!({})), Err(ChatError::Failed { line: 1, .. })));
}

#[test]
fn messages_keep_the_openai_shape_and_unknown_fields() {
    let wire = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "r", "prefix": true},
    ]);
    let messages: Vec<Message> = serde_json::from_value(wire.clone()).unwrap();
    assert_eq!(serde_json::to_value(&messages).unwrap(), wire);
    assert_eq!(
        (messages[0].text().as_str(), messages[1].text().as_str(), messages[2].text().as_str()),
        ("a\nb", "c", "")
    );
    let source =
        "{% for m in messages %}[{{ m.content is string }} {{ m.content is defined }} {{ m.prefix }}]{% endfor %}";
    assert_eq!(
        render(source, &messages, json!({})).unwrap(),
        "[True True ][False True ][False False ][True True True]"
    );
    let null: Message = serde_json::from_value(json!({"role": "assistant", "content": null})).unwrap();
    assert_eq!(null.content, None);
    assert_eq!(Message::user("x").content, Some(Content::Text("x".into())));
}

fn call(arguments: Value) -> Vec<Message> {
    let call = json!({"function": {"name": "f", "arguments": arguments}});
    serde_json::from_value(json!([{"role": "assistant", "content": "", "tool_calls": [call]}])).unwrap()
}

#[test]
fn tool_arguments_reach_a_template_in_the_form_it_can_use() {
    let with = |body: &str| format!("{{% for c in messages[0].tool_calls %}}{{{{ {body} }}}}{{% endfor %}}");
    let (object, string) = (call(json!({"a": [1]})), call(json!("{\"a\": [1]}")));
    let loops = with("c.function.arguments|items|list");
    let adds = with("'' + c.function.arguments");
    for messages in [&object, &string] {
        assert_eq!(render(&loops, messages, json!({})).unwrap(), "[('a', [1])]");
        assert_eq!(render(&adds, messages, json!({})).unwrap().replace(' ', ""), r#"{"a":[1]}"#);
    }
    // A template that takes either gets what was given, unless it is parsed first.
    let json = with("c.function.arguments|tojson");
    assert_eq!(render(&json, &object, json!({})).unwrap(), r#"{"a": [1]}"#);
    assert_eq!(render(&json, &string, json!({})).unwrap(), r#""{\"a\": [1]}""#);
    let mut parsed = string.clone();
    parsed[0].parse_arguments();
    assert_eq!(parsed, object);
    let mut broken = call(json!("{\"a\": "));
    broken[0].parse_arguments();
    assert_eq!(broken, call(json!("{\"a\": ")), "what is no JSON stays as it is");
    let error = render(&loops, &broken, json!({})).unwrap_err();
    assert!(matches!(error, ChatError::Failed { line: 1, .. }), "{error}");
}

#[test]
fn a_broken_template_is_an_error_with_its_line() {
    let error = Template::new("a\nb {% if x %}\nc {{ y }\n", "the model m").err().unwrap();
    let ChatError::Syntax { line: 3, ref source_line, .. } = error else { panic!("{error:?}") };
    assert_eq!(source_line, "c {{ y }");
    let text = error.to_string();
    assert!(
        text.starts_with("the chat template of the model m is broken in line 3") && text.contains("chatml"),
        "{text}"
    );
    for source in
        ["{% for %}", "{% endif %}", "{{ 'a }}", "{% nonsense %}", "{{", "{%", "{% if true %}", &"(".repeat(3999)]
    {
        let source = format!("\n{{{{ {source}");
        let error = Template::new(&source, "t").err().unwrap_or_else(|| panic!("{source} was accepted"));
        assert!(matches!(error, ChatError::Syntax { line: 1.., .. }), "{error}");
    }
}

#[test]
fn a_missing_variable_is_named_with_its_line() {
    let error = render("{{ role }}\n\n{{ user.name.first }}", &[], json!({})).unwrap_err();
    let ChatError::Failed { line: 3, ref why, .. } = error else { panic!("{error:?}") };
    assert!(why.contains("`user.name`") || why.contains("`user`"), "{why}");
    let error = render("\n{{ 'a' + missing }}", &[], json!({})).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("missing"), "{error}");
    let error = render("{{ nothing('a') }}", &[], json!({})).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("nothing"), "{error}");
}

#[test]
fn a_template_may_refuse_a_conversation_in_its_own_words() {
    let source = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}ok";
    assert_eq!(render(source, &[Message::user("x")], json!({})).unwrap(), "ok");
    let error = render(source, &[Message::system("x")], json!({})).unwrap_err();
    assert!(matches!(&error, ChatError::Refused { why, .. } if why == "No system role here"), "{error}");
}

#[test]
fn a_template_that_refuses_for_want_of_a_system_message_says_which_flag_gives_one() {
    let source = "{% if messages[0].role != 'system' %}{{ raise_exception('Say who I am!') }}{% endif %}\
                  {% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('Never.') }}{% endif %}{% endfor %}ok";
    let error = render(source, &[Message::user("hi")], json!({})).unwrap_err().to_string();
    assert!(error.contains("Say who I am!") && error.contains("--system"), "{error}");
    assert_eq!(render(source, &[Message::system("x"), Message::user("hi")], json!({})).unwrap(), "ok");
    // A refusal that a system message would not heal is told as it is.
    let error = render(source, &[Message::user("no")], json!({})).unwrap_err().to_string();
    assert!(!error.contains("--system"), "{error}");
}

#[test]
fn a_template_that_nests_as_deep_as_it_can_be_long_compiles_or_is_an_error() {
    const MOST: usize = 256 << 10;
    const MOST_CODE: usize = 4 << 10;
    let mut templates: Vec<(String, String)> = vec![];
    for unit in [
        "1+",
        "1~",
        "1*",
        "1-",
        "1**",
        "1 and ",
        "1 or ",
        "1<",
        "1==",
        "not ",
        "-",
        "(",
        "[",
        "{1:",
        "x|",
        "x.a.",
        "x[",
        "1 if 1 else ",
        "f(",
        "1 in ",
    ] {
        let most = (MOST_CODE - 4) / unit.len();
        for (count, fits) in [(most, true), (20_000, false)] {
            let source = format!("{{{{ {}1 }}}}", unit.repeat(count));
            let error = Template::new(&source, "deep").err().map(|e| e.to_string());
            let too_large = error.as_ref().is_some_and(|error| error.contains("4 KiB"));
            assert_eq!(too_large, !fits, "{unit} {count}: {error:?}");
            templates.push((unit.to_owned(), source));
        }
        let close: String = unit.chars().filter_map(|c| ")]}".chars().nth("([{".find(c)?)).collect();
        if !close.is_empty() {
            let half = most / 2;
            templates.push((unit.to_owned(), format!("{{{{ {}1{} }}}}", unit.repeat(half), close.repeat(half))));
        }
    }
    // A quote does not hide code, and what is in one is none.
    templates.push(("quotes".into(), format!("{{{{ {}1 }}}}", "'}}'~".repeat(1300))));
    assert!(Template::new(&format!("{{{{ '{}' }}}}", "-}}\\'(".repeat(9000)), "text").is_ok());
    for (open, close) in [
        ("{%if 1%}", "{%endif%}"),
        ("{%for a in b%}", "{%endfor%}"),
        ("{%set a%}", "{%endset%}"),
        ("{%filter upper%}", "{%endfilter%}"),
        ("{%macro m()%}", "{%endmacro%}"),
        ("{%with a=1%}", "{%endwith%}"),
        ("{%call m()%}", "{%endcall%}"),
    ] {
        let n = MOST / (open.len() + close.len());
        templates.push((open.to_owned(), open.repeat(n) + &close.repeat(n)));
        templates.push((format!("{open} open"), open.repeat(MOST / open.len())));
    }
    let elif = "{%elif 1%}";
    templates.push(("elif".into(), format!("{{%if 1%}}{}{{%endif%}}", elif.repeat((MOST - 20) / elif.len()))));
    for (name, source) in templates {
        assert!(source.len() <= MOST, "{name}");
        // Whether it compiles is the template's affair; that this test goes on is ours.
        if let Ok(template) = Template::new(&source, "deep") {
            let _ = template.render(&[Message::user("hi")], None, true, &Map::new());
        }
    }
    let error = Template::new(&"x".repeat(MOST + 1), "long").err().unwrap().to_string();
    assert!(error.contains("256 KiB") && error.contains("long"), "{error}");
}

#[test]
fn a_template_that_does_not_end_or_grows_without_bound_is_stopped() {
    let grow = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    let nest = "{% set n = namespace(x=[]) %}{% for j in range(999) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{% endfor %}";
    let endless = [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        grow,
        nest,
        "{{ 'a' * 99999999999 }}",
        "{{ 'a\nb'|indent(9999999999) }}",
        "{% set x = [range(9999)|list] * 999 %}{{ [x, x, x, x, x, x, x, x]|tojson }}",
    ];
    for source in endless {
        let error = render(source, &[], json!({})).unwrap_err();
        assert!(matches!(error, ChatError::Endless { line: 1.., .. }), "{source}: {error}");
    }
    let deep = |show: &str| {
        format!(
            "{{% set n = namespace(x=[]) %}}{{% for i in range(60000) %}}{{% set n.x = [n.x] %}}{{% endfor %}}{show}"
        )
    };
    assert_eq!(
        render(&deep("{{ n.x|string|length }}"), &[], json!({})).unwrap(),
        "120002",
        "deep, but within its means"
    );
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 12) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%999999999d' % 1 }}",
        &deep("{{ n.x|tojson }}"),
    ] {
        let error = render(source, &[], json!({})).unwrap_err();
        assert!(matches!(error, ChatError::Failed { line: 1, .. }), "{source}: {error}");
    }
}

#[test]
fn a_long_conversation_is_not_mistaken_for_an_endless_one() {
    // Looks at every message for each message, as some templates do.
    let source = "{% for m in messages %}{% for n in messages %}{% if n.role == 'system' %}{{ n.content }}{% endif %}{% endfor %}{{ m.content }}{% endfor %}";
    let messages = vec![Message::user("0123456789"); 1000];
    assert_eq!(render(source, &messages, json!({})).unwrap().len(), 10_000);
    let long = [Message::user(&"x".repeat(3_000_000))];
    assert_eq!(Template::builtin("chatml").unwrap().render(&long, None, true, &Map::new()).unwrap().len(), 3_000_050);
}

#[test]
fn the_built_in_template_is_chosen_by_name_and_writes_chatml() {
    let template = Template::builtin("chatml").unwrap();
    let messages = [Message::system("s"), Message::user("u\n"), Message::assistant("a"), Message::user("v")];
    let mut text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu\n<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nv<|im_end|>\n".to_owned();
    assert_eq!(template.render(&messages, None, false, &Map::new()).unwrap(), text);
    text += "<|im_start|>assistant\n";
    assert_eq!(template.render(&messages, None, true, &Map::new()).unwrap(), text);
    assert!(BUILTIN_NAMES.iter().all(|name| Template::builtin(name).is_ok()));
    let error = Template::builtin("nope").err().unwrap();
    assert_eq!(error.to_string(), "there is no built-in chat template 'nope': use one of chatml");
}

#[test]
fn a_model_file_gives_its_templates_or_a_clear_error() {
    let path = std::env::temp_dir().join(format!("rynd-chat-{}.gguf", std::process::id()));
    let write = |keys: &[(&str, &str)]| {
        let mut writer = Writer::create(&path).unwrap();
        keys.iter().for_each(|(key, value)| writer.set(key, *value).unwrap());
        writer.finish().unwrap();
        Gguf::open(&path).unwrap()
    };
    let source = |gguf: &Gguf, tools| Template::from_gguf(gguf, tools).unwrap().source().to_owned();
    let both = write(&[("tokenizer.chat_template", "plain"), ("tokenizer.chat_template.tool_use", "tools")]);
    assert_eq!((source(&both, false).as_str(), source(&both, true).as_str()), ("plain", "tools"));
    let one = write(&[("tokenizer.chat_template", "plain")]);
    assert_eq!(source(&one, true), "plain");
    let none = write(&[("general.name", "m")]);
    let error = Template::from_gguf(&none, false).err().unwrap().to_string();
    assert!(error.contains("has no chat template") && error.contains("chatml"), "{error}");
    let broken = write(&[("tokenizer.chat_template", "\n{% if %}")]);
    let error = Template::from_gguf(&broken, false).err().unwrap().to_string();
    assert!(error.contains("line 2") && error.contains("rynd-chat-"), "{error}");
    std::fs::remove_file(&path).unwrap();
}
