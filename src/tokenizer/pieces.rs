//! A list of byte strings in one buffer, and the index from a byte string back to its id.
//!
//! A vocabulary of 150,000 tokens is one allocation instead of 150,000, and the index stores ids only:
//! both matter, because the tokenizer is built at every start of the program.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// Byte strings by id.
#[derive(Debug, Default)]
pub struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>, // (n), offset past the end of each
}

impl Pieces {
    pub fn with_capacity(pieces: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(pieces) }
    }

    /// Appends a piece, written by `write` at the end of the buffer. The total stays below 4 GiB:
    /// `Vocab::check` has seen to that, and no decoding makes a text longer.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The empty string for an id that is out of range.
    pub fn get(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// From a byte string of one [`Pieces`] to its id.
#[derive(Debug, Default)]
pub struct Index {
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Index {
    /// Where two pieces are equal, the later id wins.
    pub fn new(pieces: &Pieces) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut ids = HashTable::with_capacity(pieces.len());
        for id in 0..pieces.len() as u32 {
            let piece = pieces.get(id);
            let hash = hasher.hash_one(piece);
            match ids.find_mut(hash, |&other| pieces.get(other) == piece) {
                Some(slot) => *slot = id,
                None => {
                    ids.insert_unique(hash, id, |&id| hasher.hash_one(pieces.get(id)));
                }
            }
        }
        Self { ids, hasher }
    }

    pub fn find(&self, pieces: &Pieces, piece: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(piece);
        self.ids.find(hash, |&id| pieces.get(id) == piece).copied()
    }
}
