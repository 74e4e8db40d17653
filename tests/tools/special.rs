//! What only one format does, what models get wrong, and what only looks like a call.

use super::{Turn, check, format, read};
use serde_json::json;

fn rome() -> Turn {
    Turn::default().call("get_weather", json!({"city": "Rome"}))
}

fn ok(name: &str, text: &str, wanted: Turn) {
    check(format(name), "", text, true, wanted);
}

/// Texts that are no call, word for word.
fn text(name: &str, texts: &[&str]) {
    for text in texts {
        ok(name, text, Turn::text(text));
    }
}

#[test]
fn hermes_objects_are_mended_and_may_stand_without_tags() {
    for text in [
        "<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Rome\"}}</tool_call>",
        "<tool_call>\n{\"arguments\": {\"city\": \"Rome\"}, \"name\": \"get_weather\"}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}}\n</tool_call></tool_call>",
        "<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Rome\\\"}\"}\n</tool_call>",
        "<tool_call>\n{'name': 'get_weather', 'arguments': {'city': 'Rome',}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}\n</tool_call>",
        "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}}</tool_call>",
        "<tool_call>\n{\"name\": \"functions.get_weather\", \"arguments\": {\"city\": \"Rome\"}, \"id\": \"x\"}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}",
        "<tools>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tools>",
        "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n```",
        "```\n{\n  \"name\": \"get_weather\",\n  \"arguments\": {\n    \"city\": \"Rome\"\n  }\n}\n```",
        "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
    ] {
        ok("hermes", text, rome());
    }
    ok(
        "hermes",
        "<tool_call>\n{\"name\": \"noop\"}\n</tool_call>\n<tool_call>\n{\"name\": \"noop\", \"arguments\": null}\n</tool_call>",
        Turn::default().call("noop", json!({})).call("noop", json!({})),
    );
    ok(
        "hermes",
        "<tool_call>\n[{\"name\": \"noop\", \"arguments\": {}}, {\"name\": \"noop\", \"arguments\": {}}]\n</tool_call>",
        Turn::text(
            "<tool_call>\n[{\"name\": \"noop\", \"arguments\": {}}, {\"name\": \"noop\", \"arguments\": {}}]\n</tool_call>",
        ),
    );
    // An unknown tool in tags is a call: the client tells the model that there is none.
    ok(
        "hermes",
        "<tool_call>\n{\"name\": \"fly\", \"arguments\": {}}\n</tool_call>",
        Turn::default().call("fly", json!({})),
    );
    ok(
        "hermes",
        "Ok.\n<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>\nDone.",
        Turn::text("Ok.\nDone.").call("noop", json!({})),
    );
}

#[test]
fn what_only_looks_like_a_call_stays_text() {
    text(
        "hermes",
        &[
            "The tag <tool_call> begins a call, </tool_call> ends it.",
            "<tool_call>\nnot JSON\n</tool_call>",
            "<tool_call>{\"nam\": 1}</tool_call>",
            "<tool_call></tool_call>",
            "<tool_call>",
            "{\"name\": \"unknown\", \"arguments\": {}}",
            "{\"name\": \"noop\", \"version\": \"1.0\",",
            "```json\n{\"name\": \"package\", \"version\": 1}\n```",
            "```python\nprint({})\n```",
            "say {\"name\": \"noop\", \"arguments\": {}} inline",
            "[1, 2, 3]\n{\"a\": {}}\n{",
            "a\n\n  {\"name\": ",
            "<tool_",
            "``",
        ],
    );
    text("bare", &["<tool_call>\n{\"name\": \"x\", \"arguments\": {}}\n</tool_call>", "{}", "`{`"]);
    text(
        "qwen_xml",
        &[
            "<function=",
            "use <function=name> here",
            "<tool_call>\nhm\n</tool_call>",
            "<tool_call>\n<function=a b>\n</function>",
        ],
    );
    text("kimi", &["<|tool_calls_section_begin|>", "<|tool_call_begin|>functions.x", "<|tool_calls_section_begin|>x"]);
    text("deepseek", &["<｜tool▁calls▁begin｜>hello", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"]);
    text("mistral", &["[TOOL", "[TOOL_CALLS] not a call", "[1, 2]"]);
    text("llama", &["{\"name\": \"unknown\", \"parameters\": {}}", "<|python_tag|>print(1); x = 2"]);
    text("gemma", &["<|tool_call>calling you", "call:noop{}"]);
    text("glm", &["<tool_call>is a tag", "<tool_call>unknown tool here</tool_call>"]);
    text("minimax", &["<minimax:tool_call>\nhm", "<invoke name=\"x\">"]);
    text("deepseek_dsml", &["<｜DSML｜function_calls>\n", "<｜DSML｜"]);
    text("harmony", &["plain words", "<|channel|>", "<|channel|>final"]);
}

#[test]
fn arguments_that_are_no_json_are_passed_on_and_marked() {
    let broken = Turn::default();
    ok(
        "hermes",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": Rome and more}}\n</tool_call>",
        broken.clone().broken("get_weather", "{\"city\": Rome and more}}\n"),
    );
    ok(
        "kimi",
        "<|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|>{\"a\": 'it's'}<|tool_call_end|>",
        broken.clone().broken("noop", "{\"a\": \"it\"s'}"),
    );
    check(
        format("hermes"),
        "",
        "<tool_call>\n{\"name\": \"write_file\", \"arguments\": {\"path\": \"a\", \"content\": \"half",
        false,
        broken.clone().broken("write_file", "{\"path\": \"a\", \"content\": \"half"),
    );
    check(
        format("hermes"),
        "",
        "<tool_call>\n{\"name\": \"run\", \"arguments\": {\"timeout\": 1",
        false,
        broken.clone().broken("run", "{\"timeout\": "),
    );
    check(
        format("qwen_xml"),
        "",
        "<tool_call>\n<function=write_file>\n<parameter=path>\na\n</parameter>\n<parameter=content>\nhalf\n",
        false,
        broken.broken("write_file", "{\"path\": \"a\", \"content\": \"half\\n"),
    );
}

#[test]
fn qwen_tags_may_be_missing_double_or_nested() {
    for text in [
        "<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</function>\n</tool_call>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</tool_call>",
        "<tool_call><function=get_weather><parameter=city>Rome</parameter></function></tool_call>",
        "<tool_call>\n<function=\"get_weather\">\n<parameter=\"city\">\nRome\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n{\"city\": \"Rome\"}\n</function>\n</tool_call>",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
        "<tool_call>\r\n<function=get_weather>\r\n<parameter=city>\r\nRome\r\n</parameter>\r\n</function>\r\n</tool_call>",
    ] {
        ok("qwen_xml", text, rome());
    }
    let inner = "Example:\n<tool_call>\n<function=x>\n<parameter=y>\n1\n</parameter>\n</function>\n</tool_call>\nend";
    let text = format!(
        "<tool_call>\n<function=write_file>\n<parameter=content>\n{inner}\n</parameter>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>"
    );
    ok("qwen_xml", &text, Turn::default().call("write_file", json!({"content": inner, "path": "a"})));
    let text = "<tool_call>\n<function=noop>\n</function>\n<function=noop>\n</function>\n</tool_call>Now?";
    ok("qwen_xml", text, Turn::text("Now?").call("noop", json!({})).call("noop", json!({})));
    let text = "<tool_call>\n<function=run>\n<parameter=timeout>\n 5 \n</parameter>\n<parameter=background>\nTrue\n</parameter>\n<parameter=env>\n{'A': None}\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=extra>\n7\n</parameter>\n</function>\n</tool_call>";
    let wanted = json!({"timeout": 5, "background": true, "env": {"A": null}, "note": null, "extra": "7"});
    ok("qwen_xml", text, Turn::default().call("run", wanted));
}

#[test]
fn the_other_formats_have_their_own_mistakes() {
    for (name, text) in [
        ("glm", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"),
        (
            "glm",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</arg_value>\n</tool_call>",
        ),
        ("glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"),
        ("glm", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>"),
        (
            "minimax",
            "<minimax:tool_call><invoke name=\"get_weather\"><parameter name=\"city\">Rome</parameter></invoke></minimax:tool_call>",
        ),
        (
            "minimax",
            "<minimax:tool_call>\n<invoke name='get_weather'>\n<parameter name='city'>Rome</parameter>\n</invoke>\n</invoke>\n",
        ),
        ("deepseek", "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rome\"}<｜tool▁call▁end｜>"),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rome\"}<｜tool▁calls▁end｜>",
        ),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n{\"city\": \"Rome\"}<｜tool▁call▁end｜>",
        ),
        (
            "deepseek_dsml",
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Rome</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        ),
        (
            "kimi",
            "<|tool_calls_section_begin|> <|tool_call_begin|> functions.get_weather:12 <|tool_call_argument_begin|> {\"city\": \"Rome\"} <|tool_call_end|> <|tool_calls_section_end|>",
        ),
        ("kimi", "<|tool_call_begin|>get_weather:0<|tool_call_argument_begin|>{\"city\": \"Rome\"}"),
        ("mistral", "[TOOL_CALLS]get_weather[CALL_ID]AbCdEfG12[ARGS]{\"city\": \"Rome\"}"),
        ("mistral", "[TOOL_CALLS]get_weather{\"city\": \"Rome\"}"),
        ("mistral", "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}]"),
        ("mistral", "[TOOL_CALLS][{\"arguments\": {\"city\": \"Rome\"}, \"name\": \"get_weather\"}"),
        ("llama", "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}"),
        ("llama", "<|python_tag|>get_weather.call(city=\"Rome\")"),
        (
            "llama",
            "<|python_tag|>{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}",
        ),
        ("llama", "{\"type\": \"function\", \"function\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}"),
        ("gemma", "<|tool_call>call:get_weather{<|\"|>city<|\"|>:<|\"|>Rome<|\"|>}<tool_call|>"),
        ("gemma", "<start_function_call>call:get_weather{city:<escape>Rome<escape>}<end_function_call>"),
        ("gemma", "<|tool_call>call:get_weather{\"city\": \"Rome\"}"),
        (
            "harmony",
            "<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>{\"city\": \"Rome\"}<|call|>",
        ),
        ("harmony", " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Rome\"}"),
        ("harmony", "<|channel|>commentary to=get_weather<|message|>{\"city\": \"Rome\"} \n<|call|>"),
    ] {
        ok(name, text, rome());
    }
    ok(
        "deepseek",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>",
        Turn::default().call("function", json!({"a": 1})),
    );
    ok(
        "kimi",
        "<|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|><|tool_call_end|>",
        Turn::default().call("noop", json!({})),
    );
    ok(
        "mistral",
        "Ok[TOOL_CALLS]noop[ARGS]{}[TOOL_CALLS]noop[ARGS]{}",
        Turn::text("Ok").call("noop", json!({})).call("noop", json!({})),
    );
    ok(
        "gemma",
        "<|tool_call>call:run{args:[<|\"|>a \"b\"<|\"|>,<|\"|>c\\d<|\"|>],background:true,env:{K:<|\"|>v<|\"|>},timeout:2.5}<tool_call|>",
        Turn::default()
            .call("run", json!({"args": ["a \"b\"", "c\\d"], "background": true, "env": {"K": "v"}, "timeout": 2.5})),
    );
    ok(
        "harmony",
        "<|channel|>commentary to=functions.noop<|message|><|call|>",
        Turn::default().call("noop", json!({})),
    );
    ok(
        "harmony",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        Turn::default().reason("aprint(1)"),
    );
}

#[test]
fn reasoning_may_have_begun_in_the_prompt_and_calls_in_it_are_none() {
    let hermes = format("hermes");
    let call = "<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>";
    let text = format!("I could write {call} here.\n</think>\n\nNo.");
    let wanted = Turn::text("No.").reason(&format!("I could write {call} here."));
    check(hermes, "<|im_start|>assistant\n<think>\n", &text, true, wanted);
    check(hermes, "<think></think>", "<think>a</think>b", true, Turn::text("b").reason("a"));
    ok("hermes", "b <think>a</think>", Turn::text("b <think>a</think>"));
    ok("hermes", "<think>\n\n</think>\n\nb", Turn::text("b"));
    ok("hermes", "<think>never closed", Turn::default().reason("never closed"));
    ok("hermes", "</think>b", Turn::text("</think>b"));
    // Where a control token opens the calls, it ends reasoning too.
    let text = "hm<|tool_calls_section_begin|><|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";
    check(format("kimi"), "<think>", text, true, Turn::default().reason("hm").call("noop", json!({})));
}

#[test]
fn formats_are_told_by_the_template() {
    use rynd::chat::tools::Format;
    for (source, name) in [
        ("<|start|>assistant<|channel|>", "harmony"),
        ("{{ '<tool_call>' }} x <function=", "qwen_xml"),
        ("<tool_call>{name}<arg_key>", "glm"),
        ("<tool_call>", "hermes"),
        ("<|start_header_id|>ipython", "llama"),
        ("[TOOL_CALLS]", "mistral"),
        ("nothing", "bare"),
    ] {
        assert_eq!(Format::of_template(source).name(), name);
    }
    for format in Format::names().map(|name| Format::named(name).unwrap()) {
        let _ = read(format, "", &["x"], true);
    }
}
