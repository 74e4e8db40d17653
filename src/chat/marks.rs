//! Marks in what a template is given, so that a message's text can be told from the template's own tokens afterwards.
//!
//! A mark is one character that occurs nowhere else. It goes behind the first character of whatever spells a special
//! token, or could become one beside its neighbours, so white space is trimmed and JSON is written as without it. What
//! a template looks for in a message, such as a control token's name, it no longer finds: there it is text.

use super::error::ChatError;
use crate::tokenizer::Tokenizer;
use serde_json::Value as Json;
use std::collections::HashSet;

/// Characters that no text should have: noncharacters, then a private-use plane.
fn candidates() -> impl Iterator<Item = char> {
    ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}')
}

/// Characters that are looked for: one mark, and places in as many turns as a conversation may have.
const FREE: usize = 20_000;

/// Marks for one rendering.
pub(super) struct Marks<'a> {
    tokenizer: &'a Tokenizer,
    pub mark: char,
    /// More such characters, for places that the caller wants to find again.
    free: Vec<char>,
    silent: bool,
}

impl<'a> Marks<'a> {
    /// Chooses a character that is neither in `values` nor in `texts`.
    pub fn new(tokenizer: &'a Tokenizer, values: &[&Json], texts: &[&str]) -> Result<Self, ChatError> {
        let mut used = HashSet::new();
        let mut see = |text: &str| used.extend(text.chars().filter(|&char| char >= '\u{fdd0}'));
        texts.iter().for_each(|text| see(text));
        values.iter().for_each(|value| walk(value, &mut see));
        let mut free: Vec<char> = candidates().filter(|char| !used.contains(char)).take(FREE).collect();
        let mark = free.pop().ok_or(ChatError::NoMark)?;
        Ok(Self { tokenizer, mark, free, silent: false })
    }

    /// Marks nothing: what a text spells may be a token.
    pub fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    /// The character of a place; no two places share one.
    pub fn sign(&self, place: usize) -> Result<char, ChatError> {
        self.free.get(place).copied().ok_or(ChatError::NoMark)
    }

    /// A text with its marks.
    pub fn marked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.apply_str(&mut text);
        text
    }

    /// The same, but for the tokens named.
    pub fn marked_but(&self, text: &str, tokens: &[&str]) -> String {
        let next = |text: &str| tokens.iter().filter_map(|token| Some((text.find(token)?, *token))).min();
        let (mut out, mut rest) = (String::new(), text);
        while let Some((at, token)) = next(rest) {
            out.push_str(&self.marked(&rest[..at]));
            out.push_str(token);
            rest = &rest[at + token.len()..];
        }
        out.push_str(&self.marked(rest));
        out
    }

    /// Marks every string in `value`, and the keys that need it.
    pub fn apply(&self, value: &mut Json) {
        match value {
            Json::String(text) => self.apply_str(text),
            Json::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Json::Object(map) => {
                map.values_mut().for_each(|item| self.apply(item));
                if !self.silent && map.keys().any(|key| !self.tokenizer.seams(key).is_empty()) {
                    let marked = std::mem::take(map).into_iter().map(|(mut key, item)| {
                        self.apply_str(&mut key);
                        (key, item)
                    });
                    *map = marked.collect();
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    fn apply_str(&self, text: &mut String) {
        if self.silent {
            return;
        }
        for at in self.tokenizer.seams(text).into_iter().rev() {
            text.insert(at, self.mark);
        }
    }
}

fn walk(value: &Json, see: &mut impl FnMut(&str)) {
    match value {
        Json::String(text) => see(text),
        Json::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Json::Object(map) => {
            for (key, item) in map {
                see(key);
                walk(item, see);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}
