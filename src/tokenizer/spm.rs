//! SentencePiece encoding of a text without special tokens: start from characters, join the two
//! neighbours whose concatenation is the best-scored token (the leftmost of equals) until none is.
//!
//! A character that is no token is written as its bytes, `<0xF0>` and so on. What has neither becomes
//! the unknown token, or nothing where the vocabulary has none.

use super::pieces::{Index, Pieces};
use super::vocab::{TokenType, TokenizerError};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

const NONE: u32 = u32::MAX;
/// SentencePiece writes a space as this, U+2581.
pub const SPACE: &str = "\u{2581}";

#[derive(Debug)]
pub struct Spm {
    scores: Vec<f32>, // (n_vocab), NaN for a token that is never put together
    byte_ids: [u32; 256],
    unknown: Option<u32>,
}

/// A stretch of the text, linked to its neighbours; empty once it was joined to its left one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    bytes: u32,
    previous: u32,
    next: u32,
}

/// Two neighbours that make a token; out of date when their lengths no longer add up to `bytes`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    bytes: u32,
}

impl Eq for Pair {}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        // -0.0 and 0.0 are equal scores; `Spm::new` refuses NaN.
        let score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        score.then(other.left.cmp(&self.left)).then(self.bytes.cmp(&other.bytes))
    }
}

impl Spm {
    pub fn new(scores: Vec<f32>, texts: &Pieces, index: &Index, unknown: Option<u32>) -> Result<Self, TokenizerError> {
        if scores.is_empty() {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.scores" });
        }
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::BadScore { index: at });
        }
        let mut byte_ids = [NONE; 256];
        for byte in 0..=255u8 {
            let named = index.find(texts, format!("<0x{byte:02X}>").as_bytes());
            byte_ids[byte as usize] = named.or_else(|| index.find(texts, &[byte])).unwrap_or(NONE);
        }
        Ok(Self { scores, byte_ids, unknown })
    }

    /// Control tokens are not put together from the pieces of a text.
    pub fn never_join(&mut self, types: &[TokenType]) {
        for (score, kind) in self.scores.iter_mut().zip(types) {
            if matches!(kind, TokenType::Control | TokenType::Unknown) {
                *score = f32::NAN;
            }
        }
    }

    /// `text` has its spaces written as [`SPACE`] already.
    pub fn encode(&self, text: &str, texts: &Pieces, index: &Index, ids: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (start, char) in text.char_indices() {
            let at = symbols.len() as u32;
            let bytes = char.len_utf8() as u32;
            symbols.push(Symbol { start: start as u32, bytes, previous: at.wrapping_sub(1), next: at + 1 });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let mut queue = BinaryHeap::new();
        let try_pair = |left: u32, right: u32, symbols: &[Symbol], queue: &mut BinaryHeap<Pair>| {
            if left == NONE || right == NONE {
                return;
            }
            let (a, b) = (symbols[left as usize], symbols[right as usize]);
            let bytes = a.bytes + b.bytes;
            let joined = &text.as_bytes()[a.start as usize..(a.start + bytes) as usize];
            if let Some(id) = index.find(texts, joined).filter(|&id| !self.scores[id as usize].is_nan()) {
                queue.push(Pair { score: self.scores[id as usize], left, right, bytes });
            }
        };
        for right in 1..symbols.len() as u32 {
            try_pair(right - 1, right, &symbols, &mut queue);
        }
        while let Some(Pair { left, right, bytes, .. }) = queue.pop() {
            let (a, b) = (symbols[left as usize], symbols[right as usize]);
            if a.bytes == 0 || b.bytes == 0 || a.bytes + b.bytes != bytes {
                continue;
            }
            symbols[left as usize].bytes = bytes;
            symbols[left as usize].next = b.next;
            symbols[right as usize].bytes = 0;
            if b.next != NONE {
                symbols[b.next as usize].previous = left;
            }
            try_pair(a.previous, left, &symbols, &mut queue);
            try_pair(left, b.next, &symbols, &mut queue);
        }

        let mut at = 0;
        while at != NONE {
            let Symbol { start, bytes, next, .. } = symbols[at as usize];
            let piece = &text.as_bytes()[start as usize..(start + bytes) as usize];
            match index.find(texts, piece) {
                Some(id) => ids.push(id),
                None => self.spell(piece, ids),
            }
            at = next;
        }
    }

    fn spell(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if piece.iter().any(|&byte| self.byte_ids[byte as usize] == NONE) {
            ids.extend(self.unknown);
            return;
        }
        ids.extend(piece.iter().map(|&byte| self.byte_ids[byte as usize]));
    }
}
