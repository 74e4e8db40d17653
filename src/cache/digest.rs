//! Names: the key of a model, the digest of what lies before a page, the name of a segment.
//!
//! The digest of a position that begins page k is `H(digest of page k - 1's start, ids of page k - 1)`; that of position 0 is
//! the model key's. So a segment's own ids and the digest it starts from give the digest of every page boundary inside it,
//! and two sequences that are equal up to a boundary have the same digest there, however they were cut into segments.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// SHA-256 of what comes before, or of a segment's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// What tells caches apart: the model file, the format of keys and values, the layout of pages, the version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey(pub [u8; 32]);

impl ModelKey {
    /// The key of these facts, in this order; each is told apart from the next.
    pub fn of(facts: &[&[u8]]) -> ModelKey {
        let mut hash = Sha256::new();
        for fact in facts {
            hash.update((fact.len() as u64).to_le_bytes());
            hash.update(fact);
        }
        ModelKey(hash.finalize().into())
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<ModelKey> {
        from_hex(text).map(ModelKey)
    }
}

impl Digest {
    pub(super) fn from_hex(text: &str) -> Option<Digest> {
        from_hex(text).map(Digest)
    }
}

/// The digest of position 0.
pub(super) fn root(key: &ModelKey) -> Digest {
    hash(&[b"rynd kv root", &key.0])
}

/// The digests of the page boundaries of `ids`, the one before them first: `ids.len() / page_tokens + 1`.
pub(super) fn chain(before: Digest, ids: &[u32], page_tokens: usize) -> Vec<Digest> {
    let mut digests = vec![before];
    let mut last = before;
    for page in ids.chunks_exact(page_tokens) {
        last = hash(&[b"page", &last.0, bytemuck::cast_slice(page)]);
        digests.push(last);
    }
    digests
}

/// The name of the segment of these ids.
pub(super) fn name(parent: &Digest, ids: &[u32]) -> Digest {
    hash(&[b"segment", &parent.0, bytemuck::cast_slice(ids)])
}

fn hash(parts: &[&[u8]]) -> Digest {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    Digest(hash.finalize().into())
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let lower = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c);
    if text.len() != 64 || !text.as_bytes().iter().all(lower) {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8; 32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_goes_on_from_any_of_its_boundaries() {
        let ids: Vec<u32> = (0..19).collect();
        let whole = chain(root(&ModelKey([7; 32])), &ids, 4);
        assert_eq!(whole.len(), 5);
        assert_eq!(chain(whole[2], &ids[8..], 4), whole[2..]);
        assert_ne!(chain(whole[2], &ids[7..], 4)[1], whole[3]);
    }

    #[test]
    fn hexadecimal_digits_give_the_key_back_and_nothing_else_is_read() {
        let key = ModelKey::of(&[b"a", b"bc"]);
        assert_eq!(ModelKey::from_hex(&key.to_string()), Some(key));
        assert_ne!(key, ModelKey::of(&[b"ab", b"c"]));
        for text in ["", "12", &"g".repeat(64), &"A".repeat(64), &"\u{e9}".repeat(32)] {
            assert_eq!(ModelKey::from_hex(text), None, "{text}");
        }
    }
}
