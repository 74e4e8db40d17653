//! `tokenizer.model`: the SentencePiece protocol buffer, of which only the pieces are read.
//!
//! A ModelProto holds its pieces in field 1; a piece has its text in field 1, a float score in 2 and a type in 3. All
//! other fields are skipped by their wire types. The types are GGUF's token types, number for number.

use std::path::Path;

use serde_json::Value as Json;

use super::super::QuantizeError;
use super::problem;
use super::vocab::{Tokens, looks_special};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
/// Scores of tokens that no merge makes.
const PADDING_SCORE: f32 = -10_000.0;
const ADDED_SCORE: f32 = -1000.0;

/// A vocabulary of `size` tokens: the file's pieces, then what `tokenizer_config.json` adds.
pub fn read(path: &Path, size: usize, settings: &Json) -> Result<Tokens, QuantizeError> {
    let bytes = std::fs::read(path).map_err(|cause| QuantizeError::Read { path: path.to_owned(), cause })?;
    let mut tokens = Tokens {
        texts: (0..size).map(|id| format!("[PAD{id}]")).collect(),
        types: vec![UNUSED; size],
        scores: vec![PADDING_SCORE; size],
    };
    let damaged = || problem(path, "this is no SentencePiece model; download it again");
    let pieces = pieces(&bytes).filter(|pieces| !pieces.is_empty()).ok_or_else(damaged)?;
    for (id, (text, score, kind)) in pieces.into_iter().enumerate().take(size) {
        tokens.texts[id] = text;
        tokens.scores[id] = score;
        tokens.types[id] = kind;
    }
    for (id, token) in settings["added_tokens_decoder"].as_object().into_iter().flatten() {
        let (Ok(id), Some(text)) = (id.parse::<usize>(), token["content"].as_str()) else { continue };
        if id >= size {
            continue;
        }
        let control = token["special"].as_bool() == Some(true) || looks_special(text);
        tokens.types[id] = if control { CONTROL } else { USER_DEFINED };
        tokens.texts[id] = if control { text.to_owned() } else { text.replace('\u{2581}', " ") };
        tokens.scores[id] = ADDED_SCORE;
    }
    Ok(tokens)
}

fn pieces(mut bytes: &[u8]) -> Option<Vec<(String, f32, i32)>> {
    let mut pieces = vec![];
    while !bytes.is_empty() {
        let (field, value) = field(&mut bytes)?;
        if let (1, Field::Bytes(piece)) = (field, value) {
            pieces.push(piece_of(piece)?);
        }
    }
    Some(pieces)
}

fn piece_of(mut bytes: &[u8]) -> Option<(String, f32, i32)> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, NORMAL);
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Bytes(bytes)) => text = String::from_utf8(bytes.to_vec()).ok()?,
            (2, Field::Four(bits)) => score = f32::from_bits(bits),
            (3, Field::Number(n)) => kind = i32::try_from(n).ok()?,
            _ => {}
        }
    }
    Some((text, score, kind))
}

enum Field<'a> {
    Number(u64),
    Four(u32),
    Bytes(&'a [u8]),
    Other,
}

/// Takes the next field off the front.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = number(bytes)?;
    let value = match tag & 7 {
        0 => Field::Number(number(bytes)?),
        1 => {
            *bytes = bytes.get(8..)?;
            Field::Other
        }
        2 => {
            let length = usize::try_from(number(bytes)?).ok()?;
            let (head, tail) = bytes.split_at_checked(length)?;
            *bytes = tail;
            Field::Bytes(head)
        }
        5 => {
            let (head, tail) = bytes.split_first_chunk::<4>()?;
            *bytes = tail;
            Field::Four(u32::from_le_bytes(*head))
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

/// Takes a variable-length number off the front.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}
