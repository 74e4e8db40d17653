//! The arguments of a call as they arrive: valid JSON passes through byte for byte, and what has one reading is mended.
//!
//! Mended: a comma too many or too few, single quotes, keys without quotes, Python's `True`, `False` and `None`, raw
//! newlines in strings, escapes that JSON does not have, and closers that are missing where the call is known to end.
//! Anything else is told to the caller, who hands the text over as it is.

/// What a character made of the arguments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fed {
    More,
    /// The outermost object is closed.
    Done,
    /// No JSON, and no single reading.
    Bad,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Level {
    Object,
    Array,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Expect {
    Value,
    Key,
    Colon,
    Comma,
}

#[derive(Debug, Clone, PartialEq)]
enum Escape {
    None,
    Backslash,
    Unicode(String),
}

#[derive(Debug, Clone)]
struct Text {
    /// None: a marker of the format closes it, and there are no escapes.
    quote: Option<char>,
    key: bool,
    escape: Escape,
}

/// Longest number or bare word.
const LONGEST_WORD: usize = 128;

/// A JSON object in the making.
#[derive(Debug, Clone)]
pub struct Arguments {
    levels: Vec<Level>,
    expect: Expect,
    /// A comma that is written once something follows it, and the white space behind it.
    comma: Option<String>,
    word: String,
    text: Option<Text>,
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments { levels: vec![], expect: Expect::Value, comma: None, word: String::new(), text: None }
    }
}

impl Arguments {
    /// Whether the next character belongs to a string.
    pub fn in_string(&self) -> bool {
        self.text.is_some()
    }

    /// Whether nothing of an object has come.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty() && self.expect == Expect::Value
    }

    /// Takes one character and writes what is certain.
    pub fn feed(&mut self, c: char, out: &mut String) -> Fed {
        if self.text.is_some() {
            self.in_text(c, out);
            return Fed::More;
        }
        if is_word(c) && (!self.word.is_empty() || matches!(self.expect, Expect::Value | Expect::Key)) {
            self.word.push(c);
            let top = !self.levels.is_empty() && self.word.len() <= LONGEST_WORD;
            return if top { Fed::More } else { self.bad(None, out) };
        }
        if !self.word.is_empty() && !self.end_word(out) {
            return self.bad(Some(c), out);
        }
        if c.is_ascii_whitespace() {
            match &mut self.comma {
                Some(held) => held.push(c),
                None => out.push(c),
            }
            return Fed::More;
        }
        let array = self.levels.last() == Some(&Level::Array);
        match (c, self.expect) {
            (':', Expect::Colon) => {
                out.push(c);
                self.expect = Expect::Value;
            }
            (',', Expect::Comma) => {
                self.comma = Some(String::new());
                self.expect = if array { Expect::Value } else { Expect::Key };
            }
            ('}', Expect::Key | Expect::Comma) if !array => return self.close_level(c, out),
            (']', Expect::Value | Expect::Comma) if array => return self.close_level(c, out),
            ('{', Expect::Value) | ('{' | '[', Expect::Comma) if array || self.levels.is_empty() => self.open(c, out),
            ('{' | '[', Expect::Value) if !self.levels.is_empty() => self.open(c, out),
            ('"' | '\'', Expect::Value) if !self.levels.is_empty() => self.open_text(Some(c), out),
            ('"' | '\'', Expect::Key | Expect::Comma) => self.open_text(Some(c), out),
            _ => return self.bad(Some(c), out),
        }
        Fed::More
    }

    /// Takes the marker by which some formats write the quotes of a string.
    pub fn feed_marker(&mut self, out: &mut String) -> Fed {
        match &self.text {
            Some(Text { quote: None, .. }) => self.close_text(out),
            Some(_) => return Fed::Bad,
            None if self.word.is_empty() && !self.levels.is_empty() && self.expect != Expect::Colon => {
                self.open_text(None, out);
            }
            None => return Fed::Bad,
        }
        Fed::More
    }

    /// Writes the closers that are missing. False where a value or the end of a string is missing too.
    pub fn close(&mut self, out: &mut String) -> bool {
        if self.text.is_some() || self.levels.is_empty() || (!self.word.is_empty() && !self.end_word(out)) {
            return false;
        }
        let empty_array = self.levels.last() == Some(&Level::Array) && self.expect == Expect::Value;
        if !empty_array && !matches!(self.expect, Expect::Key | Expect::Comma) {
            return false;
        }
        self.comma = None;
        for level in self.levels.drain(..).rev() {
            out.push(if level == Level::Object { '}' } else { ']' });
        }
        true
    }

    fn separate(&mut self, out: &mut String) {
        match self.comma.take() {
            Some(space) => {
                out.push(',');
                out.push_str(&space);
            }
            None if self.expect == Expect::Comma => out.push(','),
            None => {}
        }
    }

    fn open(&mut self, c: char, out: &mut String) {
        self.separate(out);
        out.push(c);
        self.levels.push(if c == '{' { Level::Object } else { Level::Array });
        self.expect = if c == '{' { Expect::Key } else { Expect::Value };
    }

    fn close_level(&mut self, c: char, out: &mut String) -> Fed {
        if let Some(space) = self.comma.take() {
            out.push_str(&space);
        }
        out.push(c);
        self.levels.pop();
        self.expect = Expect::Comma;
        if self.levels.is_empty() { Fed::Done } else { Fed::More }
    }

    fn open_text(&mut self, quote: Option<char>, out: &mut String) {
        self.separate(out);
        out.push('"');
        let object = self.levels.last() == Some(&Level::Object);
        let key = object && self.expect != Expect::Value;
        self.text = Some(Text { quote, key, escape: Escape::None });
    }

    fn close_text(&mut self, out: &mut String) {
        out.push('"');
        let key = self.text.take().is_some_and(|text| text.key);
        self.expect = if key { Expect::Colon } else { Expect::Comma };
    }

    fn in_text(&mut self, c: char, out: &mut String) {
        let Some(text) = &mut self.text else { return };
        match std::mem::replace(&mut text.escape, Escape::None) {
            Escape::None if text.quote == Some(c) => self.close_text(out),
            Escape::None if c == '\\' && text.quote.is_some() => text.escape = Escape::Backslash,
            Escape::None => escape(c, out),
            Escape::Backslash => match c {
                'u' => text.escape = Escape::Unicode(String::new()),
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => out.extend(['\\', c]),
                '\'' => out.push(c),
                _ => {
                    out.push_str("\\\\");
                    escape(c, out);
                }
            },
            Escape::Unicode(mut digits) if c.is_ascii_hexdigit() => {
                digits.push(c);
                if digits.len() == 4 {
                    out.push_str("\\u");
                    out.push_str(&digits);
                } else {
                    text.escape = Escape::Unicode(digits);
                }
            }
            Escape::Unicode(digits) => {
                out.push_str("\\\\u");
                out.push_str(&digits);
                self.in_text(c, out);
            }
        }
    }

    fn end_word(&mut self, out: &mut String) -> bool {
        let word = std::mem::take(&mut self.word);
        if self.expect == Expect::Key {
            self.separate(out);
            quote(&word, out);
            self.expect = Expect::Colon;
            return true;
        }
        let literal = match word.as_str() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other if serde_json::from_str::<serde_json::Value>(other).is_ok() => other,
            _ => {
                self.word = word;
                return false;
            }
        };
        self.separate(out);
        out.push_str(literal);
        self.expect = Expect::Comma;
        true
    }

    /// Writes what was held back, so that nothing is lost.
    fn bad(&mut self, c: Option<char>, out: &mut String) -> Fed {
        if let Some(space) = self.comma.take() {
            out.push(',');
            out.push_str(&space);
        }
        out.push_str(&std::mem::take(&mut self.word));
        out.extend(c);
        Fed::Bad
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '.' | '$')
}

/// Writes a character of a JSON string.
pub fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0'..'\u{20}' => out.push_str(&format!("\\u{:04x}", c as u32)),
        _ => out.push(c),
    }
}

/// Writes a JSON string.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    text.chars().for_each(|c| escape(c, out));
    out.push('"');
}

/// The object that a text is, mended where it must be.
pub fn mend(text: &str) -> Option<String> {
    let (mut arguments, mut out) = (Arguments::default(), String::new());
    let mut chars = text.trim().chars();
    for c in chars.by_ref() {
        match arguments.feed(c, &mut out) {
            Fed::More => {}
            Fed::Done => return chars.next().is_none().then_some(out),
            Fed::Bad => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_json_passes_byte_for_byte() {
        for text in [
            "{}",
            r#"{ "a" : [1, -2.5e3, true,false, null, {}, [], "x\u00e9\n\"\\/" ] , "b":{"c":{"d":[[]]}}}"#,
            "{\n  \"a\": \"<tool_call> } ] ' é😀\",\n  \"b\": \"\"\n}",
        ] {
            assert_eq!(mend(text).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_has_one_reading_is_mended() {
        for (text, wanted) in [
            (r#"{"a": 1,}"#, r#"{"a": 1}"#),
            (r#"{"a": [1, 2, ], }"#, r#"{"a": [1, 2 ] }"#),
            (r#"{"a": 1 "b": 2}"#, r#"{"a": 1 ,"b": 2}"#),
            (r#"{'a': 'it "is"', b: True, c_d: None}"#, r#"{"a": "it \"is\"", "b": true, "c_d": null}"#),
            ("{\"a\": \"x\ny\tz\"}", r#"{"a": "x\ny\tz"}"#),
            (r#"{"a": "\d+\s\'\uZ"}"#, r#"{"a": "\\d+\\s'\\uZ"}"#),
        ] {
            assert_eq!(mend(text).as_deref(), Some(wanted));
            serde_json::from_str::<serde_json::Value>(wanted).unwrap();
        }
        for text in ["", "x", "[1]", "{", r#"{"a": }"#, r#"{"a" 1}"#, r#"{"a": 1]"#, r#"{"a": foo}"#, "{} x", r#"{,}"#]
        {
            assert_eq!(mend(text), None, "{text}");
        }
    }

    #[test]
    fn closers_are_added_only_where_nothing_else_is_missing() {
        for (text, wanted) in [
            (r#"{"a": {"b": [1"#, Some(r#"{"a": {"b": [1]}}"#)),
            (r#"{"a": 1, "#, Some(r#"{"a": 1}"#)),
            ("{", Some("{}")),
            (r#"{"a": "x"#, None),
            (r#"{"a": "#, None),
            (r#"{"a""#, None),
        ] {
            let (mut arguments, mut out) = (Arguments::default(), String::new());
            text.chars().for_each(|c| assert_eq!(arguments.feed(c, &mut out), Fed::More));
            assert_eq!(arguments.close(&mut out).then_some(out.as_str()), wanted, "{text}");
        }
    }
}
