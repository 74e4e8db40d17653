//! A model's own chat template, run as transformers runs it.
//!
//! Jinja with `trim_blocks` and `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, Python's
//! methods on strings and dicts, and Python's JSON. `{% generation %}` marks the answer for training and
//! does nothing here. A template is a program out of a file from the internet: it gets a budget of steps
//! and bytes, and every failure is an error with its line.

use super::error::ChatError;
use super::json::tojson;
use super::marks::Marks;
use super::message::{Arguments, Message};
use super::python;
use crate::gguf::Gguf;
use crate::tokenizer::{Prompt, Tokenizer};
use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde_json::{Map, Value as Json};
use std::fmt;

/// Names that [`Template::builtin`] knows.
pub const BUILTIN_NAMES: &[&str] = &["chatml"];
const CHATML: &str = include_str!("chatml.jinja");

/// What a render may spend: a step of the template costs one unit, and so do 64 bytes. Measured over 71
/// templates, a message costs 100 to 1400; a few templates walk the conversation once a message, which
/// costs 8 times its square.
const FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
const FUEL_PER_SQUARE: u64 = 16;

/// A template can nest lists as deep as its fuel lasts, and minijinja prints and drops them recursively:
/// about 1 KB a level. The memory is only reserved.
const STACK_BYTES: usize = 256 << 20;
/// A compiler recurses as deep as its input nests, and `1 ~ 1 ~ 1 ...` nests once a term, joined anew at each. So one
/// template may only be so long, and one tag have so much code beside its strings: the longest known have 30 KB and 249 bytes.
const MOST_BYTES: usize = 256 << 10;
const MOST_TAG_BYTES: usize = 4 << 10;

pub struct Template {
    environment: Environment<'static>,
    name: String,
    source: String,
}

/// Carries the message of `raise_exception` through minijinja.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl Template {
    /// Compiles a template; `name` says in errors whose it is.
    pub fn new(source: &str, name: &str) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        environment.set_debug(true); // for the place of an error
        environment.set_unknown_method_callback(python::method);
        add_tojson(&mut environment, None);
        for name in ["from_json", "fromjson"] {
            environment.add_filter(name, from_json);
        }
        environment.add_test("iterable", python::is_iterable);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        environment.add_function("strftime_now", |format: String| {
            let now = jiff::ZonedDateTime::now();
            jiff::fmt::strtime::format(&format, &now).map_err(strftime_error)
        });
        check_size(source, name)?;
        let source = without_list_changes(&without_generation_tags(source));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let mut template = Self { environment, name: name.to_owned(), source };
        // What the compiler builds is dropped in there as well.
        with_deep_stack(name, || {
            let added = syntax.and_then(|syntax| {
                template.environment.set_syntax(syntax);
                template.environment.add_template_owned(name.to_owned(), template.source.clone())
            });
            added.map_err(|error| template.describe(&error))
        })??;
        Ok(template)
    }

    /// The template of a model file. Some files carry a second one for conversations with tools.
    pub fn from_gguf(gguf: &Gguf, with_tools: bool) -> Result<Self, ChatError> {
        let model = gguf.path().display().to_string();
        let for_tools = if with_tools { gguf.opt_str("tokenizer.chat_template.tool_use")? } else { None };
        match for_tools.map_or_else(|| gguf.opt_str("tokenizer.chat_template"), |source| Ok(Some(source)))? {
            Some(source) => Self::new(source, &model),
            None => Err(ChatError::NoTemplate { model }),
        }
    }

    /// A template of our own, for models that come without one.
    pub fn builtin(name: &str) -> Result<Self, ChatError> {
        match name {
            "chatml" => Self::new(CHATML, "chatml (built in)"),
            _ => Err(ChatError::UnknownBuiltin { name: name.to_owned() }),
        }
    }

    /// Stops the template's clock, so that its output can be repeated.
    pub fn at(mut self, now: DateTime) -> Self {
        self.environment.add_function("strftime_now", move |format: String| {
            jiff::fmt::strtime::format(&format, now).map_err(strftime_error)
        });
        self
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whose template it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The prompt's text. `extra` are more variables for the template: `bos_token`, `eos_token`,
    /// `enable_thinking` and the like.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        extra: &Map<String, Json>,
    ) -> Result<String, ChatError> {
        Ok(self.render_any(messages, tools, add_generation_prompt, extra, None)?.text)
    }

    /// As `render`, and what `messages` and `tools` spell is text for `tokenizer`, never a control token. `extra` is
    /// trusted: it names the tokens.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        extra: &Map<String, Json>,
    ) -> Result<Prompt, ChatError> {
        self.render_any(messages, tools, add_generation_prompt, extra, Some(tokenizer))
    }

    fn render_any(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        extra: &Map<String, Json>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Prompt, ChatError> {
        let values: Vec<Json> = messages.iter().map(|message| message.for_template(Arguments::AsGiven)).collect();
        let values: Vec<&Json> = values.iter().chain(tools).chain(extra.values()).collect();
        let marks = tokenizer.map(|tokenizer| Marks::new(tokenizer, &values, &[&self.source])).transpose()?;
        let render_of = |arguments, messages: &[Message]| {
            self.render_with(arguments, messages, tools, add_generation_prompt, extra, marks.as_ref())
        };
        let render = |arguments| render_of(arguments, messages);
        let as_given = match render(Arguments::AsGiven) {
            // Some templates want a system message and say so in their own words.
            Err(ChatError::Refused { template, why }) if messages.iter().all(|message| message.role != "system") => {
                let with_system: Vec<Message> =
                    std::iter::once(Message::system("-")).chain(messages.iter().cloned()).collect();
                Err(match render_of(Arguments::AsGiven, &with_system).is_ok() {
                    true => ChatError::NeedsSystem { template, why },
                    false => ChatError::Refused { template, why },
                })
            }
            other => other,
        };
        // Some templates read the fields of a tool call's arguments, others add them to a string.
        let has_calls = messages.iter().any(|message| message.tool_calls.is_some());
        let text = match &as_given {
            Err(ChatError::Failed { .. }) if has_calls => {
                render(Arguments::Objects).or_else(|_| render(Arguments::Strings)).or(as_given)
            }
            _ => as_given,
        }?;
        Ok(match marks {
            Some(marks) => Prompt::from_marked(&text, marks.mark),
            None => text.into(),
        })
    }

    /// The text with its marks.
    pub(super) fn render_with(
        &self,
        arguments: Arguments,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        extra: &Map<String, Json>,
        marks: Option<&Marks>,
    ) -> Result<String, ChatError> {
        let mut environment = self.environment.clone();
        let mut messages: Vec<Json> = messages.iter().map(|message| message.for_template(arguments)).collect();
        let mut tools = tools.cloned().unwrap_or_default();
        if let Some(marks) = marks {
            messages.iter_mut().chain([&mut tools]).for_each(|value| marks.apply(value));
            add_tojson(&mut environment, Some(marks.mark));
        }
        let mut bytes = 0;
        let n = messages.len() as u64;
        let values: Vec<Value> = messages.iter().map(|message| to_value(message, &mut bytes)).collect();
        // transformers always sets these four; a template may ask whether `tools` is none.
        let mut context = vec![
            ("messages", Value::from(values)),
            ("tools", to_value(&tools, &mut bytes)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        context.extend(extra.iter().map(|(key, value)| (key.as_str(), to_value(value, &mut bytes))));
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * n + FUEL_PER_SQUARE.saturating_mul(n * n) + bytes));
        // The error is read in there as well: it holds the template's variables.
        with_deep_stack(&self.name, || {
            let template = environment.get_template(&self.name);
            let rendered = template.and_then(|template| template.render(Value::from_pairs(context.iter().cloned())));
            rendered.map_err(|error| self.describe(&error))
        })?
    }

    fn describe(&self, error: &Error) -> ChatError {
        let template = self.name.clone();
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(this) = cause {
            if let Some(Raised(why)) = this.downcast_ref() {
                return ChatError::Refused { template, why: why.clone() };
            }
            cause = this.source();
        }
        let line = error.line().unwrap_or(0);
        let source_line = self.source.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
        let source_line = match source_line.char_indices().nth(120) {
            Some((end, _)) => format!("{}...", &source_line[..end]), // some templates are one long line
            None => source_line.to_owned(),
        };
        let code = error.range().and_then(|range| self.source.get(range)).filter(|code| !code.contains('\n'));
        let what = match error.detail() {
            Some(detail) => detail.to_owned(),
            None => error.kind().to_string(),
        };
        let why = match code.filter(|code| !code.is_empty() && code.len() < 80) {
            Some(code) if error.kind() == ErrorKind::UndefinedError => {
                format!("`{code}` uses a variable or field that is not set ({what})")
            }
            Some(code) => format!("{what}, at `{code}`"),
            None => what,
        };
        match error.kind() {
            ErrorKind::SyntaxError => ChatError::Syntax { template, line, why, source_line },
            ErrorKind::OutOfFuel => ChatError::Endless { template, line, source_line },
            _ => ChatError::Failed { template, line, why, source_line },
        }
    }
}

/// Some templates take apart arguments that came as text.
fn from_json(text: &str) -> Result<Value, Error> {
    let json = serde_json::from_str(text);
    let json = json.map_err(|why| Error::new(ErrorKind::InvalidOperation, format!("from_json: {why}")))?;
    Ok(to_value(&json, &mut 0))
}

fn add_tojson(environment: &mut Environment, mark: Option<char>) {
    environment.add_filter("tojson", move |state: &State, value: &Value, indent: Option<Value>, options: Kwargs| {
        tojson(state, value, indent, options, mark)
    });
}

/// Runs `work` on a thread of its own with a deep stack.
fn with_deep_stack<T: Send>(template: &str, work: impl FnOnce() -> T + Send) -> Result<T, ChatError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let no_stack = |e: std::io::Error| ChatError::NoStack {
            template: template.to_owned(),
            bytes: STACK_BYTES,
            why: e.to_string(),
        };
        Ok(thread.map_err(no_stack)?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Refuses what would nest deeper than the stack holds.
fn check_size(source: &str, name: &str) -> Result<(), ChatError> {
    let refused = |what: String, most: usize| {
        Err(ChatError::TooLarge { template: name.to_owned(), what, most: format!("{} KiB", most >> 10) })
    };
    if source.len() > MOST_BYTES {
        return refused(format!("{} bytes long", source.len()), MOST_BYTES);
    }
    let mut rest = source;
    while let Some((_, tag)) = rest.split_once('{') {
        let close = match tag.as_bytes().first() {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            _ => {
                rest = tag;
                continue;
            }
        };
        let (code, length) = tag_length(&tag[1..], close);
        if code > MOST_TAG_BYTES {
            return refused(format!("one with a tag of {code} bytes beside its strings"), MOST_TAG_BYTES);
        }
        rest = &tag[1 + length..];
    }
    Ok(())
}

/// Bytes of a tag outside of its strings, and in all; `text` starts behind its opening.
fn tag_length(text: &str, close: &str) -> (usize, usize) {
    let (mut code, mut quote, mut escaped) = (0, None, false);
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(close) => return (code, at),
            None => {
                code += c.len_utf8();
                quote = Some(c).filter(|c| "'\"".contains(*c));
            }
        }
    }
    (code, text.len())
}

fn strftime_error(error: jiff::Error) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"))
}

/// JSON as the template sees it, in the order it was written; counts the bytes of its text.
fn to_value(json: &Json, bytes: &mut u64) -> Value {
    *bytes += 8;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), _, _) => Value::from(value),
            (_, Some(value), _) => Value::from(value),
            (_, _, value) => Value::from(value),
        },
        Json::String(text) => {
            *bytes += text.len() as u64;
            Value::from(text)
        }
        Json::Array(items) => items.iter().map(|item| to_value(item, bytes)).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, item)| (key.as_str(), to_value(item, bytes))).collect::<Vec<_>>())
        }
    }
}

/// Turns `{% generation %}` blocks into `{% if true %}` blocks, keeping their white-space marks.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, after)) = tag.split_once("%}") else {
            rest = tag;
            break;
        };
        let word = tag.trim_matches(|char: char| char.is_whitespace() || "+-".contains(char));
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Lists of minijinja can not be changed; a template that queues in an attribute of a namespace gets a new list instead:
/// `ns.x.append(y)` becomes `ns.x + [y]`, and `ns.x.pop(0)` the first and the rest.
fn without_list_changes(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        let Some((tag, after)) = tag.split_once("%}") else {
            rest = &rest[before.len()..];
            break;
        };
        let open = if tag.starts_with('-') { "{%-" } else { "{%" };
        let close = if tag.ends_with('-') { "-%}" } else { "%}" };
        let statement = tag.trim_matches(|char: char| char.is_whitespace() || char == '-');
        let parts = statement.strip_prefix("set ").and_then(|rest| rest.split_once('='));
        let changed = parts.and_then(|(target, value)| {
            let value = value.trim();
            let is_attribute =
                |list: &str| list.contains('.') && list.chars().all(|c| c.is_alphanumeric() || "._".contains(c));
            if let Some((list, item)) = value.strip_suffix(')').and_then(|value| value.split_once(".append(")) {
                return is_attribute(list).then(|| format!("{open} set {list} = {list} + [{item}] {close}"));
            }
            let list = value.strip_suffix(".pop(0)").filter(|list| is_attribute(list))?;
            let first = format!("{open} set {} = {list}[0] -%}}", target.trim());
            Some(format!("{first}{{%- set {list} = {list}[1:] {close}"))
        });
        match changed {
            Some(changed) => out.push_str(&changed),
            None => {
                out.push_str("{%");
                out.push_str(tag);
                out.push_str("%}");
            }
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
