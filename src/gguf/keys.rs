//! Typed access to metadata: a missing key and a wrong type are errors that name file and key.
//!
//! `u32("k")` needs the key; `opt_u32("k")` is `None` without it, and still an error when the type is wrong. Any integer
//! width is taken if the number fits, and either float width: converters disagree about both.

use super::array::{Array, ByteStrings};
use super::value::{Value, ValueType};
use super::{Gguf, GgufError};

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident, $opt:ident -> $type:ty, $expected:literal, $cast:expr;)+) => {
        impl Gguf {$(
            $(#[$doc])*
            pub fn $name(&self, key: &str) -> Result<$type, GgufError> {
                self.$opt(key)?.ok_or_else(|| self.missing(key))
            }

            /// The same; `None` when the key is absent.
            pub fn $opt(&self, key: &str) -> Result<Option<$type>, GgufError> {
                self.cast(key, $expected, $cast)
            }
        )+}
    };
}

getters! {
    /// A number from 0 to 2^32 - 1.
    u32, opt_u32 -> u32, "an integer from 0 to 4294967295", |v| u32::try_from(v.as_u64()?).ok();
    /// A number from 0 to 2^64 - 1.
    u64, opt_u64 -> u64, "an integer from 0", Value::as_u64;
    /// A signed number.
    i64, opt_i64 -> i64, "an integer", Value::as_i64;
    /// A float.
    f32, opt_f32 -> f32, "a float", |v| Some(v.as_f64()? as f32);
    /// A bool.
    bool, opt_bool -> bool, "a bool", Value::as_bool;
    /// A string, borrowed from the file.
    str, opt_str -> &str, "a string in UTF-8", Value::as_str;
    /// An array of any type.
    array, opt_array -> &Array, "an array", Value::as_array;
    /// An array of strings as bytes, borrowed from the file.
    byte_strings, opt_byte_strings -> ByteStrings<'_>, "an array of strings", |v| v.as_array()?.byte_strings();
    /// An array of strings, borrowed from the file.
    strs, opt_strs -> Vec<&str>, "an array of strings in UTF-8", strs;
    /// An array of numbers from 0 to 2^32 - 1.
    u32s, opt_u32s -> Vec<u32>, "an array of integers from 0 to 4294967295",
        |v| same(v, ValueType::U32, u32::from_le_bytes).or_else(|| collect(v, |v| u32::try_from(v.as_u64()?).ok()));
    /// An array of signed 32-bit numbers.
    i32s, opt_i32s -> Vec<i32>, "an array of 32-bit integers",
        |v| same(v, ValueType::I32, i32::from_le_bytes).or_else(|| collect(v, |v| i32::try_from(v.as_i64()?).ok()));
    /// An array of floats.
    f32s, opt_f32s -> Vec<f32>, "an array of floats",
        |v| same(v, ValueType::F32, f32::from_le_bytes).or_else(|| collect(v, |v| Some(v.as_f64()? as f32)));
    /// An array of bools.
    bools, opt_bools -> Vec<bool>, "an array of bools", |v| collect(v, |v| v.as_bool());
}

impl Gguf {
    fn cast<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        cast: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match cast(value) {
            Some(value) => Ok(Some(value)),
            None => Err(GgufError::WrongType {
                file: self.path().to_owned(),
                key: key.to_owned(),
                expected,
                found: format!("{} ({})", value, value.kind().name()),
            }),
        }
    }

    fn missing(&self, key: &str) -> GgufError {
        GgufError::MissingKey { file: self.path().to_owned(), key: key.to_owned() }
    }
}

/// All items of an array that holds exactly this type: the usual case, and a vocabulary has 150,000 of them.
fn same<T, const N: usize>(value: &Value, item: ValueType, from: fn([u8; N]) -> T) -> Option<Vec<T>> {
    let bytes = value.as_array()?.payload(item)?;
    Some(bytes.as_chunks().0.iter().map(|bytes| from(*bytes)).collect())
}

/// All items, or none when one does not convert or the file has shrunk.
fn collect<T>(value: &Value, cast: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
    let array = value.as_array()?;
    // Walked items lie in the file, so the length is bounded by it.
    let mut items = Vec::with_capacity(array.len());
    for value in array {
        items.push(cast(value)?);
    }
    (items.len() == array.len()).then_some(items)
}

fn strs(value: &Value) -> Option<Vec<&str>> {
    let array = value.as_array()?;
    let mut strs = Vec::with_capacity(array.len());
    for bytes in array.byte_strings()? {
        strs.push(std::str::from_utf8(bytes).ok()?);
    }
    (strs.len() == array.len()).then_some(strs)
}
