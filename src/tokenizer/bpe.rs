//! Byte-pair encoding of one word, as GPT-2 defined it: start from bytes, merge the best-ranked pair
//! of neighbours (the leftmost of equals) until no pair of the list is left.
//!
//! Pairs are looked up as ids, not as text. A merge whose parts or result are not in the vocabulary is
//! skipped when the list is read: nothing could name what it makes. A byte that has no token is dropped,
//! as llama.cpp does; no real vocabulary lacks one that UTF-8 can contain.

use super::pieces::{Index, Pieces};
use super::vocab::TokenizerError;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Merge {
    pair: u64, // left id << 32 | right id
    rank: u32,
    into: u32,
}

#[derive(Debug)]
pub struct Bpe {
    byte_ids: [u32; 256],
    merges: HashTable<Merge>,
    hasher: DefaultHashBuilder,
}

/// One piece of the word so far, linked to its neighbours. `rank` and `into` are of the merge with the
/// right neighbour: a queue entry is out of date exactly when its rank is no longer the symbol's.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
    rank: u32,
    into: u32,
}

/// Buffers that live from word to word.
#[derive(Debug, Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32)>>, // (rank, position of the left symbol)
}

impl Bpe {
    pub fn new(merges: &[&str], texts: &Pieces, index: &Index) -> Result<Self, TokenizerError> {
        let mut byte_ids = [NONE; 256];
        for byte in 0..=255u8 {
            let text = byte_char(byte).to_string();
            byte_ids[byte as usize] = index.find(texts, text.as_bytes()).unwrap_or(NONE);
        }
        let hasher = DefaultHashBuilder::default();
        let mut table = HashTable::with_capacity(merges.len());
        let mut joined = Vec::new();
        let mut guess = 0; // vocabularies number their tokens in the order of the merges
        for (rank, text) in merges.iter().enumerate() {
            // From the second byte on: a piece may itself begin with a space.
            let space = text.bytes().skip(1).position(|byte| byte == b' ').map(|at| at + 1);
            let Some((left, right)) =
                space.map(|at| (&text[..at], &text[at + 1..])).filter(|(_, right)| !right.is_empty())
            else {
                return Err(TokenizerError::BadMerge { index: rank, text: (*text).to_owned() });
            };
            joined.clear();
            joined.extend_from_slice(left.as_bytes());
            joined.extend_from_slice(right.as_bytes());
            let left = index.find(texts, left.as_bytes());
            let right = index.find(texts, right.as_bytes());
            let into = if texts.get(guess) == joined { Some(guess) } else { index.find(texts, &joined) };
            let (Some(left), Some(right), Some(into)) = (left, right, into) else { continue };
            guess = into + 1;
            let pair = pair(left, right);
            let hash = hasher.hash_one(pair);
            if table.find(hash, |merge: &Merge| merge.pair == pair).is_none() {
                let merge = Merge { pair, rank: rank as u32, into };
                table.insert_unique(hash, merge, |merge| hasher.hash_one(merge.pair));
            }
        }
        Ok(Self { byte_ids, merges: table, hasher })
    }

    pub fn encode(&self, word: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { symbols, queue } = scratch;
        symbols.clear();
        queue.clear();
        for &byte in word {
            let id = self.byte_ids[byte as usize];
            if id != NONE {
                let at = symbols.len() as u32;
                symbols.push(Symbol { id, previous: at.wrapping_sub(1), next: at + 1, rank: NONE, into: NONE });
            }
        }
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;
        for at in 0..symbols.len() as u32 {
            self.refresh(at, symbols, queue);
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            let left = symbols[at as usize];
            if left.rank != rank {
                continue;
            }
            let right = symbols[left.next as usize];
            symbols[left.next as usize].rank = NONE;
            symbols[at as usize].id = left.into;
            symbols[at as usize].next = right.next;
            if right.next != NONE {
                symbols[right.next as usize].previous = at;
            }
            self.refresh(at, symbols, queue);
            if left.previous != NONE {
                self.refresh(left.previous, symbols, queue);
            }
        }
        let mut at = 0;
        while at != NONE {
            ids.push(symbols[at as usize].id);
            at = symbols[at as usize].next;
        }
    }

    /// Looks up the merge of a symbol with its right neighbour, and queues it.
    fn refresh(&self, at: u32, symbols: &mut [Symbol], queue: &mut BinaryHeap<Reverse<(u32, u32)>>) {
        let symbol = symbols[at as usize];
        let merge = symbols.get(symbol.next as usize).and_then(|right| {
            let pair = pair(symbol.id, right.id);
            self.merges.find(self.hasher.hash_one(pair), |merge| merge.pair == pair)
        });
        let (rank, into) = merge.map_or((NONE, NONE), |merge| (merge.rank, merge.into));
        symbols[at as usize].rank = rank;
        symbols[at as usize].into = into;
        if rank != NONE {
            queue.push(Reverse((rank, at)));
        }
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// GPT-2 writes each byte as a printable character: itself where Latin-1 prints it, else the next
/// unused code point from U+0100 on.
pub fn byte_char(byte: u8) -> char {
    let code = u32::from(byte);
    let shifted = match byte {
        0x00..=0x20 => 0x100 + code,
        0x7f..=0xa0 => 0x121 + code - 0x7f,
        0xad => 0x143,
        _ => code,
    };
    char::from_u32(shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The inverse of [`byte_char`].
pub fn char_byte(char: char) -> Option<u8> {
    let code = char as u32;
    let byte = match code {
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => code,
    };
    u8::try_from(byte).ok().filter(|&byte| byte_char(byte) == char)
}
