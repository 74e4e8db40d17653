//! What a template makes of the conversations that clients really send, found out by trying.
//!
//! Templates were written for user and assistant in turn. Clients send developers, system messages in the middle, two
//! turns of one role, answers of tools without the call, and several calls at once; templates raise, or leave text out
//! without a word. Each shape is rendered once, with texts that are found again, when a model is loaded.

use super::message::{Arguments, Content, FunctionCall, Message, ToolCall};
use super::template::Template;
use serde_json::{Map, Value as Json, json};

/// What stands around a turn of one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub open: String,
    pub close: String,
}

/// What a template takes as it is.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// A system message at the start.
    pub system: bool,
    pub system_in_the_middle: bool,
    pub two_users: bool,
    pub two_assistants: bool,
    pub assistant_first: bool,
    /// A user behind the answer of a tool.
    pub user_after_tool: bool,
    /// An assistant that says nothing.
    pub empty_answer: bool,
    /// Calls at all, and calls behind text.
    pub calls: bool,
    pub text_before_calls: bool,
    pub tool_without_call: bool,
    pub several_calls: bool,
    /// Ids of calls that are not nine letters or digits.
    pub long_ids: bool,
    /// `developer` as a role of its own.
    pub developer: bool,
    /// Reasoning is read from `thinking`, not `reasoning_content`.
    pub thinking: bool,
    pub(super) arguments: Arguments,
    pub(super) frames: Frames,
}

/// The frames of all roles, as far as they could be told from each other.
#[derive(Debug, Clone, Default)]
pub(super) struct Frames {
    pub system: Option<Frame>,
    pub user: Option<Frame>,
    pub assistant: Option<Frame>,
    pub tool: Option<Frame>,
}

/// Texts that no template has.
const A: &str = "Wqxa1";
const B: &str = "Wqxb2";
const C: &str = "Wqxc3";
const D: &str = "Wqxd4";

struct Probe<'a> {
    template: &'a Template,
    extra: &'a Map<String, Json>,
    arguments: Arguments,
}

impl Shapes {
    /// Tries `template`; `extra` are the variables that it will have.
    pub fn probe(template: &Template, extra: &Map<String, Json>) -> Shapes {
        let mut probe = Probe { template, extra, arguments: Arguments::Objects };
        let (user, answer) = (Message::user, Message::assistant);
        let call = |id: &str, name: &str| ToolCall {
            id: Some(id.to_owned()),
            kind: "function".to_owned(),
            function: FunctionCall { name: name.to_owned(), arguments: json!({"q": C}) },
        };
        let calls = |calls: &[(&str, &str)]| Message {
            tool_calls: Some(calls.iter().map(|(id, name)| call(id, name)).collect()),
            ..Message::assistant("")
        };
        let tool = |id: &str, name: &str, text: &str| Message {
            tool_call_id: Some(id.to_owned()),
            name: Some(name.to_owned()),
            ..Message::new("tool", text)
        };
        let one = [user(A), calls(&[("Abcdefgh1", "fn_x1")])];
        // As text where the text arrives unchanged, for that keeps the client's bytes; else as an object.
        let text = json!({"q": C}).to_string();
        let mut as_text = one.clone();
        for call in as_text[1].tool_calls.iter_mut().flatten() {
            call.function.arguments = Json::String(text.clone());
        }
        probe.arguments = Arguments::AsGiven;
        if !probe.text(&as_text).is_some_and(|found| found.contains(&text)) {
            probe.arguments = Arguments::Objects;
        }
        let result = |id: &str| [&one[..1], &[calls(&[(id, "fn_x1")]), tool(id, "fn_x1", B)]].concat();
        let two = [user(A), calls(&[("Abcdefgh1", "fn_x1"), ("Abcdefgh2", "fn_y2")])];
        let results = [&two[..], &[tool("Abcdefgh1", "fn_x1", B), tool("Abcdefgh2", "fn_y2", D)]].concat();
        let source = template.source();
        Shapes {
            system: probe.takes(&[Message::system(A), user(B)], &[A, B]),
            system_in_the_middle: probe.takes(&[user(A), answer(B), Message::system(C), user(D)], &[A, B, C, D]),
            two_users: probe.takes(&[user(A), user(B), answer(C), user(D)], &[A, B, C, D]),
            two_assistants: probe.takes(&[user(A), answer(B), answer(C), user(D)], &[A, B, C, D]),
            user_after_tool: probe.takes(&[&result("Abcdefgh1")[..], &[user(D)]].concat(), &[A, "fn_x1", B, D]),
            empty_answer: probe.takes(&[user(A), answer(""), user(B)], &[A, B]),
            calls: probe.takes(&one, &[A, "fn_x1", C]),
            text_before_calls: {
                let mut both = one.clone();
                both[1].content = Some(Content::Text(B.to_owned()));
                probe.takes(&both, &[A, B, "fn_x1", C])
            },
            assistant_first: probe.takes(&[answer(A), user(B)], &[A, B]),
            tool_without_call: probe.takes(&[user(A), tool("Abcdefgh1", "fn_x1", B), user(C)], &[A, B, C]),
            several_calls: probe.takes(&results, &[A, "fn_x1", "fn_y2", B, D]),
            long_ids: probe.takes(&result("call_0123456789"), &[A, "fn_x1", B]),
            developer: source.contains("developer") && probe.takes(&[Message::new("developer", A), user(B)], &[A, B]),
            thinking: !source.contains("reasoning_content") && source.contains("thinking"),
            frames: probe.frames(&one, &result("Abcdefgh1")),
            arguments: probe.arguments,
        }
    }
}

impl Probe<'_> {
    fn text(&self, messages: &[Message]) -> Option<String> {
        self.template.render_with(self.arguments, messages, None, false, self.extra, None).ok()
    }

    /// Whether all texts arrive, each once and in their order.
    fn takes(&self, messages: &[Message], texts: &[&str]) -> bool {
        let Some(found) = self.text(messages) else { return false };
        let mut at = 0;
        texts.iter().all(|text| {
            let next = found[at..].find(text);
            at += next.map_or(0, |n| n + text.len());
            next.is_some()
        })
    }

    fn frames(&self, call: &[Message], result: &[Message]) -> Frames {
        let (user, answer) = (Message::user, Message::assistant);
        let mut frames = Frames::default();
        // What closes a turn is what follows its text at the end.
        let behind = |text: Option<String>, mark: &str| Some(text?.split_once(mark)?.1.to_owned());
        let user_close = behind(self.text(&[user(A)]), A);
        let answer_close = behind(self.text(&[user(A), answer(B)]), B);
        let three = self.text(&[user(A), answer(B), user(C)]);
        if let (Some(user_close), Some(answer_close), Some(three)) = (user_close, answer_close, three)
            && let Some((first, rest)) = three.split_once(A)
            && let Some((second, rest)) = rest.split_once(B)
            && let Some((third, _)) = rest.split_once(C)
        {
            let answer_open = second.strip_prefix(user_close.as_str());
            // The very last answer may be closed in its own way.
            let middle = [&answer_close, &user_close].into_iter().find(|close| third.starts_with(close.as_str()));
            let answer_close = middle.unwrap_or(&answer_close).clone();
            let user_open = third.strip_prefix(answer_close.as_str());
            if let Some(open) = answer_open {
                frames.assistant = Some(Frame { open: open.to_owned(), close: answer_close });
            }
            if let Some(open) = user_open {
                frames.user = Some(Frame { open: open.to_owned(), close: user_close });
                // The system turn lies between the start and the user's.
                if let Some(text) = self.text(&[Message::system(D), user(A)])
                    && let Some((before, rest)) = text.split_once(D)
                    && let Some((between, _)) = rest.split_once(A)
                    && let Some(close) = between.strip_suffix(open)
                {
                    let start = first.strip_suffix(open).unwrap_or_default();
                    let common = start.char_indices().zip(before.chars()).take_while(|((_, a), b)| a == b);
                    let n = common.map(|((at, c), _)| at + c.len_utf8()).last().unwrap_or(0);
                    // A default system turn shares the marks of a given one.
                    let open = if n == start.len() { &before[n..] } else { turn_open(before, close) };
                    if !open.is_empty() {
                        frames.system = Some(Frame { open: open.to_owned(), close: close.to_owned() });
                    }
                }
            }
        }
        if let (Some(before), Some(after)) = (self.text(call), self.text(result))
            && let Some(rest) = after.strip_prefix(before.as_str())
            && let Some((open, close)) = rest.split_once(B)
        {
            frames.tool = Some(Frame { open: open.to_owned(), close: close.to_owned() });
        }
        frames
    }
}

/// The opening of a turn: from the last control token that begins a line or the text, such as `<|im_start|>`.
fn turn_open<'a>(before: &'a str, close: &str) -> &'a str {
    let from = before.rfind(close.trim()).filter(|_| !close.trim().is_empty()).map_or(0, |at| at + close.trim().len());
    before[from..].trim_start()
}
