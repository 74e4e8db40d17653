//! Metadata values and their types.
//!
//! Integers keep their width and sign, so that a file can be copied key by key; readers ask for a number that fits
//! (`as_u64`) because converters disagree about widths. A float is never an integer, nor the other way round.

use gguf_rs::MetadataValueType;

use super::array::{Array, Text};
use super::image::Slice;
use super::walk::{self, Fault, head};

/// The type of a metadata value or of an array's items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// The type with this id in a file.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Some(match MetadataValueType::try_from(id).ok()? {
            MetadataValueType::Uint8 => ValueType::U8,
            MetadataValueType::Int8 => ValueType::I8,
            MetadataValueType::Uint16 => ValueType::U16,
            MetadataValueType::Int16 => ValueType::I16,
            MetadataValueType::Uint32 => ValueType::U32,
            MetadataValueType::Int32 => ValueType::I32,
            MetadataValueType::Float32 => ValueType::F32,
            MetadataValueType::Bool => ValueType::Bool,
            MetadataValueType::String => ValueType::String,
            MetadataValueType::Array => ValueType::Array,
            MetadataValueType::Uint64 => ValueType::U64,
            MetadataValueType::Int64 => ValueType::I64,
            MetadataValueType::Float64 => ValueType::F64,
        })
    }

    /// The id in a file.
    pub fn id(self) -> u32 {
        let kind = match self {
            ValueType::U8 => MetadataValueType::Uint8,
            ValueType::I8 => MetadataValueType::Int8,
            ValueType::U16 => MetadataValueType::Uint16,
            ValueType::I16 => MetadataValueType::Int16,
            ValueType::U32 => MetadataValueType::Uint32,
            ValueType::I32 => MetadataValueType::Int32,
            ValueType::F32 => MetadataValueType::Float32,
            ValueType::Bool => MetadataValueType::Bool,
            ValueType::String => MetadataValueType::String,
            ValueType::Array => MetadataValueType::Array,
            ValueType::U64 => MetadataValueType::Uint64,
            ValueType::I64 => MetadataValueType::Int64,
            ValueType::F64 => MetadataValueType::Float64,
        };
        kind as u32
    }

    /// Bytes of one value; `None` for strings and arrays, which carry their length.
    pub fn bytes(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }

    /// The name in messages: `u32`, `string`.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }
}

/// A metadata value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(Text),
    Array(Array),
}

impl Value {
    /// The value's type.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// An integer of any width, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U64(v) => Some(v),
            _ => self.as_i64().and_then(|v| u64::try_from(v).ok()),
        }
    }

    /// An integer of any width, if it fits.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => i64::try_from(v).ok(),
            Value::I64(v) => Some(v),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// A float of either width. An integer is not a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = *self { Some(v) } else { None }
    }

    /// A string, if it is valid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(v) = self { v.as_str() } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(v) = self { Some(v) } else { None }
    }

    /// The value of type `kind` at the start of `payload`, and its bytes.
    pub(super) fn decode(kind: ValueType, payload: &Slice) -> Result<(Value, usize), Fault> {
        let end = walk::size(kind, payload, 0)?;
        let value = match kind {
            ValueType::String => Some(Value::String(Text::new(payload.part(8..end)))),
            ValueType::Array => Array::decode(&payload.part(0..end)).map(Value::Array),
            _ => Value::scalar(kind, payload),
        };
        // The walk above has seen the same bytes, so this is the fault of a file that changes under the mapping.
        value.map(|value| (value, end)).ok_or_else(|| Fault::new(0, "changed while it was read"))
    }

    /// The number or bool of type `kind` at the start of `bytes`; `None` for other types or when bytes are missing.
    pub(super) fn scalar(kind: ValueType, bytes: &[u8]) -> Option<Value> {
        Some(match kind {
            ValueType::U8 => Value::U8(u8::from_le_bytes(head(bytes)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(head(bytes)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(head(bytes)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(head(bytes)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(head(bytes)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(head(bytes)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(head(bytes)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(head(bytes)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(head(bytes)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(head(bytes)?)),
            ValueType::Bool => Value::Bool(head::<1>(bytes)? != [0]),
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Appends the value's bytes (without its type) in the file's encoding.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(v) => out.push(*v),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push((*v).into()),
            Value::String(text) => text.encode(out),
            Value::Array(array) => array.encode(out),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(Text::from(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(Text::from(text.as_str()))
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Value {
        Value::Array(array)
    }
}

macro_rules! from_scalar {
    ($($rust:ty => $variant:ident),+) => {$(
        impl From<$rust> for Value {
            fn from(v: $rust) -> Value {
                Value::$variant(v)
            }
        }

        impl From<&[$rust]> for Array {
            fn from(items: &[$rust]) -> Array {
                let values = items.iter().map(|&v| Value::$variant(v));
                Array::encoded(ValueType::$variant, values)
            }
        }
    )+};
}

from_scalar!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64);
from_scalar!(f32 => F32, f64 => F64, bool => Bool);
