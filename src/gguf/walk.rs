//! How long an encoded value is: the one place that follows lengths and counts found in a file.
//!
//! Nothing is allocated on the way, whatever a file claims; each step is checked against the bytes that are there. A
//! vocabulary is a few hundred thousand steps of one length each, about a millisecond.

use super::value::ValueType;

/// Arrays in arrays deeper than this are refused: no model has them, and each level is a call.
const MAX_DEPTH: u32 = 8;

/// What is wrong with an encoded value, and how many bytes after its start.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) problem: String,
}

impl Fault {
    pub(super) fn new(at: usize, problem: impl Into<String>) -> Fault {
        Fault { at, problem: problem.into() }
    }

    fn short(at: usize, what: &str, need: impl std::fmt::Display, left: usize) -> Fault {
        Fault::new(at, format!("{what} needs {need} bytes, but only {left} follow in the file"))
    }
}

/// The first `N` bytes.
pub(super) fn head<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// Bytes of the value of type `kind` that starts at the front of `bytes`.
pub(super) fn size(kind: ValueType, bytes: &[u8], depth: u32) -> Result<usize, Fault> {
    match kind {
        ValueType::String => string(bytes, 0),
        ValueType::Array => array(bytes, depth),
        _ => match kind.bytes() {
            Some(n) if n <= bytes.len() => Ok(n),
            _ => Err(Fault::short(0, kind.name(), kind.bytes().unwrap_or(0), bytes.len())),
        },
    }
}

/// The end of the string (u64 length, bytes) that starts at `at`.
pub(super) fn string(bytes: &[u8], at: usize) -> Result<usize, Fault> {
    let left = &bytes[at..];
    let Some(len) = head(left).map(u64::from_le_bytes) else {
        return Err(Fault::short(at, "the length of a string", 8, left.len()));
    };
    match usize::try_from(len) {
        Ok(n) if n <= left.len() - 8 => Ok(at + 8 + n),
        _ => Err(Fault::short(at, "a string", len, left.len() - 8)),
    }
}

/// Bytes of the array (u32 item type, u64 count, items) at the front of `bytes`.
fn array(bytes: &[u8], depth: u32) -> Result<usize, Fault> {
    let (Some(id), Some(count)) = (head(bytes), bytes.get(4..).and_then(head)) else {
        return Err(Fault::short(0, "the start of an array", 12, bytes.len()));
    };
    let (id, count) = (u32::from_le_bytes(id), u64::from_le_bytes(count));
    let item =
        ValueType::from_id(id).ok_or_else(|| Fault::new(0, format!("an array's items have the unknown type {id}")))?;
    let left = bytes.len() - 12;
    // The fewest bytes that an item can have bound the count before anything loops over it.
    let least: u128 = match item {
        ValueType::String => 8,
        ValueType::Array => 12,
        _ => item.bytes().unwrap_or(0) as u128,
    };
    let need = u128::from(count) * least;
    if need > left as u128 {
        return Err(Fault::short(4, &format!("an array of {count} x {}", item.name()), need, left));
    }
    let mut at = 12;
    match item {
        ValueType::String => {
            for _ in 0..count {
                at = string(bytes, at)?;
            }
        }
        ValueType::Array => {
            if depth + 1 >= MAX_DEPTH {
                return Err(Fault::new(0, format!("arrays are nested more than {MAX_DEPTH} deep")));
            }
            for _ in 0..count {
                at += array(&bytes[at..], depth + 1).map_err(|fault| Fault { at: at + fault.at, ..fault })?;
            }
        }
        _ => at += need as usize,
    }
    Ok(at)
}
