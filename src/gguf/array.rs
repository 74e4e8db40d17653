//! Strings and arrays of metadata: ranges of the file in the file's own encoding, so that a vocabulary of 150,000 tokens
//! is one range and no allocation.
//!
//! An array was walked once when the header was read. Its lengths are checked again by the iterators: the file may have
//! changed under the mapping, and iteration then ends early; it never panics.

use std::borrow::Cow;

use super::image::Slice;
use super::value::{Value, ValueType};
use super::walk::{self, head};

/// A string as it lies in the file. The format wants UTF-8, but some vocabularies hold raw bytes.
#[derive(Clone)]
pub struct Text(Slice);

impl Text {
    pub(super) fn new(bytes: Slice) -> Text {
        Text(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The string, if it is valid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The string, with U+FFFD for what is not UTF-8.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        encode_string(&self.0, out);
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text::from(text.as_bytes())
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Text {
        Text(Slice::owned(bytes.to_vec()))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

/// An array: items of one type, which may be arrays again.
#[derive(Clone)]
pub struct Array {
    item: ValueType,
    len: usize,
    items: Slice, // len encoded items
}

impl Array {
    /// An array of strings.
    pub fn of_strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Array {
        Array::encoded(ValueType::String, strings.into_iter().map(|s| Value::String(Text::from(s.as_ref()))))
    }

    /// An array of arrays.
    pub fn of_arrays(arrays: impl IntoIterator<Item = Array>) -> Array {
        Array::encoded(ValueType::Array, arrays.into_iter().map(Value::Array))
    }

    /// The items must all be of type `item`.
    pub(super) fn encoded(item: ValueType, values: impl Iterator<Item = Value>) -> Array {
        let (mut bytes, mut len) = (Vec::new(), 0);
        for value in values {
            value.encode(&mut bytes);
            len += 1;
        }
        Array { item, len, items: Slice::owned(bytes) }
    }

    /// The array that `bytes` holds, item type and count first. The bytes must have been walked.
    pub(super) fn decode(bytes: &Slice) -> Option<Array> {
        let item = ValueType::from_id(u32::from_le_bytes(head(bytes)?))?;
        let len = usize::try_from(u64::from_le_bytes(head(bytes.get(4..)?)?)).ok()?;
        Some(Array { item, len, items: bytes.part(12..bytes.len()) })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.item.id().to_le_bytes());
        out.extend((self.len as u64).to_le_bytes());
        out.extend_from_slice(&self.items);
    }

    /// The encoded items, if they are of this type.
    pub(super) fn payload(&self, item: ValueType) -> Option<&[u8]> {
        (self.item == item).then_some(&*self.items)
    }

    /// The type of the items.
    pub fn item(&self) -> ValueType {
        self.item
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items as values, of whatever type.
    pub fn iter(&self) -> Items<'_> {
        Items { array: self, at: 0, left: self.len }
    }

    /// The strings' bytes in order, borrowed; `None` unless it is an array of strings.
    pub fn byte_strings(&self) -> Option<ByteStrings<'_>> {
        (self.item == ValueType::String).then(|| ByteStrings { bytes: &self.items, at: 0, left: self.len })
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Array) -> bool {
        (self.item, self.len) == (other.item, other.len) && *self.items == *other.items
    }
}

impl<'a> IntoIterator for &'a Array {
    type Item = Value;
    type IntoIter = Items<'a>;
    fn into_iter(self) -> Items<'a> {
        self.iter()
    }
}

/// The items of an array.
pub struct Items<'a> {
    array: &'a Array,
    at: usize,
    left: usize,
}

impl Iterator for Items<'_> {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let Array { item, items, .. } = self.array;
        match item.bytes() {
            Some(bytes) => {
                let value = Value::scalar(*item, items.get(self.at..)?);
                self.at += bytes;
                value
            }
            None => {
                let (value, bytes) = Value::decode(*item, &items.part(self.at..items.len())).ok()?;
                self.at += bytes;
                Some(value)
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

/// The strings of an array as bytes, borrowed from the file.
#[derive(Clone)]
pub struct ByteStrings<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Iterator for ByteStrings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let end = walk::string(self.bytes, self.at).ok()?;
        let string = &self.bytes[self.at + 8..end];
        (self.at, self.left) = (end, self.left - 1);
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

fn encode_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}
