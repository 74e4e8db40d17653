//! llama.cpp's grammars in Lark.
//!
//! A rule is a name, `::=` and alternatives of strings, character classes, names and groups, repeated by `*`, `+`, `?` and
//! `{m,n}`; a line that begins with a name and `::=` begins a rule. Lookups and tokens by id are refused.

use super::SamplerError;
use std::fmt::Write;

/// The same language, with `root` as `start`.
pub fn to_lark(text: &str) -> Result<String, SamplerError> {
    let mut reader = Reader { text, at: 0 };
    let (mut lark, mut rules, mut used) = (String::new(), vec![], vec![]);
    reader.space(true);
    while reader.at < text.len() {
        let name = reader.name().ok_or_else(|| reader.error("a rule's name"))?;
        reader.space(true);
        if !reader.take("::=") {
            return Err(reader.error("::="));
        }
        let body = reader.alternatives(0, &mut used)?;
        writeln!(lark, "{}: {body}", rule_name(&name)).unwrap_or_default();
        rules.push(name);
    }
    if !rules.iter().any(|rule| rule == "root") {
        return Err(SamplerError::Grammar { why: "the grammar has no rule 'root'".to_owned() });
    }
    if let Some(missing) = used.iter().find(|name| !rules.contains(name)) {
        return Err(SamplerError::Grammar { why: format!("the grammar uses '{missing}', which it does not define") });
    }
    Ok(lark)
}

/// Deepest group.
const DEEPEST: usize = 64;

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn take(&mut self, with: &str) -> bool {
        let found = self.rest().starts_with(with);
        self.at += if found { with.len() } else { 0 };
        found
    }

    fn error(&self, wanted: &str) -> SamplerError {
        let line = self.text[..self.at].matches('\n').count() + 1;
        let found: String = self.rest().chars().take(12).collect();
        SamplerError::Grammar { why: format!("line {line} of the grammar: {wanted} is expected at {found:?}") }
    }

    /// Skips spaces and comments, and with `lines` the ends of lines.
    fn space(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            match rest.chars().next() {
                Some('#') => self.at += rest.find('\n').unwrap_or(rest.len()),
                Some('\n' | '\r') if lines => self.at += 1,
                Some(' ' | '\t') => self.at += 1,
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let rest = self.rest();
        let n = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
        let name = rest[..n].to_owned();
        self.at += n;
        (!name.is_empty()).then_some(name)
    }

    /// Whether the next line begins a rule.
    fn rule_begins(&self) -> bool {
        let mut ahead = Reader { text: self.text, at: self.at };
        ahead.space(true);
        if ahead.at >= self.text.len() || ahead.name().is_none() {
            return ahead.at >= self.text.len();
        }
        ahead.space(true);
        ahead.rest().starts_with("::=")
    }

    fn alternatives(&mut self, depth: usize, used: &mut Vec<String>) -> Result<String, SamplerError> {
        if depth > DEEPEST {
            return Err(SamplerError::Grammar { why: "the grammar's groups are nested too deeply".to_owned() });
        }
        let mut out = String::new();
        loop {
            if depth == 0 && self.rule_begins() {
                self.space(true);
                break;
            }
            self.space(true);
            let Some(c) = self.rest().chars().next() else { break };
            match c {
                ')' if depth > 0 => break,
                '|' => {
                    self.at += 1;
                    // An empty alternative.
                    if out.is_empty() || out.ends_with("| ") {
                        out.push_str("\"\" ");
                    }
                    out.push_str("| ");
                    continue;
                }
                '"' => out.push_str(&self.string()?),
                '[' => out.push_str(&self.class()?),
                '.' => {
                    self.at += 1;
                    out.push_str("/(?s:.)/");
                }
                '(' => {
                    self.at += 1;
                    let inner = self.alternatives(depth + 1, used)?;
                    if !self.take(")") {
                        return Err(self.error(")"));
                    }
                    write!(out, "({inner})").unwrap_or_default();
                }
                _ => {
                    let name = self.name().ok_or_else(|| self.error("a string, a class, a name or a group"))?;
                    out.push_str(&rule_name(&name));
                    used.push(name);
                }
            }
            out.push_str(&self.repetition()?);
            out.push(' ');
        }
        if out.is_empty() || out.ends_with("| ") {
            out.push_str("\"\"");
        }
        Ok(out.trim_end().to_owned())
    }

    fn repetition(&mut self) -> Result<String, SamplerError> {
        let mut ahead = Reader { text: self.text, at: self.at };
        ahead.space(false);
        let sign = match ahead.rest().chars().next() {
            Some(c @ ('*' | '+' | '?')) => {
                self.at = ahead.at + 1;
                return Ok(c.to_string());
            }
            Some('{') => ahead.at,
            _ => return Ok(String::new()),
        };
        self.at = sign;
        let inner = self.rest().split_once('}').map(|(inner, _)| inner[1..].replace(' ', ""));
        let good =
            |inner: &String| !inner.is_empty() && inner.chars().all(|c| c.is_ascii_digit() || c == ',') && inner != ",";
        let Some(inner) = inner.filter(good) else { return Err(self.error("{m}, {m,} or {m,n}")) };
        self.at += self.rest().find('}').map_or(0, |n| n + 1);
        Ok(format!("{{{inner}}}"))
    }

    fn string(&mut self) -> Result<String, SamplerError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.char()? {
                (false, '"') => break,
                (_, c) => text.push(c),
            }
        }
        Ok(serde_json::Value::String(text).to_string())
    }

    fn class(&mut self) -> Result<String, SamplerError> {
        self.at += 1;
        let mut out = String::from("/[");
        if self.take("^") {
            out.push('^');
        }
        loop {
            match self.char()? {
                (false, ']') => break,
                (false, '-') => out.push('-'),
                // By number: no character means anything else to the regular expression then.
                (_, c) => write!(out, "\\u{{{:x}}}", c as u32).unwrap_or_default(),
            }
        }
        out.push_str("]/");
        Ok(out)
    }

    /// A character, and whether it was escaped.
    fn char(&mut self) -> Result<(bool, char), SamplerError> {
        let mut chars = self.text[self.at..].chars();
        let c = chars.next().filter(|&c| c != '\n').ok_or_else(|| self.error("the end of a string or class"))?;
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok((false, c));
        }
        let escaped = chars.next().ok_or_else(|| self.error("an escape"))?;
        let digits = match escaped {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let hex = self.text.get(self.at + 1..self.at + 1 + digits).filter(|_| digits > 0);
        let c = match (escaped, hex) {
            ('x' | 'u' | 'U', hex) => {
                let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
                code.ok_or_else(|| self.error("hexadecimal digits of a character"))?
            }
            ('n', _) => '\n',
            ('r', _) => '\r',
            ('t', _) => '\t',
            (other, _) => other,
        };
        self.at += escaped.len_utf8() + digits;
        Ok((true, c))
    }
}

/// Lark's rules are lower case without dashes.
fn rule_name(name: &str) -> String {
    match name {
        "root" => "start".to_owned(),
        _ => {
            let mut out = String::from("r_");
            for c in name.chars() {
                match c {
                    '-' => out.push_str("_d"),
                    '_' => out.push_str("__"),
                    c if c.is_ascii_uppercase() => {
                        out.push_str("_u");
                        out.push(c.to_ascii_lowercase());
                    }
                    c => out.push(c),
                }
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_lark() {
        let text = "# a list\nroot ::= \"- \" item-A (\"\\n- \" item-A)* \"\\n\"?\nitem-A ::= [a-z\\]^]{1,10} |\n  [^\\n\"] | .\n";
        let wanted = "start: \"- \" r_item_d_ua (\"\\n- \" r_item_d_ua)* \"\\n\"?\nr_item_d_ua: /[\\u{61}-\\u{7a}\\u{5d}\\u{5e}]/{1,10} | /[^\\u{a}\\u{22}]/ | /(?s:.)/\n";
        assert_eq!(to_lark(text).unwrap(), wanted);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, part) in [
            ("root ::= \"a\n", "line 1"),
            ("a ::= \"x\"", "no rule 'root'"),
            ("root ::= b", "'b'"),
            ("root ::= \"a\"\nb = c", "line 2"),
            ("root ::= (\"a\"", ")"),
            ("root ::= \"a\"{x}", "{m}"),
            ("root ::= [\\u12]", "hexadecimal"),
        ] {
            let error = to_lark(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
